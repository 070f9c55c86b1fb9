/** A backbone with a linear classifier on the mean of its last map: what an image shows, as one of some classes. */
import { reshape } from '../ops/elementwise.js'
import { adaptiveAvgPool2d } from '../ops/pool2d.js'
import { scope, sizeOf, type Tensor, withDevice } from '../tensor/tensor.js'
import type { Backbone } from './backbone.js'
import { type Build, type Fill, Linear, type NormMode } from './layers.js'
import { disposeState, include, type State } from './module.js'

/** How weights of a classifier begin: N(0, 0.01^2). */
export const smallNormal: Fill = (random, shape) => Float64Array.from({ length: sizeOf(shape) }, () => 0.01 * random.normal())

/** A classifier of images. */
export class Classifier {
  readonly fc: Linear

  /** Weights are drawn from N(0, 0.01^2), biases are 0. The backbone becomes part of the classifier and belongs to the caller. */
  constructor(
    build: Build,
    readonly backbone: Backbone,
    readonly classes: number,
  ) {
    this.fc = withDevice(backbone.device, () => new Linear(build, backbone.channels, classes, smallNormal))
  }

  /** x [N, H, W, inputs] to logits [N, classes]. */
  logits(x: Tensor, mode: NormMode): Tensor {
    return scope(() => {
      const pooled = adaptiveAvgPool2d(this.backbone.forward(this.backbone.input(x), mode), 1)
      return this.fc.forward(reshape(pooled, [pooled.shape[0]!, this.backbone.channels]))
    })
  }

  /** Parameters and buffers: those of the backbone under their own names and `fc`, which for a ResNet is torchvision's state. */
  state(): State {
    const { parameters, buffers, copies } = this.backbone.state()
    const state = { parameters: new Map(parameters), buffers: new Map(buffers), copies: new Map(copies) }
    include(state, 'fc', this.fc.state())
    return state
  }

  /** Frees the head; the backbone belongs to the caller. */
  dispose(): void {
    disposeState(this.fc.state())
  }
}
