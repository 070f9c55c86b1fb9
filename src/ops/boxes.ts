/** Boxes [x1, y1, x2, y2]: overlaps, and boxes as differences from others. No gradient passes through any of them. */
import { apply } from '../autograd/tape.js'
import { defineOp, expectFloats, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { accumulator, describe, scope, sizeOf, Tensor } from '../tensor/tensor.js'
import { maximum, minimum } from './arithmetic.js'
import { expandDims } from './broadcastTo.js'
import { concat } from './concat.js'
import { slice } from './slice.js'

function expectBoxes(op: string, name: string, boxes: Tensor, rank?: number): void {
  if (boxes.shape.at(-1) !== 4 || (rank !== undefined && boxes.shape.length !== rank))
    fail('SHAPE', `${op}: expected ${name} [${rank === 2 ? 'R' : '..'},4] (x1, y1, x2, y2 of each) but received ${describe(boxes)}`)
}

interface Pair extends Inputs {
  a: Tensor
  b: Tensor
}

export const boxIouOp = defineOp<Pair>({
  name: 'boxIou',
  forward({ a, b }) {
    const y = Tensor.empty([...a.shape.slice(0, -1), b.shape[0]!], a.dtype)
    runNative('boxIou', { y: y.alias([a.size / 4, b.shape[0]!]), a: a.alias([a.size / 4, 4]), b })
    return { outputs: [y] }
  },
  backward: 'notDifferentiable',
})

/**
 * Intersection over union of each box of a [..., 4] with each of b [N, 4]: [..., N] of their dtype, 0 where two do not meet or have no
 * area. Widths are x2 - x1. Not differentiable.
 */
export function boxIou(a: Tensor, b: Tensor): Tensor {
  expectFloats('boxIou', { a, b })
  expectBoxes('boxIou', 'a', a)
  expectBoxes('boxIou', 'b', b, 2)
  return apply(boxIouOp, { a, b }, {})[0]!
}

/** Factors of the differences of x, y, width and height. */
export type BoxWeights = readonly [number, number, number, number]

const numbersOf = (op: string, weights: BoxWeights): Record<'weightX' | 'weightY' | 'weightW' | 'weightH', number> => {
  if (weights.length !== 4 || !weights.every((weight) => weight > 0 && Number.isFinite(weight)))
    fail('ARGUMENT', `${op}: expected four positive weights but received [${weights.join(',')}]`)
  const [weightX, weightY, weightW, weightH] = weights
  return { weightX, weightY, weightW, weightH }
}

interface Encoded extends Inputs {
  boxes: Tensor
  targets: Tensor
}

export const encodeBoxesOp = defineOp<Encoded, { weights: BoxWeights }>({
  name: 'encodeBoxes',
  forward({ boxes, targets }, { weights }) {
    const y = Tensor.empty(boxes.shape, boxes.dtype)
    const rows = [boxes.size / 4, 4]
    const tensors = { y: y.alias(rows), boxes: boxes.alias(rows), targets: targets.alias(rows) }
    runNative('encodeBoxes', tensors, numbersOf('encodeBoxes', weights))
    return { outputs: [y] }
  },
  backward: 'notDifferentiable',
})

/**
 * `targets` [..., 4] as differences from `boxes` of the same shape (Girshick et al., arXiv:1311.2524): with centres and sizes
 * wx (gx - px) / pw, wy (gy - py) / ph, ww log(gw / pw), wh log(gh / ph). `weights` are 1 by default; heads of Faster R-CNN take 10, 10, 5,
 * 5. A box or target of no size gives what is not finite. Not differentiable.
 */
export function encodeBoxes(boxes: Tensor, targets: Tensor, { weights = [1, 1, 1, 1] }: { weights?: BoxWeights } = {}): Tensor {
  expectFloats('encodeBoxes', { boxes, targets })
  expectBoxes('encodeBoxes', 'boxes', boxes)
  expectShape('encodeBoxes', 'targets', targets, boxes.shape, 'one for each box')
  return apply(encodeBoxesOp, { boxes, targets }, { weights })[0]!
}

/** How differences become boxes again. */
export interface DecodeOptions {
  /** Those that the differences were made with, 1 by default. */
  weights?: BoxWeights | undefined
  /** The largest logarithm of a box's growth, log(1000 / 16) by default; Infinity for none. */
  bound?: number | undefined
  /** Bounds shrinking by the same: false by default, as in detectron2 and torchvision; mmdetection does. */
  bothSides?: boolean | undefined
}

interface Decoded extends Inputs {
  deltas: Tensor
  boxes: Tensor
}

export const decodeBoxesOp = defineOp<Decoded, Required<{ [K in keyof DecodeOptions]: NonNullable<DecodeOptions[K]> }>>({
  name: 'decodeBoxes',
  forward({ deltas, boxes }, { weights, bound, bothSides }) {
    const y = Tensor.empty(deltas.shape, accumulator(deltas.dtype))
    const rows = boxes.size / 4
    const each = [rows, rows === 0 ? 1 : deltas.size / 4 / rows, 4]
    const tensors = { y: y.alias(each), deltas: deltas.alias(each), boxes: boxes.alias([rows, 4]) }
    runNative('decodeBoxes', tensors, { ...numbersOf('decodeBoxes', weights), bound, bothSides })
    return { outputs: [y] }
  },
  backward: 'notDifferentiable',
})

/**
 * The boxes that `deltas` [..., 4], as encodeBoxes makes them, are from `boxes`: of the same shape, or without some of its last axes but
 * the 4, for several differences from each box (those of classes: deltas [R, K, 4], boxes [R, 4]). Logarithms of sizes are bounded after
 * they were divided by the weights. Boxes are f32, also those of bf16 differences, or f64. Not clipped to an image (clipBoxes), and not
 * differentiable.
 */
export function decodeBoxes(deltas: Tensor, boxes: Tensor, options: DecodeOptions = {}): Tensor {
  const { weights = [1, 1, 1, 1], bound = Math.log(1000 / 16), bothSides = false } = options
  expectFloats('decodeBoxes', { deltas }, { boxes })
  expectBoxes('decodeBoxes', 'deltas', deltas)
  expectBoxes('decodeBoxes', 'boxes', boxes)
  const shared = boxes.shape.slice(0, -1)
  if (boxes.shape.length > deltas.shape.length || shared.some((size, axis) => size !== deltas.shape[axis]))
    fail('SHAPE', `decodeBoxes: expected boxes with the leading axes of deltas ${describe(deltas)} but received ${describe(boxes)}`)
  if (sizeOf(shared) === 0 && deltas.size > 0) fail('SHAPE', `decodeBoxes: expected a box but received ${describe(boxes)}`)
  if (!(bound >= 0)) fail('ARGUMENT', `decodeBoxes: expected a bound of at least 0 but received ${bound}`)
  return apply(decodeBoxesOp, { deltas, boxes }, { weights, bound, bothSides })[0]!
}

/**
 * Boxes [..., 4] cut off at the borders of their image: x between 0 and its width, y between 0 and its height. `size` is [height, width],
 * or a tensor [..., 2] of the boxes' dtype with a size for each set: boxes [N, R, 4] and sizes [N, 2].
 */
export function clipBoxes(boxes: Tensor, size: readonly [number, number] | Tensor): Tensor {
  expectFloats('clipBoxes', { boxes })
  expectBoxes('clipBoxes', 'boxes', boxes)
  return scope(() => {
    if (!(size instanceof Tensor)) {
      const [height, width] = size
      if (!(height >= 0 && width >= 0)) fail('ARGUMENT', `clipBoxes: expected a size [height, width] but received [${size.join(',')}]`)
      return minimum(maximum(boxes, 0), Tensor.from([width, height, width, height], [4], boxes.dtype, boxes.device))
    }
    expectFloats('clipBoxes', { boxes, size })
    expectShape('clipBoxes', 'size', size, [...boxes.shape.slice(0, -2), 2], 'height and width for each set of boxes')
    const part = (at: number): Tensor => slice(size, [...size.shape.slice(0, -1).map(() => undefined), [at, at + 1]])
    const [height, width] = [part(0), part(1)]
    return minimum(maximum(boxes, 0), expandDims(concat([width, height, width, height], -1), -2))
  })
}
