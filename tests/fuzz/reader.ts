/** What a fuzzed reader is: a row of the table in readers.ts. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

import type fc from 'fast-check'

export interface FuzzedReader {
  /** The file that an input is written to. An error must hold its name, or match `names` where it is something else that it names. */
  file: string
  names?: RegExp
  /** Sound inputs, which bytes are changed of. */
  seeds: () => Uint8Array[] | Promise<Uint8Array[]>
  /** Words of the format, which bytes are replaced by. */
  words?: readonly string[]
  /** Inputs that keep to the structure of the format and break what it means. */
  structured?: (seeds: readonly Uint8Array[]) => fc.Arbitrary<Uint8Array>
  /** Pixels of a small file may take much memory. */
  pixels?: true
  /** Reads the input at `path`, all of it; throws where it is refused. */
  read: (path: string, bytes: Uint8Array) => unknown
}

const cut = (name: string): string => `\n--- ${name}\n`

/** Several files as one input: each after a line `--- NAME`. */
export const bundle = (files: Readonly<Record<string, string>>): Buffer =>
  Buffer.from(
    Object.entries(files)
      .map(([name, text]) => `${cut(name)}${text}`)
      .join(''),
  )

/** Writes the files of a bundle below `folder`, which is emptied; only `names` are files. */
export function unbundle(bytes: Uint8Array, folder: string, names: readonly string[]): void {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  const text = Buffer.from(bytes).toString('latin1')
  const starts = names
    .map((name) => ({ name, at: text.indexOf(cut(name)) }))
    .filter(({ at }) => at >= 0)
    .sort((a, b) => a.at - b.at)
  for (const [i, { name, at }] of starts.entries()) {
    const path = join(folder, name)
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, text.slice(at + cut(name).length, starts[i + 1]?.at), 'latin1')
  }
}

/** The bytes of a file that `write` writes. */
export function written(extension: string, write: (path: string) => void): Buffer {
  const folder = mkdtempSync(join(tmpdir(), 'densecl-'))
  try {
    const path = join(folder, `file${extension}`)
    write(path)
    return readFileSync(path)
  } finally {
    rmSync(folder, { recursive: true })
  }
}
