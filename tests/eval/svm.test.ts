import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { type FeatureSet, InnerProducts, normaliseRows } from '../../src/eval/innerProducts.js'
import { positiveWeight, protocolCosts, solvePath, solveSvm, solveTogether, stratifiedFolds, type SvmSolution } from '../../src/eval/svm.js'
import { drawSample, evaluateLowShot, evaluateSvm, vocFeatures } from '../../src/eval/voc07.js'
import { Random } from '../../src/tensor/random.js'
import { hasModules, python, runPython } from '../support/python.js'
import { suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('svm')
const hasSklearn = hasModules(python, 'sklearn')
const noSklearn = 'scikit-learn is not installed for /usr/bin/python3'

/** Features as after a ReLU - a large common part, correlated - and labels that depend on them and on chance. */
function problem(seed: number, n: number, dim: number): { set: FeatureSet; labels: Int8Array } {
  const random = new Random(seed)
  const basis = Float64Array.from({ length: 6 * dim }, () => random.normal())
  const direction = Array.from({ length: 6 }, () => random.normal())
  const labels = new Int8Array(n)
  const values = new Float32Array(n * dim)
  for (let i = 0; i < n; ++i) {
    const latent = direction.map(() => random.normal())
    for (let c = 0; c < dim; ++c)
      values[i * dim + c] = Math.max(
        0,
        1 + 0.3 * latent.reduce((sum, value, k) => sum + value * basis[k * dim + c]!, 0) + 0.1 * random.normal(),
      )
    labels[i] = latent.reduce((sum, value, k) => sum + value * direction[k]!, 0) + random.normal() > 1.5 ? 1 : -1
  }
  labels[0] = 1
  labels[1] = -1
  const set = { values, dim }
  normaliseRows(set)
  return { set, labels }
}

const products = (
  set: FeatureSet,
  other: FeatureSet = { values: set.values.slice(), dim: set.dim },
): { gram: InnerProducts; cross: InnerProducts } => InnerProducts.of({ ...set, values: set.values.slice() }, other)
const dispose = ({ gram, cross }: { gram: InnerProducts; cross: InnerProducts }): void => {
  gram.dispose()
  cross.dispose()
}

test('weighted sums of inner products are those of the features themselves, plus 1', () => {
  const { set } = problem(1, 30, 12)
  const pair = products(set)
  const random = new Random(2)
  const vectors = [0, 1].map(() => Float64Array.from({ length: 30 }, () => random.normal()))
  for (const [v, result] of pair.cross.times(vectors).entries()) {
    for (let i = 0; i < 30; ++i) {
      let expected = 0
      for (let j = 0; j < 30; ++j) {
        let product = 1
        for (let c = 0; c < 12; ++c) product += set.values[i * 12 + c]! * set.values[j * 12 + c]!
        expected += product * vectors[v]![j]!
      }
      assert.ok(Math.abs(result[i]! - expected) < 1e-5)
    }
  }
  dispose(pair)
})

test('a solution obeys the conditions of its optimum at any cost, also when it began elsewhere', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 10_000 }),
      fc.integer({ min: 4, max: 60 }),
      fc.constantFrom(1e-4, 0.01, 1, 30),
      fc.constantFrom(0.05, 2),
      (seed, n, cost, other) => {
        const { set, labels } = problem(seed, n, 9)
        const pair = products(set)
        const solve = (start?: SvmSolution): SvmSolution => solveTogether(pair.gram, [() => solveSvm({ labels, cost }, start)])[0]!
        const [elsewhere] = solveTogether(pair.gram, [() => solveSvm({ labels, cost: other })])
        const [fresh, moved] = [solve(), solve(elsewhere)]
        for (const { beta, decisions, converged } of [fresh, moved]) {
          assert.ok(converged)
          labels.forEach((label, i) => {
            const c = label > 0 ? cost * positiveWeight : cost
            // beta = y max(0, 1 - y f) 2 C, in units of a margin.
            assert.ok(Math.abs(beta[i]! / (2 * c) - label * Math.max(0, 1 - label * decisions[i]!)) < 1e-3)
          })
        }
        const largest = Math.max(...fresh.decisions.map(Math.abs))
        fresh.decisions.forEach((value, i) => assert.ok(Math.abs(value - moved.decisions[i]!) < 1e-3 * largest))
        dispose(pair)
      },
    ),
    { numRuns: 40 },
  )
})

test('an example that takes no part changes nothing, and has a decision all the same', () => {
  const { set, labels } = problem(5, 40, 9)
  const pair = products(set)
  const some = labels.map((label, i) => (i >= 30 ? 0 : label))
  const part = { values: set.values.slice(0, 30 * 9), dim: 9 }
  const alone = products(part, { values: set.values.slice(), dim: 9 })
  const [whole] = solveTogether(pair.gram, [() => solveSvm({ labels: some, cost: 1 })])
  const [small] = solveTogether(alone.gram, [() => solveSvm({ labels: labels.slice(0, 30), cost: 1 })])
  const [expected] = alone.cross.times([small!.beta])
  whole!.decisions.forEach((value, i) => assert.ok(Math.abs(value - expected![i]!) < 1e-3))
  for (let i = 30; i < 40; ++i) assert.is(whole!.beta[i], 0)
  dispose(pair)
  dispose(alone)
})

