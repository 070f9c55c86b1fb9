/** Dense contrast beyond the published form: partners by the crops, local negatives, those of the same picture, and what is seen. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import {
  cropColumns,
  cropRow,
  mocoV2Augmentation,
  randomView,
  renderViews,
  tableRow,
  type ViewCrops,
  type ViewParameters,
} from '../../src/data/augment.js'
import { denseLoss } from '../../src/methods/densecl/denseLoss.js'
import { partnersByCrops, wholeViews } from '../../src/data/partners.js'
import { explainedVariance, geometryHealth } from '../../src/methods/densecl/health.js'
import { densecl } from '../../src/methods/densecl/method.js'
import { DenseCL } from '../../src/methods/densecl/model.js'
import { denseclStep } from '../../src/methods/densecl/step.js'
import { resolveConfig } from '../../src/methods/index.js'
import { resnet } from '../../src/nn/resnet.js'
import { l2Normalize } from '../../src/ops/similarity.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { checkGradients, relativeDifference } from '../support/gradients.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

const test = suite('dense contrast')

/** Views of images of width x height pixels, two of each, as the loader tells of them. */
function cropsOf(views: readonly (readonly [ViewParameters, ViewParameters])[], width: number, height: number): ViewCrops {
  const values = new Float64Array(2 * views.length * cropColumns)
  views.forEach((pair, n) =>
    pair.forEach((view, which) =>
      values.set(cropRow(tableRow({ view, offset: 0, height, width }, true)), (which * views.length + n) * cropColumns),
    ),
  )
  return { values, images: views.length }
}

const drawn = (random: Random, width: number, height: number): [ViewParameters, ViewParameters] => {
  const plain = { ...mocoV2Augmentation, jitter: 0, grayscale: 0, blur: 0 }
  return [randomView(random, width, height, plain), randomView(random, width, height, plain)]
}

test('a view of the whole image has each position as its own partner; one that is mirrored the mirrored position', () => {
  assert.equal([...partnersByCrops(wholeViews(2), 3)], [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8])
  const mirrored = wholeViews(1)
  mirrored.values[2 * cropColumns - 1] = 1
  assert.equal([...partnersByCrops(mirrored, 3)], [2, 1, 0, 5, 4, 3, 8, 7, 6])
})

test('views that share nothing have no partners', () => {
  const crops = wholeViews(1)
  crops.values.set([0, 0, 0.4, 0.4, 0, 0.5, 0.5, 0.4, 0.4, 1])
  assert.ok(partnersByCrops(crops, 4).every((partner) => partner === -1))
})

test('partners are where the pixels say: views of a picture whose colours are its coordinates', () => {
  const [width, height, size, side] = [160, 120, 64, 4]
  const pixels = new Uint8Array(width * height * 3)
  for (let y = 0; y < height; ++y) for (let x = 0; x < width; ++x) pixels.set([x, y, 0], (y * width + x) * 3)
  let compared = 0
  for (let seed = 0; seed < 12; ++seed) {
    const pair = drawn(new Random(seed, 5), width, height)
    const partners = partnersByCrops(cropsOf([pair], width, height), side)
    scope(() => {
      const out = Tensor.empty([2, size, size, 3])
      const placed = pair.map((view) => ({ view, offset: 0, height, width }))
      renderViews(out, 0, Tensor.from(pixels, [pixels.length], 'u8'), placed, false)
      const values = out.data()
      /** The mean coordinates of a cell, which are those of its centre. */
      const centre = (view: number, cell: number): [number, number] => {
        const [i, j, step] = [Math.floor(cell / side), cell % side, size / side]
        const sum: [number, number] = [0, 0]
        for (let y = i * step; y < (i + 1) * step; ++y)
          for (let x = j * step; x < (j + 1) * step; ++x)
            for (const c of [0, 1]) sum[c]! += (255 * values[((view * size + y) * size + x) * 3 + c]!) / step ** 2
        return sum
      }
      const key = Array.from({ length: side * side }, (_, cell) => centre(1, cell))
      const half = [Math.abs(key[1]![0] - key[0]![0]) / 2, Math.abs(key[side]![1] - key[0]![1]) / 2] as const
      for (let cell = 0; cell < side * side; ++cell) {
        const [x, y] = centre(0, cell)
        const beyond = key.map((at) => Math.max(Math.abs(at[0] - x) / half[0], Math.abs(at[1] - y) / half[1]))
        const nearest = beyond.indexOf(Math.min(...beyond))
        // Colours are whole numbers, and borders are repeated: what lies on the edge of a cell tells nothing.
        if (Math.abs(beyond[nearest]! - 1) < 0.15) continue
        assert.is(partners[cell], beyond[nearest]! < 1 ? nearest : -1, `seed ${seed}, position ${cell}`)
        compared += 1
      }
    })
  }
  assert.ok(compared > 100, `${compared} positions`)
})

