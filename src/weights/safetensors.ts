/**
 * The safetensors format: u64 length of a JSON header, the header, the tensors' bytes. Reading trusts nothing: the header's
 * length, every shape, every offset and their tiling of the file are checked before a byte is taken.
 * Format: https://github.com/huggingface/safetensors (facts only).
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'

import { fail, systemReason } from '../tensor/errors.js'

export const safetensorsDTypes = { F64: 8, F32: 4, F16: 2, BF16: 2, I64: 8, I32: 4, I16: 2, I8: 1, U8: 1, BOOL: 1 } as const
/** A dtype as files name it. */
export type StoredDType = keyof typeof safetensorsDTypes

/** A named array as files hold it: little-endian bytes, row-major, in the file's own layout (OIHW for convolutions). */
export interface StoredTensor {
  dtype: StoredDType
  shape: number[]
  bytes: Uint8Array
}

export interface TensorFile {
  tensors: Map<string, StoredTensor>
  metadata: Record<string, string>
  /** Classes of objects in a pickle beside the tensors, of which nothing was read or executed. */
  passedOver?: readonly string[]
}

const maxHeader = 100 * 2 ** 20

export function readSafetensors(path: string): TensorFile {
  let descriptor: number
  try {
    descriptor = openSync(path, 'r')
  } catch (error) {
    return fail('FILE', `${path}: cannot be read (${systemReason(error)})`)
  }
  try {
    const size = fstatSync(descriptor).size
    const read = (position: number, length: number): Uint8Array => {
      const bytes = new Uint8Array(length)
      let done = 0
      while (done < length) {
        let count = 0
        try {
          count = readSync(descriptor, bytes, done, length - done, position + done)
        } catch (error) {
          fail('FILE', `${path}: cannot be read at byte ${position + done} (${systemReason(error)})`)
        }
        if (count === 0) fail('FORMAT', `${path}: the file ends at byte ${position + done}`)
        done += count
      }
      return bytes
    }
    return parse(path, size, read)
  } finally {
    closeSync(descriptor)
  }
}

function parse(path: string, size: number, read: (position: number, length: number) => Uint8Array): TensorFile {
  const bad = (why: string): never => fail('FORMAT', `${path}: not a valid safetensors file: ${why}`)
  if (size < 10) bad(`it has ${size} bytes, too few for a header`)
  const claimed = new DataView(read(0, 8).buffer).getBigUint64(0, true)
  if (claimed > BigInt(maxHeader)) bad(`the header claims ${claimed} bytes, more than the ${maxHeader} allowed`)
  const length = Number(claimed)
  if (length > size - 8) bad(`the header claims ${length} bytes but ${size - 8} follow`)
  const header = parseHeader(read(8, length), bad)
  const start = 8 + length
  const tensors = new Map<string, StoredTensor>()
  const spans: [number, number, string][] = []
  let metadata: Record<string, string> = {}
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') {
      if (!isRecord(entry) || Object.values(entry).some((value) => typeof value !== 'string')) bad('__metadata__ is not a map of strings')
      metadata = entry as Record<string, string>
      continue
    }
    const { dtype, shape, begin, end } = checkEntry(name, entry, size - start, bad)
    spans.push([begin, end, name])
    tensors.set(name, { dtype, shape, bytes: new Uint8Array(0) })
  }
  spans.sort((a, b) => a[0] - b[0] || a[1] - b[1])
  let at = 0
  for (const [begin, end, name] of spans) {
    if (begin !== at) bad(`tensor ${name} starts at byte ${begin} of the data where ${at} was expected (a gap or an overlap)`)
    at = end
  }
  if (at !== size - start) bad(`the tensors end at byte ${at} of the data but the file holds ${size - start}`)
  for (const [begin, end, name] of spans) tensors.get(name)!.bytes = read(start + begin, end - begin)
  return { tensors, metadata }
}

function parseHeader(bytes: Uint8Array, bad: (why: string) => never): Record<string, unknown> {
  try {
    const header: unknown = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
    if (isRecord(header)) return header
  } catch {
    return bad('the header is not JSON')
  }
  return bad('the header is not an object')
}