test('where no example takes part the solution is 0, and is found at once', () => {
  const { set } = problem(6, 12, 9)
  const pair = products(set)
  const [{ beta, decisions, converged }] = solveTogether(pair.gram, [() => solveSvm({ labels: new Int8Array(12), cost: 1 })]) as [
    SvmSolution,
  ]
  assert.ok(converged)
  assert.ok([...beta, ...decisions].every((value) => value === 0))
  dispose(pair)
})

testWhere(hasSklearn, noSklearn, test, 'decision values of liblinear, at every cost of the protocol', () =>
  withFolder((folder) => {
    const { set, labels } = problem(8, 120, 40)
    const { set: unknown } = problem(9, 50, 40)
    const pair = products(set, { ...unknown, values: unknown.values.slice() })
    const [solutions] = solveTogether(pair.gram, [() => solvePath(labels, protocolCosts)])
    const decisions = pair.cross.times(solutions!.map(({ beta }) => beta))
    const file = join(folder, 'problem.json')
    writeFileSync(
      file,
      JSON.stringify({ x: [...set.values], z: [...unknown.values], y: [...labels], costs: protocolCosts, weight: positiveWeight, dim: 40 }),
    )
    const program = `
import json, sys, warnings
import numpy as np
from sklearn.svm import LinearSVC
warnings.simplefilter('ignore')
p = json.load(open(sys.argv[1]))
x, z = (np.array(p[k]).reshape(-1, p['dim']) for k in 'xz')
def svm(c):
  return LinearSVC(C=c, class_weight={1: p['weight'], -1: 1}, tol=1e-9, max_iter=200000, random_state=0).fit(x, p['y'])
print(json.dumps([svm(c).decision_function(z).tolist() for c in p['costs']]))`
    const expected = JSON.parse(runPython(program, [file])) as number[][]
    for (const [c, values] of expected.entries()) {
      const largest = Math.max(...values.map(Math.abs))
      values.forEach((value, i) =>
        assert.ok(Math.abs(decisions[c]![i]! - value) < 1e-3 * largest, `cost ${protocolCosts[c]}: ${decisions[c]![i]} and ${value}`),
      )
    }
    dispose(pair)
  }),
)

testWhere(hasSklearn, noSklearn, test, 'folds are scikit-learn’s', () => {
  const cases = fc.sample(fc.array(fc.constantFrom(1, -1), { minLength: 6, maxLength: 40 }), { numRuns: 40, seed: 3 })
  const program = `
import json, sys, warnings
warnings.simplefilter("ignore")
from sklearn.model_selection import StratifiedKFold
out = []
for y in json.loads(sys.argv[1]):
  f = [0] * len(y)
  for k, (_, t) in enumerate(StratifiedKFold(3).split([[0]] * len(y), y)):
    for i in t: f[i] = k
  out.append(f)
print(json.dumps(out))`
  // Fewer members of every class than folds are an error there; here they are spread as far as they go.
  const fit = cases.filter((labels) => Math.max(...[1, -1].map((value) => labels.filter((label) => label === value).length)) >= 3)
  const expected = JSON.parse(runPython(program, [JSON.stringify(fit)])) as number[][]
  fit.forEach((labels, i) => assert.equal([...stratifiedFolds(labels, 3)], expected[i]))
})

test('a sample has k positives and 19 k negatives, or all there are, and nothing difficult', () => {
  fc.assert(
    fc.property(
      fc.array(fc.constantFrom<-1 | 0 | 1>(1, 0, 0, 0, -1), { minLength: 1, maxLength: 200 }),
      fc.integer({ min: 1, max: 8 }),
      fc.integer(),
      (values, k, seed) => {
        const presence = Int8Array.from(values)
        const labels = drawSample(presence, k, new Random(seed))
        const count = (of: Int8Array, value: number): number => of.reduce((sum, v) => sum + Number(v === value), 0)
        assert.is(count(labels, 1), Math.min(k, count(presence, 1)))
        assert.is(count(labels, -1), Math.min(19 * k, count(presence, 0)))
        labels.forEach((label, i) => assert.ok(label === 0 || presence[i] === (label === 1 ? 1 : 0)))
      },
    ),
  )
})

