// node scripts/prebuild.mjs [SYSTEM...]: the addons that the package brings, in prebuilds/SYSTEM/densecl.node. Without words all that this
// machine has a compiler for; --cuda makes the CUDA form of this system instead, in prebuilds/cuda/SYSTEM. On Linux with glibc they are
// linked against the symbols of glibc 2.17, with libstdc++ inside, whatever this system has (docs/packaging.md); that of Windows is made by
// MinGW-w64 on Linux; elsewhere the compiler's defaults are what the system has. Each is checked for what it asks of the system.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const work = join(root, 'build-package')

/** The newest glibc that an addon may ask for: what Node 20 itself needs. */
const newestGlibc = [2, 28]

/** Packages whose sysroot has glibc 2.17; linked against, never shipped. */
const glibc = {
  'linux-x64-gnu': {
    compiler: process.arch === 'x64' && process.platform === 'linux' ? 'g++' : 'x86_64-linux-gnu-g++',
    triple: 'x86_64-unknown-linux-gnu',
    format: 'elf64-x86-64',
    linker: 'ld-linux-x86-64.so.2',
    source: '@napi-rs/cross-toolchain-x64-target-x86_64@1.0.0',
    integrity: 'sha512-lecoghCfoTAX9MLFcIx9/nL9M8xdkZ9n8Pki8qjKUNzjiq1zbECdEbzIZAMMHRtrXxifK9dAyYuh8gSxNbr2og==',
  },
  'linux-arm64-gnu': {
    compiler: 'aarch64-linux-gnu-g++',
    processor: 'aarch64',
    triple: 'aarch64-unknown-linux-gnu',
    format: 'elf64-littleaarch64',
    linker: 'ld-linux-aarch64.so.1',
    source: '@napi-rs/cross-toolchain-x64-target-aarch64@1.0.3',
    integrity: 'sha512-EMFcy/ahFsmCY3BI1tMC3wRUYZ+cDuILg7nP1micaKXW1tO1+RvUB1CC6QYe+cv2W4Tuz9wr3qcFExWyjgWf2w==',
  },
}

/** By MinGW-w64 with threads of its own, as C++'s are. */
const windows = { 'win32-x64': { compiler: 'x86_64-w64-mingw32-g++-posix', processor: 'AMD64', objdump: 'x86_64-w64-mingw32-objdump' } }

/** What the CMake of this machine is told to compile for another. */
const crossing = (name, { compiler, processor }) => ({
  CMAKE_SYSTEM_NAME: name,
  CMAKE_SYSTEM_PROCESSOR: processor,
  CMAKE_CXX_COMPILER: compiler,
  CMAKE_C_COMPILER: compiler.replace('g++', 'gcc'),
})

export function fail(problem) {
  console.error(`densecl: ${problem}`)
  process.exit(1)
}

export function run(command, parameters, options = {}) {
  const result = spawnSync(command, parameters, { encoding: 'utf8', cwd: root, maxBuffer: 2 ** 28, ...options })
  if (result.error !== undefined || result.status !== 0)
    fail(`${command} ${parameters.join(' ')} failed\n${result.error?.message ?? `${result.stdout}${result.stderr}`.trim()}`)
  return result.stdout ?? ''
}

const has = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).error === undefined

/** The name of this system, as the loader looks for it (src/tensor/addon.ts). */
export function thisSystem() {
  if (process.platform !== 'linux') return `${process.platform}-${process.arch}`
  const libc = process.report.getReport().header.glibcVersionRuntime === undefined ? 'musl' : 'gnu'
  return `linux-${process.arch}-${libc}`
}

/** A folder with the libraries of glibc 2.17 and nothing else: a whole sysroot would bring its old libstdc++ and libgcc. */
function oldGlibc({ triple, format, linker, source, integrity }) {
  const folder = join(work, 'glibc', triple)
  if (existsSync(join(folder, 'libc.so'))) return folder
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  const [{ filename }] = JSON.parse(run('npm', ['pack', source, '--json', '--pack-destination', folder]))
  const archive = join(folder, filename.replace('@', '').replace('/', '-'))
  const digest = `sha512-${createHash('sha512').update(readFileSync(archive)).digest('base64')}`
  if (digest !== integrity) fail(`${source}: expected ${integrity} but received ${digest}`)
  const inner = `${triple}.tar.xz`
  run('tar', ['-xzf', archive, '-C', folder, '--strip-components=1', `package/${inner}`])
  const libraries = ['libc.so.6', 'libm.so.6', 'libpthread.so.0', 'libdl.so.2', 'librt.so.1', linker]
  run('tar', ['-xJf', join(folder, inner), '-C', folder, '--wildcards', '*/sysroot/lib/*.so*', '*/libc_nonshared.a'])
  const sysroot = join(folder, triple, 'sysroot')
  for (const name of libraries) copyFileSync(join(sysroot, 'lib', name), join(folder, name))
  copyFileSync(join(sysroot, 'usr', 'lib', 'libc_nonshared.a'), join(folder, 'libc_nonshared.a'))
  for (const name of libraries.slice(1, -1)) symlinkSync(name, join(folder, name.replace(/\.\d$/, '')))
  const parts = ['libc.so.6', 'libc_nonshared.a'].map((name) => join(folder, name)).join(' ')
  writeFileSync(join(folder, 'libc.so'), `OUTPUT_FORMAT(${format})\nGROUP(${parts} AS_NEEDED(${join(folder, linker)}))\n`)
  for (const path of [archive, join(folder, inner), join(folder, triple)]) rmSync(path, { recursive: true, force: true })
  return folder
}

/** What every module of an addon's may show: the two names that Node looks for. */
const shown = /^(napi_register_module_v1|node_api_module_get_api_version_v1)$/