function checkEntry(
  name: string,
  entry: unknown,
  available: number,
  bad: (why: string) => never,
): { dtype: StoredDType; shape: number[]; begin: number; end: number } {
  if (!isRecord(entry)) return bad(`the entry of tensor ${name} is not an object`)
  const { dtype, shape, data_offsets: offsets } = entry
  if (typeof dtype !== 'string' || !Object.hasOwn(safetensorsDTypes, dtype))
    return bad(`tensor ${name} has the unknown dtype ${JSON.stringify(dtype)}`)
  if (!Array.isArray(shape) || !shape.every(isCount)) return bad(`tensor ${name} has no shape of non-negative integers`)
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount))
    return bad(`tensor ${name} has no data_offsets [begin, end]`)
  const [begin, end] = offsets as [number, number]
  const expected = shape.reduce((product, d) => product * d, safetensorsDTypes[dtype as StoredDType])
  if (begin > end || end > available)
    return bad(`tensor ${name} has data_offsets [${begin}, ${end}] outside of the ${available} bytes of data`)
  if (end - begin !== expected)
    return bad(`tensor ${name} ${dtype}[${shape.join(',')}] needs ${expected} bytes but data_offsets span ${end - begin}`)
  return { dtype: dtype as StoredDType, shape, begin, end }
}

const isRecord = (value: unknown): value is Record<string, unknown> => value !== null && typeof value === 'object' && !Array.isArray(value)
const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0

/** The file as a list of buffers, ready to be written one after the other. */
export function encodeSafetensors({ tensors, metadata }: TensorFile): Uint8Array[] {
  const header: Record<string, unknown> = Object.keys(metadata).length === 0 ? {} : { __metadata__: metadata }
  let offset = 0
  for (const [name, { dtype, shape, bytes }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + bytes.length] }
    offset += bytes.length
  }
  const text = new TextEncoder().encode(JSON.stringify(header))
  const padded = new Uint8Array(Math.ceil(text.length / 8) * 8).fill(0x20)
  padded.set(text)
  const length = new Uint8Array(8)
  new DataView(length.buffer).setBigUint64(0, BigInt(padded.length), true)
  return [length, padded, ...[...tensors.values()].map((tensor) => tensor.bytes)]
}

/** The values as numbers (f64 for floats, also of f16 and bf16; exact for integers below 2^53). */
export function storedValues({ dtype, bytes }: StoredTensor): Float64Array {
  const count = bytes.length / safetensorsDTypes[dtype]
  // The commonest, all at once where it lies as an array may.
  if (dtype === 'F32' && bytes.byteOffset % 4 === 0) return Float64Array.from(new Float32Array(bytes.buffer, bytes.byteOffset, count))
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const read: Record<StoredDType, (i: number) => number> = {
    F64: (i) => view.getFloat64(8 * i, true),
    F32: (i) => view.getFloat32(4 * i, true),
    F16: (i) => halfToNumber(view.getUint16(2 * i, true)),
    BF16: (i) => bfloatToNumber(view.getUint16(2 * i, true)),
    I64: (i) => Number(view.getBigInt64(8 * i, true)),
    I32: (i) => view.getInt32(4 * i, true),
    I16: (i) => view.getInt16(2 * i, true),
    I8: (i) => view.getInt8(i),
    U8: (i) => view.getUint8(i),
    BOOL: (i) => view.getUint8(i),
  }
  return Float64Array.from({ length: count }, (_, i) => read[dtype](i))
}

function halfToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25))
}

function bfloatToNumber(bits: number): number {
  const view = new DataView(new ArrayBuffer(4))
  view.setUint32(0, bits << 16)
  return view.getFloat32(0)
}

export function storedFromNumbers(values: ArrayLike<number>, shape: readonly number[], dtype: 'F32' | 'F64' | 'I64'): StoredTensor {
  const array =
    dtype === 'F32'
      ? Float32Array.from(values)
      : dtype === 'F64'
        ? Float64Array.from(values)
        : BigInt64Array.from(Array.from(values, BigInt))
  return { dtype, shape: [...shape], bytes: new Uint8Array(array.buffer) }
}
