/**
 * The products that tensor cores compute, by each of their paths: Hopper's kernels, mma.sync and FMAs on the same operands, and
 * the CPU. Sizes come from the multiprocessors of the device: a block takes several tiles, rings wrap, sums are rescaled, with
 * tails on every side.
 */
import { bulkStoredTile, widestTile } from '../ops/kernels.js'
import { avoidFamilies, kernelFamilyNames, usesFamily } from '../tensor/families.js'
import { type OpNumbers, runNative } from '../tensor/native.js'
import { type FloatDType, scope, Tensor, withDevice } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { compareAll, type Finding, noise, noiseTensor, type Result, resultOf, rounded } from './compare.js'

export const productOps = ['conv2d', 'conv2dBackwardInput', 'conv2dBackwardWeight', 'infoNce', 'denseMatch', 'matmul'] as const
export type ProductOp = (typeof productOps)[number]
type ConvolutionOp = 'conv2d' | 'conv2dBackwardInput' | 'conv2dBackwardWeight'
type Kind = 'wgmma' | 'mma' | 'fma'
/** What the kernels of a kind are compared with. */
const referenceOf = (kind: Kind): string => (kind === 'fma' ? 'the CPU' : 'FMAs on the same operands')

/** Runs `body` where kernels of `kind` are the best that a device may take, and then restores what it avoided. */
function limitedTo<R>(device: string, kind: Kind, body: () => R): R {
  const before = kernelFamilyNames.filter((name) => !usesFamily(device, name))
  const above = kernelFamilyNames.filter((name) => (kind === 'fma' ? true : kind === 'mma' && name.startsWith('wgmma')))
  avoidFamilies(device, [...new Set([...before, ...above])])
  try {
    return body()
  } finally {
    avoidFamilies(device, before)
  }
}

interface Convolution {
  n: number
  h: number
  w: number
  c: number
  o: number
  kernel: number
  stride?: number
  padding?: number
  dilation?: number
  /** The tile of the kernels; 0 leaves the choice to them. */
  tile: number
  dtype?: FloatDType
  tf32?: boolean
  /** Statistics, additions, masks and sums in the epilogue; or norms in the prologue: of every operand, or of x alone. */
  fused?: 'epilogue' | 'prologue' | 'norm'
}

const outOf = (size: number, { kernel, stride = 1, padding = 0, dilation = 1 }: Convolution): number =>
  Math.floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1
const numbersOf = ({ stride = 1, padding = 0, dilation = 1, tile, tf32 = false }: Convolution): OpNumbers<'conv2dBackwardInput'> => ({
  strideH: stride,
  strideW: stride,
  paddingH: padding,
  paddingW: padding,
  dilationH: dilation,
  dilationW: dilation,
  tile,
  tf32,
})
const shapeOf = (p: Convolution): string =>
  [
    `x [${p.n},${p.h},${p.w},${p.c}]`,
    `weight [${p.o},${p.kernel},${p.kernel},${p.c}]`,
    `stride ${p.stride ?? 1}`,
    `padding ${p.padding ?? 0}`,
    `dilation ${p.dilation ?? 1}`,
    p.tf32 === true ? 'tf32' : (p.dtype ?? 'bf16'),
    ...(p.fused === undefined ? [] : [p.fused]),
    ...(p.tile === 0 ? [] : [`tile ${p.tile}`]),
  ].join(', ')

/** Operands of a convolution's products, on `device`; of the CPU in f32 with the same values. */
function operands(device: string, p: Convolution): { x: Tensor; weight: Tensor; dy: Tensor } {
  const dtype = p.dtype ?? 'bf16'
  const make = (shape: number[], seed: number): Tensor => noiseTensor(device, shape, dtype, seed)
  return {
    x: make([p.n, p.h, p.w, p.c], 1),
    weight: make([p.o, p.kernel, p.kernel, p.c], 2),
    dy: make([p.n, outOf(p.h, p), outOf(p.w, p), p.o], 3),
  }
}

/** Scale, shift and mean of a norm over `channels`. */
const vectors = (device: string, channels: number, groups = 1): Tensor[] =>
  [4, 5, 6].map((seed) => noiseTensor(device, [groups, channels], 'f32', seed))

