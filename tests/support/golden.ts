/**
 * Golden files: what PyTorch computed in float64, and the comparison with it. Layouts are NCHW and OIHW in the files; the
 * settings are in their metadata.
 */
import { readdirSync } from 'node:fs'
import { basename, join } from 'node:path'

import { Tape } from '../../src/autograd/tape.js'
import { describeStep } from '../../src/methods/densecl/method.js'
import { detectionRows } from './detectionGolden.js'
import { detectorForm } from './goldenDetector.js'
import { DenseCL } from '../../src/methods/densecl/model.js'
import { denseclStep, type StepOptions } from '../../src/methods/densecl/step.js'
import { resnet, type ResNetDepth } from '../../src/nn/resnet.js'
import { allTensors, refreshCopies } from '../../src/nn/module.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import { add } from '../../src/ops/arithmetic.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { relu } from '../../src/ops/elementwise.js'
import { linear } from '../../src/ops/linear.js'
import { crossEntropy, infoNce } from '../../src/ops/losses.js'
import { permute } from '../../src/ops/permute.js'
import { adaptiveAvgPool2d, avgPool2d, maxPool2d, type Pool2dOptions } from '../../src/ops/pool2d.js'
import { resizeBilinear } from '../../src/ops/resizeBilinear.js'
import type { Conv2dOptions, PerAxis } from '../../src/ops/windows.js'
import { denseMatch, l2Normalize } from '../../src/ops/similarity.js'
import { Sgd } from '../../src/optim/sgd.js'
import { fail } from '../../src/tensor/errors.js'
import { type FloatDType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { loadStored, toStored } from '../../src/weights/layout.js'
import { readSafetensors, type StoredTensor, storedValues, type TensorFile } from '../../src/weights/safetensors.js'

type Exact = 'f32' | 'f64'

export interface GoldenRow {
  name: string
  dtype: FloatDType
  error: number
  tolerance: number
}

/** Relative errors of single ops, of losses, and of gradients and weights, that are allowed. */
const tolerances = { f64: { ops: 1e-9, losses: 1e-6, weights: 1e-5 }, f32: { ops: 1e-4, losses: 1e-3 } } as const

/**
 * Every row of every safetensors file of a folder. With a device, its training files alone: each step in f32 and in mixed
 * precision there, from the state of the f64 run here.
 */
export function* goldenRows(folder: string, device?: string): Generator<GoldenRow> {
  const files = readdirSync(folder)
    .filter((file) => file.endsWith('.safetensors'))
    .sort()
  if (files.length === 0) fail('FILE', `${folder}: expected golden files (*.safetensors) but found none`)
  for (const file of files) {
    const golden = readSafetensors(join(folder, file))
    const form = detectorForm(golden)
    if (form !== undefined) yield* detectionRows(basename(file, '.safetensors'), golden, device)
    else if (golden.metadata.cases === undefined) yield* trainingRows(basename(file, '.safetensors'), golden, device)
    else if (device === undefined) for (const dtype of ['f64', 'f32'] as const) yield* opRows(golden, dtype)
  }
}

/**
 * Of losses in mixed precision: every convolution and every batch norm in a row rounds to 2^-9, which gives embeddings an error
 * near 2^-9 * sqrt(2 depth), and a logit is a similarity over T. Losses are of the order of 1; twice that is allowed.
 */
const bf16Tolerance = (depth: number, temperature: number): number => (2 * 2 ** -9 * Math.sqrt(2 * depth)) / temperature

/** Largest difference over the largest magnitude, which is at least `floor`: the size of terms that cancel in the expected values. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>, floor = 0): number {
  if (actual.length !== expected.length) return Infinity
  let difference = 0
  let magnitude = floor
  for (let i = 0; i < expected.length; ++i) {
    difference = Math.max(difference, Math.abs(actual[i]! - expected[i]!))
    if (Number.isNaN(actual[i]!) !== Number.isNaN(expected[i]!)) return Infinity
    magnitude = Math.max(magnitude, Math.abs(expected[i]!))
  }
  return magnitude === 0 ? difference : difference / magnitude
}

/**
 * |a - b| / |b| of whole gradients. These networks, of a few channels over a few positions, amplify rounding: PyTorch's own f32
 * gradients of ResNet-50 are off by 1e-2, of ResNet-18 by 1e-5, and its bf16 ones by 0.8 to 1.3, so bf16 is compared in losses here
 * and in gradients by devices.test.ts on a network that does not.
 */
export function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Infinity
  const norm = (values: number[]): number => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0))
  return norm(Array.from(a, (value, i) => value - b[i]!)) / norm(Array.from(b))
}

/** The attributes of every op; a case has those of its own. */
interface Attrs extends Required<Conv2dOptions>, Required<Pool2dOptions> {
  eps: number
  momentum: number
  count_include_pad: boolean
  output: PerAxis
  cosine: boolean
  temperature: number
  ignore_index: number
  size: readonly [number, number]
  align_corners: boolean
}

interface OpCase {
  op: string
  attrs: Attrs
  inputs: string[]
  outputs: number
}

