/** The VOC07 benchmarks of frozen features: linear SVMs on all images, and on a few of each class (docs/method.md, VOC07 SVM). */
import type { LabelledSplit } from '../data/voc.js'
import type { Backbone } from '../nn/backbone.js'
import { Random } from '../tensor/random.js'
import { fail } from '../tensor/errors.js'
import { withDevice } from '../tensor/tensor.js'
import { averagePrecision } from './averagePrecision.js'
import { type ExtractOptions, type FeatureName, featureRows } from './features.js'
import { type FeatureSet, InnerProducts, normaliseRows } from './innerProducts.js'
import { protocolCosts, solvePath, solveTogether, type Solving, stratifiedFolds, type SvmSolution } from './svm.js'
import { largest, smallest } from '../tensor/numbers.js'

/** The presence of each class in each image: 1, 0, or -1 for difficult objects alone. */
export type PresenceRows = LabelledSplit['presence']

/** What the classifiers need to know of the images: inner products and labels. */
export interface VocFeatures {
  gram: InnerProducts
  /** Inner products of each test image with each example. */
  cross: InnerProducts
  train: PresenceRows
  test: PresenceRows
  costs: readonly number[]
  /** Frees the inner products. */
  dispose(): void
}

/** Takes the features of two sets of images, whose values it overwrites, and the labels of both. */
export function vocFeatures(
  train: FeatureSet & { presence: PresenceRows },
  test: FeatureSet & { presence: PresenceRows },
  costs: readonly number[] = protocolCosts,
): VocFeatures {
  for (const name of train.presence.keys())
    if (!test.presence.has(name)) fail('DATA', `svm: the class ${name} has labels for training but not for testing`)
  normaliseRows(train)
  normaliseRows(test)
  const { gram, cross } = InnerProducts.of(train, test)
  const dispose = (): void => {
    gram.dispose()
    cross.dispose()
  }
  return { gram, cross, train: train.presence, test: test.presence, costs, dispose }
}

/** Extracts a feature of both splits with the benchmark's transform; inner products stay on the backbone's device. */
export async function extractVoc(
  backbone: Backbone,
  train: LabelledSplit,
  test: LabelledSplit,
  feature: FeatureName,
  options: ExtractOptions,
  costs?: readonly number[],
): Promise<VocFeatures> {
  const rows = async ({ items, presence }: LabelledSplit): Promise<FeatureSet & { presence: PresenceRows }> => ({
    ...(await featureRows(backbone, items, feature, { batchSize: 32, ...options, pipeline: 'square' })),
    presence,
  })
  const [known, unknown] = [await rows(train), await rows(test)]
  return withDevice(backbone.device, () => vocFeatures(known, unknown, costs))
}

const positivesIn = (presence: Int8Array): number => presence.reduce((sum, value) => sum + Number(value === 1), 0)
const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length

/** Average precision on the test images that are not difficult. */
function testPrecision(decisions: Float64Array, presence: Int8Array): number {
  const counted = Array.from(presence.keys()).filter((i) => presence[i] !== -1)
  return averagePrecision(
    counted.map((i) => decisions[i]!),
    counted.map((i) => presence[i]!),
  )
}

/** Classes with something to learn and something to find, and for each other the reason why it is left out. */
function judged({ train, test }: VocFeatures): { names: string[]; left: Map<string, string> } {
  const left = new Map<string, string>()
  for (const name of train.keys()) {
    if (positivesIn(train.get(name)!) === 0) left.set(name, 'no training image has it')
    else if (positivesIn(test.get(name)!) === 0) left.set(name, 'no test image has it')
  }
  const names = [...train.keys()].filter((name) => !left.has(name))
  if (names.length === 0) fail('DATA', `svm: none of the ${train.size} classes has images for training and for testing`)
  return { names, left }
}

/** The result of one class of the VOC07 SVM. */
export interface SvmClassResult {
  name: string
  positives: number
  /** Chosen by cross-validation. */
  cost: number
  ap: number
  /** Why the class is not part of the mean. */
  left?: string
}

/** What evaluateSvm found. */
export interface SvmReport {
  classes: SvmClassResult[]
  /** Mean average precision on the test set over the classes that could be judged. */
  map: number
  /** Fits that did not reach their tolerance, of all costs and folds. */
  unconverged: number
}

const folds = 3

/** Average precision of each cost on the held-out fold; undefined where there is no positive to learn or to find. */
function* validate(
  labels: Int8Array,
  fold: Int32Array,
  held: number,
  costs: readonly number[],
): Solving<{ aps: number[]; unconverged: number } | undefined> {
  const kept = labels.map((label, i) => (fold[i] === held ? 0 : label))
  const out = Array.from(labels.keys()).filter((i) => fold[i] === held)
  if (!kept.includes(1) || !out.some((i) => labels[i] === 1)) return undefined
  const solutions = yield* solvePath(kept, costs)
  const aps = solutions.map(({ decisions }) =>
    averagePrecision(
      out.map((i) => decisions[i]!),
      out.map((i) => Number(labels[i] === 1)),
      'step',
    ),
  )
  return { aps, unconverged: count(solutions) }
}

const count = (solutions: readonly SvmSolution[]): number => solutions.filter(({ converged }) => !converged).length

/**
 * The full protocol: for each class the cost with the best average precision in three folds, then a fit on all. Images that have
 * only difficult objects of a class are trained on as negatives, and not tested.
 */
