/** Segmentation masks: PNGs whose samples are class indices, and the colours that stand for classes in pictures. */
import { inflateSync } from 'node:zlib'

import { decode as decodePng } from 'fast-png'

import { fail, systemReason } from '../tensor/errors.js'
import { maxPixels } from './decode.js'

/** Pixels of this value are of no class: they are neither trained on nor counted. */
export const ignoredLabel = 255

/** The classes of the pixels of an image. */
export interface Mask {
  width: number
  height: number
  /** height * width class indices, row-major; `ignoredLabel` for none. */
  labels: Uint8Array
}

/**
 * The class indices of a palette or grey PNG. With `map`, index i of the file is class map[i]. Throws DATA, naming the file, for
 * colours, 16 bits, an index that is neither of `classes` nor ignored, and, before anything is decoded, another size than `image` has.
 */
export function decodeMask(
  bytes: Uint8Array,
  name: string,
  classes: number,
  map?: readonly number[],
  image?: { name: string; width: number; height: number },
): Mask {
  const { width, height, labels } = indices(bytes, name, image)
  if (map !== undefined) for (let i = 0; i < labels.length; ++i) labels[i] = map[labels[i]!] ?? ignoredLabel
  const unknown = labels.find((label) => label >= classes && label !== ignoredLabel)
  if (unknown !== undefined) {
    const at = labels.indexOf(unknown)
    fail(
      'DATA',
      `${name}: the pixel at ${at % width},${Math.floor(at / width)} is of class ${unknown}: expected 0 ` +
        `to ${classes - 1}, or ${ignoredLabel} for none`,
    )
  }
  return { width, height, labels }
}

/** The most that a mask's data inflate by beside its samples: interlaced passes end rows more often. */
const inflatedBytes = (width: number, height: number, depth: number): number => 2 * height * (Math.ceil((width * depth) / 8) + 1) + 64

function indices(bytes: Uint8Array, name: string, image?: { name: string; width: number; height: number }): Mask {
  const unreadable = (why: string): never => fail('DATA', `${name}: the mask is not a PNG that can be read (${why})`)
  const { critical, width, height, depth, channels, data } = parts(bytes, unreadable)
  if (channels !== 1 || depth === 16)
    fail('DATA', `${name}: the mask has ${channels} channels of ${depth} bits: expected a palette or grey PNG of class indices`)
  if (width * height > maxPixels) fail('DATA', `${name}: the mask has ${width}x${height} pixels, more than the ${maxPixels} allowed`)
  if (image !== undefined && (image.width !== width || image.height !== height))
    fail('DATA', `${name}: the mask has ${width}x${height} pixels but ${image.name} has ${image.width}x${image.height}`)
  const most = inflatedBytes(width, height, depth)
  let inflated = 0
  try {
    inflated = inflateSync(data, { maxOutputLength: most }).length
  } catch (error) {
    const reason = systemReason(error)
    unreadable(reason === 'ERR_BUFFER_TOO_LARGE' ? `its data inflate to more than the ${most} bytes of ${width}x${height} pixels` : reason)
  }
  if (inflated < height * Math.ceil((width * depth) / 8)) unreadable(`its data are too few for ${width}x${height} pixels`)
  let samples: ArrayLike<number>
  try {
    samples = decodePng(critical).data
  } catch (error) {
    return unreadable(error instanceof Error ? error.message : String(error))
  }
  if (depth === 8) return { width, height, labels: Uint8Array.from(samples) }
  // Several samples a byte, each row begins a new one.
  const labels = new Uint8Array(width * height)
  const rowBytes = Math.ceil((width * depth) / 8)
  for (let y = 0; y < height; ++y) {
    for (let x = 0; x < width; ++x) {
      const bit = x * depth
      labels[y * width + x] = (samples[y * rowBytes + (bit >> 3)]! >> (8 - depth - (bit & 7))) & ((1 << depth) - 1)
    }
  }
  return { width, height, labels }
}

const pngSignature = '\x89PNG\r\n\x1a\n'

/** Samples of a pixel by colour type. */
const channelsOf: Readonly<Record<number, number>> = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }

interface PngParts {
  /** The file without what no mask needs: a profile or a text may inflate to anything. */
  critical: Buffer
  width: number
  height: number
  depth: number
  channels: number
  /** The deflated samples. */
  data: Buffer
}

/** What a PNG claims, before any of it is decoded. */
function parts(bytes: Uint8Array, unreadable: (why: string) => never): PngParts {
  const png = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  if (png.toString('latin1', 0, 8) !== pngSignature) unreadable('it has no signature of one')
  const kept = [png.subarray(0, 8)]
  const data: Buffer[] = []
  let frame: Pick<PngParts, 'width' | 'height' | 'depth' | 'channels'> | undefined
  for (let at = 8, type = ''; type !== 'IEND';) {
    if (at + 12 > png.length) unreadable(`it ends at byte ${png.length}, before its end chunk`)
    const length = png.readUInt32BE(at)
    type = png.toString('latin1', at + 4, at + 8)
    if (at + 12 + length > png.length) unreadable(`the chunk ${JSON.stringify(type)} at byte ${at} is cut off`)
    if (type === 'IHDR') {
      if (frame !== undefined || length !== 13) return unreadable('its header is damaged')
      const [width, height] = [png.readUInt32BE(at + 8), png.readUInt32BE(at + 12)]
      const channels = channelsOf[png[at + 17]!]
      const depth = png[at + 16]!
      if (width === 0 || height === 0 || channels === undefined || ![1, 2, 4, 8, 16].includes(depth))
        return unreadable(`it claims ${width}x${height} pixels of ${depth} bits and the type ${png[at + 17]}`)
      frame = { width, height, depth, channels }
    }
    if (type === 'IDAT') data.push(png.subarray(at + 8, at + 8 + length))
    if (['IHDR', 'PLTE', 'IDAT', 'IEND'].includes(type)) kept.push(png.subarray(at, at + 12 + length))
    at += 12 + length
  }
  if (frame === undefined) return unreadable('it has no header')
  return { ...frame, critical: Buffer.concat(kept), data: Buffer.concat(data) }
}

/** The colour of a class in VOC's palette: the bits of the index spread over the three channels, from the top. */
export function classColour(label: number): [number, number, number] {
  const colour: [number, number, number] = [0, 0, 0]
  for (let bits = label, place = 7; bits > 0; bits >>= 3, --place) for (let c = 0; c < 3; ++c) colour[c]! |= ((bits >> c) & 1) << place
  return colour
}
