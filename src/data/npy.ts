/** Images as NumPy arrays: .npy files of bytes or 16-bit numbers, [H, W] or [H, W, C]. Format: numpy.lib.format (facts only). */
import { fail } from '../tensor/errors.js'
import type { Pixels } from './decode.js'

const magic = Buffer.from('\x93NUMPY', 'latin1')

export const isNpy = (bytes: Buffer): boolean => bytes.subarray(0, magic.length).equals(magic)

/** The pixels of a .npy file; numbers of 16 bits become bytes, 65535 being 255. Throws DECODE with `name`. */
export function decodeNpy(bytes: Buffer, name: string, mostPixels: number): Pixels {
  const wide = bytes[6] !== 1
  const from = wide ? 12 : 10
  if (bytes.length < from) fail('DECODE', `${name}: the array is cut off in its header`)
  const length = wide ? bytes.readUInt32LE(8) : bytes.readUInt16LE(8)
  const header = bytes.toString('latin1', from, from + Math.min(length, 65536))
  const said = (pattern: RegExp): string | undefined => pattern.exec(header)?.[1]
  const type = said(/'descr':\s*'([^']*)'/)
  const shape = said(/'shape':\s*\(([\d,\s]*)\)/)
    ?.split(',')
    .filter((part) => part.trim() !== '')
    .map(Number)
  if (type === undefined || shape === undefined) return fail('DECODE', `${name}: the header of the array is damaged`)
  if (type !== '|u1' && type !== '<u2')
    fail('DECODE', `${name}: expected an array of uint8 or little-endian uint16 but it is of ${type}: write it as one of these`)
  if (said(/'fortran_order':\s*(\w+)/) !== 'False')
    fail('DECODE', `${name}: expected an array in C order but it is in Fortran order: numpy.ascontiguousarray() turns it`)
  const [height, width, channels = 1] = shape
  if (height === undefined || width === undefined || shape.length > 3 || height * width * channels === 0)
    return fail('DECODE', `${name}: expected an array [height, width] or [height, width, channels] but it is [${shape.join(', ')}]`)
  if (height * width > mostPixels) fail('DECODE', `${name}: ${width}x${height} pixels are more than the ${mostPixels} allowed`)
  const values = bytes.subarray(from + length)
  const count = height * width * channels
  if (values.length !== count * (type === '|u1' ? 1 : 2))
    fail(
      'DECODE',
      `${name}: expected ${count} numbers of ${type} for [${shape.join(', ')}] but the file has ${values.length} bytes of them`,
    )
  const data =
    type === '|u1' ? new Uint8Array(values) : Uint8Array.from({ length: count }, (_, i) => (values.readUInt16LE(2 * i) + 128) / 257)
  return { width, height, channels, data }
}