export function evaluateSvm(features: VocFeatures, progress: (done: number, of: number) => void = () => undefined): SvmReport {
  const { gram, cross, train, test, costs } = features
  const { names, left } = judged(features)
  const problems = names.map((name) => {
    const labels = train.get(name)!.map((value) => (value === 1 ? 1 : -1))
    return { name, labels, fold: stratifiedFolds(labels, folds) }
  })
  const all = problems.length * (folds + 1)
  const jobs = problems.flatMap(({ labels, fold }) => Array.from({ length: folds }, (_, held) => () => validate(labels, fold, held, costs)))
  const validated = solveTogether(gram, jobs, (done) => progress(done, all))
  // Without a fold that says anything every cost is as good: the protocol's first.
  const chosen = problems.map((_, p) => {
    const known = validated.slice(p * folds, (p + 1) * folds).filter((result) => result !== undefined)
    const means = costs.map((__, c) => (known.length === 0 ? 0 : mean(known.map(({ aps }) => aps[c]!))))
    return costs[means.indexOf(largest(means))]!
  })
  const fits = solveTogether(
    gram,
    problems.map(
      ({ labels }, p) =>
        () =>
          solvePath(
            labels,
            costs.filter((cost) => cost <= chosen[p]!),
          ),
    ),
    (done) => progress(jobs.length + done, all),
  )
  const finals = fits.map((solutions, p) => solutions[costs.filter((cost) => cost <= chosen[p]!).indexOf(chosen[p]!)]!)
  const decisions = cross.times(finals.map(({ beta }) => beta))
  const results = [...train].map(([name, presence]): SvmClassResult => {
    const p = names.indexOf(name)
    const known = { name, positives: positivesIn(presence) }
    return p < 0
      ? { ...known, cost: NaN, ap: NaN, left: left.get(name)! }
      : { ...known, cost: chosen[p]!, ap: testPrecision(decisions[p]!, test.get(name)!) }
  })
  const unconverged =
    validated.reduce((sum, result) => sum + (result?.unconverged ?? 0), 0) + fits.reduce((sum, solutions) => sum + count(solutions), 0)
  return { classes: results, map: mean(results.filter((result) => result.left === undefined).map(({ ap }) => ap)), unconverged }
}

/** The mean average precision with k positives a class, over samples. */
export interface LowShotRow {
  k: number
  /** The cost with the best mean over samples, chosen on the test set as the protocol does: optimistic. */
  cost: number
  mean: number
  min: number
  max: number
  std: number
  /** Classes with fewer than k positives, of which all were taken. */
  short: string[]
}

/** What evaluateLowShot found. */
export interface LowShotReport {
  rows: LowShotRow[]
  seed: number
  samples: number
  left: { name: string; reason: string }[]
  unconverged: number
}

export const protocolShots: readonly number[] = [1, 2, 4, 8, 16, 32, 64, 96]

/** k positives and 19 k negatives, or as many as there are, as 1 and -1; difficult images are neither. */
export function drawSample(presence: Int8Array, k: number, random: Random): Int8Array {
  const labels = new Int8Array(presence.length)
  for (const [value, most] of [
    [1, k],
    [0, 19 * k],
  ] as const) {
    const candidates = Array.from(presence.keys()).filter((i) => presence[i] === value)
    for (const i of random.permutation(candidates.length).subarray(0, most)) labels[candidates[i]!] = value === 1 ? 1 : -1
  }
  return labels
}

/** `samples` times k positives and 19 k negatives of each class: mean average precision over classes, at the best cost. */
export function evaluateLowShot(
  features: VocFeatures,
  options: { ks?: readonly number[]; samples?: number; seed?: number; progress?: (done: number, of: number) => void } = {},
): LowShotReport {
  const { ks = protocolShots, samples = 5, seed = 0, progress = () => undefined } = options
  const { gram, cross, train, test, costs } = features
  const { names, left } = judged(features)
  let unconverged = 0
  const rows = ks.map((k, at): LowShotRow => {
    // One problem for each class of each sample, in that order.
    const tasks = Array.from({ length: samples }, (_, sample) =>
      names.map((name, c) => ({ name, labels: drawSample(train.get(name)!, k, new Random(seed, 41, k, sample, c)) })),
    ).flat()
    const solved = solveTogether(
      gram,
      tasks.map(
        ({ labels }) =>
          () =>
            solvePath(labels, costs),
      ),
      (done) => progress(at * tasks.length + done, ks.length * tasks.length),
    )
    unconverged += solved.reduce((sum, solutions) => sum + count(solutions), 0)
    const aps = costs.map((_, c) =>
      cross.times(solved.map((solutions) => solutions[c]!.beta)).map((decisions, t) => testPrecision(decisions, test.get(tasks[t]!.name)!)),
    )
    const byCost = costs.map((cost, c) => ({
      cost,
      maps: Array.from({ length: samples }, (_, sample) => mean(aps[c]!.slice(sample * names.length, (sample + 1) * names.length))),
    }))
    const { cost, maps } = byCost.reduce((a, b) => (mean(b.maps) > mean(a.maps) ? b : a))
    const average = mean(maps)
    const short = names.filter((name) => positivesIn(train.get(name)!) < k)
    return {
      k,
      cost,
      mean: average,
      min: smallest(maps),
      max: largest(maps),
      std: Math.sqrt(mean(maps.map((map) => (map - average) ** 2))),
      short,
    }
  })
  return { rows, seed, samples, left: [...left].map(([name, reason]) => ({ name, reason })), unconverged }
}
