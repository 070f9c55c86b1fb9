/**
 * ResNet (He et al., arXiv:1512.03385) as torchvision and the DenseCL authors build it: stride on the 3x3 convolution of the
 * bottleneck, 7x7 stem, bias-free convolutions, and state names equal to torchvision's without `fc`.
 */
import { maxPool2d } from '../ops/pool2d.js'
import { fail } from '../tensor/errors.js'
import { scope, type Tensor } from '../tensor/tensor.js'
import { Backbone, type BackboneBuilder, type BackboneKind, knownOptions, type MapShape } from './backbone.js'
import { BatchNorm2d, type Build, Conv2d, convNorm, type Initialization, kaimingNormal, type NormMode } from './layers.js'
import { emptyState, include, type State } from './module.js'

export const resnetDepths = {
  18: { bottleneck: false, blocks: [2, 2, 2, 2] },
  34: { bottleneck: false, blocks: [3, 4, 6, 3] },
  50: { bottleneck: true, blocks: [3, 4, 6, 3] },
  101: { bottleneck: true, blocks: [3, 4, 23, 3] },
  152: { bottleneck: true, blocks: [3, 8, 36, 3] },
} as const
/** The depths of ResNets that exist. */
export type ResNetDepth = keyof typeof resnetDepths

/** What a ResNet is built with. */
export interface ResNetOptions {
  depth: ResNetDepth
  /** Channels of the stem; 64 in the paper. Stage s has base * 2^s (times 4 in bottlenecks). */
  baseChannels?: number
  /** Channels of the images; 3 by default. */
  channels?: number
  /** By which the channels of the images are normalised, in 0..1; ImageNet's where absent. */
  mean?: readonly number[] | null | undefined
  deviation?: readonly number[] | null | undefined
  /** Blocks of each stage, where they are not those of the depth. */
  blocks?: readonly number[]
  init?: Initialization | undefined
  /** Strides and dilations of the four stages; (1, 2, 2, 2) and (1, 1, 1, 1), or R50-D8: (1, 2, 1, 1) and (1, 1, 2, 4). */
  strides?: readonly number[]
  dilations?: readonly number[]
  /** The first block of a dilated stage uses half the dilation, as mmsegmentation's contract_dilation. */
  contractDilation?: boolean
}

interface Unit {
  conv: Conv2d
  norm: BatchNorm2d
}

class Block {
  readonly units: Unit[]
  readonly shortcut: Unit | undefined

  constructor(build: Build, init: Initialization, bottleneck: boolean, inputs: number, width: number, stride: number, dilation: number) {
    const outputs = bottleneck ? 4 * width : width
    const unit = (from: number, to: number, kernel: number, unitStride = 1, unitDilation = 1): Unit => ({
      conv: new Conv2d(build, from, to, kernel, {
        stride: unitStride,
        padding: kernel === 3 ? unitDilation : 0,
        dilation: unitDilation,
        fill: backboneFill(init),
      }),
      norm: new BatchNorm2d(build, to),
    })
    this.units = bottleneck
      ? [unit(inputs, width, 1), unit(width, width, 3, stride, dilation), unit(width, outputs, 1)]
      : // The second convolution is not dilated: so are the basic blocks of mmsegmentation.
        [unit(inputs, width, 3, stride, dilation), unit(width, width, 3)]
    this.shortcut = stride !== 1 || inputs !== outputs ? unit(inputs, outputs, 1, stride) : undefined
  }

  /** `convolved`: another block reads the result, and nobody else. */
  forward(x: Tensor, mode: NormMode, convolved: boolean): Tensor {
    return scope(() => {
      const identity = this.shortcut === undefined ? x : convNorm(this.shortcut.conv, this.shortcut.norm, x, mode)
      let y = x
      this.units.forEach(({ conv, norm }, i) => {
        const last = i === this.units.length - 1
        const options = last ? { residual: identity, convolved } : { convolved: true }
        const next = convNorm(conv, norm, y, mode, { relu: true, ...options })
        if (y !== x) y.dispose()
        y = next
      })
      return y
    })
  }

  state(): State {
    const state = emptyState()
    this.units.forEach(({ conv, norm }, i) => {
      include(state, `conv${i + 1}`, conv.state())
      include(state, `bn${i + 1}`, norm.state())
    })
    if (this.shortcut !== undefined) {
      include(state, 'downsample.0', this.shortcut.conv.state())
      include(state, 'downsample.1', this.shortcut.norm.state())
    }
    return state
  }
}

