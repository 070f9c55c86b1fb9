// npm run bundle [-- OUT.tar.xz] [--tests]: one archive that runs on a Linux host with neither Node nor network: the newest addon
// (build:cuda first for GPUs), the JavaScript, production dependencies and this very Node. --tests adds the tests and what
// they need. Unpack it anywhere and run densecl/densecl.
import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const args = process.argv.slice(2)
const tests = args.includes('--tests')
const target = resolve(args.find((arg) => !arg.startsWith('--')) ?? join(root, 'densecl.tar.xz'))

function run(command, parameters, options = {}) {
  const result = spawnSync(command, parameters, { encoding: 'utf8', cwd: root, maxBuffer: 2 ** 26, ...options })
  if (result.error !== undefined || (result.status !== 0 && options.strict !== false)) {
    console.error(`densecl: ${command} ${parameters.join(' ')} failed\n  ${result.error?.message ?? result.stderr.trim().split('\n').slice(-3).join('\n  ')}`)
    process.exit(1)
  }
  return result.stdout
}

const time = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0)
const addons = ['build-cuda', 'build'].map((folder) => join(folder, 'Release', 'densecl.node')).sort((a, b) => time(join(root, b)) - time(join(root, a)))
const [addon] = addons
if (time(join(root, addon)) === 0 || !existsSync(join(root, 'dist', 'src'))) {
  console.error('densecl: nothing to bundle\n  Run: npm run build && npm run build:cuda (or npm run build:native for a CPU bundle)')
  process.exit(1)
}

const stage = mkdtempSync(join(tmpdir(), 'densecl-bundle-'))
const home = join(stage, 'densecl')
const copy = (from, to = from) => cpSync(join(root, from), join(home, to), { recursive: true, dereference: true })
try {
  mkdirSync(join(home, 'bin'), { recursive: true })
  for (const path of ['package.json', 'LICENSE', 'README.md', 'dist/src', 'dist/bench', 'bench/peers', 'src/ops/tuning', addon]) copy(path)
  // What npm resolved, from where it is: no registry is asked. Its exit code complains about optional packages of other systems.
  const production = run('npm', ['ls', '--omit=dev', '--all', '--parseable'], { strict: false }).trim().split('\n')
  const development = tests ? ['uvu', 'fast-check', 'dequal', 'diff', 'kleur', 'mri', 'sade', 'pure-rand'].map((name) => join(root, 'node_modules', name)) : []
  for (const path of [...production, ...development]) {
    const inside = relative(root, path)
    if (inside.startsWith('node_modules') && existsSync(path)) cpSync(path, join(home, inside), { recursive: true, dereference: true })
  }
  // Headers serve compiling only.
  for (const unused of ['node_modules/node-addon-api']) rmSync(join(home, unused), { recursive: true, force: true })
  if (tests) for (const path of ['dist/tests', 'tests/fixtures', 'native/core/ops.def']) copy(path)
  if (tests) copy('src')
  cpSync(process.execPath, join(home, 'bin', 'node'))
  for (const path of [join('bin', 'node'), addon]) run('strip', ['--strip-unneeded', join(home, path)], { strict: false })
  writeFileSync(join(home, 'densecl'), '#!/bin/sh\nhere=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)\nexec "$here/bin/node" "$here/dist/src/cli/main.js" "$@"\n')
  chmodSync(join(home, 'densecl'), 0o755)
  rmSync(target, { force: true })
  run('tar', ['-C', stage, '-cJf', target, 'densecl'], { env: { ...process.env, XZ_OPT: '-6 -T0' } })
  console.log(`${target}: ${(statSync(target).size / 2 ** 20).toFixed(1)} MiB, with ${addon}`)
} finally {
  rmSync(stage, { recursive: true, force: true })
}
