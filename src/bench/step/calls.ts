/**
 * The native calls of a DenseCL step, ResNet-50 at 224 px unless told, and of a detector's, found by going through one that is not
 * computed. Nothing is allocated at the size of the batch: from two small batches to one of any size, in which sizes grow with the batch
 * or not at all, or on a device without values. Needs the addon of build:simt, whose calls are those of a GPU.
 */
import { Tape } from '../../autograd/tape.js'
import type { DetectorForm } from '../../detection/detector.js'
import { detectorOf } from '../../detection/detectorShape.js'
import { fullSamples } from '../../detection/fullSamples.js'
import { proposalLimits } from '../../detection/proposals.js'
import { detectionLosses } from '../../detection/step.js'
import { styleOf } from '../../detection/styles.js'
import { sampling } from '../../detection/targets.js'
import { densecl } from '../../methods/densecl/method.js'
import { resolveConfig } from '../../methods/index.js'
import { training } from '../../nn/layers.js'
import { trainable } from '../../nn/module.js'
import { resnet, type ResNetDepth } from '../../nn/resnet.js'
import { Sgd } from '../../optim/sgd.js'
import type { FusionLevel } from '../../tensor/compute.js'
import { fail } from '../../tensor/errors.js'
import { mapTensors, type NamedNumbers, type NamedTensors, native, observe } from '../../tensor/native.js'
import { settingsOf } from '../../run/options.js'
import { Random } from '../../tensor/random.js'
import { scope, Tensor, withDevice } from '../../tensor/tensor.js'
import { deviceTraits, forgetTraits } from '../../tensor/traits.js'
import { Trainer } from '../../train/trainer.js'

export interface CallTensor {
  shape: readonly number[]
  dtype: string
  bytes: number
}

export interface Call {
  op: string
  /** Tensors by name; undefined or left out where an optional one is absent. */
  tensors: Readonly<Record<string, CallTensor | undefined>>
  /** Lists of tensors by name, of ops that take any number of them. */
  lists: Readonly<Record<string, readonly (CallTensor | undefined)[]>>
  numbers: NamedNumbers
}

/** What a step is of; ResNet-50 at 224 px with a queue of 65,536 where nothing is said. */
export interface StepShape {
  level: FusionLevel
  depth?: ResNetDepth
  image?: number
  queue?: number
  hidden?: number
  /** Of the key encoder, as of the configuration. */
  keyPrecision?: 'fp8' | undefined
}

/** The device of the addon whose kernels are simulated; undefined where it has none. */
export const simulatedDevice = (): string | undefined => native.deviceNames().find((name) => deviceTraits(name).simulated)

/** The calls of native ops that `body` makes, added to `calls`; none is done. */
export function callsOf(body: () => void, calls: Call[] = []): Call[] {
  try {
    observe.op = (op, _, tensors, numbers) =>
      calls.push(
        callOf(
          op,
          mapTensors(tensors, ({ shape, dtype, bytes }) => ({ shape: [...shape!], dtype: dtype!, bytes: bytes! })),
          numbers,
        ),
      )
    body()
  } finally {
    delete observe.op
  }
  return calls
}

/** The same; throws DEVICE where there is none. */
export const simulation = (): string =>
  simulatedDevice() ?? fail('DEVICE', 'bench: expected an addon with simulated kernels; run: npm run build:simt')

/** The calls of the second step of each batch size, when the key encoder is moved by the optimiser. */
function observed(shape: StepShape, batches: readonly number[]): Call[][] {
  const { level, depth = 50, image = 224, queue = 65536, hidden = 2048, keyPrecision = null } = shape
  const device = simulation()
  // Ampere's, whose calls are Hopper's too, unless the step is one that only Hopper has.
  if (keyPrecision !== null) setCapability(90)
  const config = resolveConfig(settingsOf({ imageSize: image, queueLength: queue, hidden, keyPrecision }, 'bench'))
  const method = withDevice(device, () => densecl.build(config, { backbone: resnet({ depth }), compute: 'bf16' }))
  const { parameters, copies } = method.trained()
  const sgd = withDevice(device, () => new Sgd(parameters, config, copies))
  try {
    return batches.map((batch) => {
      const view = (): Tensor => Tensor.empty([batch, image, image, 3], 'bf16', device)
      const trainer = new Trainer(method, sgd, { graph: false, compute: { fusion: level }, views: () => [view(), view()] })
      try {
        callsOf(() => trainer.step(0, config.lr))
        return callsOf(() => trainer.step(1, config.lr))
      } finally {
        trainer.dispose()
      }
    })
  } finally {
    sgd.dispose()
    method.dispose()
    native.trimMemory(device)
    if (keyPrecision !== null) setCapability(80)
  }
}

/** The capability that the simulated kernels are chosen for. */
function setCapability(value: number): void {
  native.simtCapability?.(value)
  forgetTraits()
}

/**
 * The calls of a training step of a published detector (ResNet-50, bf16; Faster R-CNN C4 of 20 classes on 800x1333 px, Mask R-CNN on a
 * pyramid of 80 on 800x1344), gone through on a device that has no values: proposals and samples are as many as may be.
 */
