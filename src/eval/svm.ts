/**
 * Linear support vector machines with squared hinge loss, the problem of liblinear's L2-regularised L2-loss solver:
 *
 *     min over w of |w|^2 / 2 + sum over i of C_i max(0, 1 - y_i w.x_i)^2,   the bias being the weight of a constant feature of 1
 *
 * With w = sum beta_i x_i and K the inner products, examples inside the margin (S) obey (K_SS + diag(1 / 2C)) beta_S = y_S and the
 * others have beta 0: Newton's method on a piecewise quadratic function (Keerthi and DeCoste, JMLR 2005; Chapelle, 2007), each
 * system solved by conjugate gradients. Every problem here is a mask over one matrix K, so that many - classes, folds, samples - run
 * side by side and their products with K are one matrix product.
 */
import { stopIfInterrupted } from '../tensor/interruption.js'
import type { InnerProducts } from './innerProducts.js'

interface SvmProblem {
  /** The label of each example of K: 1, -1, or 0 when it takes no part. */
  labels: Int8Array
  /** C of negatives; positives have `positiveWeight` times that. */
  cost: number
}

export interface SvmSolution {
  /** Weights of the examples. */
  beta: Float64Array
  /** K beta: decision values of every example, of those that took no part too. */
  decisions: Float64Array
  converged: boolean
}

/** A computation that asks for products: it yields a vector v and is given K v. */
export type Solving<R> = Generator<Float64Array, R, Float64Array>

/** Class weight and costs of the VOC07 protocol (docs/method.md, VOC07 SVM), in its order. */
export const positiveWeight = 2
export const protocolCosts: readonly number[] = [1, 10, 100, ...Array.from({ length: 16 }, (_, i) => 0.5 ** (i + 4))]

/** Root mean square by which the equations above may be off: decision values are right to about as much. */
const tolerance = 2e-5
const mostNewtonSteps = 60
const mostConjugateSteps = 600

const dot = (a: Float64Array, b: Float64Array): number => {
  let sum = 0
  for (let i = 0; i < a.length; ++i) sum += a[i]! * b[i]!
  return sum
}

/** sums += factor * values */
function addScaled(sums: Float64Array, factor: number, values: Float64Array): void {
  for (let i = 0; i < sums.length; ++i) sums[i]! += factor * values[i]!
}

/** Solves a problem, beginning at `start` where one is given (the solution at another cost). */
export function* solveSvm({ labels, cost }: SvmProblem, start?: SvmSolution): Solving<SvmSolution> {
  const ridge = Float64Array.from(labels, (label) => (label > 0 ? 0.5 / (cost * positiveWeight) : 0.5 / cost))
  const size = Math.sqrt(labels.reduce((sum, label) => sum + Math.abs(label), 0))
  const beta = start?.beta.slice() ?? new Float64Array(labels.length)
  let decisions: Float64Array = start?.decisions.slice() ?? new Float64Array(labels.length)
  let fresh = true
  for (let step = 0; step < mostNewtonSteps; ++step) {
    const inside = Uint8Array.from(labels, (label, i) => Number(label !== 0 && label * decisions[i]! < 1))
    const off = residual(labels, inside, ridge, beta, decisions)
    const error = Math.sqrt(dot(off, off))
    // Large weights, at high costs where classes overlap, cannot be had more exactly than f32 products are.
    const least = size * Math.max(tolerance, 2 ** -22 * Math.sqrt(dot(beta, beta)))
    if (error <= least) {
      if (fresh) return { beta, decisions, converged: true }
      // Sums of many rounded products: believed once they are computed anew.
      decisions = yield beta
      fresh = true
      continue
    }
    const target = yield* solveInside({ labels, inside, ridge }, beta, decisions, Math.max(0.5 * least, 0.05 * error))
    // Where the full step leaves the same examples inside, it is the minimum; a search would see the rounding of the products.
    const stays = inside.every((now, i) => labels[i] === 0 || labels[i]! * (decisions[i]! + target.decisions[i]!) < 1 === (now === 1))
    const length = stays ? 1 : lineSearch(labels, cost, beta, decisions, target)
    addScaled(beta, length, target.beta)
    addScaled(decisions, length, target.decisions)
    fresh = false
  }
  return { beta, decisions, converged: false }
}

/** What is left of the equations: y - f - beta / 2C inside the margin, -beta / 2C elsewhere. */
function residual(labels: Int8Array, inside: Uint8Array, ridge: Float64Array, beta: Float64Array, decisions: Float64Array): Float64Array {
  return beta.map((value, i) => (inside[i] === 0 ? 0 : labels[i]! - decisions[i]!) - ridge[i]! * value)
}