test('exchanging the views inverts partners where cells are of one size', () => {
  fc.assert(
    fc.property(fc.integer({ min: -3, max: 3 }), fc.integer({ min: -3, max: 3 }), fc.boolean(), (dx, dy, flip) => {
      const views = (shift: number): ViewCrops => ({
        images: 1,
        values: Float64Array.of(
          ...[0.2, 0.2, 0.5, 0.5, Number(shift < 0 && flip)],
          ...[0.2 + (shift * dx) / 8, 0.2 + (shift * dy) / 8, 0.5, 0.5, Number(shift > 0 && flip)],
        ),
      })
      // The same pair, looked at from either side.
      const [there, back] = [partnersByCrops(views(1), 4), partnersByCrops(views(-1), 4)]
      there.forEach((partner, at) => {
        if (partner >= 0) assert.is(back[partner], at)
      })
    }),
  )
})

/** A small model in f64, unit embeddings [N, P, D] of both views, and partners of which some are missing. */
function example(seed: number, images = 3, positions = 9, length = 20) {
  const random = new Random(seed)
  const model = new DenseCL({
    backbone: resnet({ depth: 18, baseChannels: 2 }),
    neck: { hidden: 4, featDim: 5 },
    queueLength: 4,
    denseQueueLength: length,
    seed,
    dtype: 'f64',
  })
  const unit = (): Tensor =>
    l2Normalize(
      Tensor.from(
        Float64Array.from({ length: images * positions * 5 }, () => random.normal()),
        [images, positions, 5],
        'f64',
      ),
    )
  const index = Int32Array.from({ length: images * positions }, () => (random.below(3) === 0 ? -1 : random.below(positions)))
  return { model, query: unit(), key: unit(), index, images }
}

type Example = ReturnType<typeof example>
interface Setting {
  denseWeight: number
  inImage: number
  temperature: number
}

const lossOf = ({ model, key }: Example, query: Tensor, { temperature, inImage }: Setting): Tensor =>
  denseLoss(model, { query, key, index: model.partners!.index }, { temperature, inImage, weights: model.startLossWeights().join() }).loss

const prepare = ({ model, index, images }: Example, { denseWeight, inImage }: Setting): void =>
  model.prepare({ denseWeight, inImage, partners: { index, images } })

/** The formula, position by position. */
function formula({ model, query, key, index }: Example, { denseWeight, inImage, temperature }: Setting): number {
  const [q, k, queue] = [query, key, model.denseQueue.keys].map((x) => x.data()) as [Float64Array, Float64Array, Float64Array]
  const [positions, d] = [query.shape[1]!, query.shape[2]!]
  const dot = (row: number, of: Float64Array, at: number): number => {
    let sum = 0
    for (let c = 0; c < d; ++c) sum += q[row * d + c]! * of[at * d + c]!
    return sum / temperature
  }
  const logSum = (values: number[]): number => Math.log(values.reduce((sum, value) => sum + Math.exp(value), 0))
  let [queued, own, shown] = [0, 0, 0]
  index.forEach((partner, row) => {
    if (partner < 0) return
    const first = Math.floor(row / positions) * positions
    const right = dot(row, k, first + partner)
    queued += logSum([right, ...Array.from({ length: queue.length / d }, (_, at) => dot(row, queue, at))]) - right
    own += logSum(Array.from({ length: positions }, (_, at) => dot(row, k, first + at))) - right
    shown += 1
  })
  return shown === 0 ? 0 : (denseWeight * ((1 - inImage) * queued + inImage * own)) / shown
}

const settings: Setting[] = [
  { denseWeight: 0.5, inImage: 0, temperature: 0.2 },
  { denseWeight: 0.3, inImage: 0.5, temperature: 0.1 },
  { denseWeight: 1, inImage: 1, temperature: 0.5 },
]

test('the dense loss is its formula, over the positions that have a partner, and its gradient that of differences', () => {
  for (const [seed, setting] of settings.entries())
    scope(() => {
      const some = example(seed)
      prepare(some, setting)
      const loss = lossOf(some, some.query, setting).item()
      assert.ok(Math.abs(loss - formula(some, setting)) < 1e-12, `${loss} against ${formula(some, setting)}`)
      checkGradients(([query]) => lossOf(some, query!, setting), [some.query], new Random(seed))
      some.model.dispose()
    })
})