/** The norm as a pass over memory writes it. */
function normApplied(x: Tensor, scale: Tensor, shift: Tensor): Tensor {
  const y = Tensor.empty(x.shape, x.dtype)
  runNative('normApply', { y, x, scale, shift }, { relu: true })
  return y
}

const convolutions: Record<ConvolutionOp, (device: string, p: Convolution, materialise: boolean) => Result[]> = {
  conv2d(device, p, materialise) {
    const { x, weight } = operands(device, p)
    const [oh, ow] = [outOf(p.h, p), outOf(p.w, p)]
    const y = Tensor.empty([p.n, oh, ow, p.o], x.dtype)
    const bias = noiseTensor(device, [p.o], 'f32', 7)
    const statistics =
      p.fused === 'epilogue' ? Tensor.empty([Math.ceil((p.n * oh * ow) / deviceTraits(device).statisticsRows), 2, p.o], 'f32') : undefined
    const [scale, shift] = p.fused === 'prologue' || p.fused === 'norm' ? vectors(device, p.c) : []
    if (scale !== undefined && materialise)
      runNative('conv2d', { y, x: normApplied(x, scale, shift!), weight, bias }, { ...numbersOf(p), relu: false })
    else runNative('conv2d', { y, x, weight, bias, statistics, scale, shift }, { ...numbersOf(p), relu: scale !== undefined })
    return [resultOf('y', y), ...(statistics === undefined ? [] : [resultOf('statistics', statistics)])]
  },
  conv2dBackwardInput(device, p, materialise) {
    const { weight, dy, x } = operands(device, p)
    const dx = Tensor.empty(x.shape, x.dtype)
    let epilogue: Partial<Record<'add' | 'x' | 'scale' | 'shift' | 'mean' | 'sums', Tensor>> = {}
    if (p.fused === 'epilogue') {
      // Rows of sums for each residue class of the stride.
      let chunks = 0
      const { statisticsRows } = deviceTraits(device)
      const stride = p.stride ?? 1
      for (let a = 0; a < stride; ++a)
        for (let b = 0; b < stride; ++b)
          chunks += Math.ceil((p.n * Math.ceil((p.h - a) / stride) * Math.ceil((p.w - b) / stride)) / statisticsRows)
      const [scale, shift, mean] = vectors(device, p.c)
      const add = noiseTensor(device, x.shape, dx.dtype as FloatDType, 8)
      epilogue = { add, x, scale: scale!, shift: shift!, mean: mean!, sums: Tensor.empty([chunks, 2, p.c], 'f32') }
    }
    const { sums } = epilogue
    if (p.fused === 'prologue') {
      const [of, mean, coefficients] = [
        noiseTensor(device, dy.shape, dy.dtype as FloatDType, 9),
        vectors(device, p.o)[2]!,
        noiseTensor(device, [3, 1, p.o], 'f32', 10),
      ]
      if (materialise) {
        const whole = Tensor.empty(dy.shape, dy.dtype)
        runNative('normGradient', { dx: whole, dz: dy, x: of, mean, coefficients })
        runNative('conv2dBackwardInput', { dx, dy: whole, weight }, numbersOf(p))
      } else runNative('conv2dBackwardInput', { dx, dy, weight, gradientX: of, gradientMean: mean, coefficients }, numbersOf(p))
    } else runNative('conv2dBackwardInput', { dx, dy, weight, ...epilogue }, numbersOf(p))
    return [resultOf('dx', dx), ...(sums === undefined ? [] : [resultOf('sums', sums)])]
  },
  conv2dBackwardWeight(device, p, materialise) {
    const { x, weight, dy } = operands(device, p)
    const dw = Tensor.empty(weight.shape, 'f32')
    const numbers = { ...numbersOf(p), relu: false, splits: 0 }
    if (p.fused === 'prologue') {
      const [scale, shift] = vectors(device, p.c)
      const [of, mean, coefficients] = [
        noiseTensor(device, dy.shape, dy.dtype as FloatDType, 9),
        vectors(device, p.o)[2]!,
        noiseTensor(device, [3, 1, p.o], 'f32', 10),
      ]
      if (materialise) {
        const whole = Tensor.empty(dy.shape, dy.dtype)
        runNative('normGradient', { dx: whole, dz: dy, x: of, mean, coefficients })
        runNative('conv2dBackwardWeight', { dweight: dw, dy: whole, x: normApplied(x, scale!, shift!) }, numbers)
      } else
        runNative(
          'conv2dBackwardWeight',
          { dweight: dw, dy, x, scale, shift, gradientX: of, gradientMean: mean, coefficients },
          { ...numbers, relu: true },
        )
    } else if (p.fused === 'norm') {
      const [scale, shift] = vectors(device, p.c)
      if (materialise) runNative('conv2dBackwardWeight', { dweight: dw, dy, x: normApplied(x, scale!, shift!) }, numbers)
      else runNative('conv2dBackwardWeight', { dweight: dw, dy, x, scale, shift }, { ...numbers, relu: true })
    } else runNative('conv2dBackwardWeight', { dweight: dw, dy, x }, numbers)
    return [resultOf('dw', dw)]
  },
}

