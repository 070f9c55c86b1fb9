/** Masks of found objects in the pixels of their image. */
import { encodeMask, type PixelRange, type RunLengths } from '../data/runLengths.js'
import { noGrad } from '../autograd/tape.js'
import { pasteMasks } from '../ops/pasteMasks.js'
import { scope, Tensor } from '../tensor/tensor.js'
import type { FoundObject } from './detect.js'

/** A found object whose mask is of pixels of the original image. */
export type MaskedObject = Omit<FoundObject, 'mask'> & { mask?: RunLengths }

/** Pixels of all masks that are made at a time: bytes. */
const pixelsAtOnce = 2 ** 26

/** The objects of an image of this size with their masks in its pixels, where they are more likely there than not. */
export function maskedObjects(found: readonly FoundObject[], image: { height: number; width: number }): MaskedObject[] {
  const { height, width } = image
  const most = Math.max(1, Math.floor(pixelsAtOnce / (height * width)))
  const objects: MaskedObject[] = []
  for (let from = 0; from < found.length; from += most) {
    const some = found.slice(from, from + most)
    const pixels = pasted(some, image)
    some.forEach(({ mask, ...object }, i) => {
      const own = pixels.subarray(i * height * width, (i + 1) * height * width)
      objects.push(mask === undefined ? object : { ...object, mask: encodeMask(own, height, width, reached(object, mask.side, image)) })
    })
  }
  return objects
}

/** The pixels [R, height, width] of masks of one size; none of objects without. */
function pasted(found: readonly FoundObject[], size: { height: number; width: number }): Uint8Array {
  const side = found.find(({ mask }) => mask !== undefined)?.mask?.side
  if (side === undefined) return new Uint8Array(0)
  const values = new Float64Array(found.length * side * side)
  found.forEach(({ mask }, i) => values.set(mask?.values ?? [], i * side * side))
  const boxes = Float64Array.from(found.flatMap(({ box }) => [...box]))
  return scope(() =>
    noGrad(() => {
      const x = Tensor.from(values, [found.length, side, side], 'f32')
      return pasteMasks(x, Tensor.from(boxes, [found.length, 4], 'f32'), size).data() as Uint8Array
    }),
  )
}

/** The pixels that the mask of a box may have: half a cell beyond it. */
function reached({ box: [x1, y1, x2, y2] }: MaskedObject, side: number, { height, width }: { height: number; width: number }): PixelRange {
  const inside = (value: number, most: number): number => Math.min(most, Math.max(0, value))
  const [across, down] = [(x2 - x1) / side + 1, (y2 - y1) / side + 1]
  return {
    left: inside(Math.floor(x1 - across), width),
    top: inside(Math.floor(y1 - down), height),
    right: inside(Math.ceil(x2 + across), width),
    bottom: inside(Math.ceil(y2 + down), height),
  }
}
