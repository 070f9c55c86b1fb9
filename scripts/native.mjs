// node scripts/native.mjs cuda|simt|mpi|cpu [--sanitize|--quick] [--optional] [--into FOLDER] [-- CMAKE...]: builds another form of the
// addon through CMake, each in a folder of its own. --sanitize: with AddressSanitizer, and for the CPU with UndefinedBehaviorSanitizer (a
// process must preload the runtime of the first: see tests/ops/fuzz.test.ts). --optional prints why it cannot and ends well, for machines
// without the tools. Also what `densecl build` runs in an installed package: it needs the package's dependencies and no network.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

import { keepHash, sourcesHash } from './nativeSources.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const require = createRequire(import.meta.url)
const [form, ...words] = process.argv.slice(2)
const end = words.includes('--') ? words.indexOf('--') : words.length
const [flags, forCMake] = [words.slice(0, end), words.slice(end + 1)]
const into = flags.includes('--into') ? flags[flags.indexOf('--into') + 1] : undefined
const optional = flags.includes('--optional')
const quick = flags.includes('--quick')
const sanitize = flags.includes('--sanitize')
/** The compiler of the MPI that is meant, where a machine has several. */
const mpicxx = process.env.MPICXX || 'mpicxx'
const forms = {
  cuda: { define: 'DENSECL_CUDA', tools: ['cmake', 'nvcc'], folder: 'build-cuda' },
  simt: { define: 'DENSECL_SIMT', tools: ['cmake', process.env.CXX ?? 'g++'], folder: sanitize ? 'build-simt-asan' : 'build-simt' },
  mpi: { define: 'DENSECL_MPI', tools: ['cmake', process.env.CXX ?? 'g++', mpicxx], folder: 'build-mpi' },
  cpu: {
    define: 'DENSECL_CPU',
    tools: ['cmake', process.env.CXX ?? 'g++'],
    folder: sanitize ? 'build-cpu-asan' : quick ? 'build-cpu-quick' : 'build-cpu',
  },
}

function leave(problem, remedy) {
  console.error(`densecl: ${problem}\n  ${remedy}`)
  process.exit(optional ? 0 : 1)
}

const chosen = forms[form]
if (chosen === undefined) leave(`there is no form ${form ?? ''} of the addon.`, `Expected one of ${Object.keys(forms).join(', ')}.`)
for (const tool of chosen.tools) {
  if (spawnSync(tool, ['--version'], { stdio: 'ignore' }).error !== undefined) {
    const hint =
      tool === 'nvcc'
        ? 'Install the CUDA toolkit, 12.0 or later, and put its bin folder on the PATH.'
        : tool === mpicxx
          ? 'Install Open MPI or MPICH. Debian and Ubuntu: apt-get install libopenmpi-dev openmpi-bin.'
          : process.platform === 'win32'
            ? 'Install MSYS2, https://www.msys2.org, in it the packages mingw-w64-ucrt-x86_64-gcc, -cmake and -ninja, and put its ' +
              'ucrt64\\bin on the PATH. (The package from npm has the addon for x64: nothing has to be compiled for it.)'
            : `Debian and Ubuntu: apt-get install ${tool}.`
    leave(`the ${form} addon is not built: ${tool} was not found.`, hint)
  }
}

/** The folder of node_api.h: that of the package, else Node's own headers beside it. */
function nodeHeaders() {
  try {
    return require('node-api-headers').include_dir
  } catch {
    const own = join(dirname(process.execPath), '..', 'include', 'node')
    if (existsSync(join(own, 'node_api.h'))) return own
    return leave(`the ${form} addon is not built: the package node-api-headers is not installed.`, 'Run: npm install')
  }
}
const headers = [nodeHeaders(), dirname(require.resolve('node-addon-api/napi.h'))]
const folder = into ?? chosen.folder
// A folder that is configured already is configured again: it may be for other architectures, or of another MPI, now.
const define = {
  CMAKE_BUILD_TYPE: 'Release',
  [chosen.define]: 'ON',
  DENSECL_SANITIZE: sanitize ? 'ON' : 'OFF',
  DENSECL_QUICK: quick ? 'ON' : 'OFF',
  DENSECL_HEADERS: headers.join(';'),
  DENSECL_ARCHITECTURES: process.env.DENSECL_ARCHITECTURES || 'default',
  ...(form === 'mpi' && { MPI_CXX_COMPILER: mpicxx }),
}
// Of the sources before: they may change meanwhile.
const hash = sourcesHash(form)
const run = (...parameters) => spawnSync('cmake', parameters, { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 28 })
const configured = run(
  ...['-S', '.', '-B', folder, '-U', 'MPI_*'],
  ...Object.entries(define).map(([name, value]) => `-D${name}=${value}`),
  ...forCMake,
)
const result = configured.status === 0 ? run('--build', folder, '--parallel', String(availableParallelism())) : configured
const output = `${result.stdout}\n${result.stderr}`
if (result.status !== 0) {
  const lines = output
    .split('\n')
    .filter((line) => /error|fatal|CMake Error/i.test(line))
    .slice(0, 8)
  console.error(
    `densecl: building the ${form} addon failed:\n    ${(lines.length > 0 ? lines : output.trim().split('\n').slice(-8)).join('\n    ')}`,
  )
  process.exit(1)
}
keepHash(resolve(root, folder), hash)
for (const line of output.split('\n').filter((text) => /warning/i.test(text))) console.log(line)
console.log(`${folder}/Release/densecl.node is built`)
