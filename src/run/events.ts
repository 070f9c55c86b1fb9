/**
 * TensorBoard event files: TFRecords (length, masked CRC-32C, data, masked CRC-32C) of Event messages, scalars only.
 * Format: tensorflow/core/util/event.proto, tensorflow/core/lib/io/record_writer.cc (facts only).
 */
import { join } from 'node:path'

import { appendWhole } from '../files/atomic.js'
import { bytesField, doubleField, floatField, intField } from '../files/protobuf.js'

const crcTable = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n
  for (let k = 0; k < 8; ++k) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1
  return c >>> 0
})

/** CRC-32C (Castagnoli). */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) crc = crcTable[(crc ^ byte) & 255]! ^ (crc >>> 8)
  return (crc ^ 0xffffffff) >>> 0
}

const masked = (bytes: Uint8Array): number => {
  const crc = crc32c(bytes)
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0
}

function record(data: Buffer): Buffer {
  const out = Buffer.alloc(data.length + 16)
  out.writeBigUInt64LE(BigInt(data.length), 0)
  out.writeUInt32LE(masked(out.subarray(0, 8)), 8)
  data.copy(out, 12)
  out.writeUInt32LE(masked(data), 12 + data.length)
  return out
}

/** Appends scalars to an event file of its own in `folder`, record by record. Throws WRITE. */
export class EventWriter {
  readonly #path: string
  /** The version, which is written before anything else. */
  #first: Buffer | undefined

  constructor(folder: string) {
    const seconds = Math.floor(Date.now() / 1000)
    this.#path = join(folder, `events.out.tfevents.${seconds}.${process.pid}.densecl`)
    this.#first = record(Buffer.concat([doubleField(1, seconds), bytesField(3, 'brain.Event:2')]))
  }

  scalars(step: number, values: Record<string, number>): void {
    const summary = Buffer.concat(
      Object.entries(values).map(([tag, value]) => bytesField(1, Buffer.concat([bytesField(1, tag), floatField(2, value)]))),
    )
    const next = record(Buffer.concat([doubleField(1, Date.now() / 1000), intField(2, step), bytesField(5, summary)]))
    appendWhole(this.#path, this.#first === undefined ? next : Buffer.concat([this.#first, next]))
    this.#first = undefined
  }
}
