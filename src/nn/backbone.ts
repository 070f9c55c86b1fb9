/**
 * What the rest of the program knows of a network that turns images into feature maps. Methods train one, evaluations and pictures
 * look at one, files hold one; none of them knows which. A kind of backbone is one file: a class, and how it is built from options.
 */
import { fail } from '../tensor/errors.js'
import { currentDevice, type FloatDType, scope, type Tensor } from '../tensor/tensor.js'
import type { Build, Initialization, NormMode } from './layers.js'
import { disposeState, type State } from './module.js'

/** Channels of a map, and how many pixels of the image lie between two of its positions. */
export interface MapShape {
  channels: number
  stride: number
}

/** What may differ between two networks of one architecture, whose weights fit each other. */
export interface BackboneLayout {
  /** The total stride that dense prediction wants of the last map. A kind that cannot have it keeps its own. */
  outputStride?: number | undefined
  /** How weights are drawn; the kind's own way when absent. */
  init?: Initialization | undefined
}

/** A kind of backbone: what the registry (backbones.ts) lists, and what a module given as `backbone` exports by default. */
export interface BackboneKind {
  /** What the configuration and files call it. */
  readonly name: string
  /** Keys of the configuration that are options of it; the options of other kinds are given as `backboneOptions`. */
  readonly settings?: readonly string[]
  /** Names and tensors are torchvision's, so other frameworks take its files, and no record in them needs to say what it is. */
  readonly torchvision?: boolean
  /** Builds one on the current device. Throws where the options are not those of the kind. */
  build(build: Build, options: Record<string, unknown>, layout?: BackboneLayout): Backbone
}

/** Builds the backbone of an encoder. */
export type BackboneBuilder = (build: Build) => Backbone

/** A network that turns images into feature maps. Methods, evaluations, reports and files know backbones by this class alone. */
export abstract class Backbone {
  abstract readonly kind: BackboneKind
  /** What `kind.build` needs to build this architecture again; goes into files as JSON. */
  abstract readonly options: Readonly<Record<string, unknown>>
  /** The architecture in one word, such as ResNet-50. */
  abstract readonly name: string
  /** The architecture and its size in one phrase, which tells any two apart: the identity of what evaluations keep. */
  abstract readonly description: string
  /** Channels of the images [N, H, W, inputs]. */
  readonly inputs: number = 3
  /** Mean and deviation of each channel, of values in 0..1, by which its images are normalised; ImageNet's where absent. */
  readonly normalisation: { mean: readonly number[]; deviation: readonly number[] } | undefined
  /** Channels and stride of each map of `stages`, in their order. */
  abstract readonly maps: readonly MapShape[]
  /** The device of the parameters: the one that was current when the network was made. */
  readonly device: string = currentDevice()
  /** The dtype of activations. */
  readonly compute: FloatDType

  constructor({ dtype, compute = dtype }: Build) {
    this.compute = compute
  }

  /** Channels of the last map. */
  get channels(): number {
    return this.maps.at(-1)!.channels
  }

  /** Total stride of the last map. */
  get stride(): number {
    return this.maps.at(-1)!.stride
  }

  /** Maps from fine to coarse, the last of which is what methods train; maps that no caller keeps are freed by its scope. */
  abstract stages(x: Tensor, mode: NormMode): Tensor[]

  /** x [N, H, W, inputs] to the map before the last stage. Absent where the network has no such stage. */
  readonly beforeLast?: (x: Tensor, mode: NormMode) => Tensor
  /** The last stage alone, applied to a map of what comes before it: a detector of the form C4 applies it to regions of the image. */
  readonly last?: (map: Tensor, mode: NormMode) => Tensor

  /** Parameters and buffers under the names that files have. */
  abstract state(): State

  /** The images x [N, H, W, inputs] on the device and in the dtype that the network computes with; x itself when it is. */
  input(x: Tensor): Tensor {
    if (x.shape.length !== 4 || x.shape[3] !== this.inputs)
      fail('SHAPE', `${this.name}: expected images of [N, H, W, ${this.inputs}] but received [${x.shape.join(', ')}]`)
    return x.device === this.device && x.dtype === this.compute ? x : x.to(this.compute, this.device)
  }

  /** x [N, H, W, inputs] to the last feature map [N, H / stride, W / stride, channels]. */
  forward(x: Tensor, mode: NormMode): Tensor {
    return scope(() => this.stages(x, mode).at(-1)!)
  }

  /** Frees the parameters and buffers. */
  dispose(): void {
    disposeState(this.state())
  }
}

/** Frees the tensors of a network that are not its backbone's. */
export function disposeHeads(network: { readonly backbone: Backbone; state(): State }): void {
  const tensorsOf = ({ parameters, buffers, copies }: State): Tensor[] => [parameters, buffers, copies].flatMap((map) => [...map.values()])
  const shared = new Set(tensorsOf(network.backbone.state()))
  for (const tensor of tensorsOf(network.state())) if (!shared.has(tensor)) tensor.dispose()
}

/** The options of a kind, of which none may be unknown to it. Throws CONFIG. */
export function knownOptions<T extends object>(kind: string, options: Record<string, unknown>, defaults: T): T {
  const names = Object.keys(defaults)
  const unknown = Object.keys(options).find((name) => !names.includes(name))
  if (unknown !== undefined)
    fail(
      'CONFIG',
      `backbone ${kind}: expected options among ${names.join(', ')} but received ${unknown} = ${JSON.stringify(options[unknown])}`,
    )
  return { ...defaults, ...options }
}
