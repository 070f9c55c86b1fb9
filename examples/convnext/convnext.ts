/**
 * A backbone of one's own: a small ConvNeXt (Liu et al., A ConvNet for the 2020s, arXiv:2201.03545), without its layer scale and
 * stochastic depth, under the names of the authors' checkpoints. The module exports the kind by default, so a command can be told of it:
 *
 *   densecl pretrain --data photos --backbone dist/examples/convnext/convnext.js --backbone-options '{"widths": [32, 64, 128, 256]}'
 *   densecl eval knn runs/densecl/backbone.safetensors --backbone dist/examples/convnext/convnext.js --train ... --val ...
 */
import {
  add,
  Backbone,
  type BackboneKind,
  type Build,
  Conv2d,
  DenseclError,
  emptyState,
  type Fill,
  gelu,
  include,
  knownOptions,
  LayerNorm,
  type NormMode,
  scope,
  type State,
  type Tensor,
} from 'densecl/engine'

export interface ConvNeXtOptions {
  /** Channels of the four stages. */
  widths: readonly number[]
  /** Blocks of the four stages. */
  depths: readonly number[]
  /** Channels of the images. */
  inputs: number
}

const defaults: ConvNeXtOptions = { widths: [16, 32, 64, 128], depths: [1, 1, 3, 1], inputs: 3 }

const normal: Fill = (random, shape) =>
  Float64Array.from({ length: shape.reduce((size, side) => size * side, 1) }, () => 0.02 * random.normal())
const zeros: Fill = (_, shape) => new Float64Array(shape.reduce((size, side) => size * side, 1))

/** A convolution with a bias; depthwise where it has as many groups as channels. */
const convolution = (build: Build, inputs: number, outputs: number, kernel: number, options: { stride?: number; groups?: number } = {}) =>
  new Conv2d(build, inputs, outputs, kernel, {
    ...options,
    padding: options.groups === undefined ? 0 : (kernel - 1) / 2,
    fill: normal,
    bias: zeros,
  })

const eps = 1e-6

/** x + W2 gelu(W1 norm(depthwise 7x7 of x)), the inner width four times that of x. */
class Block {
  readonly #parts: { dwconv: Conv2d; norm: LayerNorm; pwconv1: Conv2d; pwconv2: Conv2d }

  constructor(build: Build, width: number) {
    this.#parts = {
      dwconv: convolution(build, width, width, 7, { groups: width }),
      norm: new LayerNorm(build, width, eps),
      pwconv1: convolution(build, width, 4 * width, 1),
      pwconv2: convolution(build, 4 * width, width, 1),
    }
  }

  forward(x: Tensor): Tensor {
    const { dwconv, norm, pwconv1, pwconv2 } = this.#parts
    return scope(() => add(x, pwconv2.forward(gelu(pwconv1.forward(norm.forward(dwconv.forward(x)))))))
  }

  state(): State {
    const state = emptyState()
    for (const [name, part] of Object.entries(this.#parts)) include(state, name, part.state())
    return state
  }
}

export class ConvNeXt extends Backbone {
  readonly kind = convnext
  readonly options: Record<keyof ConvNeXtOptions, unknown>
  readonly name = 'ConvNeXt'
  readonly description: string
  readonly maps
  override readonly inputs: number
  /** In front of each stage: patches of 4x4 pixels and a norm, later a norm and patches of 2x2. */
  readonly #downsample: { conv: Conv2d; norm: LayerNorm }[]
  readonly #stages: Block[][]
  readonly #norm: LayerNorm

  constructor(build: Build, options: Partial<ConvNeXtOptions> = {}) {
    super(build)
    const { widths, depths, inputs } = { ...defaults, ...options }
    if (widths.length !== depths.length)
      throw new DenseclError('CONFIG', `convnext: expected depths for ${widths.length} widths but received ${depths.length}`)
    this.options = { widths, depths, inputs }
    this.inputs = inputs
    this.description = `ConvNeXt of ${widths.join(', ')} channels in ${depths.join(', ')} blocks for ${inputs} input channels`
    this.maps = widths.map((channels, stage) => ({ channels, stride: 4 * 2 ** stage }))
    this.#downsample = widths.map((width, stage) => ({
      conv:
        stage === 0 ? convolution(build, inputs, width, 4, { stride: 4 }) : convolution(build, widths[stage - 1]!, width, 2, { stride: 2 }),
      norm: new LayerNorm(build, stage === 0 ? width : widths[stage - 1]!, eps),
    }))
    this.#stages = widths.map((width, stage) => Array.from({ length: depths[stage]! }, () => new Block(build, width)))
    this.#norm = new LayerNorm(build, widths.at(-1)!, eps)
  }

  /** Batches do not matter to layer norm, so neither does the mode. */
  stages(x: Tensor, _mode: NormMode): Tensor[] {
    return scope(() => {
      let map = x
      return this.#stages.map((blocks, stage) => {
        const { conv, norm } = this.#downsample[stage]!
        map = stage === 0 ? norm.forward(conv.forward(map)) : conv.forward(norm.forward(map))
        for (const block of blocks) map = block.forward(map)
        return stage === this.#stages.length - 1 ? this.#norm.forward(map) : map
      })
    })
  }

  state(): State {
    const state = emptyState()
    this.#downsample.forEach(({ conv, norm }, stage) => {
      include(state, `downsample_layers.${stage}.${stage === 0 ? 0 : 1}`, conv.state())
      include(state, `downsample_layers.${stage}.${stage === 0 ? 1 : 0}`, norm.state())
    })
    this.#stages.forEach((blocks, stage) => blocks.forEach((block, i) => include(state, `stages.${stage}.${i}`, block.state())))
    include(state, 'norm', this.#norm.state())
    return state
  }
}

const convnext: BackboneKind = {
  name: 'convnext',
  build: (build, options) => new ConvNeXt(build, knownOptions('convnext', options, defaults)),
}

export default convnext
