/**
 * The native calls of a DenseCL step, ResNet-50 at 224 px unless told, found by going through one that is not computed. Nothing is
 * allocated at the size of the batch: from two small batches to one of any size, in which sizes grow with the batch or not at all.
 * Needs the addon of build:simt, whose calls are those of a GPU.
 */
import { densecl } from '../../methods/densecl/method.js'
import { resolveConfig } from '../../methods/index.js'
import { resnet, type ResNetDepth } from '../../nn/resnet.js'
import { Sgd } from '../../optim/sgd.js'
import type { FusionLevel } from '../../tensor/compute.js'
import { fail } from '../../tensor/errors.js'
import { native, observe } from '../../tensor/native.js'
import { settingsOf } from '../../run/options.js'
import { Tensor, withDevice } from '../../tensor/tensor.js'
import { deviceTraits } from '../../tensor/traits.js'
import { Trainer } from '../../train/trainer.js'

export interface CallTensor {
  shape: readonly number[]
  dtype: string
  bytes: number
}

export interface Call {
  op: string
  /** Outputs first; undefined where an optional one is absent. */
  tensors: readonly (CallTensor | undefined)[]
  numbers: readonly number[]
}

export interface StepShape {
  level: FusionLevel
  depth?: ResNetDepth
  image?: number
  queue?: number
  hidden?: number
}

/** The device of the addon whose kernels are simulated; undefined where it has none. */
export const simulatedDevice = (): string | undefined => native.deviceNames().find((name) => deviceTraits(name).simulated)

/** The calls of the second step of each batch size, when the key encoder is moved by the optimiser. */
function observed({ level, depth = 50, image = 224, queue = 65536, hidden = 2048 }: StepShape, batches: readonly number[]): Call[][] {
  const device = simulatedDevice() ?? fail('DEVICE', 'bench step: expected an addon with simulated kernels; run: npm run build:simt')
  const config = resolveConfig(settingsOf({ imageSize: image, queueLength: queue, hidden }, 'bench'))
  const method = withDevice(device, () => densecl.build(config, { backbone: resnet({ depth }), compute: 'bf16' }))
  const { parameters, copies } = method.trained()
  const sgd = withDevice(device, () => new Sgd(parameters, config, copies))
  try {
    return batches.map((batch) => {
      const view = (): Tensor => Tensor.empty([batch, image, image, 3], 'bf16', device)
      const trainer = new Trainer(method, sgd, { graph: false, compute: { fusion: level }, views: () => [view(), view()] })
      const calls: Call[] = []
      try {
        observe.op = (op, _, tensors, numbers) =>
          calls.push({
            op,
            tensors: tensors.map((tensor) =>
              tensor === undefined ? undefined : { shape: [...tensor.shape!], dtype: tensor.dtype!, bytes: tensor.bytes! },
            ),
            numbers: [...numbers],
          })
        trainer.step(0, config.lr)
        calls.length = 0
        trainer.step(1, config.lr)
      } finally {
        delete observe.op
        trainer.dispose()
      }
      return calls
    })
  } finally {
    sgd.dispose()
    method.dispose()
    native.trimMemory(device)
  }
}

/** The calls of a step, by its batch size. */
export function stepCalls(shape: StepShape): (batch: number) => Call[] {
  const [one, two] = observed(shape, [1, 2]) as [Call[], Call[]]
  return (batch) =>
    two.map(({ op, tensors, numbers }, i) => {
      const grown = (a: number, b: number): number => a + (batch - 1) * (b - a)
      const small = one[i]!
      if (small.op !== op) fail('INTERNAL', `call ${i} of a step is ${small.op} for one image and ${op} for two`)
      return {
        op,
        tensors: tensors.map((tensor, t) => {
          const before = small.tensors[t]
          if (tensor === undefined || before === undefined) return undefined
          return {
            shape: tensor.shape.map((size, axis) => grown(before.shape[axis]!, size)),
            dtype: tensor.dtype,
            bytes: grown(before.bytes, tensor.bytes),
          }
        }),
        numbers: numbers.map((number, n) => grown(small.numbers[n]!, number)),
      }
    })
}

/** The tensors of a call that no pass reads: a norm that has its sums and leaves the rest to others. */
function unread({ op, tensors }: Call): number[] {
  if (op === 'batchNormTrain' && tensors[0] === undefined && tensors[9] !== undefined) return [5]
  return op === 'batchNormBackward' && tensors[0] === undefined && tensors[12] !== undefined ? [4, 5] : []
}

/** The tensors of a call that a second pass of the op reads (or writes). */
function again({ op, tensors }: Call): number[] {
  if (op === 'batchNormTrain') return tensors[9] === undefined ? [5] : [] // without statistics of the convolution x is read for them
  // Without sums a pass makes them; the pass that combines then reads dz where it was written.
  if (op === 'batchNormBackward')
    return tensors[12] !== undefined || tensors[0] === undefined ? [] : tensors[3] === undefined ? [4, 5, 6] : [3, 5]
  if (op !== 'sgd') return []
  return tensors.flatMap((_, i) => ([0, 2, 4].includes((i - 2) % 6) && i >= 2 ? [i] : [])) // parameters, momenta and averages are read and written
}

/** The bytes that a call passes through memory: every tensor once for each pass over it. */
export function bytesOf(call: Call): number {
  const of = (indices: number[]): number => indices.reduce((total, i) => total + (call.tensors[i]?.bytes ?? 0), 0)
  return of([...call.tensors.keys()].filter((i) => !unread(call).includes(i))) + of(again(call))
}
