/** The feature pyramid (Lin et al., arXiv:1612.03144): maps of one number of channels, each with what coarser ones know. */
import { add } from '../ops/arithmetic.js'
import { maxPool2d } from '../ops/pool2d.js'
import { upsample2d } from '../ops/upsample2d.js'
import type { Build, Fill, NormMode } from '../nn/layers.js'
import { include, type State } from '../nn/module.js'
import { fail } from '../tensor/errors.js'
import { scope, type Tensor } from '../tensor/tensor.js'
import { Unit } from './unit.js'

/** What a FeaturePyramid is built with. */
export interface FeaturePyramidOptions {
  /** Channels of each map of the backbone, and of those of the pyramid. */
  inputs: readonly number[]
  channels: number
  fill: Fill
  norm: boolean
}

/** Lateral 1x1 convolutions, the coarser map repeated and added, a 3x3 convolution; norms after both kinds, no ReLU. */
export class FeaturePyramid {
  readonly #laterals: Unit[]
  readonly #outputs: Unit[]

  constructor(build: Build, { inputs, channels, fill, norm }: FeaturePyramidOptions) {
    this.#laterals = inputs.map((each) => new Unit(build, each, channels, { kernel: 1, fill, norm }))
    this.#outputs = inputs.map(() => new Unit(build, channels, channels, { kernel: 3, fill, norm }))
  }

  /**
   * Maps of the backbone [N, H, W, C], each half as large as the one before, to those of the pyramid, and every second cell of the last of
   * these. Throws SHAPE for maps of other sizes.
   */
  forward(maps: readonly Tensor[], mode: NormMode): Tensor[] {
    expectHalves(maps)
    return scope(() => {
      const sums = maps.map((map, i) => this.#laterals[i]!.forward(map, mode, { relu: false }))
      for (let i = sums.length - 2; i >= 0; --i) sums[i] = add(sums[i]!, upsample2d(sums[i + 1]!, 2))
      const outputs = sums.map((sum, i) => this.#outputs[i]!.forward(sum, mode, { relu: false }))
      return [...outputs, maxPool2d(outputs.at(-1)!, { kernel: 1, stride: 2 })]
    })
  }

  /** Adds parameters and buffers under mmdetection's names. */
  include(state: State): void {
    this.#laterals.forEach((unit, i) => include(state, `neck.lateral_convs.${i}`, unit.state()))
    this.#outputs.forEach((unit, i) => include(state, `neck.fpn_convs.${i}`, unit.state()))
  }
}

function expectHalves(maps: readonly Tensor[]): void {
  const sides = maps.map(({ shape: [, height, width] }) => ({ height: height!, width: width! }))
  const halves = sides.slice(1).every(({ height, width }, i) => 2 * height === sides[i]!.height && 2 * width === sides[i]!.width)
  if (halves) return
  const sizes = sides.map(({ height, width }) => `${height}x${width}`).join(', ')
  fail(
    'SHAPE',
    `feature pyramid: expected maps, each half as large as the one before, as images of sides that are multiples of 32 have them, ` +
      `but received ${sizes}`,
  )
}
