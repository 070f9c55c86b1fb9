/** Stand-ins for libraries that need GPUs, which `simt` takes: C files beside this one that are compiled when a test asks. */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { packageRoot } from '../../src/tensor/addon.js'

export const simtAddon = join(packageRoot, 'build-simt', 'Release', 'densecl.node')
const hasCompiler = spawnSync('gcc', ['--version']).status === 0
export const hasStandIns = hasCompiler && existsSync(simtAddon)
export const noStandIns = hasCompiler
  ? 'build-simt is not built (npm run build:simt)'
  : 'gcc, which compiles stand-ins of libraries, is not installed'

/** Where they are, and what they write; gone at the end of the process. */
export const standInFolder = mkdtempSync(join(tmpdir(), 'densecl-standins-'))
process.on('exit', () => rmSync(standInFolder, { recursive: true, force: true }))

const compiled = new Map<string, string>()

/** The path of the stand-in `name`.c, compiled with these flags and sources. */
export function standIn(name: string, flags: readonly string[]): string {
  const key = [name, ...flags].join(' ')
  const known = compiled.get(key)
  if (known !== undefined) return known
  const path = join(standInFolder, `${name}${compiled.size}.so`)
  const source = join(packageRoot, 'tests', 'support', `${name}.c`)
  // The compiler is no part of what a sanitizer looks at.
  const env = { ...process.env, LD_PRELOAD: undefined }
  const { status, stderr } = spawnSync('gcc', ['-O2', '-fPIC', '-shared', '-o', path, source, ...flags], { encoding: 'utf8', env })
  if (status !== 0) throw new Error(stderr)
  compiled.set(key, path)
  return path
}
