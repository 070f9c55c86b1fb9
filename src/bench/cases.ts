/**
 * What `densecl bench` measures: for each op of the catalogue its native calls at the shapes of ResNet-50 and DenseCL, with the
 * floating-point operations they must do and the bytes they must move, each input read once and each output written once.
 */
import type { OpName } from '../ops/catalogue.js'
import { Tape } from '../autograd/tape.js'
import { type PlacedView, renderViews, wholeImage } from '../data/augment.js'
import type { Random } from '../tensor/random.js'
import { batchNorm } from '../ops/batchNorm.js'
import { conv2dForNorm, convolution } from '../ops/conv2d.js'
import type { NativeCall } from '../ops/timing.js'
import { type Direction, directions, type Product } from '../ops/tuning.js'
import { runNative, runPositional } from '../tensor/native.js'
import { accumulator, type DType, type FloatDType, scope, type Shape, sizeOf, Tensor } from '../tensor/tensor.js'
import { resnet50Layers, resnet50Maps } from './layers.js'
import { normal } from './pool.js'

/** Makes tensors of random values on the device that is benched; the bytes of all of them count as moved once. */
export class Setting {
  bytes = 0
  constructor(
    readonly random: Random,
    readonly dtype: FloatDType,
    readonly batch: number,
  ) {}

  values(shape: Shape, dtype: FloatDType = this.dtype): Tensor {
    const tensor = normal(this.random, shape, dtype)
    this.#count(tensor)
    return tensor
  }
  sums(shape: Shape): Tensor {
    return this.values(shape, accumulator(this.dtype) as FloatDType)
  }
  indices(shape: Shape, below: number): Tensor {
    const tensor = Tensor.from(
      Int32Array.from({ length: sizeOf(shape) }, () => this.random.below(below)),
      shape,
      'i32',
    )
    this.#count(tensor)
    return tensor
  }
  output(shape: Shape, dtype: DType = this.dtype): Tensor {
    const tensor = Tensor.zeros(shape, dtype)
    this.#count(tensor)
    return tensor
  }
  #count(tensor: Tensor): void {
    this.bytes += tensor.size * { f32: 4, f64: 8, i32: 4, u8: 1, bf16: 2 }[tensor.dtype]
  }
}

export interface BenchCase {
  /** Layer and direction. */
  name: string
  flops: (batch: number) => number
  /** Makes the tensors; the result runs the op once on them. */
  prepare: (setting: Setting) => () => void
  /** The same work for the peer (bench/peers/ops.py): its name there and numbers. */
  peer?: { op: string; numbers: (batch: number) => number[] }
}

/** Cases, or why there are none. */
export type BenchCases = readonly BenchCase[] | string

const pointwise = [1, 1, 0, 0, 1, 1]

const convolutions = resnet50Layers.flatMap(({ name, size, c, o, kernel, stride }): BenchCase[] => {
  const out = size / stride
  const numbers = [stride, stride, (kernel - 1) / 2, (kernel - 1) / 2, 1, 1]
  const flops = (n: number): number => 2 * n * out * out * o * c * kernel * kernel
  const peerNumbers = (n: number): number[] => [n, size, c, o, kernel, stride]
  const x: (n: number) => Shape = (n) => [n, size, size, c]
  const y: (n: number) => Shape = (n) => [n, out, out, o]
  const w = [o, kernel, kernel, c]
  const forward: BenchCase = {
    name: `${name} forward`,
    flops,
    prepare(s) {
      const tensors = [s.output(y(s.batch)), s.values(x(s.batch)), s.values(w)]
      return () => runPositional('conv2d', tensors, [...numbers, convolution.tile])
    },
    peer: { op: 'conv2d', numbers: peerNumbers },
  }
  const input: BenchCase = {
    name: `${name} backward input`,
    flops,
    prepare(s) {
      const tensors = [s.output(x(s.batch)), s.values(y(s.batch)), s.values(w)]
      return () => runPositional('conv2dBackwardInput', tensors, [...numbers, convolution.tile])
    },
    peer: { op: 'conv2dBackwardInput', numbers: peerNumbers },
  }
  const weight: BenchCase = {
    name: `${name} backward weight`,
    flops,
    prepare(s) {
      const tensors = [s.output(w, accumulator(s.dtype)), s.values(y(s.batch)), s.values(x(s.batch))]
      return () => runPositional('conv2dBackwardWeight', tensors, [...numbers, convolution.tile])
    },
    peer: { op: 'conv2dBackwardWeight', numbers: peerNumbers },
  }
  // The images need no gradient.
  return c === 3 ? [forward, weight] : [forward, input, weight]
})

