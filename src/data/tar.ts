/** Uncompressed tar files, as WebDataset has its shards: USTAR headers, written whole or not at all. */
import { closeSync, fsyncSync, openSync, rmSync, writeSync } from 'node:fs'

import { renameOver, writeProblem } from '../files/atomic.js'
import { fail } from '../tensor/errors.js'

const block = 512

/** The header of a regular file; names of up to 255 bytes are split at a slash. Throws DATA for longer ones. */
function header(name: string, size: number): Buffer {
  const bytes = Buffer.alloc(block)
  const cut = Buffer.byteLength(name) <= 100 ? 0 : name.indexOf('/', name.length - 101) + 1
  const [prefix, rest] = [name.slice(0, Math.max(0, cut - 1)), name.slice(cut)]
  if (Buffer.byteLength(rest) > 100 || Buffer.byteLength(prefix) > 155) fail('DATA', `tar: the name ${name} is too long`)
  const octal = (value: number, digits: number): string => `${value.toString(8).padStart(digits, '0')}\0`
  bytes.write(rest, 0)
  bytes.write(`${octal(0o644, 7)}${octal(0, 7)}${octal(0, 7)}${octal(size, 11)}${octal(0, 11)}        0`, 100)
  bytes.write('ustar\x0000', 257)
  bytes.write(prefix, 345)
  bytes.write(
    `${bytes
      .reduce((sum, byte) => sum + byte, 0)
      .toString(8)
      .padStart(6, '0')}\0 `,
    148,
  )
  return bytes
}

/** A tar file under a temporary name until it is closed. */
export class TarWriter {
  readonly #descriptor: number
  #bytes = 0
  #open = true

  constructor(readonly path: string) {
    try {
      this.#descriptor = openSync(`${path}.partial`, 'w')
    } catch (error) {
      fail('WRITE', `${path}: cannot be written (${writeProblem(error)})`)
    }
  }

  /** Bytes so far. */
  get bytes(): number {
    return this.#bytes
  }

  /** Writes a file; where its bytes begin. */
  add(name: string, data: Uint8Array): number {
    this.#write(header(name, data.length))
    const offset = this.#bytes
    this.#write(data)
    this.#write(Buffer.alloc((block - (data.length % block)) % block))
    return offset
  }

  #write(data: Uint8Array): void {
    try {
      for (let at = 0; at < data.length;) at += writeSync(this.#descriptor, data, at)
    } catch (error) {
      fail('WRITE', `${this.path}: writing failed (${writeProblem(error)})`)
    }
    this.#bytes += data.length
  }

  /** Ends the file and gives it its name. */
  close(): void {
    this.#write(Buffer.alloc(2 * block))
    try {
      fsyncSync(this.#descriptor)
      closeSync(this.#descriptor)
      this.#open = false
      renameOver(`${this.path}.partial`, this.path)
    } catch (error) {
      fail('WRITE', `${this.path}: writing failed (${writeProblem(error)})`)
    }
  }

  /** Leaves nothing behind. */
  abandon(): void {
    if (this.#open) closeSync(this.#descriptor)
    this.#open = false
    rmSync(`${this.path}.partial`, { force: true })
  }
}