/** Three classes of which features know one well, one a little; and sets as `vocFeatures` takes them. */
function threeClasses(n: number, seed: number): { values: Float32Array; dim: number; presence: Map<string, Int8Array> } {
  const random = new Random(seed)
  const dim = 8
  const values = Float32Array.from({ length: n * dim }, () => Math.abs(random.normal()))
  const of = (share: number, noise: number): Int8Array =>
    Int8Array.from({ length: n }, (_, i) =>
      Number(values[i * dim]! / Math.hypot(...values.subarray(i * dim, (i + 1) * dim)) + noise * random.normal() > share),
    )
  return {
    values,
    dim,
    presence: new Map([
      ['clear', of(0.45, 0.01)],
      ['noisy', of(0.5, 0.3)],
      ['never', new Int8Array(n)],
    ]),
  }
}

test('the full protocol ranks what features know, leaves out what nobody can judge, and gives the same twice', () => {
  const run = () => {
    const features = vocFeatures(threeClasses(150, 1), threeClasses(100, 2))
    const report = evaluateSvm(features)
    features.dispose()
    return report
  }
  const report = run()
  const [clear, noisy, never] = report.classes
  assert.ok(clear!.ap > 0.95 && noisy!.ap < clear!.ap && noisy!.ap > 0.2, JSON.stringify(report))
  assert.is(never!.left, 'no training image has it')
  assert.ok(Math.abs(report.map - (clear!.ap + noisy!.ap) / 2) < 1e-12)
  assert.is(report.unconverged, 0)
  assert.equal(run(), report)
})

test('a class with one positive, and images that are only difficult, go through the full protocol', () => {
  const [train, test_] = [threeClasses(60, 3), threeClasses(60, 4)]
  train.presence.set(
    'never',
    Int8Array.from({ length: 60 }, (_, i) => (i === 7 ? 1 : i < 4 ? -1 : 0)),
  )
  test_.presence.set(
    'never',
    Int8Array.from({ length: 60 }, (_, i) => (i === 9 ? 1 : i < 30 ? -1 : 0)),
  )
  const features = vocFeatures(train, test_)
  const { classes } = evaluateSvm(features)
  // No fold can both learn and find it: the first cost of the protocol is taken.
  assert.equal([classes[2]!.left, classes[2]!.cost, classes[2]!.positives], [undefined, 1, 1])
  assert.ok(classes[2]!.ap > 0 && classes[2]!.ap <= 1)
  features.dispose()
})

test('images with only difficult objects are negatives in training, and no part of the test', () => {
  const [train, held] = [threeClasses(90, 7), threeClasses(70, 8)]
  const first = (set: typeof train, name: string, count: number, value: -1 | 0): typeof train => ({
    ...set,
    values: set.values.slice(),
    presence: new Map(
      [...set.presence].map(([key, own]) => [key, key === name ? own.map((v, i) => (i < count ? value : v)) : own.slice()]),
    ),
  })
  const without = (set: typeof train, count: number): typeof train => ({
    dim: set.dim,
    values: set.values.slice(count * set.dim),
    presence: new Map([...set.presence].map(([key, own]) => [key, own.slice(count)])),
  })
  const ap = (a: typeof train, b: typeof train): number => {
    const features = vocFeatures({ ...a, values: a.values.slice() }, { ...b, values: b.values.slice() })
    const { classes } = evaluateSvm(features)
    features.dispose()
    return classes[1]!.ap
  }
  const difficult = first(held, 'noisy', 20, -1)
  const clean = first(train, 'none', 0, 0)
  assert.is(ap(first(train, 'noisy', 25, -1), difficult), ap(first(train, 'noisy', 25, 0), difficult))
  assert.ok(Math.abs(ap(clean, difficult) - ap(first(train, 'none', 0, 0), without(held, 20))) < 1e-9)
})

test('low-shot: more examples do not hurt on average, short classes are named, seeds decide', () => {
  const features = vocFeatures(threeClasses(200, 5), threeClasses(150, 6), [0.1, 10])
  const report = evaluateLowShot(features, { ks: [1, 100], samples: 3, seed: 1 })
  const [one, many] = report.rows
  assert.ok(many!.mean > one!.mean)
  assert.ok(one!.min <= one!.mean && one!.mean <= one!.max && one!.std > 0)
  assert.equal([one!.short, many!.short.length > 0], [[], true])
  assert.equal(
    report.left.map(({ name }) => name),
    ['never'],
  )
  assert.equal(evaluateLowShot(features, { ks: [1, 100], samples: 3, seed: 1 }), report)
  assert.not.equal(evaluateLowShot(features, { ks: [1], samples: 3, seed: 2 }).rows[0]!.mean, one!.mean)
  features.dispose()
})

test('no class that can be judged, and classes without test labels, are errors', () => {
  const [train, held] = [threeClasses(20, 1), threeClasses(20, 2)]
  const none = new Map([['never', new Int8Array(20)]])
  const features = vocFeatures({ ...train, presence: none }, { ...held, presence: none })
  throwsError(() => evaluateSvm(features), 'DATA', /none of the 1 classes/)
  features.dispose()
  throwsError(() => vocFeatures({ ...train }, { ...held, presence: none }), 'DATA', /clear has labels for training but not for testing/)
})

test.run()
