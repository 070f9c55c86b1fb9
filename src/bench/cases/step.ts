import { Tape } from '../../autograd/tape.js'
import { type PlacedView, renderViews, wholeImage } from '../../data/augment.js'
import { batchNorm } from '../../ops/batchNorm.js'
import { conv2dForNorm } from '../../ops/conv2d.js'
import { runNative } from '../../tensor/native.js'
import { scope, Tensor } from '../../tensor/tensor.js'
import { type BenchCase, queueLength } from './benchCase.js'

const parameterCount = 32_400_000 // ResNet-50 and the neck of DenseCL

/** A convolution, its batch norm and ReLU, forward and backward through the tape. */
const block = (name: string, size: number, c: number, o: number, kernel: number): BenchCase => ({
  name: `${name}, forward and backward`,
  flops: (n) => 6 * n * size * size * c * o * kernel * kernel,
  prepare(s) {
    const [x, weight] = [s.values([s.batch, size, size, c]), s.values([o, kernel, kernel, c])]
    const [gamma, beta, mean, variance] = [0, 1, 2, 3].map(() => s.sums([o])) as [Tensor, Tensor, Tensor, Tensor]
    const cotangent = s.values([s.batch, size, size, o])
    // Written and read: the convolution's result twice, the block's result and both gradients once.
    s.bytes += (4 * s.batch * size * size * o + s.batch * size * size * c) * (s.dtype === 'bf16' ? 2 : 4)
    return () =>
      scope(() => {
        const tape = new Tape().watch([x, weight, gamma, beta])
        const z = tape.record(() => {
          const { y, statistics } = conv2dForNorm(x, weight, { padding: kernel >> 1 }, 1)
          return batchNorm(y, gamma, beta, mean, variance, { train: true, relu: true, statistics })
        })
        tape.backward(z, [x, weight, gamma, beta], cotangent)
      })
  },
  peer: { op: 'block', numbers: (n) => [n, size, c, o, kernel] },
})

interface UpdateCase {
  rate: Tensor
  parameters: Tensor[]
  gradients: Tensor[]
  copies: (Tensor | undefined)[]
  averages: Tensor[]
  averageCopies: (Tensor | undefined)[]
}

/**
 * A step of an optimiser on all parameters; `kept` makes what it keeps of each. `written` bytes of a parameter are moved beside those that
 * are made here and read once.
 */
const update = (written: number, run: (tensors: UpdateCase, kept: () => Tensor) => () => void): BenchCase => ({
  name: '32.4 M parameters, moving average, copies',
  flops: () => 8 * parameterCount,
  prepare(s) {
    const copy = (): Tensor | undefined => (s.dtype === 'bf16' ? s.output([parameterCount], 'bf16') : undefined)
    const tensors = {
      rate: s.output([1], 'f32'),
      parameters: [s.sums([parameterCount])],
      gradients: [s.sums([parameterCount])],
      copies: [copy()],
      averages: [s.sums([parameterCount])],
      averageCopies: [copy()],
    }
    s.bytes += written * parameterCount
    return run(tensors, () => s.sums([parameterCount]))
  },
})

/** Work of a step beside its ops. */
export const stepCases: Record<'block' | 'sgd' | 'adam' | 'lars' | 'clipByGlobalNorm' | 'augment' | 'enqueue', readonly BenchCase[]> = {
  block: [
    block('layer1.1.conv1 + bn1 + relu', 56, 256, 64, 1),
    block('layer2.1.conv2 + bn2 + relu', 28, 128, 128, 3),
    block('layer3.1.conv1 + bn1 + relu', 14, 1024, 256, 1),
    block('layer4.1.conv2 + bn2 + relu', 7, 512, 512, 3),
  ],
  sgd: [
    {
      ...update(12, (tensors, kept) => {
        const all = { ...tensors, momenta: [kept()] }
        return () => runNative('sgd', all, { momentum: 0.9, weightDecay: 1e-4, nesterov: false, averageMomentum: 0.999 })
      }),
      peer: { op: 'sgd', numbers: () => [parameterCount] },
    },
  ],
  adam: [
    update(16, (tensors, kept) => {
      const all = { ...tensors, firstMoments: [kept()], secondMoments: [kept()], steps: Tensor.zeros([1], 'i32') }
      const numbers = { decayed: [1], beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01, decoupled: true, averageMomentum: 0.999 }
      return () => runNative('adam', all, numbers)
    }),
  ],
  // Parameters and gradients are read twice: their norms come first.
  lars: [
    update(20, (tensors, kept) => {
      const all = { ...tensors, momenta: [kept()] }
      return () => runNative('lars', all, { adapted: [1], momentum: 0.9, weightDecay: 1e-6, trust: 0.001, averageMomentum: 0.999 })
    }),
  ],
  clipByGlobalNorm: [
    {
      name: '32.4 M gradients',
      flops: () => 3 * parameterCount,
      prepare(s) {
        const tensors = { gradients: [s.sums([parameterCount])], clipped: [s.output([parameterCount], 'f32')], norm: s.output([1], 'f32') }
        s.bytes += 4 * parameterCount // read twice
        return () => runNative('clipByGlobalNorm', tensors, { maxNorm: 1 })
      },
    },
  ],
  augment: [
    {
      name: 'two views of 500x375 images at 224 pixels',
      flops: (n) => 2 * n * 224 * 224 * 3 * 60,
      prepare(s) {
        const [width, height] = [500, 375]
        const bytes = width * height * 3
        const pixels = Tensor.from(
          Uint8Array.from({ length: bytes }, () => s.random.uint32() >>> 24),
          [bytes],
          'u8',
        )
        s.bytes += s.batch * bytes
        const outputs = [s.output([s.batch, 224, 224, 3], s.dtype), s.output([s.batch, 224, 224, 3], s.dtype)] as const
        const view = {
          ...wholeImage({ width, height, data: new Uint8Array(0) }),
          sigma: 1,
          adjust: [
            { kind: 'contrast', value: 0.8 },
            { kind: 'hue', value: 0.05 },
          ] as const,
        }
        const views = Array.from({ length: 2 * s.batch }, (): PlacedView => ({
          view: { ...view, adjust: [...view.adjust] },
          offset: 0,
          height,
          width,
        }))
        return () => renderViews(outputs, 0, pixels, views)
      },
      peer: { op: 'augment', numbers: (n) => [n, 375, 500, 224] },
    },
  ],
  enqueue: [
    {
      name: `a batch into ${queueLength}`,
      flops: () => 0,
      prepare(s) {
        const tensors = {
          queue: Tensor.zeros([queueLength, 128], s.dtype),
          pointer: Tensor.zeros([1], 'i32'),
          keys: s.values([s.batch, 128]),
        }
        s.bytes += s.batch * 128 * (s.dtype === 'bf16' ? 2 : 4)
        return () => runNative('enqueue', tensors)
      },
    },
  ],
}
