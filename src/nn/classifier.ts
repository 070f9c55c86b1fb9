/** A backbone with a linear classifier on the mean of its last map: what an image shows, as one of some classes. */
import { reshape } from '../ops/elementwise.js'
import { adaptiveAvgPool2d } from '../ops/pool2d.js'
import { mean } from '../ops/reduce.js'
import { scope, sizeOf, type Tensor, withDevice } from '../tensor/tensor.js'
import type { Backbone } from './backbone.js'
import { type Build, type Fill, Linear, type NormMode } from './layers.js'
import { disposeState, include, type State } from './module.js'

/** How weights of a classifier begin: N(0, 0.01^2). */
export const smallNormal: Fill = (random, shape) => Float64Array.from({ length: sizeOf(shape) }, () => 0.01 * random.normal())

/** The mean of each map of x [N, h, w, C]: [N, C], f32 of bf16. */
const means = (x: Tensor): Tensor =>
  x.dtype === 'bf16' ? mean(x, { axes: [1, 2], dtype: 'f32' }) : reshape(adaptiveAvgPool2d(x, 1), [x.shape[0]!, x.shape[3]!])

/** A classifier of images. */
export class Classifier {
  readonly fc: Linear

  /**
   * Weights are drawn from N(0, 0.01^2), biases are 0. The backbone becomes part of the classifier and belongs to the caller. The last
   * layer computes in the dtype of its parameters where the backbone has mixed precision too.
   */
  constructor(
    { compute: _, ...build }: Build,
    readonly backbone: Backbone,
    readonly classes: number,
  ) {
    this.fc = withDevice(backbone.device, () => new Linear(build, backbone.channels, classes, smallNormal))
  }

  /** x [N, H, W, inputs] to logits [N, classes]; of bf16 maps they are f32, of which fewer are equal. */
  logits(x: Tensor, mode: NormMode): Tensor {
    return scope(() => this.fc.forward(means(this.backbone.forward(this.backbone.input(x), mode))))
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