interface Contrast {
  rows: number
  keys: number
  dim: number
  dtype: FloatDType
  /** Keys are rows of the identity, in turn, and the positive is zero: each number of the gradient is then a sum of few probabilities. */
  identity?: boolean
  /** Promise that scores are about 1 at most: kernels then carry no maximum along. */
  unit: boolean
}

function contrast(device: string, { rows, keys, dim, dtype, identity = false, unit }: Contrast): Result[] {
  // Rows have a length near 1, as embeddings have.
  const vectors = (count: number, seed: number): Tensor =>
    rounded(
      Tensor.from(
        noise(count * dim, seed).map((value) => value / Math.sqrt(dim / 3)),
        [count, dim],
      ),
      dtype,
    )
  const units = (): Tensor =>
    rounded(
      Tensor.from(
        Float32Array.from({ length: keys * dim }, (_, i) => Number(Math.floor(i / dim) % dim === i % dim)),
        [keys, dim],
      ),
      dtype,
    )
  const query = identity ? noiseTensor(device, [rows, dim], dtype, 1) : vectors(rows, 1)
  const [positive, queue] = identity ? [Tensor.zeros([rows, dim], query.dtype), units()] : [vectors(rows, 2), vectors(keys, 3)]
  const [loss, dquery, statistics] = [Tensor.empty([], 'f32'), Tensor.empty(query.shape, query.dtype), Tensor.empty([4], 'f32')]
  runNative('infoNce', { loss, dquery, statistics, query, positive, queue }, { temperature: identity ? 1 : 0.07, unit })
  return [resultOf('loss', loss), resultOf('statistics', statistics), resultOf('gradient', dquery)]
}

interface Match {
  n: number
  p: number
  q: number
  c: number
  dtype: FloatDType
}

/** The similarities of the matches, and again of the positions that the indices name: equal ones may be exchanged. */
function match(device: string, { n, p, q, c, dtype }: Match): Result[] {
  const [query, key] = [noiseTensor(device, [n, p, c], dtype, 1), noiseTensor(device, [n, q, c], dtype, 2)]
  const [index, similarity] = [Tensor.empty([n, p], 'i32'), Tensor.empty([n, p], 'f32')]
  runNative('denseMatch', { index, similarity, query, key }, { cosine: true })
  const [queries, keys, chosen] = [query.data(), key.data(), index.data()]
  const named = Float32Array.from(chosen, (at, i) => {
    let [dot, a, b] = [0, 0, 0]
    const [from, to] = [i * c, (Math.floor(i / p) * q + at) * c]
    for (let k = 0; k < c; ++k) {
      dot += queries[from + k]! * keys[to + k]!
      a += queries[from + k]! ** 2
      b += keys[to + k]! ** 2
    }
    return dot / Math.sqrt(a * b)
  })
  return [resultOf('similarity', similarity), { name: 'the similarity of the index', values: named, dtype: 'f32' }]
}

interface Multiplication {
  batch: number
  m: number
  n: number
  k: number
  transposeA: boolean
  transposeB: boolean
  dtype: FloatDType
}

