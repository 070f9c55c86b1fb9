/** Files of one row of numbers for each image, written row by row; what was there before is replaced when all are written, or never. */
import { closeSync, openSync, rmSync } from 'node:fs'
import { extname } from 'node:path'

import { renameOver, writeAll, writeAtomic, writeProblem } from './atomic.js'
import { DenseclError, fail } from '../tensor/errors.js'

/** A file that takes rows, all of one shape. */
export interface RowFile {
  /** Adds the row of an image, its values in the order of `shape`. */
  write(image: string, values: Float32Array, shape: readonly number[]): void
  /** Puts the file in its place; gives all paths that were written. */
  finish(): string[]
  /** Removes what was written, after an error. */
  abandon(): void
}

/** Begins the file `path`. Throws WRITE where it cannot be made. */
type Format = (path: string) => RowFile | Promise<RowFile>

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
  write(bytes: Uint8Array, position?: number): void {
    this.#guarded(() => {
      writeAll(this.#descriptor, bytes, position)
    })
  }

  finish(): void {
    this.#guarded(() => {
      closeSync(this.#descriptor)
      renameOver(this.#temporary, this.path)
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
function npyFile(path: string): RowFile {
  const file = new Pending(path)
  const names: string[] = []
  let rowShape: readonly number[] = []
  // The number of rows is known at the end, and their shape at the first.
  file.write(npyHeader([0]))
  return {
    write(image, values, shape) {
      rowShape = shape
      names.push(image)
      file.write(new Uint8Array(values.buffer, values.byteOffset, values.byteLength))
    },
    finish() {
      file.write(npyHeader([names.length, ...rowShape]), 0)
      const list = `${path}.txt`
      writeAtomic(list, [Buffer.from(names.map((name) => `${name}\n`).join(''))])
      file.finish()
      return [path, list]
    },
    abandon: () => file.abandon(),
  }
}

/** A JSON object a line: the image, the shape, and the values in their order. */
function jsonlFile(path: string): RowFile {
  const file = new Pending(path)
  return {
    write(image, values, shape) {
      // As many digits as tell two f32 apart.
      const features = Array.from(values, (value) => Number(value.toPrecision(9)))
      file.write(Buffer.from(`${JSON.stringify({ image, shape, features })}\n`))
    },
    finish() {
      file.finish()
      return [path]
    },
    abandon: () => file.abandon(),
  }
}

/** Parquet: a column `image` of strings and a column `features` of lists of floats; the shape is in the file's metadata. */
async function parquetFile(path: string): Promise<RowFile> {
  const { parquetWriteBuffer } = await import('hyparquet-writer')
  const file = new Pending(path)
  const [images, rows]: [string[], number[][]] = [[], []]
  let rowShape: readonly number[] = []
  return {
    write(image, values, shape) {
      rowShape = shape
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
        kvMetadata: [{ key: 'shape', value: JSON.stringify(rowShape) }],
        createdBy: 'densecl',
      })
      file.write(new Uint8Array(buffer))
      file.finish()
      return [path]
    },
    abandon: () => file.abandon(),
  }
}

/** The formats, by the ending of the path. A new one is a line here. */
export const rowFormats: Readonly<Record<string, Format>> = { '.npy': npyFile, '.jsonl': jsonlFile, '.parquet': parquetFile }

/** Begins a file of the format that its ending names, so that one which cannot be written is found out now. Throws CONFIG, WRITE. */
export async function openRows(path: string): Promise<RowFile> {
  const ending = extname(path)
  if (!Object.hasOwn(rowFormats, ending))
    fail('CONFIG', `--out is ${path}: expected a file ending in ${Object.keys(rowFormats).join(', ')}`)
  return rowFormats[ending]!(path)
}
