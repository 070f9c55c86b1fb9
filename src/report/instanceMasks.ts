/** Masks of objects in a picture: a translucent fill and an outline. */
import type { Pixels } from '../data/decode.js'
import { decodeMask, maskBounds, type RunLengths } from '../data/runLengths.js'

/** A mask of the picture's size in a colour, filled or as an outline alone. */
export interface DrawnMask {
  mask: RunLengths
  colour: readonly number[]
  filled: boolean
}

/** How much of the colour a filled pixel and one of the outline have. */
const [fillShare, outlineShare] = [0.4, 0.9]

/** The picture with masks drawn over it, later ones on top; outlines are `thickness` pixels wide, within the mask. */
export function drawMasks(pixels: Pixels, masks: readonly DrawnMask[], thickness: number): Pixels {
  const data = Uint8Array.from(pixels.data)
  for (const { mask, colour, filled } of masks) {
    const { height, width } = mask
    const inside = decodeMask(mask)
    const isIn = (x: number, y: number): boolean => x >= 0 && x < width && y >= 0 && y < height && inside[y * width + x] === 1
    const [left, top, across, down] = maskBounds(mask)
    for (let y = top; y < top + down; ++y)
      for (let x = left; x < left + across; ++x) {
        if (!isIn(x, y)) continue
        const edge = !isIn(x - thickness, y) || !isIn(x + thickness, y) || !isIn(x, y - thickness) || !isIn(x, y + thickness)
        if (!edge && !filled) continue
        const share = edge ? outlineShare : fillShare
        for (let c = 0; c < 3; ++c) {
          const at = 3 * (y * width + x) + c
          data[at] = Math.round((1 - share) * data[at]! + share * colour[c]!)
        }
      }
  }
  return { ...pixels, data }
}
