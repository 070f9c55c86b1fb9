/** What TIFF files say of their channels, which libvips does not pass on. Format: TIFF 6.0, sections 2 and 18; BigTIFF's wider numbers. */

const extraSamples = 338

/**
 * The tag ExtraSamples of the first image: of each channel behind grey or the colours 1 or 2 for alpha, else it is something else. Throws
 * RangeError where the file ends before.
 */
export function extraSamplesOf(bytes: Buffer): number[] {
  const little = bytes[0] === 0x49
  const short = (at: number): number => (little ? bytes.readUInt16LE(at) : bytes.readUInt16BE(at))
  const long = (at: number): number => (little ? bytes.readUInt32LE(at) : bytes.readUInt32BE(at))
  const wide = (at: number): number => Number(little ? bytes.readBigUInt64LE(at) : bytes.readBigUInt64BE(at))
  const big = short(2) === 43
  const [number, field, width, inside] = big ? ([wide, 20, 8, 8] as const) : ([long, 12, 4, 4] as const)
  const directory = number(big ? 8 : 4)
  const first = directory + (big ? 8 : 2)
  for (let i = 0; i < (big ? wide : short)(directory); ++i) {
    const entry = first + field * i
    if (short(entry) !== extraSamples) continue
    const [count, value] = [number(entry + 4), entry + 4 + width]
    const from = 2 * count <= inside ? value : number(value)
    return Array.from({ length: Math.min(count, 1024) }, (_, k) => short(from + 2 * k))
  }
  return []
}
