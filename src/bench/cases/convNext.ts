/** The layers of ConvNeXt-T (Z. Liu et al., arXiv:2201.03545) that ResNet-50 has not: depthwise 7x7 convolutions and layer norms. */
import { runNative } from '../../tensor/native.js'
import type { Shape } from '../../tensor/tensor.js'
import type { BenchCase, FamilyCases } from './benchCase.js'

const stages = [
  { size: 56, c: 96 },
  { size: 28, c: 192 },
  { size: 14, c: 384 },
  { size: 7, c: 768 },
]
const shapeOf = (n: number, { size, c }: { size: number; c: number }): Shape => [n, size, size, c]
const numbersOf = (
  groups: number,
): Record<'strideH' | 'strideW' | 'paddingH' | 'paddingW' | 'dilationH' | 'dilationW' | 'groups', number> => ({
  strideH: 1,
  strideW: 1,
  paddingH: 3,
  paddingW: 3,
  dilationH: 1,
  dilationW: 1,
  groups,
})

export const convNextCases = {
  groupedConv2d: stages.flatMap((stage): BenchCase[] => {
    const { size, c } = stage
    const [name, numbers, weightShape] = [`depthwise 7x7, ${size}x${size}x${c}`, numbersOf(c), [c, 7, 7, 1]]
    const flops = (n: number): number => 2 * n * size * size * c * 49
    return [
      {
        name: `${name} forward`,
        flops,
        prepare(s) {
          const tensors = { y: s.output(shapeOf(s.batch, stage)), x: s.values(shapeOf(s.batch, stage)), weight: s.values(weightShape) }
          return () => runNative('groupedConv2d', tensors, numbers)
        },
      },
      {
        name: `${name} backward input`,
        flops,
        prepare(s) {
          const tensors = { dx: s.output(shapeOf(s.batch, stage)), dy: s.values(shapeOf(s.batch, stage)), weight: s.values(weightShape) }
          return () => runNative('groupedConv2dBackwardInput', tensors, numbers)
        },
      },
      {
        name: `${name} backward weight`,
        flops,
        prepare(s) {
          const tensors = { dweight: s.sums(weightShape), dy: s.values(shapeOf(s.batch, stage)), x: s.values(shapeOf(s.batch, stage)) }
          return () => runNative('groupedConv2dBackwardWeight', tensors, numbers)
        },
      },
    ]
  }),
  layerNorm: stages.flatMap((stage): BenchCase[] => {
    const { size, c } = stage
    const rows = (n: number): Shape => [n, size, size]
    return [
      {
        name: `${size}x${size}x${c} forward`,
        flops: (n) => 8 * n * size * size * c,
        prepare(s) {
          const tensors = {
            y: s.output(shapeOf(s.batch, stage)),
            mean: s.sums(rows(s.batch)),
            invstd: s.sums(rows(s.batch)),
            x: s.values(shapeOf(s.batch, stage)),
            weight: s.sums([c]),
            bias: s.sums([c]),
          }
          return () => runNative('layerNorm', tensors, { eps: 1e-6 })
        },
      },
      {
        name: `${size}x${size}x${c} backward`,
        flops: (n) => 14 * n * size * size * c,
        prepare(s) {
          const tensors = {
            dx: s.output(shapeOf(s.batch, stage)),
            dweight: s.sums([c]),
            dbias: s.sums([c]),
            dy: s.values(shapeOf(s.batch, stage)),
            x: s.values(shapeOf(s.batch, stage)),
            weight: s.sums([c]),
            mean: s.sums(rows(s.batch)),
            invstd: s.sums(rows(s.batch)),
          }
          return () => runNative('layerNormBackward', tensors)
        },
      },
    ]
  }),
} satisfies FamilyCases
