/**
 * A golden step of a detector: the forward pass, both code bases' losses, gradients, one update and what is found then, as
 * PyTorch computed it in float64 with fixed samples. Architecture and numbers are read off the shapes in the file.
 */
import { join } from 'node:path'

import { Tape } from '../../src/autograd/tape.js'
import { assign } from '../../src/detection/assign.js'
import { detectInRegions, type FoundObject, testRules } from '../../src/detection/detect.js'
import type { Detector, DetectorForm } from '../../src/detection/detector.js'
import { proposalLimits, proposals } from '../../src/detection/proposals.js'
import { lossParts } from '../../src/detection/step.js'
import { detectionStyles } from '../../src/detection/styles.js'
import { evaluation, training } from '../../src/nn/layers.js'
import { isNorm } from '../../src/nn/module.js'
import { Sgd } from '../../src/optim/sgd.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { accumulator, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { toStored } from '../../src/weights/layout.js'
import { storedValues, type TensorFile } from '../../src/weights/safetensors.js'
import { channelsFirst, distance, type GoldenRow, relativeError } from './golden.js'
import { GoldenDetector, type Precision } from './goldenDetector.js'
import { runPythonFile } from './python.js'

const programs = { c4: 'goldenDetector.py', fpn: 'goldenPyramid.py' } as const

/** Writes into a folder a golden file of another small detector of a form, which PyTorch draws and computes by a seed. */
export function writeGoldenDetector(folder: string, form: DetectorForm, seed: number): void {
  runPythonFile(join(packageRoot, 'tests', 'detection', programs[form]), [join(folder, `${form}${seed}.safetensors`), String(seed)])
}

/** Relative errors that are allowed. */
interface Bounds {
  /** Of what the network says: of the largest magnitude, in mixed precision of the root mean square. */
  values: number
  losses: number
  /** Of all gradients together; absent where they say nothing. */
  gradients?: number
  /** Share of the found objects that may be others: at a threshold rounding decides. */
  others: number
}

/**
 * In f64 sums differ by their order alone. Networks of a few channels over a few positions amplify rounding. In f32 a ReLU, or the sign of
 * an L1 loss, within rounding of zero that falls the other way changes a whole gradient: by up to 4e-2 for single seeds of
 * goldenDetector.py, on the CPU and on simt alike. In mixed precision each of `depth` convolutions, with its batch norm, rounds to 2^-9;
 * PyTorch with every activation and weight rounded to bf16 differs by 1.5 to 2.6 times 2^-9 a convolution (eight seeds), and gradients say
 * nothing (docs/decisions.md). Losses are means over many such values, whose errors are of either sign.
 */
const boundsOf = (precision: Precision, depth: number): Bounds =>
  precision === 'f64'
    ? { values: 1e-8, losses: 1e-8, gradients: 1e-8, others: 0 }
    : precision === 'f32'
      ? { values: 2e-4, losses: 2e-4, gradients: 0.1, others: 0.1 }
      : { values: 4 * 2 ** -9 * depth, losses: 2 * 2 ** -9 * Math.sqrt(2 * depth), others: 0.3 }

/** The rows of a golden file of a detector: in f64, f32 and mixed precision on the CPU, on a device in the latter two. */
export function* detectionRows(file: string, golden: TensorFile, device?: string): Generator<GoldenRow> {
  for (const precision of device === undefined ? (['f64', 'f32', 'bf16'] as const) : (['f32', 'bf16'] as const))
    yield* withDevice(device ?? 'cpu', () => {
      const detector = new GoldenDetector(golden, precision)
      const row = (name: string, error: number, tolerance: number): GoldenRow => ({
        name: `${file} ${name}`,
        dtype: precision,
        error,
        tolerance,
      })
      try {
        return scope(() => [...rowsOf(detector, row, device)])
      } finally {
        detector.dispose()
      }
    })
}