/** The same by what their kernels compute, for tuning: the product, the bytes that pass memory, and the call that is timed. */
export function convolutionCases(
  batch: number,
): { name: string; call: NativeCall; product: Product; bytes: number; wholeSlices: boolean }[] {
  return resnet50Layers.flatMap(({ name, size, c, o, kernel, stride }) => {
    const out = size / stride
    const [pixels, taps] = [batch * out * out, kernel * kernel]
    // A strided 1x1 kernel reads a quarter of its input.
    const [input, output, weights] = [batch * c * (kernel === 1 ? out * out : size * size) * 2, pixels * o * 2, o * taps * c]
    const products: Record<Direction, [Product, number, boolean]> = {
      forward: [{ direction: 'forward', rows: pixels, columns: o, depth: taps * c }, input + output + 2 * weights, c % 64 === 0],
      'backward input': [
        { direction: 'backward input', rows: batch * size * size, columns: c, depth: (taps * o) / (stride * stride) },
        input + output + 2 * weights,
        o % 64 === 0,
      ],
      'backward weight': [
        { direction: 'backward weight', rows: o, columns: taps * c, depth: pixels },
        input + output + 4 * weights,
        c % 64 === 0,
      ],
    }
    const bf16 = (...shape: number[]): { shape: Shape; dtype: DType } => ({ shape, dtype: 'bf16' })
    const [x, y, w] = [bf16(batch, size, size, c), bf16(batch, out, out, o), bf16(o, kernel, kernel, c)]
    const numbers = [stride, stride, (kernel - 1) / 2, (kernel - 1) / 2, 1, 1, 0, 0]
    const calls: Record<Direction, NativeCall> = {
      forward: { op: 'conv2d', tensors: [y, x, w], numbers },
      'backward input': { op: 'conv2dBackwardInput', tensors: [x, y, w], numbers },
      'backward weight': { op: 'conv2dBackwardWeight', tensors: [{ shape: w.shape, dtype: 'f32' }, y, x], numbers },
    }
    return directions.flatMap((direction) => {
      const [product, bytes, wholeSlices] = products[direction]
      // The images need no gradient.
      return c === 3 && direction === 'backward input'
        ? []
        : [{ name: `${name} ${direction}`, call: calls[direction], product, bytes, wholeSlices }]
    })
  })
}

const norms = resnet50Maps.flatMap(({ name, size, c }): BenchCase[] => {
  const joins = name.endsWith('bn3')
  const shape = (n: number): Shape => [n, size, size, c]
  const vectors = (s: Setting): [Tensor, Tensor, Tensor, Tensor] => [
    s.output([1, c], 'f32'),
    s.output([1, c], 'f32'),
    s.output([c], 'f32'),
    s.output([c], 'f32'),
  ]
  // What a GPU gives and takes beside the CPU's tensors: statistics of the convolution, scale and shift.
  const affine = (s: Setting): [undefined, Tensor, Tensor] => [undefined, s.output([1, c], 'f32'), s.output([1, c], 'f32')]
  const peerNumbers = (n: number): number[] => [n, size, c, Number(joins)]
  return [
    {
      name: `${name} forward${joins ? ', residual' : ''}, relu`,
      flops: (n) => 8 * n * size * size * c,
      prepare(s) {
        const [mean, invstd, runningMean, runningVar] = vectors(s)
        const tensors = [
          s.output(shape(s.batch)),
          mean,
          invstd,
          runningMean,
          runningVar,
          s.values(shape(s.batch)),
          s.sums([c]),
          s.sums([c]),
          joins ? s.values(shape(s.batch)) : undefined,
          ...affine(s),
        ]
        return () => runPositional('batchNormTrain', tensors, [1, 1e-5, 0.1, 1])
      },
      peer: { op: 'batchNorm', numbers: peerNumbers },
    },
    {
      name: `${name} backward${joins ? ', residual' : ''}, relu`,
      flops: (n) => 10 * n * size * size * c,
      prepare(s) {
        const [mean, invstd, dgamma, dbeta] = vectors(s)
        const big = (): Tensor => s.values(shape(s.batch))
        const tensors = [
          s.output(shape(s.batch)),
          dgamma,
          dbeta,
          joins ? s.output(shape(s.batch)) : undefined,
          big(),
          big(),
          big(),
          s.sums([c]),
          mean,
          invstd,
        ]
        return () => runPositional('batchNormBackward', tensors, [1, 1])
      },
      peer: { op: 'batchNormBackward', numbers: peerNumbers },
    },
  ]
})

const map = (n: number): Shape => [n, 56, 56, 256]
const mapSize = 56 * 56 * 256
const rows = (name: string, of: (batch: number) => number) => ({ name, of })
const embeddings = [rows('global', (n) => n), rows('dense', (n) => 49 * n)]
const queueLength = 65536

