/**
 * ResNet (He et al., arXiv:1512.03385) as torchvision and the DenseCL authors build it: stride on the 3x3 convolution of the
 * bottleneck, 7x7 stem, bias-free convolutions, and state names equal to torchvision's without `fc`.
 */
import { maxPool2d } from '../ops/pool2d.js'
import { fail } from '../tensor/errors.js'
import { type FloatDType, scope, type Tensor } from '../tensor/tensor.js'
import { BatchNorm2d, type Build, Conv2d, convNorm, type Initialization, kaimingNormal, type NormMode } from './layers.js'
import { emptyState, include, type State } from './module.js'

export const resnetDepths = {
  18: { bottleneck: false, blocks: [2, 2, 2, 2] },
  34: { bottleneck: false, blocks: [3, 4, 6, 3] },
  50: { bottleneck: true, blocks: [3, 4, 6, 3] },
  101: { bottleneck: true, blocks: [3, 4, 23, 3] },
  152: { bottleneck: true, blocks: [3, 8, 36, 3] },
} as const
export type ResNetDepth = keyof typeof resnetDepths

export interface ResNetOptions {
  depth: ResNetDepth
  /** Channels of the stem; 64 in the paper. Stage s has base * 2^s (times 4 in bottlenecks). */
  baseChannels?: number
  init?: Initialization
  /** Strides and dilations of the four stages; (1, 2, 2, 2) and (1, 1, 1, 1), or R50-D8: (1, 2, 1, 1) and (1, 1, 2, 4). */
  strides?: readonly number[]
  dilations?: readonly number[]
  /** The first block of a dilated stage uses half the dilation, as mmsegmentation's contract_dilation. */
  contractDilation?: boolean
}

type Unit = { conv: Conv2d; norm: BatchNorm2d }

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

  forward(x: Tensor, mode: NormMode): Tensor {
    return scope(() => {
      const identity = this.shortcut === undefined ? x : convNorm(this.shortcut.conv, this.shortcut.norm, x, mode)
      let y = x
      this.units.forEach(({ conv, norm }, i) => {
        const last = i === this.units.length - 1
        const next = convNorm(conv, norm, y, mode, { relu: true, residual: last ? identity : undefined })
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

export class ResNet {
  readonly depth: ResNetDepth
  readonly baseChannels: number
  /** Channels and total stride of the last stage. */
  readonly channels: number
  readonly stride: number
  readonly #compute: FloatDType
  readonly #stem: Conv2d
  readonly #stemNorm: BatchNorm2d
  readonly #stages: Block[][]

  constructor(build: Build, options: ResNetOptions) {
    const {
      depth,
      baseChannels = 64,
      init = 'original',
      strides = [1, 2, 2, 2],
      dilations = [1, 1, 1, 1],
      contractDilation = false,
    } = options
    const plan =
      resnetDepths[depth] ??
      fail('ARGUMENT', `resnet: expected depth to be one of ${Object.keys(resnetDepths).join(', ')} but received ${String(depth)}`)
    this.depth = depth
    this.baseChannels = baseChannels
    this.#stem = new Conv2d(build, 3, baseChannels, 7, { stride: 2, padding: 3, fill: backboneFill(init) })
    this.#stemNorm = new BatchNorm2d(build, baseChannels)
    this.#compute = build.compute ?? build.dtype
    let inputs = baseChannels
    this.#stages = plan.blocks.map((count, s) => {
      const width = baseChannels * 2 ** s
      return Array.from({ length: count }, (_, i) => {
        const dilation = i === 0 && contractDilation && dilations[s]! > 1 ? dilations[s]! / 2 : dilations[s]!
        const block = new Block(build, init, plan.bottleneck, inputs, width, i === 0 ? strides[s]! : 1, dilation)
        inputs = plan.bottleneck ? 4 * width : width
        return block
      })
    })
    this.channels = inputs
    this.stride = 4 * strides.reduce((product, s) => product * s, 1)
  }

  get device(): string {
    return this.#stem.weight.device
  }

  /** x on the device and in the dtype that the network computes with; x itself when it is. */
  input(x: Tensor): Tensor {
    return x.device === this.device && x.dtype === this.#compute ? x : x.to(this.#compute, this.device)
  }

  /** x [N, H, W, 3] to the last feature map [N, H / 32, W / 32, channels]. */
  forward(x: Tensor, mode: NormMode): Tensor {
    return this.stages(x, mode).at(-1)!
  }

  /** The maps after the stem (before its pooling) and after each stage; maps that no caller keeps are freed by its scope. */
  stages(x: Tensor, mode: NormMode): Tensor[] {
    return scope(() => {
      const stem = convNorm(this.#stem, this.#stemNorm, x, mode, { relu: true, pooled: true })
      const maps = [stem]
      let y = maxPool2d(stem, { kernel: 3, stride: 2, padding: 1 })
      for (const stage of this.#stages) {
        for (const block of stage) {
          const next = block.forward(y, mode)
          if (!maps.includes(y)) y.dispose()
          y = next
        }
        maps.push(y)
      }
      return maps
    })
  }

  state(): State {
    const state = emptyState()
    include(state, 'conv1', this.#stem.state())
    include(state, 'bn1', this.#stemNorm.state())
    this.#stages.forEach((stage, s) => stage.forEach((block, i) => include(state, `layer${s + 1}.${i}`, block.state())))
    return state
  }
}