const backboneFill = (init: Initialization) => kaimingNormal(init === 'original' ? 'fanIn' : 'fanOut')

/** Throws ARGUMENT for a normalisation of other than the images' channels, or by a deviation that is not positive. */
function normalisationOf({ mean, deviation }: ResNetOptions, channels: number): Backbone['normalisation'] {
  if (mean == null && deviation == null) return undefined
  const fits = (values: unknown, least: number): boolean =>
    Array.isArray(values) && values.length === channels && values.every((value) => typeof value === 'number' && value >= least)
  return fits(mean, 0) && fits(deviation, 1e-6)
    ? { mean: mean!, deviation: deviation! }
    : fail(
        'ARGUMENT',
        `resnet: expected mean and deviation of ${channels} channels, in 0..1, but received ` +
          `${JSON.stringify(mean)} and ${JSON.stringify(deviation)}`,
      )
}

/** Total stride 8: the last two stages are dilated instead (R50-D8). */
export const dilated8: Pick<ResNetOptions, 'strides' | 'dilations' | 'contractDilation'> = {
  strides: [1, 2, 1, 1],
  dilations: [1, 1, 2, 4],
  contractDilation: true,
}

/** Strides of the four stages as published: 32 in all. */
export const resnetStrides = [1, 2, 2, 2] as const

/** Whether these are strides that a ResNet of four stages can have: integers of 1 to 4. */
export const areStrides = (strides: unknown): strides is number[] =>
  Array.isArray(strides) && strides.length === 4 && strides.every((stride) => Number.isInteger(stride) && stride >= 1 && stride <= 4)

/** Pixels between two positions of the last map: those of the stem, its pooling, and the stages. */
const totalStride = (strides: readonly number[]): number => strides.reduce((product, stride) => product * stride, 4)

export const resnetKind: BackboneKind = {
  name: 'resnet',
  settings: ['depth', 'baseChannels', 'strides', 'channels', 'mean', 'deviation'],
  torchvision: true,
  build(build, options, { outputStride, init } = {}) {
    const known = knownOptions<Required<Pick<ResNetOptions, 'depth' | 'baseChannels' | 'strides' | 'channels' | 'mean' | 'deviation'>>>(
      'resnet',
      options,
      { depth: 50, baseChannels: 64, strides: resnetStrides, channels: 3, mean: undefined, deviation: undefined },
    )
    // A network that was trained at a stride of 8 or less stays as it is.
    const coarser = outputStride === 8 && totalStride(known.strides) > 8
    return new ResNet(build, { ...known, init, ...(coarser ? dilated8 : {}) })
  },
}

/** A ResNet as the backbone of an encoder. */
export const resnet =
  (options: ResNetOptions): BackboneBuilder =>
  (build) =>
    new ResNet(build, options)

/** A ResNet (K. He et al., arXiv:1512.03385) without classifier, with the names of torchvision. */
export class ResNet extends Backbone {
  readonly kind = resnetKind
  override readonly inputs: number
  override readonly normalisation: Backbone['normalisation']
  readonly depth: ResNetDepth
  readonly baseChannels: number
  readonly maps: readonly MapShape[]
  readonly #stem: Conv2d
  readonly #stemNorm: BatchNorm2d
  readonly #stages: Block[][]
  readonly #strides: readonly number[]
  readonly #dilated: boolean