/** Ends the program where an addon asks Linux for more than every Node does. */
function checkSymbols(system, path) {
  const symbols = run('objdump', ['-T', path]).split('\n')
  const asked = symbols.filter((line) => line.includes('*UND*'))
  const versions = [...new Set(asked.flatMap((line) => /\(([A-Z]+)_([\d.]+)\)/.exec(line)?.slice(1, 3).join(' ') ?? []))]
  const newest = (word) =>
    versions
      .filter((each) => each.startsWith(`${word} `))
      .map((each) =>
        each
          .slice(word.length + 1)
          .split('.')
          .map(Number),
      )
      .sort(([a, b], [c, d]) => c - a || d - b)[0]
  const [major, minor] = newest('GLIBC') ?? [0, 0]
  if (major > newestGlibc[0] || (major === newestGlibc[0] && minor > newestGlibc[1]))
    fail(`${system}: asks for GLIBC_${major}.${minor}, more than ${newestGlibc.join('.')}`)
  const foreign = versions.filter((each) => !/^(GLIBC|GCC) /.test(each))
  if (foreign.length > 0) fail(`${system}: asks for ${foreign.join(', ')} of a shared library that users may have older`)
  const open = asked
    .filter((line) => !/\((GLIBC|GCC)_[\d.]+\)/.test(line))
    .map((line) => line.trim().split(/\s+/).at(-1))
    .filter((name) => !/^(napi_|node_api_|_ITM_|__gmon_start__|__cxa_pure_virtual|__cxa_thread_atexit_impl)/.test(name))
  if (open.length > 0) fail(`${system}: leaves open ${open.join(', ')}`)
  const given = symbols.filter((line) => / [gwu] /.test(line) && !line.includes('*UND*')).map((line) => line.trim().split(/\s+/).at(-1))
  const leaked = given.filter((name) => !shown.test(name))
  if (leaked.length > 0) fail(`${system}: shows ${leaked.slice(0, 3).join(', ')} to other libraries`)
  return `GLIBC_${major}.${minor}`
}

/** Ends the program where an addon asks Windows for what it does not come with, or node.exe for what is not of its interface to addons. */
function checkImports(system, path) {
  const text = run(windows[system].objdump, ['-p', path])
  const asked = [...text.matchAll(/DLL Name: (.*)\n.*\n((?:\t[0-9a-f]+\t.*\n)*)/g)].map(([, library, rows]) => ({
    library,
    names: rows
      .trim()
      .split('\n')
      .map((row) => row.trim().split(/\s+/).at(-1)),
  }))
  const foreign = asked.map(({ library }) => library).filter((name) => !/^(kernel32|msvcrt)\.dll$|^node\.exe$/i.test(name))
  if (foreign.length > 0) fail(`${system}: asks for ${foreign.join(', ')}, which not every Windows has`)
  const ofNode = asked.filter(({ library }) => library === 'node.exe').flatMap(({ names }) => names)
  const strange = ofNode.filter((name) => !/^(napi_|node_api_)/.test(name))
  if (ofNode.length === 0 || strange.length > 0) fail(`${system}: asks node.exe for ${strange.slice(0, 3).join(', ') || 'nothing'}`)
  const given = [...text.split('Name Pointer] Table')[1].matchAll(/^\t\[ *\d+\] (\w+)$/gm)].map(([, name]) => name)
  const leaked = given.filter((name) => !shown.test(name))
  if (given.length === 0 || leaked.length > 0) fail(`${system}: shows ${leaked.slice(0, 3).join(', ') || 'nothing'} to other libraries`)
  return [...new Set(asked.map(({ library }) => library))].join(', ')
}

/** Builds one, and gives its file. */
function prebuild(system, { cuda }) {
  const [form, old] = [cuda ? 'cuda' : 'cpu', glibc[system]]
  const folder = join('build-package', cuda ? `${system}-cuda` : system)
  const define = {
    ...(old && { DENSECL_GLIBC: oldGlibc(old) }),
    ...(old?.processor && crossing('Linux', old)),
    ...(windows[system] && crossing('Windows', windows[system])),
  }
  const words = Object.entries(define).map(([name, value]) => `-D${name}=${value}`)
  run(process.execPath, [join('scripts', 'native.mjs'), form, '--into', folder, '--', ...words], { stdio: ['ignore', 'ignore', 'inherit'] })
  const built = join(root, folder, 'Release', 'densecl.node')
  const asks =
    process.platform === 'linux' && has('objdump') && old !== undefined
      ? checkSymbols(system, built)
      : windows[system] !== undefined
        ? checkImports(system, built)
        : 'unchecked'
  const to = join(root, 'prebuilds', ...(cuda ? ['cuda'] : []), system)
  mkdirSync(to, { recursive: true })
  copyFileSync(built, join(to, 'densecl.node'))
  const size = (bytes) => `${(bytes / 1000).toFixed(0)} kB`
  console.log(`${system} ${form}: ${size(statSync(built).size)} (${size(gzipSync(readFileSync(built)).length)} gzipped), asks for ${asks}`)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const words = process.argv.slice(2)
  const [cuda, wanted] = [words.includes('--cuda'), words.filter((word) => word !== '--cuda')]
  const here = [
    ...new Set([
      thisSystem(),
      ...Object.entries({ ...glibc, ...windows })
        .filter(([, { compiler }]) => process.platform === 'linux' && has(compiler))
        .map(([system]) => system),
    ]),
  ]
  const unknown = wanted.filter((system) => !here.includes(system))
  if (unknown.length > 0) fail(`${unknown.join(', ')} cannot be built here: this machine can build ${here.join(', ')}`)
  if (cuda) prebuild(thisSystem(), { cuda })
  else for (const system of wanted.length > 0 ? wanted : here) prebuild(system, { cuda })
}