export function detectionCalls(batch: number, form: DetectorForm): Call[] {
  const device = `dry:${simulation()}`
  return withDevice(device, () => {
    const build = { random: new Random(1), dtype: 'f32', compute: 'bf16' } as const
    const backbone = resnet({ depth: 50 })(build)
    const style = styleOf('detectron2', form)
    const classes = form === 'c4' ? 20 : 80
    const model = detectorOf(build, backbone, { form, style: 'detectron2', classes })
    const state = model.state()
    const sgd = new Sgd(state.parameters, { momentum: 0.9, weightDecay: 1e-4 }, state.copies)
    const [height, width] = [800, Math.ceil(1333 / style.padTo) * style.padTo]
    const watched = trainable(state)
    const objects = [0, 1, 2, 3].map((label) => ({ label, box: [100, 100 + 100 * label, 600, 300 + 100 * label] as const }))
    const images = Array.from({ length: batch }, () => ({ height, width, objects }))
    try {
      return callsOf(() =>
        scope(() => {
          const tape = new Tape().watch(watched)
          const x = Tensor.empty([batch, height, width, 3], 'f32', device)
          const chooser = fullSamples(sampling.regions.count, classes)
          const { total } = tape.record(() => detectionLosses(model, x, images, chooser, training, style, proposalLimits[form].train))
          sgd.step(tape.backward(total, watched), 0.02)
        }),
      )
    } finally {
      for (const part of [sgd, model, backbone]) part.dispose()
      native.trimMemory(device)
    }
  })
}

/** A call whose lists are apart from its other tensors. */
export function callOf(op: string, all: NamedTensors<CallTensor>, numbers: NamedNumbers): Call {
  const [tensors, lists]: [Record<string, CallTensor | undefined>, Record<string, readonly (CallTensor | undefined)[]>] = [{}, {}]
  for (const [name, value] of Object.entries(all))
    if (Array.isArray(value)) lists[name] = value as readonly (CallTensor | undefined)[]
    else tensors[name] = value as CallTensor | undefined
  return { op, tensors, lists, numbers }
}

/** The calls of a step, by its batch size. */
export function stepCalls(shape: StepShape): (batch: number) => Call[] {
  const [one, two] = observed(shape, [1, 2]) as [Call[], Call[]]
  return (batch) =>
    two.map(({ op, tensors, lists, numbers }, i) => {
      const grown = (a: number, b: number): number => a + (batch - 1) * (b - a)
      const grownTensor = (before: CallTensor | undefined, tensor: CallTensor | undefined): CallTensor | undefined =>
        tensor === undefined || before === undefined
          ? undefined
          : {
              shape: tensor.shape.map((size, axis) => grown(before.shape[axis]!, size)),
              dtype: tensor.dtype,
              bytes: grown(before.bytes, tensor.bytes),
            }
      const each = <A, B>(of: Readonly<Record<string, A>>, body: (value: A, name: string) => B): Record<string, B> =>
        Object.fromEntries(Object.entries(of).map(([name, value]) => [name, body(value, name)]))
      const small = one[i]!
      if (small.op !== op) fail('INTERNAL', `call ${i} of a step is ${small.op} for one image and ${op} for two`)
      return {
        op,
        tensors: each(tensors, (tensor, name) => grownTensor(small.tensors[name], tensor)),
        lists: each(lists, (list, name) => list.map((tensor, k) => grownTensor(small.lists[name]![k], tensor))),
        numbers: each(numbers, (number, name) => (typeof number === 'number' ? grown(small.numbers[name] as number, number) : number)),
      }
    })
}

/** The tensors of a call that no pass reads: a norm that has its sums and leaves the rest to others. */
function unread({ op, tensors: { y, statistics, dx, sums } }: Call): string[] {
  if (op === 'batchNormTrain' && y === undefined && statistics !== undefined) return ['x']
  return op === 'batchNormBackward' && dx === undefined && sums !== undefined ? ['dy', 'x'] : []
}

/** The tensors of a call that a second pass of the op reads (or writes). */
function again({ op, tensors: { statistics, sums, dx, dz } }: Call): string[] {
  if (op === 'batchNormTrain') return statistics === undefined ? ['x'] : [] // without statistics of the convolution x is read for them
  // Without sums a pass makes them; the pass that combines then reads dz where it was written.
  if (op === 'batchNormBackward') return sums !== undefined || dx === undefined ? [] : dz === undefined ? ['dy', 'x', 'y'] : ['dz', 'x']
  return op === 'sgd' ? ['parameters', 'momenta', 'averages'] : [] // they are read and written
}

/** The tensors of a call, of which those that are read are there. */
export const operandsOf = ({ tensors }: Call): Record<string, CallTensor> => tensors as Record<string, CallTensor>

/** The bytes of tensors and lists of a call. */
export const bytesAt = ({ tensors, lists }: Call, ...names: string[]): number =>
  names.flatMap((name) => lists[name] ?? [tensors[name]]).reduce((sum, tensor) => sum + (tensor?.bytes ?? 0), 0)

/** The bytes that a call passes through memory: every tensor once for each pass over it. */
export function bytesOf(call: Call): number {
  const names = [...Object.keys(call.tensors), ...Object.keys(call.lists)]
  return bytesAt(call, ...names.filter((name) => !unread(call).includes(name)), ...again(call))
}
