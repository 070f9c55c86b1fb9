/** Shared libraries of others that a run may need and the package has not: found when they are asked for. */
import { spawnSync } from 'node:child_process'

import { DenseclError, fail } from './errors.js'

/** A library, and where it may be. */
export interface ForeignLibrary {
  /** The library and what it is for, as the subject of a sentence. */
  name: string
  /** The variable that names its file. */
  variable: string
  /** Its files by name, those first that are tried first. */
  files: readonly [string, ...string[]]
  /** What brings it, as the subject of a sentence. */
  source: string
  /** Of the error where it cannot be loaded. */
  code: 'COMM' | 'TOOL'
}

/** Where NVIDIA's packages for Python have a file: prints its paths. */
const askPython = `import glob, nvidia, sys
for name in sys.argv[1:]:
    for folder in nvidia.__path__:
        for file in glob.glob(folder + "/*/lib/" + name): print(file)`

/** What is tried, in this order: the variable and nothing else; what the system's loader finds; those of the python3 on the PATH. */
function* candidates({ variable, files }: ForeignLibrary): Generator<string, void> {
  const chosen = process.env[variable]
  if (chosen !== undefined) {
    yield chosen
    return
  }
  yield* files
  const { status, stdout } = spawnSync('python3', ['-c', askPython, ...files], { encoding: 'utf8' })
  if (status === 0) yield* stdout.split('\n').filter(Boolean)
}

/** What `load` makes of the first file of a library that it takes. Throws with all that was tried, and what to do. */
export function loadLibrary(library: ForeignLibrary, load: (path: string) => string): string {
  const refused: string[] = []
  for (const path of candidates(library))
    try {
      return load(path)
    } catch (error) {
      if (!(error instanceof DenseclError)) throw error
      refused.push(error.message)
    }
  const { name, variable, files, source, code } = library
  const remedy =
    process.env[variable] === undefined
      ? `${source} brings it, and ${variable}=FILE names it elsewhere`
      : `${variable} names the file, expected ${files[0]}`
  return fail(code, `${name} cannot be loaded: ${refused.join('; ')}; ${remedy}`)
}