test('a position without a partner has no gradient; without any partner the loss is 0 and nothing has one', () => {
  for (const setting of settings)
    scope(() => {
      const some = example(7)
      const gradientOf = (): Float64Array => {
        prepare(some, setting)
        const tape = new Tape().watch([some.query])
        const loss = tape.record(() => lossOf(some, some.query, setting))
        assert.ok(Math.abs(loss.item() - formula(some, setting)) < 1e-12)
        return tape.backward(loss, [some.query])[0]!.data() as Float64Array
      }
      const gradient = gradientOf()
      some.index.forEach((partner, row) => {
        const moved = gradient.subarray(5 * row, 5 * row + 5).some((value) => value !== 0)
        assert.is(moved, partner >= 0, `position ${row}`)
      })
      some.index.fill(-1)
      assert.ok(gradientOf().every((value) => value === 0))
      some.model.dispose()
    })
})

const reference = `
import json, sys, torch
import torch.nn.functional as F
given = json.load(sys.stdin)
tensor = lambda name: torch.tensor(given[name], dtype=torch.float64).reshape(given["shapes"][name])
query, key, queue = tensor("query").requires_grad_(), tensor("key"), tensor("queue")
index = torch.tensor(given["index"]).reshape(query.shape[:2])
shown = index >= 0
chosen = torch.gather(key, 1, index.clamp(min=0)[..., None].expand(-1, -1, key.shape[2]))
q, k, T = query[shown], chosen[shown], given["temperature"]
logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / T
queued = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
own = F.cross_entropy((query @ key.transpose(1, 2))[shown] / T, index[shown])
loss = given["denseWeight"] * ((1 - given["inImage"]) * queued + given["inImage"] * own)
loss.backward()
json.dump({"loss": loss.item(), "gradient": query.grad.flatten().tolist()}, sys.stdout)
`

testWhere(hasTorch, noTorch, test, 'the dense loss and its gradient are those of PyTorch', () => {
  for (const [seed, setting] of settings.entries())
    scope(() => {
      const some = example(11 + seed, 4, 16, 50)
      prepare(some, setting)
      const tape = new Tape().watch([some.query])
      const loss = tape.record(() => lossOf(some, some.query, setting))
      const [gradient] = tape.backward(loss, [some.query])
      const tensors = { query: some.query, key: some.key, queue: some.model.denseQueue.keys }
      const values = Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, [...tensor.data()]]))
      const shapes = Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, tensor.shape]))
      const input = JSON.stringify({ ...values, shapes, index: [...some.index], ...setting })
      const expected = JSON.parse(runPython(reference, [], input)) as { loss: number; gradient: number[] }
      assert.ok(Math.abs(loss.item() - expected.loss) < 1e-12)
      assert.ok(relativeDifference(gradient!.data(), expected.gradient, 1e-6) < 1e-8)
      some.model.dispose()
    })
})

test('local negatives: the dense queue takes unit keys of distinct positions, another choice at each step, the same in each run', () => {
  const config = resolveConfig([
    { key: 'batchSize', value: 2, from: 'test' },
    { key: 'imageSize', value: 64, from: 'test' },
    { key: 'denseNegatives', value: 'local', from: 'test' },
    { key: 'denseKeys', value: 3, from: 'test' },
    { key: 'denseQueueLength', value: 5, from: 'test' },
    { key: 'queueLength', value: 8, from: 'test' },
    { key: 'hidden', value: 4, from: 'test' },
    { key: 'featDim', value: 4, from: 'test' },
  ])
  const run = (): { picks: Int32Array[]; queue: Float32Array } => {
    const built = densecl.build(config, { backbone: resnet({ depth: 18, baseChannels: 4 }), compute: 'f32' })
    const picks: Int32Array[] = []
    for (const step of [0, 1])
      scope(() => {
        built.prepare!(step)
        const { model } = built as unknown as { model: DenseCL }
        picks.push(Int32Array.from(model.keyPicks!.data()))
        assert.equal(model.keyPicks!.shape, [2, 3])
        const random = new Random(step)
        const view = (): Tensor =>
          Tensor.from(
            Float32Array.from({ length: 2 * 64 * 64 * 3 }, () => random.normal()),
            [2, 64, 64, 3],
          )
        built.step([view(), view()]).dispose()
      })
    const queue = Float32Array.from(built.state().buffers.get('queue2')!.data())
    built.dispose()
    return { picks, queue }
  }
  const [once, again] = [run(), run()]
  assert.equal(once, again)
  assert.not.equal(once.picks[0], once.picks[1])
  for (const picks of once.picks) for (const image of [0, 3]) assert.is(new Set(picks.subarray(image, image + 3)).size, 3)
  // Six keys a step in a queue of five: it wraps within a step.
  assert.is(once.queue.length, 20)
  for (let row = 0; row < 5; ++row) assert.ok(Math.abs(Math.hypot(...once.queue.subarray(4 * row, 4 * row + 4)) - 1) < 1e-5)
})