/** Each batch of a with the one matrix b. */
function multiply(device: string, { batch, m, n, k, transposeA, transposeB, dtype }: Multiplication): Result[] {
  const a = noiseTensor(device, transposeA ? [batch, k, m] : [batch, m, k], dtype, 1)
  const b = noiseTensor(device, transposeB ? [1, n, k] : [1, k, n], dtype, 2)
  const y = Tensor.empty([batch, m, n], a.dtype)
  runNative('matmul', { y, a, b }, { transposeA, transposeB })
  return [resultOf('product', y)]
}

/** Shapes of a product for `kind` of kernels on a machine of `m` multiprocessors. */
function shapes(op: ConvolutionOp, kind: Kind, m: number): Convolution[] {
  const images = (rows: number): number => Math.ceil(rows / 99)
  // Tiles of 128 rows, two and a half for every multiprocessor.
  const rows = 128 * Math.ceil(2.5 * m)
  const small = { n: 2, h: 9, w: 11 }
  const stem: Convolution = { ...small, c: 3, o: 40, kernel: 7, stride: 2, padding: 3, tile: 0 }
  const odd: Convolution = { ...small, c: 24, o: 40, kernel: 3, padding: 1, tile: 0 }
  if (kind === 'fma') return [odd, stem, { ...odd, dtype: 'f32' }, { ...stem, dtype: 'f32' }]
  const [wide, slim] = kind === 'wgmma' ? [4, 5] : [1, 2]
  const [inside, outside] = op === 'conv2dBackwardInput' ? (['o', 'c'] as const) : (['c', 'o'] as const)
  const sized = (depth: number, columns: number): { c: number; o: number } =>
    ({ [inside]: depth, [outside]: columns }) as { c: number; o: number }
  const forHopper: Convolution[] =
    op === 'conv2dBackwardWeight'
      ? [
          // More tiles than multiprocessors without a split; then pixels split among blocks.
          { n: 4, h: 9, w: 11, c: 64, o: 128 * Math.ceil(m / 2) + 72, kernel: 3, padding: 1, tile: wide },
          { n: images(1100 * m), h: 9, w: 11, c: 64, o: 64, kernel: 1, tile: slim },
          { ...small, c: 64, o: 72, kernel: 3, stride: 2, padding: 2, dilation: 2, tile: 0 },
          { n: images(rows), h: 9, w: 11, c: 64, o: 72, kernel: 3, padding: 1, tile: wide, fused: 'norm' },
          { n: images(rows), h: 9, w: 11, c: 128, o: 64, kernel: 1, tile: slim, fused: 'norm' },
        ]
      : [
          { n: images(rows / 2), h: 9, w: 11, ...sized(64, 136), kernel: 3, padding: 1, tile: wide, fused: 'epilogue' },
          { n: images(rows), h: 9, w: 11, ...sized(192, 64), kernel: 1, tile: slim },
          { n: images(rows / 2), h: 9, w: 11, ...sized(128, 72), kernel: 3, stride: 2, padding: 2, dilation: 2, tile: 0 },
          ...(op === 'conv2d'
            ? ([
                { n: images(rows / 2), h: 9, w: 11, c: 64, o: 136, kernel: 3, padding: 1, tile: wide, fused: 'norm' },
                { n: images(rows / 2), h: 9, w: 11, c: 128, o: 64, kernel: 1, tile: slim, fused: 'norm' },
              ] as const)
            : []),
        ]
  if (kind === 'wgmma') return forHopper
  return [
    ...forHopper,
    { ...odd, tile: 3 },
    stem,
    { ...odd, n: 4, c: 64, o: 64, fused: 'prologue' },
    { ...odd, dtype: 'f32', tf32: true, tile: 1 },
  ]
}

const contrastShape = (m: number, dim: number): Omit<Contrast, 'unit'> => {
  // Six tiles of keys to a block: the ring of four wraps, and the sums so far are rescaled.
  const blocks = Math.ceil(m / 2) + 1
  return { rows: 128 * (blocks - 1) + 2, keys: 6 * 128 * Math.max(1, Math.floor((4 * m) / blocks)) + 60, dim, dtype: 'bf16' }
}

