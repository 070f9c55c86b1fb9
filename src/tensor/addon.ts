/** Where the native addon is looked for, and which of what is there is taken. */
import { closeSync, existsSync, fstatSync, openSync, readFileSync, readSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

import { DenseclError } from './errors.js'

/** The package's own folder: the nearest one above this file with a package.json. */
export const packageRoot = (() => {
  let folder = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder)
  return folder
})()

/** The version of this package. */
export const packageVersion = (JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as { version: string }).version

/** Whether this is a clone of the repository, not a package that npm has installed: what compiles the addon differs. */
export const isClone = existsSync(join(packageRoot, 'tsconfig.json'))

/** The command that compiles the addon where this package is. */
export const buildCommand = (cuda = false): string =>
  isClone ? `npm run build:${cuda ? 'cuda' : 'native'}` : `npx densecl build${cuda ? ' --cuda' : ''}`

/** The command that compiles the form of the addon with MPI. */
export const mpiBuildCommand = isClone ? 'npm run build:mpi' : 'npx densecl build --mpi'

/** What every addon has before anything else of it is asked. */
interface AnyAddon {
  initialize(errorClass: typeof DenseclError): void
  version?(): string
}

/** An addon that was not taken, and why. */
export interface RefusedAddon {
  path: string
  why: string
}

export interface LoadedAddon<A> {
  addon: A
  path: string
  /** What came before it in the order, is there, and does not fit. */
  refused: readonly RefusedAddon[]
}

/** Names of this system as prebuilt addons have them, the likelier first: which C library Linux has is seen by what loads. */
const systems = ((system) => (process.platform === 'linux' ? [`${system}-gnu`, `${system}-musl`] : [system]))(
  `${process.platform}-${process.arch}`,
)

/** The package with the CUDA form of this system, which is installed by hand. */
export const cudaPackage = `@densecl/${systems[0]}-cuda`

/** The addon of `npm run build:mpi`, and of `densecl build --mpi`. */
export const mpiAddonPath = join(packageRoot, 'build-mpi', 'Release', 'densecl.node')

/** Whether mpirun, of Open MPI or of MPICH, has started this process and others; srun has PMI_SIZE alone, also for processes on GPUs. */
const isOneOfMany = Number(process.env.OMPI_COMM_WORLD_SIZE ?? (process.env.MPI_LOCALNRANKS && process.env.PMI_SIZE)) > 1

/**
 * The files that may be the addon, in the order in which they are tried: DENSECL_ADDON and nothing else; under mpirun the form with MPI;
 * what was compiled here, the newer first, so that whoever rebuilds one gets it; the CUDA package; the prebuilt ones of this package.
 */
export function addonCandidates(root = packageRoot): string[] {
  const chosen = process.env.DENSECL_ADDON
  if (chosen !== undefined) return [resolve(chosen)]
  const built = (path: string): number => (existsSync(path) ? statSync(path).mtimeMs : 0)
  const compiled = ['build-cuda', 'build'].map((folder) => join(root, folder, 'Release', 'densecl.node'))
  return [
    ...(isOneOfMany ? [mpiAddonPath] : []),
    ...compiled.sort((a, b) => built(b) - built(a)),
    cudaPackageFile(root),
    ...systems.map((system) => join(prebuilds(root), system, 'densecl.node')),
  ]
}

/** Where the package brings addons. */
const prebuilds = (root: string): string => join(root, 'prebuilds')

/** Its file where it is installed, else where npm would put it: beside this package. */
function cudaPackageFile(root: string): string {
  try {
    return createRequire(join(root, 'package.json')).resolve(`${cudaPackage}/densecl.node`)
  } catch {
    const folder = basename(dirname(root)) === 'node_modules' ? dirname(root) : join(root, 'node_modules')
    return join(folder, cudaPackage, 'densecl.node')
  }
}

/**
 * The first of `candidates` that loads, is of this package's version and passes `check`, which tells what is wrong with an addon. One
 * that does not is passed over. Throws ADDON with all that was looked for, and the command that fits, where none is left.
 */
export function loadAddon<A>(check: (addon: A) => string | undefined, candidates = addonCandidates()): LoadedAddon<A> {
  const refused: RefusedAddon[] = []
  for (const path of candidates.filter((each) => existsSync(each))) {
    const why = tryToLoad(path, check)
    if (typeof why !== 'string') return { addon: why.addon, path, refused }
    refused.push({ path, why })
  }
  throw new DenseclError('ADDON', nothingFits(candidates, refused))
}

function tryToLoad<A>(path: string, check: (addon: A) => string | undefined): { addon: A } | string {
  try {
    if (isCutOff(path)) return 'it is cut off'
    const addon = createRequire(import.meta.url)(path) as A & AnyAddon
    const version = addon.version?.()
    if (version !== packageVersion) return `it is of densecl ${version ?? 'before 0.1.0'}, this package is ${packageVersion}`
    addon.initialize(DenseclError)
    const problem = check(addon)
    return problem ?? { addon }
  } catch (error) {
    return (error instanceof Error ? error.message : String(error)).split('\n')[0]!
  }
}

/** Whether an ELF file ends before its table of sections, its last part, does: the system's loader would end the process. */
function isCutOff(path: string): boolean {
  const [file, header] = [openSync(path, 'r'), Buffer.alloc(64)]
  try {
    if (readSync(file, header) < 4 || header.toString('latin1', 0, 4) !== '\x7fELF') return false
    const end = Number(header.readBigUInt64LE(0x28)) + header.readUInt16LE(0x3a) * header.readUInt16LE(0x3c)
    return fstatSync(file).size < end
  } finally {
    closeSync(file)
  }
}

function nothingFits(candidates: readonly string[], refused: readonly RefusedAddon[]): string {
  const lines = candidates.map((path) => {
    const why = refused.find((each) => each.path === path)?.why ?? 'is not there'
    const inside = relative(packageRoot, path)
    return `\n  ${inside.startsWith('..') ? path : inside}: ${why}`
  })
  const cuda = refused.some(({ path }) => path.includes(cudaPackage)) ? ` or npm install ${cudaPackage}@${packageVersion}` : ''
  const anew = !isClone && refused.some(({ path }) => path.startsWith(prebuilds(packageRoot))) ? ', or npm ci if the file is damaged' : ''
  const remedy =
    process.env.DENSECL_ADDON === undefined
      ? `run: ${buildCommand()}${isClone ? '' : ' (needs CMake and g++ or clang)'}${anew}${cuda}`
      : 'unset DENSECL_ADDON, or let it name an addon of this version'
  const system = `${process.platform} ${process.arch}, Node ${process.versions.node}`
  return `there is no native addon for this system (${system}):${lines.join('')}\n  ${remedy}`
}
