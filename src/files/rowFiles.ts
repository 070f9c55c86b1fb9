/** Files of one row of numbers for each image, written row by row; what was there before is replaced when all are written, or never. */
import { closeSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import { extname } from 'node:path'

import { writeAtomic, writeProblem } from './atomic.js'
import { DenseclError, fail } from '../tensor/errors.js'

/** A file that takes rows. */
export interface RowFile {
  /** Adds the row of an image, of as many values as the shape of the file has. */
  write(image: string, values: Float32Array): void
  /** Puts the file in its place; gives all paths that were written. */
  finish(): string[]
  /** Removes what was written, after an error. */
  abandon(): void
}

/** What makes the file `path`, once the shape of a row is known. */
type Format = (path: string) => Promise<(shape: readonly number[]) => RowFile>

/** A temporary file beside `path`, whose errors name that. */
class Pending {
  readonly #temporary: string
  readonly #descriptor: number

  constructor(readonly path: string) {
    this.#temporary = `${path}.tmp-${process.pid}`
    this.#descriptor = this.#guarded(() => openSync(this.#temporary, 'w'))
  }

  #guarded<R>(body: () => R): R {
    try {
      return body()
    } catch (error) {
      if (error instanceof DenseclError) throw error
      rmSync(this.#temporary, { force: true })
      return fail('WRITE', `${this.path}: cannot be written (${writeProblem(error)}); what was there before is untouched`)
    }
  }

  /** Appends, or writes at `position`. */
  write(bytes: Uint8Array, position: number | null = null): void {
    this.#guarded(() => {
      for (let done = 0; done < bytes.length;)
        done += writeSync(this.#descriptor, bytes, done, bytes.length - done, position === null ? null : position + done)
    })
  }

  finish(): void {
    this.#guarded(() => {
      closeSync(this.#descriptor)
      renameSync(this.#temporary, this.path)
    })
  }

  abandon(): void {
    closeSync(this.#descriptor)
    rmSync(this.#temporary, { force: true })
  }
}

const headerBytes = 128

/** The header of NumPy's format, version 1.0: a dictionary of Python, filled up with spaces. */
function npyHeader(shape: readonly number[]): Buffer {
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(', ')}${shape.length === 1 ? ',' : ''}), }`
  const head = Buffer.alloc(headerBytes, ' ')
  head.write('\x93NUMPY\x01\x00', 'latin1')
  head.writeUInt16LE(headerBytes - 10, 8)
  head.write(text, 10, 'latin1')
  head[headerBytes - 1] = 10
  return head
}

/** NumPy's format: f32 [images, ...shape], and beside it the names of the images, a line each. */
const npyFile = (path: string, shape: readonly number[]): RowFile => {
  const file = new Pending(path)
  const names: string[] = []
  // The number of rows is known at the end.
  file.write(npyHeader([0, ...shape]))
  return {
    write(image, values) {
      names.push(image)
      file.write(new Uint8Array(values.buffer, values.byteOffset, values.byteLength))
    },
    finish() {
      file.write(npyHeader([names.length, ...shape]), 0)
      const list = `${path}.txt`
      writeAtomic(list, [Buffer.from(names.map((name) => `${name}\n`).join(''))])
      file.finish()
      return [path, list]
    },
    abandon: () => file.abandon(),
  }
}

/** A JSON object a line: the image, the shape, and the values in their order. */
const jsonlFile = (path: string, shape: readonly number[]): RowFile => {
  const file = new Pending(path)
  return {
    // As many digits as tell two f32 apart.
    write: (image, values) =>
      file.write(
        Buffer.from(`${JSON.stringify({ image, shape, features: Array.from(values, (value) => Number(value.toPrecision(9))) })}\n`),
      ),
    finish() {
      file.finish()
      return [path]
    },
    abandon: () => file.abandon(),
  }
}

/** Parquet: a column `image` of strings and a column `features` of lists of floats; the shape is in the file's metadata. */
const parquetFile = (path: string, shape: readonly number[], { parquetWriteBuffer }: typeof import('hyparquet-writer')): RowFile => {
  const [images, rows]: [string[], number[][]] = [[], []]
  return {
    write(image, values) {
      images.push(image)
      rows.push([...values])
    },
    finish() {
      const buffer = parquetWriteBuffer({
        columnData: [
          { name: 'image', data: images },
          { name: 'features', data: rows },
        ],
        schema: [
          { name: 'root', num_children: 2 },
          { name: 'image', type: 'BYTE_ARRAY', converted_type: 'UTF8', repetition_type: 'REQUIRED' },
          { name: 'features', repetition_type: 'REQUIRED', num_children: 1, converted_type: 'LIST' },
          { name: 'list', repetition_type: 'REPEATED', num_children: 1 },
          { name: 'element', type: 'FLOAT', repetition_type: 'REQUIRED' },
        ],
        kvMetadata: [{ key: 'shape', value: JSON.stringify(shape) }],
        createdBy: 'densecl',
      })
      writeAtomic(path, [new Uint8Array(buffer)])
      return [path]
    },
    abandon: () => undefined,
  }
}

/** The formats, by the ending of the path. A new one is a line here. */
export const rowFormats: Readonly<Record<string, Format>> = {
  '.npy': (path) => Promise.resolve((shape) => npyFile(path, shape)),
  '.jsonl': (path) => Promise.resolve((shape) => jsonlFile(path, shape)),
  async '.parquet'(path) {
    const writer = await import('hyparquet-writer')
    return (shape) => parquetFile(path, shape, writer)
  },
}

/** What makes the file, of the format that its ending names. Throws ARGUMENT for another ending. */
export function openRows(path: string): ReturnType<Format> {
  const ending = extname(path)
  return Object.hasOwn(rowFormats, ending)
    ? rowFormats[ending]!(path)
    : fail('ARGUMENT', `--out is ${path}: expected a file ending in ${Object.keys(rowFormats).join(', ')}`)
}
