/** The kernels of native/cuda as cubins, compiled with nvcc, and what ptxas said about each. */
import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { basename, join } from 'node:path'

import { makeFolder } from '../../files/atomic.js'
import { cacheFile } from '../../files/cache.js'
import { fail } from '../../tensor/errors.js'
import { packageRoot } from '../../tensor/addon.js'

/** What ptxas reports of a kernel: registers of a thread, bytes of its stack and of what it spills, bytes of static shared memory. */
export interface Resources {
  registers: number
  stack: number
  spillStores: number
  spillLoads: number
  shared: number
}

export interface Cubin {
  /** The path of the source. */
  file: string
  code: Buffer
  /** What each kernel takes, by its mangled name. */
  resources: Map<string, Resources>
}

const sources = join(packageRoot, 'native', 'cuda')
/** How CMakeLists.txt compiles them. */
const flagsFor = (architecture: string): string[] => {
  const number = architecture.slice(3)
  return [
    '-std=c++17',
    '-O3',
    '-diag-suppress=177',
    `-DDENSECL_ARCHITECTURES="${number}-real"`,
    '-Xptxas=-v',
    '-cubin',
    '-gencode',
    `arch=compute_${number},code=sm_${number}`,
  ]
}
export const codeArchitectures = ['sm_80', 'sm_86', 'sm_89', 'sm_90a'] as const

export const sourceFiles = (): string[] =>
  readdirSync(sources)
    .filter((file) => file.endsWith('.cu'))
    .sort()
    .map((file) => join(sources, file))

/** Whether the sources of the kernels hold every identifier of a text. */
export function mentioned(text: string): boolean {
  const all = readdirSync(sources, { recursive: true, encoding: 'utf8' })
    .filter((file) => /\.cuh?$/.test(file))
    .map((file) => readFileSync(join(sources, file), 'utf8').toLowerCase())
  return (text.toLowerCase().match(/[a-z_]\w*/g) ?? []).every((word) => all.some((source) => source.includes(word)))
}

/** The release of nvcc, or an error that says how to get one. CUDACXX names another one than that of the PATH. */
export function nvccVersion(nvcc = process.env.CUDACXX ?? 'nvcc'): { nvcc: string; version: string } {
  const { stdout, error, status } = spawnSync(nvcc, ['--version'], { encoding: 'utf8' })
  const version = /release [\d.]+, (V[\d.]+)/.exec(stdout ?? '')?.[1]
  if (error !== undefined || status !== 0 || version === undefined) {
    const what = error === undefined ? 'is no nvcc' : `does not run (${(error as NodeJS.ErrnoException).code ?? error.message})`
    const remedy = 'install the CUDA toolkit, 12.0 or later, and put its bin folder on the PATH, or name nvcc in CUDACXX'
    fail('TOOL', `bench code: ${nvcc} ${what}; ${remedy}`)
  }
  return { nvcc, version }
}

/**
 * Compiles the files (paths) for an architecture, as many at a time as there are cores. What was compiled before from the same bytes
 * is taken from the user's cache folder, where that can be used.
 */