/** The kernels of `kind` for `op`, compared: FMAs with the CPU, the others with FMAs. */
export function checkProduct(device: string, op: ProductOp, kind: Kind): Finding[] {
  const m = deviceTraits(device).multiprocessors
  const compared = (shape: string, run: (where: string) => Result[], expected: () => Result[], bounds?: readonly number[]): Finding =>
    compareAll(
      `${op} of ${shape}`,
      referenceOf(kind),
      scope(() => withDevice(device, () => limitedTo(device, kind, () => run(device)))),
      scope(expected),
      bounds,
    )
  const reference = <R>(run: () => R): R => withDevice(device, () => limitedTo(device, 'fma', run))

  if (op === 'infoNce') {
    const parts: Contrast[] =
      kind === 'fma'
        ? (['bf16', 'f32'] as const).map((dtype) => ({ rows: 37, keys: 300, dim: 40, dtype, unit: false }))
        : [true, false].flatMap((unit) => [
            { ...contrastShape(m, 64), unit },
            { rows: 130, keys: 300, dim: 128, dtype: 'bf16', identity: true, unit },
            { rows: 70, keys: 300, dim: kind === 'mma' ? 136 : 72, dtype: 'bf16', unit },
          ])
    return parts.map((p) =>
      compared(
        `query [${p.rows},${p.dim}], queue [${p.keys},${p.dim}]${p.identity === true ? ' of the identity' : ''}, ` +
          `${p.dtype}${p.unit ? ', unit' : ''}`,
        (where) => contrast(where, p),
        () => (kind === 'fma' ? withDevice('cpu', () => contrast('cpu', p)) : reference(() => contrast(device, p))),
        // Probabilities are rounded to bf16 on the way; one match within rounding of a tie may count elsewhere.
        p.dtype === 'f32' ? [1e-4, 1e-2, 1e-3] : [2e-3, 2e-2, 0.02],
      ),
    )
  }
  if (op === 'denseMatch') {
    const parts: Match[] =
      kind === 'fma'
        ? [
            { n: 2, p: 40, q: 70, c: 24, dtype: 'bf16' },
            { n: 2, p: 40, q: 70, c: 19, dtype: 'f32' },
          ]
        : [
            { n: Math.ceil(0.75 * m) + 1, p: 100, q: 130, c: 72, dtype: 'bf16' },
            { n: 1, p: 10, q: 70, c: 19, dtype: 'bf16' },
          ]
    return parts.map((p) =>
      compared(
        `query [${p.n},${p.p},${p.c}], key [${p.n},${p.q},${p.c}], ${p.dtype}`,
        (where) => match(where, p),
        () => (kind === 'fma' ? withDevice('cpu', () => match('cpu', p)) : reference(() => match(device, p))),
        [1e-4, 1e-4],
      ),
    )
  }
  if (op === 'matmul') {
    const transposed = { transposeA: true, transposeB: true }
    const plain = { transposeA: false, transposeB: false }
    const parts: Multiplication[] =
      kind === 'fma'
        ? [
            { batch: 2, m: 40, n: 70, k: 24, ...plain, transposeB: true, dtype: 'bf16' },
            { batch: 2, m: 40, n: 70, k: 19, ...plain, dtype: 'f32' },
            { batch: 2, m: 40, n: 70, k: 19, ...transposed, dtype: 'f32' },
          ]
        : [
            { batch: Math.ceil(0.75 * m) + 1, m: 100, n: 130, k: 136, ...plain, transposeB: true, dtype: 'bf16' },
            { batch: 2, m: 70, n: 40, k: 72, ...plain, dtype: 'bf16' },
            { batch: 2, m: 70, n: 70, k: 19, ...transposed, dtype: 'bf16' },
          ]
    const held = (is: boolean): string => (is ? ' transposed' : '')
    return parts.map((p) =>
      compared(
        `a [${p.batch},${p.m},${p.k}]${held(p.transposeA)}, b [${p.k},${p.n}]${held(p.transposeB)}, ${p.dtype}`,
        (where) => multiply(where, p),
        () => (kind === 'fma' ? withDevice('cpu', () => multiply('cpu', p)) : reference(() => multiply(device, p))),
      ),
    )
  }
  return shapes(op, kind, m).map((p) => checkConvolution(device, op, kind, p))
}

