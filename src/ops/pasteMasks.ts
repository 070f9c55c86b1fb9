import { apply } from '../autograd/tape.js'
import { defineOp, expectFloats, expectInteger, expectRank, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { Tensor } from '../tensor/tensor.js'

interface PasteInputs extends Inputs {
  x: Tensor
  boxes: Tensor
}

export const pasteMasksOp = defineOp<PasteInputs, { height: number; width: number; threshold: number }>({
  name: 'pasteMasks',
  forward({ x, boxes }, { height, width, threshold }) {
    const y = Tensor.empty([x.shape[0]!, height, width], 'u8')
    runNative('pasteMasks', { y, x, boxes }, { threshold })
    return { outputs: [y] }
  },
  backward: 'notDifferentiable',
})

/**
 * Masks of boxes as pixels of an image of `height` x `width` (detectron2's paste_masks_in_image). x [R, P, Q] are the masks, such as
 * probabilities of 28 x 28; boxes [R, 4] are x1, y1, x2, y2 in pixels of the image, in f32, or f64 for f64 masks. Gives u8 [R, height,
 * width]: 1 where the mask, stretched over its box and read bilinearly at the pixel's centre with zeros around it, is at least `threshold`,
 * 0.5 by default; 0 elsewhere, and for a box without area or that is not finite. Not differentiable.
 */
export function pasteMasks(
  x: Tensor,
  boxes: Tensor,
  { height, width, threshold = 0.5 }: { height: number; width: number; threshold?: number },
): Tensor {
  expectFloats('pasteMasks', { x }, { boxes })
  expectRank('pasteMasks', 'x', x, 3)
  for (const side of x.shape.slice(1)) expectInteger('pasteMasks', 'sides of x', side, 1)
  expectShape('pasteMasks', 'boxes', boxes, [x.shape[0]!, 4], 'x1, y1, x2, y2 for each mask')
  for (const [name, side] of Object.entries({ height, width })) expectInteger('pasteMasks', name, side, 1)
  if (!(threshold > 0)) fail('ARGUMENT', `pasteMasks: expected a positive threshold but received ${threshold}`)
  return apply(pasteMasksOp, { x, boxes }, { height, width, threshold })[0]!
}