type Named = Record<string, Tensor>
/** Runs one golden op on NHWC tensors; returns the output and any state it changed, in the order of the file's outputs. */
type Runner = (inputs: Named, attrs: Attrs) => Tensor[]

const runners: Record<string, Runner> = {
  conv2d: ({ x, weight, bias }, attrs) => [conv2d(x!, weight!, bias, attrs)],
  batch_norm_train: ({ x, weight, bias, running_mean: mean, running_var: variance }, { eps, momentum }) => [
    batchNorm(x!, weight!, bias!, mean!, variance!, { train: true, eps, momentum }),
    mean!,
    variance!,
  ],
  batch_norm_eval: ({ x, weight, bias, running_mean: mean, running_var: variance }, { eps }) => [
    batchNorm(x!, weight!, bias!, mean!, variance!, { train: false, eps }),
  ],
  max_pool2d: ({ x }, attrs) => [maxPool2d(x!, attrs)],
  avg_pool2d: ({ x }, { kernel, stride, padding, count_include_pad: countPadding }) => [
    avgPool2d(x!, { kernel, stride, padding, countPadding }),
  ],
  adaptive_avg_pool2d: ({ x }, { output }) => [adaptiveAvgPool2d(x!, output)],
  linear: ({ x, weight, bias }) => [linear(x!, weight!, bias)],
  l2_normalize: ({ x }, { eps }) => [l2Normalize(x!, eps)],
  dense_match: ({ query, key }, { cosine }) => [denseMatch(query!, key!, { cosine }).index],
  info_nce: ({ query, positive, queue }, { temperature }) => [infoNce(query!, positive!, queue!, temperature).loss],
  cross_entropy: ({ logits, target }, { ignore_index: ignoreIndex }) => [crossEntropy(logits!, target!, { ignoreIndex })],
  resize_bilinear: ({ x }, { size, align_corners: alignCorners }) => [resizeBilinear(x!, size, { alignCorners })],
  add_relu: ({ a, b }) => [relu(add(a!, b!))],
}

/** Channels-first data with the channel axis moved last: (N, C, ...) to (N, ..., C). */
export function channelsLast(stored: StoredTensor, dtype: FloatDType): Tensor {
  const values = Tensor.from(storedValues(stored), stored.shape, stored.dtype === 'I64' ? 'i32' : dtype)
  const { shape } = stored
  if (stored.dtype === 'I64' || shape.length < 2 || (shape.length === 2 && shape[1] !== undefined)) return values
  return permuteTo(values, 'last')
}

function permuteTo(values: Tensor, where: 'last' | 'first'): Tensor {
  const { shape } = values
  if (shape.length === 3) {
    const swapped = permute(values.alias([1, ...shape]), [0, 1, 3, 2])
    return swapped.alias(swapped.shape.slice(1))
  }
  return permute(values, where === 'last' ? [0, 2, 3, 1] : [0, 3, 1, 2])
}

export const channelsFirst = (tensor: Tensor): ArrayLike<number> =>
  (tensor.dtype === 'i32' || tensor.shape.length < 3 ? tensor : permuteTo(tensor, 'first')).data()

function inputTensor(name: string, stored: StoredTensor, dtype: FloatDType): Tensor {
  if (name === 'queue')
    return permute(Tensor.from(storedValues(stored), [1, 1, ...stored.shape], dtype), [0, 1, 3, 2]).alias([
      stored.shape[1]!,
      stored.shape[0]!,
    ])
  return channelsLast(stored, dtype)
}

function* opRows(golden: TensorFile, dtype: Exact): Generator<GoldenRow> {
  const cases = JSON.parse(golden.metadata.cases!) as OpCase[]
  for (const [i, { op, attrs, inputs }] of cases.entries()) {
    const get = (key: string): StoredTensor | undefined => golden.tensors.get(`${i}.${key}`)
    const run =
      runners[op] ?? fail('FORMAT', `golden case ${i}: expected op to be one of ${Object.keys(runners).join(', ')} but received ${op}`)
    const error = scope(() => {
      const named = Object.fromEntries(inputs.map((name) => [name, inputTensor(name, get(`in.${name}`)!, dtype)]))
      const wanted = inputs.filter((name) => get(`grad.${name}`) !== undefined)
      const tape = new Tape().watch(wanted.map((name) => named[name]!))
      // x normalised along another axis than the last is the same with that axis moved last, which channelsLast did.
      const outputs = tape.record(() => run(named, attrs))
      const largest = (values: ArrayLike<number>): number => Array.from(values).reduce((most, value) => Math.max(most, Math.abs(value)), 0)
      const errors = outputs.map((output, j) => relativeError(channelsFirst(output), storedValues(get(`out.${j}`)!)))
      if (wanted.length > 0) {
        const cotangent = get('cotangent.0')!
        const gradients = tape.backward(
          outputs[0]!,
          wanted.map((name) => named[name]!),
          inputTensor('cotangent', cotangent, dtype),
        )
        const floor = largest(storedValues(cotangent)) / 100
        wanted.forEach((name, j) => errors.push(relativeError(channelsFirst(gradients[j]!), storedValues(get(`grad.${name}`)!), floor)))
      }
      return Math.max(...errors)
    })
    const matches = op === 'dense_match'
    yield { name: `${i} ${op} ${JSON.stringify(attrs)}`, dtype, error, tolerance: matches && dtype === 'f64' ? 0 : tolerances[dtype].ops }
  }
}

