// What the forms of the addon are compiled from: the sources of the CPU's, one a line, for binding.gyp and for seeing whether a makefile
// still lists them, and of each form a hash, which is kept beside what was built.
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const files = (folder, fits) =>
  readdirSync(join(root, folder))
    .filter(fits)
    .map((name) => `${folder}/${name}`)

export const nativeSources = () => [
  ...['addon', 'core', 'cpu', 'jpeg'].flatMap((folder) => files(`native/${folder}`, (name) => name.endsWith('.cpp'))),
  // Some of its files are included by another.
  ...files('native/third_party/libjpeg-turbo', (name) => name.endsWith('.c') && !['jdcolext.c', 'jdcol565.c', 'jstdhuff.c'].includes(name)),
]

/** The folders of native that a form is compiled from. */
const cpu = ['addon', 'core', 'cpu', 'jpeg', 'third_party']
const folders = { cpu, mpi: [...cpu, 'comm'], simt: [...cpu, 'comm', 'nvjpeg', 'cuda', 'simt'], cuda: [...cpu, 'comm', 'nvjpeg', 'cuda'] }
/** What node-gyp builds, or CMake where there is no node-gyp (install.mjs). */
const gyp = process.platform === 'win32' ? 'CMakeLists.txt' : 'binding.gyp'

/** A hash of names and contents of all files below a folder; `known` has those of before. */
function folderHash(folder, known) {
  if (known.has(folder)) return known.get(folder)
  const hash = createHash('sha256')
  const paths = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name))
  for (const path of paths.sort()) {
    const content = readFileSync(path)
    hash.update(`${path.slice(folder.length)} ${content.length}\n`).update(content)
  }
  known.set(folder, hash.digest('hex'))
  return known.get(folder)
}

/** A hash of what a form is compiled from, in the clone `from`. */
export function sourcesHash(form, recipe = 'CMakeLists.txt', from = root, known = new Map()) {
  const hash = createHash('sha256').update(readFileSync(join(from, recipe)))
  for (const folder of folders[form]) hash.update(`${folder} ${folderHash(join(from, 'native', folder), known)}\n`)
  return hash.digest('hex')
}

/** Where the hash of what was built in a folder is kept. */
const stampOf = (folder) => join(folder, 'Release', 'sources.txt')
export const keepHash = (folder, hash) => writeFileSync(stampOf(folder), `${hash}\n`)
export const gypHash = () => sourcesHash('cpu', gyp)

/** The forms in a clone that were built from other sources than there are now, with the command that builds each. */
export function staleForms(from = root) {
  // A bundle has addons without sources.
  if (!existsSync(join(from, 'native', 'cpu')) || !existsSync(join(from, gyp))) return []
  const known = new Map()
  return [
    ['build', 'cpu', 'npm run build:native', gyp],
    ['build-mpi', 'mpi', 'npm run build:mpi'],
    ['build-simt', 'simt', 'npm run build:simt'],
    ['build-simt-asan', 'simt', 'npm run build:simt -- --sanitize'],
    ['build-cpu-asan', 'cpu', 'node scripts/native.mjs cpu --sanitize'],
    ['build-cuda', 'cuda', 'npm run build:cuda'],
  ].flatMap(([name, form, command, recipe]) => {
    const folder = join(from, name)
    if (!existsSync(join(folder, 'Release', 'densecl.node'))) return []
    const built = existsSync(stampOf(folder)) ? readFileSync(stampOf(folder), 'utf8').trim() : undefined
    return built === sourcesHash(form, recipe, from, known) ? [] : [{ folder: name, command }]
  })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log(nativeSources().join('\n'))