  constructor(build: Build, options: ResNetOptions) {
    super(build)
    const {
      depth,
      baseChannels = 64,
      init = 'original',
      strides = resnetStrides,
      dilations = [1, 1, 1, 1],
      contractDilation = false,
      channels = 3,
    } = options
    // Of a file it may be anything.
    const plan =
      typeof depth === 'number' && Object.hasOwn(resnetDepths, depth)
        ? resnetDepths[depth]
        : fail(
            'ARGUMENT',
            `resnet: expected depth to be one of ${Object.keys(resnetDepths).join(', ')} but received ${JSON.stringify(depth)}`,
          )
    if (!areStrides(strides))
      fail('ARGUMENT', `resnet: expected strides to be four integers of 1 to 4 but received ${JSON.stringify(strides)}`)
    const { blocks = plan.blocks } = options
    if (!Number.isInteger(channels) || channels < 1)
      fail('ARGUMENT', `resnet: expected channels to be an integer of 1 or more but received ${JSON.stringify(channels)}`)
    this.inputs = channels
    this.normalisation = normalisationOf(options, channels)
    this.depth = depth
    this.baseChannels = baseChannels
    this.#strides = strides
    this.#dilated = dilations.some((dilation) => dilation !== 1)
    this.#stem = new Conv2d(build, channels, baseChannels, 7, { stride: 2, padding: 3, fill: backboneFill(init) })
    this.#stemNorm = new BatchNorm2d(build, baseChannels)
    let inputs = baseChannels
    this.#stages = blocks.map((count, s) => {
      const width = baseChannels * 2 ** s
      return Array.from({ length: count }, (_, i) => {
        const dilation = i === 0 && contractDilation && dilations[s]! > 1 ? dilations[s]! / 2 : dilations[s]!
        const block = new Block(build, init, plan.bottleneck, inputs, width, i === 0 ? strides[s]! : 1, dilation)
        inputs = plan.bottleneck ? 4 * width : width
        return block
      })
    })
    this.maps = [
      { channels: baseChannels, stride: 2 },
      ...blocks.map((_, s) => ({
        channels: baseChannels * 2 ** s * (plan.bottleneck ? 4 : 1),
        stride: totalStride(strides.slice(0, s + 1)),
      })),
    ]
  }

  get options(): Pick<ResNetOptions, 'depth' | 'strides' | 'channels' | 'mean' | 'deviation'> & { baseChannels: number } {
    const { depth, baseChannels, inputs: channels, normalisation = {} } = this
    return { depth, baseChannels, ...this.#ownStrides, ...(channels === 3 ? {} : { channels }), ...normalisation }
  }

  /** Strides that are not the published ones: no shape of a tensor tells them. Those of a dilated form are how it is evaluated. */
  get #ownStrides(): { strides?: readonly number[] } {
    return this.#dilated || this.#strides.every((stride, s) => stride === resnetStrides[s]) ? {} : { strides: this.#strides }
  }

  get name(): string {
    return `ResNet-${this.depth}`
  }

  get description(): string {
    const { strides } = this.#ownStrides
    const images = this.inputs === 3 ? '' : `, images of ${this.inputs} ${this.inputs === 1 ? 'channel' : 'channels'}`
    return `${this.name} of ${this.baseChannels} base channels${strides === undefined ? '' : `, strides ${strides.join('-')}`}${images}`
  }

  /**
   * The maps after the stem (before its pooling) and after each stage, all but the last of them as mode.maps says; maps that no caller
   * keeps are freed by its scope.
   */
  stages(x: Tensor, mode: NormMode): Tensor[] {
    return scope(() => this.#through(x, mode, this.#stages.length))
  }

  /** x [N, H, W, 3] to the map [N, H / 16, W / 16, C] of the third stage. */
  override readonly beforeLast = (x: Tensor, mode: NormMode): Tensor => scope(() => this.#through(x, mode, this.#stages.length - 1).at(-1)!)
  /** The fourth stage of a map [N, h, w, C] as the third gives it: [N, h / 2, w / 2, channels]. */
  override readonly last = (map: Tensor, mode: NormMode): Tensor =>
    scope(() => this.#stages.at(-1)!.reduce((y, block) => block.forward(y, mode, false), map))

  #through(x: Tensor, mode: NormMode, count: number): Tensor[] {
    const stem = convNorm(this.#stem, this.#stemNorm, x, mode, { relu: true, pooled: true })
    const maps = [stem]
    let y = maxPool2d(stem, { kernel: 3, stride: 2, padding: 1 })
    const stages = this.#stages.slice(0, count)
    const last = stages.at(-1)?.at(-1)
    for (const stage of stages) {
      for (const block of stage) {
        const next = block.forward(y, mode, block !== last)
        if (!maps.includes(y)) y.dispose()
        y = next
      }
      maps.push(y)
    }
    return maps
  }

  state(): State {
    const state = emptyState()
    include(state, 'conv1', this.#stem.state())
    include(state, 'bn1', this.#stemNorm.state())
    this.#stages.forEach((stage, s) => stage.forEach((block, i) => include(state, `layer${s + 1}.${i}`, block.state())))
    return state
  }
}
