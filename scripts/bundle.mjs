// npm run bundle [-- OUT.tar.xz] [--tests] [--addon FOLDER]: one archive that runs on a Linux host with neither Node nor network: the
// newest addon (build:cuda first for GPUs) or that of FOLDER, the JavaScript, production dependencies, this very Node, and the
// commit as COMMIT. --tests adds the tests and what they need. OUT ends in .tar.xz (smallest), .tar.gz (opened anywhere) or .tar
// (made in a second). Unpack it anywhere and run densecl/densecl.
import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
function refuse(problem, remedy) {
  console.error(`densecl: ${problem}\n  ${remedy}`)
  process.exit(1)
}

let parsed
try {
  parsed = parseArgs({ options: { tests: { type: 'boolean', default: false }, addon: { type: 'string' } }, allowPositionals: true })
} catch (error) {
  refuse(error.message, 'Expected: bundle.mjs [OUT.tar.xz] [--tests] [--addon FOLDER]')
}
const { tests, addon: wantedAddon } = parsed.values
const target = resolve(parsed.positionals[0] ?? join(root, 'densecl.tar.xz'))
const packing =
  Object.entries({ '.tar': '-cf', '.tar.gz': '-czf', '.tar.xz': '-cJf' }).find(([ending]) => target.endsWith(ending))?.[1] ??
  refuse(`cannot make ${target}`, 'Expected a name that ends in .tar, .tar.gz or .tar.xz.')

function run(command, parameters, options = {}) {
  const result = spawnSync(command, parameters, { encoding: 'utf8', cwd: root, maxBuffer: 2 ** 26, ...options })
  if (result.error !== undefined || (result.status !== 0 && options.strict !== false)) {
    console.error(
      `densecl: ${command} ${parameters.join(' ')} failed\n ` +
        ` ${result.error?.message ?? result.stderr.trim().split('\n').slice(-3).join('\n  ')}`,
    )
    process.exit(1)
  }
  return result.stdout
}

const time = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0)
const addons = (wantedAddon === undefined ? ['build-cuda', 'build'] : [wantedAddon])
  .map((folder) => join(folder, 'Release', 'densecl.node'))
  .sort((a, b) => time(join(root, b)) - time(join(root, a)))
const [addon] = addons
if (time(join(root, addon)) === 0 || !existsSync(join(root, 'dist', 'src'))) {
  refuse(
    `nothing to bundle: ${time(join(root, addon)) === 0 ? addon : 'dist'} is not there`,
    'Run: npm run build && npm run build:cuda (or npm run build:native for a CPU bundle)',
  )
}

/** What the bundle was made of, with + when that is not what was committed; results name it. */
function commit() {
  const git = (...words) => run('git', ['-C', root, ...words], { strict: false }).trim()
  if (process.env.DENSECL_COMMIT !== undefined) return process.env.DENSECL_COMMIT
  return existsSync(join(root, '.git')) ? git('rev-parse', '--short', 'HEAD') + (git('status', '--porcelain') === '' ? '' : '+') : 'unknown'
}

const stage = mkdtempSync(join(tmpdir(), 'densecl-bundle-'))
const home = join(stage, 'densecl')
const copy = (from, to = from) => cpSync(join(root, from), join(home, to), { recursive: true, dereference: true })
try {
  mkdirSync(join(home, 'bin'), { recursive: true })
  const assets = ['bench/peers', 'src/ops/tuning', 'src/report/fonts']
  for (const path of ['package.json', 'LICENSE', 'README.md', 'dist/src', 'dist/bench', ...assets, addon]) copy(path)
  // What npm resolved, from where it is: no registry is asked. Its exit code complains about optional packages of other systems.
  const production = run('npm', ['ls', '--omit=dev', '--all', '--parseable'], { strict: false }).trim().split('\n')
  const development = tests
    ? ['uvu', 'fast-check', 'dequal', 'diff', 'kleur', 'mri', 'sade', 'pure-rand'].map((name) => join(root, 'node_modules', name))
    : []
  for (const path of [...production, ...development]) {
    const inside = relative(root, path)
    if (inside.startsWith('node_modules') && existsSync(path)) cpSync(path, join(home, inside), { recursive: true, dereference: true })
  }
  // Headers serve compiling only; prebuilt libraries of other systems are of no use beside this Node.
  const foreign = (folder, ours) =>
    (existsSync(join(home, folder)) ? readdirSync(join(home, folder)) : []).filter((name) => !ours(name)).map((name) => join(folder, name))
  const glibc = process.report.getReport().header.glibcVersionRuntime !== undefined
  const libc = (name) => name.includes('musl') !== glibc
  const unused = [
    join('node_modules', 'node-addon-api'),
    ...foreign(join('node_modules', '@img'), (name) => !name.startsWith('sharp-') || (name.endsWith(process.arch) && libc(name))),
  ]
  for (const path of unused) rmSync(join(home, path), { recursive: true, force: true })
  if (tests) for (const path of ['dist/tests', 'dist/examples', 'tests/fixtures', 'native/core/ops.def']) copy(path)
  if (tests) copy('src')
  cpSync(process.execPath, join(home, 'bin', 'node'))
  for (const path of [join('bin', 'node'), addon]) run('strip', ['--strip-unneeded', join(home, path)], { strict: false })
  writeFileSync(
    join(home, 'densecl'),
    '#!/bin/sh\nhere=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)\nexec "$here/bin/node" "$here/dist/src/cli/main.js" "$@"\n',
  )
  chmodSync(join(home, 'densecl'), 0o755)
  writeFileSync(join(home, 'COMMIT'), `${commit()}\n`)
  mkdirSync(dirname(target), { recursive: true })
  rmSync(target, { force: true })
  run('tar', ['-C', stage, packing, target, 'densecl'], { env: { ...process.env, XZ_OPT: '-6 -T0' } })
  console.log(`${target}: ${(statSync(target).size / 2 ** 20).toFixed(1)} MiB, with ${addon}`)
} finally {
  rmSync(stage, { recursive: true, force: true })
}
