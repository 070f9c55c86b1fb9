/**
 * What a self-supervised method is to everything around it. The training loop, checkpoints, metrics, the log, reports and the live
 * page know a method by this interface alone; a folder that exports one is all that a method needs (examples/simsiam).
 */
import { type GradientReady, Tape } from '../autograd/tape.js'
import type { Group } from '../distributed/group.js'
import { trainable, type State } from '../nn/module.js'
import type { Backbone, BackboneBuilder } from '../nn/backbone.js'
import type { ViewCrops } from '../data/augment.js'
import type { EmaTarget } from '../optim/optimizer.js'
import type { Config } from '../run/config.js'
import type { OptionTable, OptionValues } from '../run/options.js'
import { type FloatDType, scope, type Tensor, type TypedArray } from '../tensor/tensor.js'

/** The configuration of a method's run: the common options and its own. */
export type ConfigOf<O extends OptionTable> = Config & OptionValues<O>

/** A method: its options, how it is built, and how what it observes reads. */
export interface Method<O extends OptionTable = OptionTable> {
  /** The name in the log and in checkpoints, which cannot be resumed by a method of another name. */
  readonly name: string
  /** One line for --help. */
  readonly describe: string
  /** Rows beside the common ones of src/run/config.ts, whose names they may not take. */
  readonly options: O
  /** Named configurations for --preset. */
  readonly presets?: Readonly<Record<string, Preset>>
  /** Keys of `describe` that are terms of the loss, by the words for them in messages, such as `dense: 'lossDense'`. */
  readonly terms?: Readonly<Record<string, string>>
  readonly collapse?: CollapseCheck
  readonly cautions?: readonly Caution[]
  /**
   * The method may be trained by several processes: its loss is a mean over the images, and what of it looks at others' images asks
   * MethodParts.group for them.
   */
  readonly distributed?: boolean
  /** The curves of reports and of the live page beside those of every run; the first is also drawn when a run ends. */
  readonly charts: readonly Chart[]
  /** Throws CONFIG where options contradict each other. */
  check?(config: ConfigOf<O>): void
  /**
   * Makes the networks of a run on the current device; all that is random in them comes from the configuration's seed. Where several
   * processes share a run, `batchSize` and `normGroups` are what of them each has. A run gives `normGroups` as a number; null is one group.
   */
  build(config: ConfigOf<O>, parts: MethodParts): BuiltMethod
  /** Fields of the log line from the numbers of BuiltMethod.describe: the terms of the loss, and how training does. */
  logLine?(numbers: Readonly<Record<string, number>>): { loss?: string; health?: string }
}

/** Checks the types of a method against its own option table: what the default export of a module is wrapped in. */
export const defineMethod = <O extends OptionTable>(method: Method<O>): Method<O> => method

/** What a method builds its networks of. */
export interface MethodParts {
  /** Makes the backbone that the configuration asks for; a method with several calls it for each. */
  backbone: BackboneBuilder
  /** The dtype of activations; parameters are f32. */
  compute: FloatDType
  /** The processes of the run; absent where there is one. */
  group?: Group
}

/** A named configuration: what it is for, and the options that it sets. */
export interface Preset {
  describe: string
  config: Readonly<Record<string, unknown>>
}

/** A number that is near 0 when all embeddings have become one; 50 steps below `least` end a run (stopOnCollapse). */
export interface CollapseCheck {
  key: string
  least: number
  /** The two halves of the message: what has happened, and options to try. */
  means: string
  remedy: string
}

/** A number that, while it stays above `most`, says that a run does not learn what it is meant to: said once, after 50 steps. */
export interface Caution {
  key: string
  most: number
  /** What it means, and options to try. */
  means: string
  remedy: string
}

/** One chart of a run over its epochs. */
export interface Chart {
  title: string
  yLabel: string
  /** Keys of the rows of metrics.jsonl, each times `scale`. */
  curves: readonly { name: string; key: string; scale?: number }[]
  /** Horizontal lines, by a configuration that may lack keys. */
  levels?: (config: Readonly<Record<string, unknown>>) => { y: number; name: string }[]
}

/** Two augmented views of the batch, each [N, H, W, 3], normalised, in the backbone's dtype of activations. */
export type Views = readonly [Tensor, Tensor]