/** The way (changes of beta and of decisions) from here to the solution of the equations for a fixed set inside the margin. */
function* solveInside(
  { labels, inside, ridge }: { labels: Int8Array; inside: Uint8Array; ridge: Float64Array },
  from: Float64Array,
  decisions: Float64Array,
  accuracy: number,
): Solving<{ beta: Float64Array; decisions: Float64Array }> {
  // Examples outside give up their weights first.
  const outside = from.map((value, i) => (inside[i] === 0 ? -value : 0))
  const change = outside.slice()
  const moved: Float64Array = outside.some((value) => value !== 0) ? (yield outside).slice() : new Float64Array(from.length)
  const left = from.map((value, i) => (inside[i] === 0 ? 0 : labels[i]! - decisions[i]! - moved[i]! - ridge[i]! * value))
  const direction = left.slice()
  let square = dot(left, left)
  for (let step = 0; step < mostConjugateSteps && Math.sqrt(square) > accuracy; ++step) {
    const product = yield direction
    const curved = product.map((value, i) => (inside[i] === 0 ? 0 : value + ridge[i]! * direction[i]!))
    const size = square / dot(direction, curved)
    addScaled(change, size, direction)
    addScaled(moved, size, product)
    addScaled(left, -size, curved)
    const next = dot(left, left)
    const keep = next / square
    for (let i = 0; i < direction.length; ++i) direction[i] = left[i]! + keep * direction[i]!
    square = next
  }
  return { beta: change, decisions: moved }
}

/** The step along a change that makes the objective smallest: where its derivative, which only grows, is 0. */
function lineSearch(
  labels: Int8Array,
  cost: number,
  beta: Float64Array,
  decisions: Float64Array,
  change: { beta: Float64Array; decisions: Float64Array },
): number {
  const linear = dot(beta, change.decisions)
  const quadratic = dot(change.beta, change.decisions)
  const slope = (t: number): number => {
    let sum = linear + t * quadratic
    for (let i = 0; i < labels.length; ++i) {
      const label = labels[i]!
      if (label === 0) continue
      const short = 1 - label * (decisions[i]! + t * change.decisions[i]!)
      if (short > 0) sum -= 2 * (label > 0 ? cost * positiveWeight : cost) * short * label * change.decisions[i]!
    }
    return sum
  }
  let [low, high] = [0, 1]
  while (slope(high) < 0 && high < 16) [low, high] = [high, 2 * high]
  for (let i = 0; i < 40; ++i) {
    const middle = (low + high) / 2
    if (slope(middle) < 0) low = middle
    else high = middle
  }
  return (low + high) / 2
}

/** Solutions at all costs, from the smallest, each the start of the next; given in the order of `costs`. */
export function* solvePath(labels: Int8Array, costs: readonly number[]): Solving<SvmSolution[]> {
  const solutions = new Array<SvmSolution>(costs.length)
  let before: { cost: number; solution: SvmSolution } | undefined
  for (const { cost, place } of costs.map((value, i) => ({ cost: value, place: i })).sort((a, b) => a.cost - b.cost)) {
    // While nearly every example is inside its margin, weights grow with the cost.
    const start: SvmSolution | undefined =
      before === undefined ? undefined : cost < 0.001 ? scaled(before.solution, cost / before.cost) : before.solution
    solutions[place] = yield* solveSvm({ labels, cost }, start)
    before = { cost, solution: solutions[place] }
  }
  return solutions
}

const scaled = (solution: SvmSolution, factor: number): SvmSolution => ({
  ...solution,
  beta: solution.beta.map((value) => factor * value),
  decisions: solution.decisions.map((value) => factor * value),
})

/** Columns of one matrix product: enough that it is limited by arithmetic. */
const width = 96

/** Runs computations side by side, up to `width` at a time; results in their order. */
export function solveTogether<R>(
  gram: InnerProducts,
  jobs: readonly (() => Solving<R>)[],
  progress: (done: number) => void = () => undefined,
): R[] {
  const results = new Array<R>(jobs.length)
  let running: { place: number; job: Solving<R>; asks: Float64Array }[] = []
  let [begun, done] = [0, 0]
  const advance = (place: number, job: Solving<R>, { value, done: finished }: IteratorResult<Float64Array, R>): void => {
    if (finished === true) {
      results[place] = value
      progress((done += 1))
    } else running.push({ place, job, asks: value })
  }
  while (done < jobs.length) {
    stopIfInterrupted()
    for (; running.length < width && begun < jobs.length; ++begun) {
      const job = jobs[begun]!()
      advance(begun, job, job.next())
    }
    const asking = running
    running = []
    const products = asking.length === 0 ? [] : gram.times(asking.map(({ asks }) => asks))
    asking.forEach(({ place, job }, i) => advance(place, job, job.next(products[i]!)))
  }
  return results
}

/**
 * Folds as scikit-learn's StratifiedKFold deals them without shuffling: each class is spread over the folds in proportion, its
 * members in their order. Gives the fold of each example.
 */
export function stratifiedFolds(labels: ArrayLike<number>, folds: number): Int32Array {
  // Classes are numbered in the order in which they appear, and members of the sorted list dealt in turn.
  const seen = new Map<number, number>()
  for (const label of Array.from(labels)) if (!seen.has(label)) seen.set(label, seen.size)
  const encoded = Int32Array.from(labels, (label) => seen.get(label)!)
  const allocation = Array.from({ length: folds }, () => new Int32Array(seen.size))
  encoded
    .slice()
    .sort()
    .forEach((label, i) => (allocation[i % folds]![label]! += 1))
  const result = new Int32Array(labels.length)
  for (let label = 0; label < seen.size; ++label) {
    const dealt = allocation.flatMap((counts, fold) => new Array<number>(counts[label]!).fill(fold))
    let next = 0
    encoded.forEach((own, i) => {
      if (own === label) result[i] = dealt[next++]!
    })
  }
  return result
}