const linearCase = (name: string, inputs: number, outputs: number): BenchCase => ({
  name: `${name} forward`,
  flops: (n) => 2 * n * inputs * outputs,
  prepare(s) {
    const tensors = [
      s.output([s.batch, 1, 1, outputs]),
      s.values([s.batch, 1, 1, inputs]),
      s.values([outputs, 1, 1, inputs]),
      s.sums([outputs]),
    ]
    return () => runPositional('conv2d', tensors, pointwise)
  },
  peer: { op: 'linear', numbers: (n) => [n, inputs, outputs] },
})

export const benchCases: Record<OpName, BenchCases> = {
  add: [
    {
      name: 'layer1 join',
      flops: (n) => n * mapSize,
      prepare(s) {
        const tensors = [s.output(map(s.batch)), s.values(map(s.batch)), s.values(map(s.batch))]
        return () => runPositional('add', tensors)
      },
      peer: { op: 'add', numbers: (n) => [...map(n)] },
    },
  ],
  avgPool2d: [
    {
      name: 'global, 7x7x2048',
      flops: (n) => n * 49 * 2048,
      prepare(s) {
        const tensors = [s.output([s.batch, 1, 1, 2048]), s.values([s.batch, 7, 7, 2048])]
        return () => runPositional('avgPool2d', tensors, [0, 0, 0, 0, 0, 0, 0, 1])
      },
      peer: { op: 'avgPool2d', numbers: (n) => [n, 7, 2048] },
    },
  ],
  batchNorm: norms,
  concat: [
    {
      name: 'two maps of 256 channels',
      flops: () => 0,
      prepare(s) {
        const tensors = [s.output([s.batch, 56, 56, 512]), s.values(map(s.batch)), s.values(map(s.batch))]
        return () => runPositional('concat', tensors)
      },
    },
  ],
  conv2d: convolutions,
  crossEntropy: [
    {
      name: '1000 classes, gradient',
      flops: (n) => 5 * n * 1000,
      prepare(s) {
        const tensors = [
          s.output([], accumulator(s.dtype)),
          s.output([s.batch, 1000]),
          s.output([1], 'f32'),
          s.values([s.batch, 1000]),
          s.indices([s.batch], 1000),
        ]
        return () => runPositional('crossEntropy', tensors, [-100])
      },
    },
  ],
  denseMatch: [
    {
      name: '49 x 49 positions, 2048 channels',
      flops: (n) => 2 * n * 49 * 49 * 2048,
      prepare(s) {
        const tensors = [s.output([s.batch, 49], 'i32'), undefined, s.values([s.batch, 49, 2048]), s.values([s.batch, 49, 2048])]
        return () => runPositional('denseMatch', tensors, [1])
      },
      peer: { op: 'denseMatch', numbers: (n) => [n, 49, 2048] },
    },
  ],
  dropout: [
    {
      name: '56x56x256',
      flops: (n) => n * mapSize,
      prepare(s) {
        const tensors = [s.output(map(s.batch)), s.values(map(s.batch))]
        return () => runPositional('dropout', tensors, [0.5, 7, 1, 1])
      },
    },
  ],
  gatherRows: [
    {
      name: 'partners of 49 positions',
      flops: () => 0,
      prepare(s) {
        const tensors = [s.output([s.batch, 49, 128]), s.values([s.batch, 49, 128]), s.indices([s.batch, 49], 49)]
        return () => runPositional('gatherRows', tensors)
      },
    },
  ],
  infoNce: embeddings.map(({ name, of }) => ({
    name: `${name}, queue ${queueLength}, loss and gradient`,
    flops: (n: number) => 4 * of(n) * queueLength * 128,
    prepare(s: Setting) {
      const shape = [of(s.batch), 128]
      // Of the size of unit vectors: what training sees.
      const unit = (of: Shape): Tensor => {
        const tensor = s.values(of)
        runNative('scale', { y: tensor, x: tensor }, { number: 1 / Math.sqrt(128) })
        return tensor
      }
      const tensors = [
        s.output([], accumulator(s.dtype)),
        s.output(shape),
        s.output([4], 'f32'),
        unit(shape),
        unit(shape),
        unit([queueLength, 128]),
      ]
      return () => runPositional('infoNce', tensors, [0.2, 1])
    },
    peer: { op: 'infoNce', numbers: (n: number) => [of(n), queueLength, 128] },
  })),
  l2Normalize: embeddings.map(({ name, of }) => ({
    name: `${name} embeddings`,
    flops: (n: number) => 3 * of(n) * 128,
    prepare(s: Setting) {
      const tensors = [s.output([of(s.batch), 128]), s.output([of(s.batch)], accumulator(s.dtype)), s.values([of(s.batch), 128])]
      return () => runPositional('l2Normalize', tensors, [1e-12])
    },
    peer: { op: 'l2Normalize', numbers: (n: number) => [of(n), 128] },
  })),
  linear: [linearCase('mlp.0', 2048, 2048), linearCase('mlp.2', 2048, 128)],
  maxPool2d: [
    {
      name: 'stem 3x3/2 forward',
      flops: (n) => 9 * n * 56 * 56 * 64,
      prepare(s) {
        const tensors = [s.output([s.batch, 56, 56, 64]), s.output([s.batch, 56, 56, 64], 'i32'), s.values([s.batch, 112, 112, 64])]
        return () => runPositional('maxPool2d', tensors, [3, 3, 2, 2, 1, 1])
      },
      peer: { op: 'maxPool2d', numbers: (n) => [n, 112, 64] },
    },
    {
      name: 'stem 3x3/2 backward',
      flops: (n) => 9 * n * 56 * 56 * 64,
      prepare(s) {
        const index = s.output([s.batch, 56, 56, 64], 'i32')
        runPositional(
          'maxPool2d',
          [Tensor.empty([s.batch, 56, 56, 64], s.dtype), index, Tensor.zeros([s.batch, 112, 112, 64], s.dtype)],
          [3, 3, 2, 2, 1, 1],
        )
        const tensors = [s.output([s.batch, 112, 112, 64]), s.values([s.batch, 56, 56, 64]), index]
        return () => runPositional('maxPool2dBackward', tensors, [3, 3, 2, 2, 1, 1])
      },
    },
  ],
  relu: [
    {
      name: '56x56x256',
      flops: (n) => n * mapSize,
      prepare(s) {
        const tensors = [s.output(map(s.batch)), s.values(map(s.batch))]
        return () => runPositional('relu', tensors)
      },
      peer: { op: 'relu', numbers: (n) => [...map(n)] },
    },
  ],
  reshape: 'it moves nothing',
  resizeBilinear: [
    {
      name: '28x28 to 56x56, 256 channels',
      flops: (n) => 8 * n * mapSize,
      prepare(s) {
        const tensors = [s.output(map(s.batch)), s.values([s.batch, 28, 28, 256])]
        return () => runPositional('resizeBilinear', tensors, [0])
      },
    },
  ],
  scale: [
    {
      name: '56x56x256',
      flops: (n) => n * mapSize,
      prepare(s) {
        const tensors = [s.output(map(s.batch)), s.values(map(s.batch)), undefined]
        return () => runPositional('scale', tensors, [0.5])
      },
    },
  ],
}

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

