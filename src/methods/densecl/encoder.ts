import type { Backbone, BackboneBuilder } from '../../nn/backbone.js'
import { type Build, Conv2d, frameworkDefault, type Initialization, kaimingNormal, Linear, type NormMode } from '../../nn/layers.js'
import { emptyState, include, type State } from '../../nn/module.js'
import { relu, reshape } from '../../ops/elementwise.js'
import { adaptiveAvgPool2d } from '../../ops/pool2d.js'
import { scope, type Tensor } from '../../tensor/tensor.js'

/** What the heads of DenseCL are built with. */
export interface NeckOptions {
  /** Width of the hidden layers; the backbone's channels when absent, as in the paper. */
  hidden?: number | undefined
  /** Embedding dimension D. */
  featDim: number
  /** Side of the dense grid; undefined keeps the backbone's. */
  numGrid?: number | undefined
}

/** What the heads make of a map, not normalised. */
export interface Embeddings {
  /** [N, D] from the pooled map */
  global: Tensor
  /** Absent without the dense head, as in MoCo v2. */
  local?: LocalEmbeddings
}

/** What the dense head makes of a map, not normalised. */
export interface LocalEmbeddings {
  /** [N, S, S, C], the map that positions are matched on */
  map: Tensor
  /** [N, S, S, D], one embedding a position */
  dense: Tensor
  /** [N, D], the mean of `dense` over its positions */
  pooled: Tensor
}

/** Which heads a map passes: that of pooled maps, or that of positions too. */
export type Heads = 'global' | 'both'

/** The two heads of DenseCL: an MLP on the pooled map, the same as 1x1 convolutions on the map itself. No batch norm. */
export class DenseNeck {
  readonly #mlp: [Linear, Linear]
  readonly #mlp2: [Conv2d, Conv2d]
  readonly numGrid: number | undefined

  constructor(build: Build, inputs: number, { hidden = inputs, featDim, numGrid }: NeckOptions, init: Initialization) {
    const fillLinear = init === 'original' ? kaimingNormal('fanIn') : frameworkDefault()
    const linear = (from: number, to: number): Linear =>
      new Linear(build, from, to, fillLinear, init === 'original' ? undefined : frameworkDefault(from))
    const conv = (from: number, to: number): Conv2d =>
      new Conv2d(build, from, to, 1, { fill: frameworkDefault(), bias: frameworkDefault(from) })
    this.#mlp = [linear(inputs, hidden), linear(hidden, featDim)]
    this.#mlp2 = [conv(inputs, hidden), conv(hidden, featDim)]
    this.numGrid = numGrid
  }

  /** The map that the dense head and the matching see: pooled to the grid when one is asked for. */
  grid(map: Tensor): Tensor {
    return this.numGrid === undefined || this.numGrid === map.shape[1] ? map : adaptiveAvgPool2d(map, this.numGrid)
  }

  /** The embeddings of a map [N, H, W, C]. */
  forward(map: Tensor, heads: Heads = 'both'): Embeddings {
    return scope(() => {
      const [n, , , channels] = map.shape as [number, number, number, number]
      const vector = reshape(adaptiveAvgPool2d(map, 1), [n, channels])
      const global = this.#mlp[1].forward(relu(this.#mlp[0].forward(vector)))
      return heads === 'global' ? { global } : { global, local: this.#local(this.grid(map)) }
    })
  }

  #local(map: Tensor): LocalEmbeddings {
    const dense = this.#mlp2[1].forward(relu(this.#mlp2[0].forward(map)))
    return { map, dense, pooled: reshape(adaptiveAvgPool2d(dense, 1), [dense.shape[0]!, dense.shape[3]!]) }
  }

  /** Parameters and buffers by name. */
  state(): State {
    const state = emptyState()
    include(state, 'mlp.0', this.#mlp[0].state())
    include(state, 'mlp.2', this.#mlp[1].state())
    include(state, 'mlp2.0', this.#mlp2[0].state())
    include(state, 'mlp2.2', this.#mlp2[1].state())
    return state
  }
}

/** What an Encoder is built with. */
export interface EncoderOptions {
  backbone: BackboneBuilder
  neck: NeckOptions
  /** How the weights of the neck are drawn. */
  init?: Initialization | undefined
}

/** Backbone (state `0.`) and neck (state `1.`), the names of the original checkpoints. */
export class Encoder {
  readonly backbone: Backbone
  readonly neck: DenseNeck

  constructor(build: Build, { backbone, neck, init = 'original' }: EncoderOptions) {
    this.backbone = backbone(build)
    this.neck = new DenseNeck(build, this.backbone.channels, neck, init)
  }

  /** The embeddings of x [N, H, W, inputs of the backbone]. */
  forward(x: Tensor, mode: NormMode, heads: Heads = 'both'): Embeddings {
    return scope(() => this.neck.forward(this.backbone.forward(x, mode), heads))
  }

  /** Parameters and buffers by name. */
  state(): State {
    const state = emptyState()
    include(state, '0', this.backbone.state())
    include(state, '1', this.neck.state())
    return state
  }
}