/** The kernels of `kind` for a product of a convolution, compared as checkProduct compares them. */
function checkConvolution(device: string, op: ConvolutionOp, kind: Kind, p: Convolution): Finding {
  const of = (where: string, shape: Convolution, materialise: boolean): Result[] => convolutions[op](where, shape, materialise)
  return compareAll(
    `${op} of ${shapeOf(p)}`,
    referenceOf(kind),
    scope(() => withDevice(device, () => limitedTo(device, kind, () => of(device, p, false)))),
    scope(() =>
      kind === 'fma'
        ? withDevice('cpu', () => of('cpu', p, false))
        : withDevice(device, () => limitedTo(device, 'fma', () => of(device, { ...p, tile: 0, tf32: false }, true))),
    ),
    // Sums over 64 values that were rounded to bf16: a few may have gone to the other neighbour.
    p.tf32 === true ? [5e-3] : p.fused === 'epilogue' ? [0.01, 0.03] : undefined,
  )
}

/** Hopper's tiles of 128x256 in all three products of a convolution, compared with FMAs. */
export function checkWidest(device: string): Finding[] {
  const m = deviceTraits(device).multiprocessors
  const images = (rows: number): number => Math.ceil(rows / 99)
  // Tiles of 128 rows, two of them side by side: two and a half for every multiprocessor.
  const rows = 64 * Math.ceil(2.5 * m)
  const [map, tile] = [{ h: 9, w: 11 }, widestTile]
  const shapes: Record<ConvolutionOp, Convolution[]> = {
    conv2d: [
      { ...map, n: images(rows), c: 64, o: 264, kernel: 3, padding: 1, tile, fused: 'epilogue' },
      { ...map, n: images(rows), c: 256, o: 264, kernel: 1, tile },
      { ...map, n: images(rows), c: 64, o: 264, kernel: 3, padding: 1, tile, fused: 'norm' },
      { ...map, n: images(rows), c: 128, o: 256, kernel: 1, tile, fused: 'norm' },
    ],
    conv2dBackwardInput: [
      { ...map, n: images(rows), c: 264, o: 64, kernel: 3, padding: 1, tile, fused: 'epilogue' },
      { ...map, n: images(rows), c: 200, o: 128, kernel: 3, stride: 2, padding: 2, dilation: 2, tile },
    ],
    conv2dBackwardWeight: [
      // More tiles than multiprocessors without a split; then pixels split among blocks.
      { ...map, n: 4, c: 64, o: 256 * Math.ceil(m / 4) + 72, kernel: 3, padding: 1, tile },
      { ...map, n: images(1100 * m), c: 64, o: 200, kernel: 1, tile },
      { ...map, n: images(rows), c: 64, o: 264, kernel: 3, padding: 1, tile, fused: 'norm' },
      { ...map, n: images(rows), c: 128, o: 256, kernel: 1, tile, fused: 'norm' },
    ],
  }
  return (Object.keys(shapes) as ConvolutionOp[]).flatMap((op) => shapes[op].map((p) => checkConvolution(device, op, 'wgmma', p)))
}

/** Hopper's forward products whose tiles are stored by bulk copies, of both widths and several a block, compared with FMAs. */
export function checkBulkStores(device: string): Finding[] {
  const rows = 128 * Math.ceil(2.5 * deviceTraits(device).multiprocessors)
  const [narrow, tile] = [{ h: 9, w: 11, n: Math.ceil(rows / 99) }, bulkStoredTile]
  const wide = { ...narrow, n: Math.ceil(rows / 198) }
  const shapes: Convolution[] = [
    { ...wide, c: 64, o: 136, kernel: 3, padding: 1, tile, fused: 'epilogue' },
    { ...wide, c: 128, o: 200, kernel: 1, tile },
    { ...narrow, c: 64, o: 40, kernel: 3, padding: 1, tile, fused: 'epilogue' },
    { ...wide, c: 64, o: 136, kernel: 3, padding: 1, tile, fused: 'norm' },
    { ...narrow, c: 128, o: 64, kernel: 1, tile, fused: 'norm' },
  ]
  return shapes.map((p) => checkConvolution(device, 'conv2d', 'wgmma', p))
}
