/** Segmentation masks: PNGs whose samples are class indices, and the colours that stand for classes in pictures. */
import { decode as decodePng } from 'fast-png'

import { fail } from '../tensor/errors.js'

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
 * colours, 16 bits, and an index that is neither of `classes` nor ignored.
 */
export function decodeMask(bytes: Uint8Array, name: string, classes: number, map?: readonly number[]): Mask {
  const { width, height, labels } = indices(bytes, name)
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

function indices(bytes: Uint8Array, name: string): Mask {
  let png: ReturnType<typeof decodePng>
  try {
    png = decodePng(bytes)
  } catch (error) {
    return fail('DATA', `${name}: the mask is not a PNG that can be read (${error instanceof Error ? error.message : String(error)})`)
  }
  const { width, height, depth, channels, data } = png
  if (channels !== 1 || depth === 16)
    fail('DATA', `${name}: the mask has ${channels} channels of ${depth} bits: expected a palette or grey PNG of class indices`)
  if (depth === 8) return { width, height, labels: Uint8Array.from(data) }
  // Several samples a byte, each row begins a new one.
  const labels = new Uint8Array(width * height)
  const rowBytes = Math.ceil((width * depth) / 8)
  for (let y = 0; y < height; ++y) {
    for (let x = 0; x < width; ++x) {
      const bit = x * depth
      labels[y * width + x] = (data[y * rowBytes + (bit >> 3)]! >> (8 - depth - (bit & 7))) & ((1 << depth) - 1)
    }
  }
  return { width, height, labels }
}

/** The colour of a class in VOC's palette: the bits of the index spread over the three channels, from the top. */
export function classColour(label: number): [number, number, number] {
  const colour: [number, number, number] = [0, 0, 0]
  for (let bits = label, place = 7; bits > 0; bits >>= 3, --place) for (let c = 0; c < 3; ++c) colour[c]! |= ((bits >> c) & 1) << place
  return colour
}