test('a grid that is too small for what is asked of it is refused', () => {
  const build = (...more: [string, unknown][]): void => {
    const config = resolveConfig(
      [...more, ['imageSize', 32], ['hidden', 4], ['queueLength', 8]].map(([key, value]) => ({ key: key as string, value, from: 'test' })),
    )
    densecl.build(config, { backbone: resnet({ depth: 18, baseChannels: 4 }), compute: 'f32' }).dispose()
  }
  throwsError(() => build(['denseInImage', 0.5]), 'CONFIG', /denseInImage is 0.5/, /grid of 1x1/)
  throwsError(() => build(['denseNegatives', 'local']), 'CONFIG', /denseKeys is 4/, /at most the 1 positions of the dense grid 1x1/)
  build(['denseNegatives', 'local'], ['denseKeys', 1])
})

test('partners by the crops beside partners by features: what does not match in the step is the index alone', () => {
  scope(() => {
    const model = example(1).model
    const random = new Random(2)
    const view = (): Tensor =>
      Tensor.from(
        Float64Array.from({ length: 2 * 64 * 64 * 3 }, () => random.normal()),
        [2, 64, 64, 3],
        'f64',
      )
    const views = [view(), view()] as const
    const options = { temperature: 0.2, denseWeight: 0.5, keyMomentum: 1, normGroups: 1 }
    const found = denseclStep(model, views, options)
    const index = Int32Array.from(found.observed.index!.data())
    model.queue.pointer.write(Int32Array.of(0))
    const second = example(1).model
    const given = denseclStep(second, views, { ...options, partners: { index, images: 2 } })
    assert.is(given.observed.index, undefined)
    assert.ok(Math.abs(found.observed.loss.item() - given.observed.loss.item()) < 1e-12)
    found.gradients.forEach((gradient, i) => assert.ok(relativeDifference(gradient.data(), given.gradients[i]!.data(), 1e-9) < 1e-9))
    for (const each of [found, given]) each.dispose()
    for (const each of [model, second]) each.dispose()
  })
})

test('the share of variance that a group explains: all of it, none of it, and what normal vectors leave to chance', () => {
  const [groups, rows, d] = [12, 400, 16]
  const unit = (random: Random): number[] => {
    const v = Array.from({ length: d }, () => random.normal())
    return v.map((value) => value / Math.hypot(...v))
  }
  const random = new Random(4)
  const table = Array.from({ length: groups }, () => unit(random))
  /** Means over the rows of each group of vectors that `share` mixes of the group's own and of chance. */
  const means = (share: number): Float64Array =>
    Float64Array.from(
      table.flatMap((own) => {
        const sum = new Float64Array(d)
        for (let row = 0; row < rows; ++row) {
          const other = unit(random)
          const taken = random.uniform() < share ? own : other
          taken.forEach((value, c) => (sum[c]! += value / rows))
        }
        return [...sum]
      }),
    )
  assert.ok(Math.abs(explainedVariance(means(1), d) - 1) < 1e-9)
  assert.ok(explainedVariance(means(0), d) < 0.01)
  const half = explainedVariance(means(0.5), d)
  assert.ok(half > 0.15 && half < 0.35, `${half}: a mixture of one half explains its square`)
})

test('right matches are counted where both views show a place, and held against what the crops make of the same place', () => {
  const partners = Int32Array.of(0, 2, -1, 3)
  assert.equal(geometryHealth(Int32Array.of(0, 1, 2, 3), partners, 4), { rightMatches: 2 / 3, sameExpected: 2 / 3, shown: 0.75 })
  assert.equal(geometryHealth(partners, partners, 4).rightMatches, 1)
  assert.ok(Number.isNaN(geometryHealth(partners, Int32Array.of(-1, -1, -1, -1), 4).rightMatches))
})

/** The published shares: half of the positions of a grid of 2 x 2, and 13 % of one of 7 x 7. */
test('random crops leave the same position right in a share that falls with the grid', () => {
  const random = new Random(9)
  const crops = cropsOf(
    Array.from({ length: 400 }, () => drawn(random, 300, 300)),
    300,
    300,
  )
  const expected = (side: number): number => {
    const partners = partnersByCrops(crops, side)
    return geometryHealth(partners, partners, side * side).sameExpected
  }
  for (const [side, share] of [
    [2, 0.5],
    [4, 0.25],
    [7, 0.13],
  ] as const)
    assert.ok(Math.abs(expected(side) - share) < 0.04, `${side}x${side}: ${expected(side)}`)
})

test.run()