/**
 * The f64 model runs all steps. Each f32 step starts from the f64 state: what is compared is one step's arithmetic. Left to
 * itself an f32 run drifts as far as PyTorch's own f32 run does (docs/decisions.md has the numbers).
 */
function* trainingRows(file: string, golden: TensorFile, device?: string): Generator<GoldenRow> {
  const number = (key: string): number => {
    const value = Number(golden.metadata[key])
    return Number.isFinite(value)
      ? value
      : fail('FORMAT', `${file}: expected the setting ${key} in the metadata but received ${golden.metadata[key]}`)
  }
  const stored = (key: string): StoredTensor => golden.tensors.get(key) ?? fail('FORMAT', `${file}: the tensor ${key} is missing`)
  const build = (dtype: FloatDType, compute = dtype): DenseCL =>
    new DenseCL({
      backbone: resnet({ depth: number('depth') as ResNetDepth, baseChannels: number('base_channels') }),
      neck: { hidden: number('hidden'), featDim: number('feat_dim') },
      queueLength: number('queue_len'),
      seed: 0,
      dtype,
      compute,
    })
  const options = (step: number): StepOptions => ({
    temperature: number('temperature'),
    denseWeight: number('loss_lambda'),
    keyMomentum: number('key_momentum'),
    normGroups: number('bn_groups'),
    keyOrder: storedValues(stored(`step${step}.key_permutation`)),
  })
  const losses = JSON.parse(golden.metadata.losses!) as { loss_single: number; loss_dense: number }[]
  const model = build('f64')
  const others = withDevice(device ?? 'cpu', () => [build('f32'), build('f32', 'bf16')])
  const state = new Map(allTensors(model.state()))
  for (const [name, tensor] of state) loadStored('golden', name, tensor, stored(`init.${name}`))
  const sgd = new Sgd(model.parameters(), { momentum: number('sgd_momentum'), weightDecay: number('weight_decay') })
  const row = (name: string, dtype: FloatDType, error: number, tolerance: number): GoldenRow => ({
    name: `${file} ${name}`,
    dtype,
    error,
    tolerance,
  })

  for (let step = 0; step < number('steps'); ++step) {
    const expected = [losses[step]!.loss_single, losses[step]!.loss_dense]
    const whole: { dtype: FloatDType; gradients: number[] }[] = []
    for (const network of [...others, model]) {
      const dtype = network.compute
      const view = (name: string): Tensor =>
        scope(() => channelsLast(stored(`step${step}.${name}`), network === model ? 'f64' : 'f32').to(dtype, network.device))
      if (network !== model) {
        for (const [name, tensor] of allTensors(network.state())) loadStored('golden', name, tensor, toStored(name, state.get(name)!))
        refreshCopies(network.state())
      }
      const views = [view('view_q'), view('view_k')] as const
      const result = denseclStep(network, views, options(step))
      const { gradients } = result
      const { lossGlobal, lossDense } = describeStep(result.readings)
      yield row(
        `step ${step} losses`,
        dtype,
        relativeError([lossGlobal, lossDense], expected),
        dtype === 'bf16' ? bf16Tolerance(number('depth'), number('temperature')) : tolerances[dtype].losses,
      )
      if (device !== undefined && dtype !== 'bf16')
        whole.push({ dtype, gradients: gradients.flatMap((gradient) => Array.from(gradient.data())) })
      if (network === model) {
        if (step === 0 && device === undefined) {
          const errors = [...model.parameters().keys()].map((name, i) =>
            relativeError(storedValues(toStored(name, gradients[i]!)), storedValues(stored(`step0.grad.encoder_q.${name}`))),
          )
          yield row('step 0 gradients', dtype, Math.max(...errors), tolerances.f64.weights)
        }
        sgd.step(gradients, number('lr'))
      }
      for (const tensor of [result, ...views]) tensor.dispose()
    }
    if (device !== undefined)
      yield row(`step ${step} gradients`, 'f32', distance(whole[0]!.gradients, whole[1]!.gradients), number('depth') < 50 ? 1e-3 : 5e-2)
  }
  // A file holds what is defined: with batch norm in groups it leaves the running statistics out.
  const compared = [...state].filter(([name]) => golden.tensors.has(`final.${name}`))
  if (compared.length < model.parameters().size) fail('FORMAT', `${file}: the final parameters are missing`)
  const errors = compared.map(
    ([name, tensor]) => [name, relativeError(storedValues(toStored(name, tensor)), storedValues(stored(`final.${name}`)))] as const,
  )
  const [worst, error] = errors.reduce((a, b) => (b[1] > a[1] ? b : a))
  yield row(`final state (worst: ${worst})`, 'f64', error, tolerances.f64.weights)
  sgd.dispose()
  model.dispose()
  for (const network of others) network.dispose()
}
