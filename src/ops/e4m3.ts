/**
 * Maps in E4M3 where no gradient is wanted: half the bytes of bf16 for what convolutions read, which Hopper's tensor cores multiply at
 * twice the rate. Batch norms write them as they are, since normalised values lie where E4M3 has its steps; weights are scaled.
 */
import { currentCompute } from '../tensor/compute.js'
import { runNative } from '../tensor/native.js'
import { Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { roundedWeight } from './fusion.js'
import { isAmpereTile } from './kernels.js'
import { type Conv2dOptions, convolutionSize, windowNumbers } from './windows.js'

/** Whether channels come in whole slices of a product's depth in E4M3. */
export const wholeE4m3Slices = (channels: number): boolean => channels % 128 === 0

/** Whether a norm of x [N, H, W, C] can be kept in E4M3 for the convolutions that read it: they take whole slices of channels. */
export const keepsE4m3 = ({ dtype, device, shape }: Tensor): boolean =>
  dtype === 'bf16' && wholeE4m3Slices(shape.at(-1)!) && deviceTraits(device).e4m3

/**
 * conv2d of x [N, H, W, C] in E4M3 with weight [O, KH, KW, C] in bf16, which is rounded to E4M3, each output's weights by a power of two:
 * y [N, OH, OW, O] in bf16, and statistics of it as of conv2dForNorm where they are wanted. Without gradients. Throws DEVICE where the
 * device has no kernel for it, or C is no multiple of 128.
 */
export function conv2dE4m3(
  x: Tensor,
  weight: Tensor,
  options: Omit<Conv2dOptions, 'groups'>,
  wanted: boolean,
): readonly [y: Tensor, statistics: Tensor | undefined] {
  const numbers = windowNumbers(options)
  const [oh, ow] = convolutionSize(x, weight, numbers)
  const [n, o] = [x.shape[0]!, weight.shape[0]!]
  const y = Tensor.empty([n, oh, ow, o], 'bf16', x.device)
  const rows = Math.ceil((n * oh * ow) / deviceTraits(x.device).statisticsRows)
  const statistics = wanted ? Tensor.empty([rows, 2, o], 'f32', x.device) : undefined
  const { tile } = currentCompute()
  // Those of Ampere have no kernel for it.
  const operands = { y, x, weight: roundedWeight(weight, 'bf16'), statistics }
  runNative('conv2dE4m3', operands, { ...numbers, tile: isAmpereTile(tile) ? 0 : tile })
  return [y, statistics]
}
