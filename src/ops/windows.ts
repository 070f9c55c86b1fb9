/** The windows of convolutions and poolings: what their options mean on both axes, and the checks that all convolutions share. */
import { expectElements, expectFactors, expectInteger, expectRank, expectShape } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { describe, type Tensor } from '../tensor/tensor.js'

/** One number for both axes, or [vertical, horizontal]. */
export type PerAxis = number | readonly [number, number]
export const perAxis = (value: PerAxis): readonly [number, number] => (typeof value === 'number' ? [value, value] : value)

/** Geometry of a convolution; a pair is vertical, horizontal. */
export interface Conv2dOptions {
  stride?: PerAxis
  padding?: PerAxis
  dilation?: PerAxis
  /** Groups of channels of x and of outputs, in their order, that see each other alone; as many as channels: depthwise. */
  groups?: number
}

type Geometry = Record<'strideH' | 'strideW' | 'paddingH' | 'paddingW' | 'dilationH' | 'dilationW', number>

/** The numbers of a convolution's native call, when its tensors and options are such as any convolution takes. */
export function convolutionGeometry(x: Tensor, weight: Tensor, bias: Tensor | undefined, options: Conv2dOptions): Geometry {
  expectFactors('conv2d', x, weight, bias)
  expectRank('conv2d', 'x', x, 4)
  expectRank('conv2d', 'weight', weight, 4)
  expectElements('conv2d', 'x', x, 1)
  expectElements('conv2d', 'weight', weight)
  if (bias !== undefined) expectShape('conv2d', 'bias', bias, [weight.shape[0]!], 'the output channels')
  return windowNumbers(options)
}

/** Options as the numbers of a native call. */
export function windowNumbers({ stride = 1, padding = 0, dilation = 1 }: Conv2dOptions): Geometry {
  const [[strideH, strideW], [paddingH, paddingW], [dilationH, dilationW]] = [perAxis(stride), perAxis(padding), perAxis(dilation)]
  for (const value of [strideH, strideW]) expectInteger('conv2d', 'stride', value, 1)
  for (const value of [paddingH, paddingW]) expectInteger('conv2d', 'padding', value, 0)
  for (const value of [dilationH, dilationW]) expectInteger('conv2d', 'dilation', value, 1)
  return { strideH, strideW, paddingH, paddingW, dilationH, dilationW }
}

/** [OH, OW] of a convolution. Throws SHAPE where its dilated kernel does not fit into the padded x. */
export function convolutionSize(
  x: Tensor,
  weight: Tensor,
  { strideH, strideW, paddingH, paddingW, dilationH, dilationW }: Geometry,
): readonly [number, number] {
  const [, h, w] = x.shape as [number, number, number, number]
  const [, kh, kw] = weight.shape as [number, number, number, number]
  const oh = Math.floor((h + 2 * paddingH - dilationH * (kh - 1) - 1) / strideH) + 1
  const ow = Math.floor((w + 2 * paddingW - dilationW * (kw - 1) - 1) / strideW) + 1
  if (oh < 1 || ow < 1) fail('SHAPE', `conv2d: the dilated kernel of weight ${describe(weight)} is larger than the padded x ${describe(x)}`)
  return [oh, ow]
}