/** Work of a step beside its ops. */
export const stepCases: Record<'block' | 'sgd' | 'augment' | 'enqueue', readonly BenchCase[]> = {
  block: [
    block('layer1.1.conv1 + bn1 + relu', 56, 256, 64, 1),
    block('layer2.1.conv2 + bn2 + relu', 28, 128, 128, 3),
    block('layer3.1.conv1 + bn1 + relu', 14, 1024, 256, 1),
    block('layer4.1.conv2 + bn2 + relu', 7, 512, 512, 3),
  ],
  sgd: [
    {
      name: '32.4 M parameters, moving average, copies',
      flops: () => 8 * parameterCount,
      prepare(s) {
        const half = s.dtype === 'bf16'
        const copy = (): Tensor | undefined => (half ? s.output([parameterCount], 'bf16') : undefined)
        const tensors = [
          s.output([1], 'f32'),
          undefined,
          s.sums([parameterCount]),
          s.sums([parameterCount]),
          s.sums([parameterCount]),
          copy(),
          s.sums([parameterCount]),
          copy(),
        ]
        s.bytes += 12 * parameterCount // p, v and the average are read and written
        return () => runPositional('sgd', tensors, [0.9, 1e-4, 0, 0.999])
      },
      peer: { op: 'sgd', numbers: () => [parameterCount] },
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
        const dtype = pixels.device === 'cpu' ? 'f32' : s.dtype
        const outputs = [s.output([s.batch, 224, 224, 3], dtype), s.output([s.batch, 224, 224, 3], dtype)] as const
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
        const tensors = [Tensor.zeros([queueLength, 128], s.dtype), Tensor.zeros([1], 'i32'), s.values([s.batch, 128])]
        s.bytes += s.batch * 128 * (s.dtype === 'bf16' ? 2 : 4)
        return () => runPositional('enqueue', tensors)
      },
    },
  ],
}