function* rowsOf(
  detector: GoldenDetector,
  row: (name: string, error: number, tolerance: number) => GoldenRow,
  device?: string,
): Generator<GoldenRow> {
  const { model, x, images, precision } = detector
  const bounds = boundsOf(precision, detector.convolutions)
  const compare = (name: string, actual: ArrayLike<number>, key: string, tolerance?: number): GoldenRow =>
    row(
      name,
      precision === 'bf16' && tolerance === undefined
        ? distance(actual, detector.values(key))
        : relativeError(actual, detector.values(key)),
      tolerance ?? bounds.values,
    )
  const style = detectionStyles.detectron2
  const limits = { ...proposalLimits[model.form].test, after: detector.stored('out.rpn.proposals.0').shape[0]! }
  const features = model.features(x, training)
  const grids = model.anchors(features, x)
  const [map, of] = model.form === 'c4' ? [() => 'out.res4', () => ''] : [(i: number) => `out.p${2 + i}`, (i: number) => `.${i}`]
  for (const [i, grid] of grids.entries()) yield compare(`anchors ${i}`, grid, `in.anchors${of(i)}`, 1e-12)
  const grid = Float64Array.from(grids.flatMap((own) => [...own]))
  for (const [i, image] of images.entries()) {
    const objects = image.objects.map(({ box }) => box)
    const { labels } = assign(grid, objects, style.anchors)
    yield compare(`labels of anchors ${i}`, labels, `in.rpn.label.${i}`, 0)
    if (!detector.has(`in.rpn.assigned_mmdet.${i}`)) continue
    const other = assign(grid, objects, detectionStyles.mmdet.anchors)
    const assigned = Array.from(other.labels, (label, at) => (label === 1 ? other.matched[at]! + 1 : label))
    yield compare(`objects of anchors ${i} by mmdet`, assigned, `in.rpn.assigned_mmdet.${i}`, 0)
  }

  const proposed = model.propose(features)
  for (const [i, each] of proposed.entries()) {
    yield compare(`map ${i}`, channelsFirst(features[i]!), map(i))
    yield compare(`logits of anchors ${i}`, each.logits.data(), `out.rpn.logits${of(i)}`)
    yield compare(`deltas of anchors ${i}`, each.deltas.data(), `out.rpn.deltas${of(i)}`)
  }
  // Elsewhere rounding decides which of two that overlap is kept: then from the file's scores and moves.
  const given = (key: string): Tensor => Tensor.from(detector.values(key), detector.stored(key).shape, accumulator(precision))
  const exact =
    precision === 'f64'
      ? proposed
      : proposed.map((_, i) => ({ logits: given(`out.rpn.logits${of(i)}`), deltas: given(`out.rpn.deltas${of(i)}`) }))
  const found = proposals(exact, grids, images, style, limits)
  for (const [i, each] of found.entries()) {
    yield compare(`proposals ${i}`, each.boxes, `out.rpn.proposals.${i}`, Math.min(bounds.values, 1e-5))
    yield compare(`scores of proposals ${i}`, each.scores, `out.rpn.scores.${i}`, Math.min(bounds.values, 1e-5))
  }
  const { logits, deltas } = model.classify(features, detector.sampledRegions(), training)
  yield compare('logits of regions', logits.data(), 'out.cls')
  yield compare('deltas of regions', deltas.data(), 'out.reg')
  const masks = model.masks?.(features, detector.sampledRegions({ ofObjects: true }), training)
  if (masks !== undefined) yield compare('logits of masks', channelsFirst(masks), 'out.mask_logits')

  const parameters = model.state().parameters
  // The other style's losses have the same kernels and other divisors.
  const styles = [...(device === undefined ? [['mmdet', 'mmdet'] as const] : []), ['detectron2', 'd2'] as const]
  for (const [name, key] of styles) {
    detector.load('w0.')
    const watched = [...parameters].map(([own, parameter]) => model.state().copies.get(own) ?? parameter)
    const tape = new Tape().watch(watched)
    const losses = tape.record(() => detector.losses(detectionStyles[name]))
    const theirs = { anchorClass: 'rpn_cls', anchorBox: 'rpn_loc', regionClass: 'cls', regionBox: 'box_reg', mask: 'mask' }
    const has = lossParts.filter((part) => detector.has(`loss.${key}.${theirs[part]}`))
    const actual = has.map((part) => losses[part]!.item())
    const expected = has.map((part) => detector.values(`loss.${key}.${theirs[part]}`)[0]!)
    yield row(`losses of ${name}`, relativeError(actual, expected), bounds.losses)
    if (name !== 'detectron2') {
      tape.dispose()
      continue
    }
    const gradients = tape.backward(losses.total, watched)
    const byName = new Map([...parameters.keys()].map((own, i) => [own, gradients[i]!]))
    const pairs = [...detector.tensors()].flatMap(([own, , theirs]) => {
      const gradient = byName.get(own)
      return gradient === undefined
        ? []
        : [{ own, actual: storedValues(toStored(own, gradient)), expected: detector.values(`grad.${theirs}`) }]
    })
    if (precision === 'f64')
      for (const { own, actual, expected } of pairs) yield row(`gradient of ${own}`, relativeError(actual, expected, 1e-3), bounds.values)
    const whole = (of: 'actual' | 'expected'): number[] => pairs.flatMap((pair) => [...pair[of]])
    if (bounds.gradients !== undefined) yield row('all gradients', distance(whole('actual'), whole('expected')), bounds.gradients)
    update(model, byName)
    const updated = [...detector.tensors()].map(([own, tensor, theirs]) => ({ own, values: storedValues(toStored(own, tensor)), theirs }))
    for (const { own, values, theirs } of updated)
      if (precision === 'f64' || !parameters.has(own)) yield compare(`${own} after a step`, values, `w1.${theirs}`)
    if (bounds.gradients === undefined) continue
    const learned = updated.filter(({ own }) => parameters.has(own))
    const expectedWeights = learned.flatMap(({ theirs }) => [...detector.values(`w1.${theirs}`)])
    // What the error of the gradients makes of the weights, and their own rounding.
    const share = (rate * length(whole('expected'))) / length(expectedWeights)
    const error = distance(
      learned.flatMap(({ values }) => [...values]),
      expectedWeights,
    )
    yield row('all weights after a step', error, 1e-6 + bounds.gradients * share)
  }
  detector.load('w1.')
  const objects = detectInRegions(
    model,
    model.features(x, evaluation),
    images.map((_, i) => detector.values(`in.proposals.${i}`)),
    images.map((image) => ({ ...image, original: image })),
    style,
    model.form === 'c4' ? testRules : { ...testRules, most: detector.stored('det.scores.0').shape[0]! },
  )
  for (const [i, each] of objects.entries()) {
    const expected = detector.found(i)
    yield row(`objects found in ${i}`, unmatched(each, expected, bounds.losses), bounds.others)
    yield row(`objects to be found in ${i}`, unmatched(expected, each, bounds.losses), bounds.others)
    if (precision !== 'f64' || !detector.has(`det.mask_prob.${i}`)) continue
    const values = each.flatMap(({ mask }) => [...mask!.values])
    yield compare(`masks found in ${i}`, values, `det.mask_prob.${i}`)
  }
}

/** The share of `some` that has no counterpart among `others`: of its class, its score and its box, within `tolerance` of the largest. */
function unmatched(some: readonly FoundObject[], others: readonly FoundObject[], tolerance: number): number {
  const largest = Math.max(...others.flatMap(({ box }) => box.map(Math.abs)))
  const same = (a: FoundObject, b: FoundObject): boolean =>
    a.label === b.label &&
    Math.abs(a.score - b.score) <= tolerance &&
    a.box.every((value, k) => Math.abs(value - b.box[k]!) <= tolerance * largest)
  return some.filter((a) => !others.some((b) => same(a, b))).length / some.length
}

const rate = 0.02
const length = (values: readonly number[]): number => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0))

/** One step of SGD with momentum, whose decay leaves norms alone. */
function update(model: Detector, gradients: Map<string, Tensor>): void {
  const state = model.state()
  for (const norms of [true, false]) {
    const own = new Map([...state.parameters].filter(([name]) => isNorm(state, name) === norms))
    const sgd = new Sgd(own, { momentum: 0.9, weightDecay: norms ? 0 : 1e-4 })
    sgd.step(
      [...own.keys()].map((name) => gradients.get(name)!),
      rate,
    )
    sgd.dispose()
  }
}
