/**
 * E4M3, the eight-bit float of tensor cores (P. Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433): a sign, four bits of
 * exponent, three of mantissa. Steps are 2^-9 below 2^-6; what is larger than 448 becomes 448; there is a NaN and no infinity.
 */

const largest = 448
const nan = 0x7f

/** The values of all bytes. */
const values = Float32Array.from({ length: 256 }, (_, bits) => {
  const [exponent, mantissa] = [(bits >> 3) & 15, bits & 7]
  const size = (bits & nan) === nan ? NaN : exponent === 0 ? mantissa * 2 ** -9 : (1 + mantissa / 8) * 2 ** (exponent - 7)
  return bits < 128 ? size : -size
})

/** The byte of the nearest number of E4M3, ties to even. */
function toByte(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x80 : 0
  const size = Math.abs(value)
  if (Number.isNaN(value)) return nan
  if (size >= largest) return sign | (nan - 1)
  // Bytes are in the order of what they stand for; sizes of one exponent, and the first of the next, are steps apart.
  const exponent = Math.max(-6, Math.floor(Math.log2(size)))
  const steps = size / 2 ** (exponent - 3)
  const down = Math.floor(steps)
  const up = steps - down > 0.5 || (steps - down === 0.5 && down % 2 === 1)
  return sign | ((exponent + 6) * 8 + down + Number(up))
}

/** The bytes of `floats` as E4M3 holds them. */
export const toE4m3 = (floats: Float32Array): Uint8Array => {
  const bytes = new Uint8Array(floats.length)
  floats.forEach((value, i) => (bytes[i] = toByte(value)))
  return bytes
}

/** What the bytes stand for. */
export const fromE4m3 = (bytes: Uint8Array): Float32Array => {
  const floats = new Float32Array(bytes.length)
  bytes.forEach((byte, i) => (floats[i] = values[byte]!))
  return floats
}