/** Tensors that a step leaves for the host to read: the scalar loss that was differentiated, and whatever describes the step. */
export interface Observed {
  loss: Tensor
  [name: string]: Tensor
}

/** Observed tensors as the host has read them. */
export type Readings<O extends Observed = Observed> = { [K in keyof O]: { values: TypedArray; shape: readonly number[] } }

/** The networks of a run and a step of their training. */
export interface BuiltMethod<O extends Observed = Observed> {
  /** What is exported, evaluated and drawn. */
  readonly backbone: Backbone
  /** Everything that a checkpoint holds, under its names there. */
  state(): State
  /** What the optimiser trains, in its order and under its names, with the copies that are written along. */
  trained(): State
  /** Lines of the log before the first step: what the method is set to, and warnings. */
  introduce?(run: { images: number }): string[]
  /** What of its settings is not the published method, as `option value`: goes into the files of its weights. */
  variant?(): string[]
  /**
   * Writes to the device what the step after `globalStep` steps reads beside the views; no part of the recorded step. `crops` says where
   * the views lie in their images; it is absent where nobody looks at an image, such as while memory is estimated.
   */
  prepare?(globalStep: number, crops?: ViewCrops): void
  /**
   * Two views to gradients: work of the device alone, the same at every step, so that it may be recorded. Nothing is updated by it.
   * `ready` is for differentiate(): with it, gradients are averaged over processes while others are still computed.
   */
  step(views: Views, ready?: GradientReady): StepResult<O>
  /** Names of observed tensors, beside `loss`, that are means over the images: they are averaged over the processes of a run. */
  readonly means?: readonly (keyof O & string)[]
  /** A network that the optimiser moves along as a moving average of what is trained; asked for once in every step, after step(). */
  emaTarget?(): EmaTarget
  /** State of the host that belongs to a checkpoint, as JSON; and its return. */
  record?(): Record<string, unknown>
  /** Takes over what record() kept in a checkpoint. */
  restore?(record: Record<string, unknown>): void
  /** Numbers of a step by their keys in metrics.jsonl, TensorBoard and charts; `globalStep` counts the step itself. */
  describe(observed: Readings<O>, globalStep: number): Record<string, number>
  /** Frees every tensor of the model. */
  dispose(): void
}

/** What a step has computed. It is still on the device: the first reading waits for it. */
export class StepResult<O extends Observed = Observed> {
  #reads: [name: string, read: () => TypedArray][] | undefined
  #readings: Readings<O> | undefined

  constructor(
    /** One f32 (f64) gradient per trained parameter, in the order of BuiltMethod.trained(). */
    readonly gradients: readonly Tensor[],
    readonly observed: O,
    /** Bytes that the tape kept for the backward pass. */
    readonly savedBytes: number,
  ) {}

  /** Starts the copies that are read, concurrently with the work that follows. */
  startRead(): this {
    this.#reads ??= Object.entries(this.observed).map(([name, tensor]) => [name, tensor.startRead()])
    return this
  }

  get readings(): Readings<O> {
    this.startRead()
    return (this.#readings ??= Object.fromEntries(
      this.#reads!.map(([name, read]) => [name, { values: read(), shape: this.observed[name]!.shape }]),
    ) as Readings<O>)
  }

  /** Frees gradients and observed tensors; what has been read stays readable. */
  dispose(): void {
    for (const tensor of [...this.gradients, ...Object.values(this.observed)]) tensor.dispose()
  }
}

/**
 * Records `forward` on the views and differentiates the `loss` that it returns with respect to what is trained. The caller disposes
 * the result, which no scope owns. `ready` is what BuiltMethod.step() was given; `afterwards` runs behind the backward pass, where what
 * `forward` has made is still there.
 */
export function differentiate<O extends Observed>(
  trained: State,
  forward: () => O,
  ready?: GradientReady,
  afterwards?: () => void,
): StepResult<O> {
  const parameters = trainable(trained)
  const made = scope(() => {
    const tape = new Tape().watch(parameters)
    const observed = tape.record(forward)
    const { savedBytes } = tape
    const gradients = tape.backward(observed.loss, parameters, undefined, ready)
    afterwards?.()
    return { gradients, observed, savedBytes }
  })
  for (const tensor of [...made.gradients, ...Object.values(made.observed)]) tensor.keep()
  return new StepResult(made.gradients, made.observed, made.savedBytes)
}