export async function compile(files: readonly string[], architecture: string, onDone: (file: string) => void = () => {}): Promise<Cubin[]> {
  const { nvcc, version } = nvccVersion()
  const [flags, headers] = [flagsFor(architecture), headersOf(sources)]
  const work = mkdtempSync(join(tmpdir(), 'densecl-code-'))
  const cache = cacheFolder()
  const results = new Map<string, Cubin>()
  const waiting = [...files]
  try {
    const worker = async (): Promise<void> => {
      for (let file = waiting.shift(); file !== undefined; file = waiting.shift()) {
        const digest = createHash('sha256')
          .update([version, ...flags, headers].join('\0'))
          .update(readFileSync(file))
          .digest('hex')
          .slice(0, 24)
        const name = basename(file)
        const [kept, log] = [`${name}.${digest}.cubin`, `${name}.${digest}.log`]
        const found = cache !== undefined && existsSync(join(cache, kept)) && existsSync(join(cache, log))
        const folder = found ? cache : work
        if (!found) {
          writeFileSync(join(work, log), await run(nvcc, [...flags, '-o', join(work, kept), file]))
        }
        results.set(file, {
          file: name,
          code: readFileSync(join(folder, kept)),
          resources: resourcesOf(readFileSync(join(folder, log), 'utf8')),
        })
        if (!found && cache !== undefined) for (const made of [kept, log]) keep(join(work, made), join(cache, made))
        onDone(name)
      }
    }
    await Promise.all(Array.from({ length: Math.min(availableParallelism(), files.length) }, worker))
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
  return files.map((file) => results.get(file)!)
}

/** Every header that a kernel may include. */
function headersOf(folder: string): string {
  const hash = createHash('sha256')
  for (const top of [folder, join(folder, '..', 'core')]) {
    for (const file of readdirSync(top, { recursive: true, encoding: 'utf8' })
      .filter((name) => /\.(cuh|h|def)$/.test(name))
      .sort())
      hash.update(file).update(readFileSync(join(top, file)))
  }
  return hash.digest('hex')
}

/** A folder that can be written to, or undefined: then everything is compiled anew. */
function cacheFolder(): string | undefined {
  const folder = cacheFile('code')
  try {
    makeFolder(folder)
    return folder
  } catch {
    return undefined
  }
}

function keep(from: string, to: string): void {
  const beside = `${to}.${process.pid}`
  try {
    writeFileSync(beside, readFileSync(from))
    renameSync(beside, to)
  } catch {
    rmSync(beside, { force: true })
  }
}

function run(command: string, args: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'] })
    let said = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
    child.on('error', reject)
    child.on('close', (code) => {
      if (code === 0) return resolve(said)
      try {
        fail(
          'TOOL',
          `bench code: ${command} could not compile ${args.at(-1)}:\n${said
            .split('\n')
            .filter((line) => !line.startsWith('ptxas info'))
            .slice(0, 20)
            .join('\n')}`,
        )
      } catch (error) {
        reject(error)
      }
    })
  })
}

/** What `ptxas -v` printed, by kernel. */
export function resourcesOf(log: string): Map<string, Resources> {
  const found = new Map<string, Resources>()
  let current: Resources | undefined
  let own = false
  for (const line of log.split('\n')) {
    const entry = /Compiling entry function '([^']+)'/.exec(line)
    if (entry !== null) found.set(entry[1]!, (current = { registers: 0, stack: 0, spillStores: 0, spillLoads: 0, shared: 0 }))
    // Subroutines have properties too, after a line of their own.
    const properties = /Function properties for (\S+)/.exec(line)
    if (properties !== null) own = found.get(properties[1]!) === current
    const frame = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line)
    if (frame !== null && own && current !== undefined)
      Object.assign(current, { stack: Number(frame[1]), spillStores: Number(frame[2]), spillLoads: Number(frame[3]) })
    const used = /Used (\d+) registers/.exec(line)
    if (used !== null && current !== undefined)
      Object.assign(current, { registers: Number(used[1]), shared: Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0) })
  }
  return found
}

/** Names as people write them, without namespaces; mangled ones where there is no c++filt. */
export function demangled(names: readonly string[]): Map<string, string> {
  for (const tool of ['cu++filt', 'c++filt']) {
    const { stdout, status } = spawnSync(tool, ['-p'], { encoding: 'utf8', input: names.join('\n') })
    if (status === 0) {
      const lines = stdout.trimEnd().split('\n')
      return new Map(names.map((name, i) => [name, shorter(lines[i] ?? name)]))
    }
  }
  return new Map(names.map((name) => [name, name]))
}

const shorter = (name: string): string =>
  name
    .replace(/densecl::cuda::|\(anonymous namespace\)::|densecl::/g, '')
    .replace(/ >/g, '>')
    .replace(/^void /, '')
