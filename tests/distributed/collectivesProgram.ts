/** Each rank of collectives.test.ts: makes every call, with values that all ranks can compute, and says `ok` when all were right. */
import * as assert from 'uvu/assert'

import { keyOrder, ownExchange, ownOrder, returning } from '../../src/distributed/keyOrder.js'
import { SharedGradients } from '../../src/distributed/buckets.js'
import { Group, type Pending } from '../../src/distributed/group.js'
import { leaveTogether, openGroup } from '../../src/distributed/open.js'
import { add } from '../../src/ops/arithmetic.js'
import { reshape } from '../../src/ops/elementwise.js'
import { Graph } from '../../src/tensor/graph.js'
import { native } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type DType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { throwsError } from '../support/suite.js'

const group = openGroup(process.env.NCCL_STANDIN_DEVICE)
leaveTogether(group)
const { rank, size } = group
const ranks = Array.from({ length: size }, (_, each) => each)
const seed = Number(process.argv[2])

const drawn = new Map<string, Float64Array>()

/** What rank `of` has in a call: small whole numbers, so that sums are exact. Nobody writes to it: most are asked for often. */
function values(of: number, count: number, call: number): Float64Array {
  const key = [of, count, call].join()
  let all = drawn.get(key)
  if (all === undefined) {
    const random = new Random(seed, call, of)
    all = new Float64Array(count)
    for (let i = 0; i < count; ++i) all[i] = random.below(200)
    drawn.set(key, all)
  }
  return all
}
const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0)

function reductions(): void {
  for (const [call, dtype] of (['f32', 'f64', 'i32'] as const).entries()) {
    for (const reduction of ['sum', 'mean', 'max'] as const) {
      if (dtype === 'i32' && reduction === 'mean') continue
      // Small ones alone and together, and those that pass by themselves in several pieces.
      for (const counts of [[1], [1000, 1, 37], [0, 5], [3, 300_001, 70_000, 2]]) {
        const tensors = counts.map((count, i) => Tensor.from(values(rank, count, call + i), [count], dtype))
        group.allReduce(tensors, reduction)
        for (const [i, count] of counts.entries()) {
          const [first, ...others] = ranks.map((each) => values(each, count, call + i)) as [Float64Array, ...Float64Array[]]
          const found = tensors[i]!.data()
          let wrong = 0
          for (let at = 0; at < count; ++at) {
            let expected = first[at]!
            for (const each of others) expected = reduction === 'max' ? Math.max(expected, each[at]!) : expected + each[at]!
            if (reduction === 'mean') expected /= size
            if (!(Math.abs(Number(found[at]) - expected) <= 1e-5 * Math.abs(expected))) ++wrong
          }
          assert.is(wrong, 0, `${dtype} ${reduction}`)
        }
      }
    }
  }
}

function gathers(): void {
  for (const dtype of ['f32', 'f64', 'i32', 'u8'] satisfies DType[]) {
    const all = group.allGather(Tensor.from(values(rank, 12, 7), [3, 4], dtype))
    assert.equal(all.shape, [3 * size, 4])
    assert.equal(
      [...all.data()],
      ranks.flatMap((each) => [...values(each, 12, 7)]),
    )
  }
  // Several at once, of other sizes and dtypes.
  const several = [Tensor.from(values(rank, 2, 8), [1, 2]), Tensor.from(values(rank, 6, 9), [3, 2], 'i32')]
  for (const [i, all] of group.startAllGather(several).join().entries())
    assert.equal(
      [...all.data()],
      ranks.flatMap((each) => [...values(each, several[i]!.size, 8 + i)]),
    )
}

function exchanges(): void {
  for (const own of [1, 2, 3]) {
    const batch = { images: 6 * own * size, groups: own * size }
    const draw = (of: number, images: number): Int32Array => new Random(seed, of).permutation(images)
    const mine = batch.images / size
    const lined = ownOrder(batch, rank, size, draw)
    // Row i of the batch is [i, i + 0.5].
    const x = Tensor.from(
      Float64Array.from(lined, (image) => rank * mine + image).reduce<number[]>((all, i) => [...all, i, i + 0.5], []),
      [mine, 2],
    )
    const way = ownExchange(batch, rank, size)
    const there = group.exchange(x, way)
    const expected = keyOrder(batch, draw).subarray(rank * mine, (rank + 1) * mine)
    assert.equal(
      [...there.data()],
      [...expected].flatMap((image) => [image, image + 0.5]),
    )
    assert.equal([...group.exchange(there, returning(way)).data()], [...x.data()])
    // Several at once, of rows of other sizes, which come as they would alone.
    const wide = Tensor.from(
      Float64Array.from({ length: 3 * mine }, (_, i) => 100 * rank + i),
      [mine, 3],
      'f32',
    )
    const pending = group.startExchange([x, wide], way)
    const [both, other] = pending.join() as [Tensor, Tensor]
    assert.equal([...both.data()], [...there.data()])
    assert.equal([...group.exchange(other, returning(way)).data()], [...wide.data()])
  }
}

function others(): void {
  const x = Tensor.from([rank, 10 * rank])
  group.broadcast([x], size - 1)
  assert.equal([...x.data()], [size - 1, 10 * (size - 1)])
  group.barrier()
  assert.is(group.any(rank === 1), true)
  assert.is(group.any(false), false)
  assert.equal(group.sum([rank, 1]), [(size * (size - 1)) / 2, size])
  group.agree('the weather', 'fine')
  // Every rank says so, and goes on.
  throwsError(() => group.agree('the weather', rank === 1 ? 'rain' : 'fine'), 'COMM', /the weather of rank (1|0, 1|1, 0|0)/)
  group.barrier()
}

/** Those that nobody has seen yet may be many, and are joined in any order. */
function beside(): void {
  const tensors = Array.from({ length: 8 }, (_, i) => Tensor.from([i + rank, i]))
  const started = tensors.map((tensor) => group.startAllReduce([tensor], 'sum'))
  for (const pending of [...started].reverse()) pending.join()
  for (const [i, tensor] of tensors.entries()) assert.equal([...tensor.data()], [size * i + (size * (size - 1)) / 2, size * i])
}

/**
 * Gradients are averaged whatever order each process completes them in, and whichever of them its loss does not depend on; messages are the
 * same everywhere, among those of norms, beside the pass where these overlap with it and behind it elsewhere. `missing` says whether a
 * process misses gradients in its first step, which makes the plan.
 */
function averages(missing: 'ever' | 'later', overlaps: boolean): void {
  const averaging = new Group(rank, size, group.device, overlaps)
  const [count, norms, steps] = [24, 5, 6]
  const common = new Random(seed, 40)
  const sizes = Array.from({ length: count }, () => 1 + common.below(9))
  // Behind which norms a gradient is complete is the same everywhere; nothing else is.
  const behind = Array.from({ length: count }, () => common.below(norms + 1))
  const shared = new SharedGradients(averaging, 64)
  const has = (of: number, step: number, place: number): boolean =>
    (missing === 'later' && step === 0) || new Random(seed, 41, step, of, place).below(3) > 0
  const startAllReduce = averaging.startAllReduce.bind(averaging)
  const messages: string[] = []
  averaging.startAllReduce = (tensors, reduction) => {
    messages.push(`${reduction} of ${tensors.map(({ size: elements }) => elements).join(' ')}`)
    return startAllReduce(tensors, reduction)
  }
  for (let step = 0; step < steps; ++step) {
    const own = new Random(seed, 42, step, rank)
    const gradients = sizes.map((elements, place) =>
      has(rank, step, place) ? Tensor.from(values(rank, elements, 100 * step + place), [elements]) : Tensor.zeros([elements]),
    )
    const observed = [Tensor.from([rank + step])]
    // Zeros may be known earlier.
    const known = behind.map((last, place) => (has(rank, step, place) ? last : own.below(last + 1)))
    messages.length = 0
    let [inPass, norm] = [0, Tensor.zeros([1])]
    shared.average(
      (ready) => {
        for (let part = 0; part <= norms; ++part) {
          for (const place of own.permutation(count)) if (known[place] === part) ready!(place, gradients[place]!, has(rank, step, place))
          if (part === norms) break
          norm = Tensor.from([rank + part])
          averaging.allReduce([norm], 'sum')
          assert.is(norm.item(), size * part + (size * (size - 1)) / 2)
        }
        inPass = messages.length - norms
      },
      () => ({ gradients, observed }),
    )
    for (const [place, gradient] of gradients.entries()) {
      const all = ranks.map((each) => (has(each, step, place) ? values(each, sizes[place]!, 100 * step + place) : undefined))
      for (const [at, value] of gradient.data().entries()) {
        const expected = sum(all.map((each) => each?.[at] ?? 0)) / size
        assert.ok(Math.abs(value - expected) <= 1e-5 * expected, `gradient ${place} of step ${step}: ${value} and ${expected}`)
      }
    }
    assert.ok(Math.abs(observed[0]!.item() - step - (size - 1) / 2) < 1e-5)
    group.agree('messages', messages.join())
    const buckets = messages.filter((message) => message.startsWith('mean')).length
    assert.ok(buckets > 4)
    // The plan is made behind the first pass; then all leave in it but what only its end has.
    if (step === 0 || !overlaps) assert.is(inPass, 0)
    else if (missing === 'later') assert.is(inPass, buckets - 1)
  }
}

/** What would mix up gradients is refused. */
function mistakes(): void {
  const gradients = [1, 2].map((value) => Tensor.from([value + rank]))
  const step = (shared: SharedGradients, told: boolean): void =>
    shared.average(
      (ready) => {
        if (told) ready!(1, gradients[1]!, true)
        shared.group.allReduce([Tensor.zeros([1])], 'sum')
      },
      () => ({ gradients, observed: [] }),
    )
  // Whoever is told of nothing averages all the same.
  step(new SharedGradients(group), false)
  const mean = (size - 1) / 2
  for (const [i, gradient] of gradients.entries()) assert.ok(Math.abs(gradient.item() - 1 - i - mean) < 1e-5)

  const others = rank === size - 1 ? [gradients[0]!] : gradients
  const unequal = (): void =>
    new SharedGradients(group).average(
      () => {},
      () => ({ gradients: others, observed: [] }),
    )
  throwsError(unequal, 'COMM', new RegExp(`what is averaged of rank ${size === 2 ? 1 : size - 1} is not that of the others`))

  const late = new SharedGradients(new Group(rank, size, group.device, true), 1)
  step(late, true)
  throwsError(() => step(late, false), 'COMM', /gradient 1 of a step is not complete before its collective 1/)
  const changed = new SharedGradients(group)
  step(changed, true)
  const fewer = (): void =>
    changed.average(
      () => {},
      () => ({ gradients: [gradients[0]!], observed: [] }),
    )
  throwsError(fewer, 'COMM', /what is averaged of a step is f32\[1\]: expected f32\[1\] f32\[1\]/)
  group.barrier()
}

/** What a call is refused for, before anybody else is troubled with it. */
function refusals(): void {
  const [f32, f64] = [Tensor.zeros([4, 2]), Tensor.from(new Float64Array(8), [4, 2], 'f64')]
  throwsError(() => group.allReduce([f32, f64], 'sum'), 'DTYPE', /allReduce: expected tensors of one dtype/, /f64\[4,2\]/)
  throwsError(() => group.allReduce([Tensor.from([1, 2], 'i32')], 'mean'), 'DTYPE', /i32\[2\]/)
  throwsError(() => group.allReduce([Tensor.from([1, 2], 'u8')], 'sum'), 'DTYPE', /u8\[2\]/)
  throwsError(() => group.allGather(Tensor.zeros([])), 'SHAPE', /a tensor with rows/)
  throwsError(() => group.broadcast([f32], size), 'ARGUMENT', /a root of 0 to/)
  const whole = { peer: rank, row: 0, rows: 4 }
  const way = (message: object) => ({ sends: [{ ...whole, ...message }], receives: [whole] })
  throwsError(() => group.exchange(f32, way({ peer: size })), 'ARGUMENT', /exchange: expected messages of ranks 0 to/)
  throwsError(() => group.exchange(f32, way({ row: 1 })), 'SHAPE', /within the rows of f32\[4,2\]/, /4 from row 1/)
  throwsError(() => group.exchange(f32, way({ rows: 0 })), 'SHAPE', /within the rows/)
  throwsError(() => group.exchange(f32, way({ rows: 3 })), 'ARGUMENT', /received as it is sent/)
  throwsError(() => group.exchange(f32, way({ row: 0.5 })), 'ARGUMENT', /exchange: expected a row/)
  throwsError(() => native.joinCollective(99_999), 'ARGUMENT', /no such collective/)
}

/** A step with collectives in it: what is started is recorded where it is joined, and passes beside what comes between. */
function recorded(): void {
  const x = Tensor.from([rank + 1, 0])
  const step = (): { doubled: Tensor; meanwhile: Tensor; all: Tensor } => {
    const doubled = add(x, x)
    const pending = group.startAllReduce([doubled], 'sum')
    const meanwhile = add(x, x)
    pending.join()
    const all = group.allGather(reshape(doubled, [1, 2]))
    return { doubled, meanwhile, all }
  }
  const graph = new Graph(group.device, step, group.recordable)
  for (let run = 1; run <= 5; ++run) {
    x.write(Float32Array.from([rank + 1, run]))
    const { doubled, meanwhile, all } = graph.run()
    const expected = [size * (size + 1), 2 * size * run]
    assert.equal([...doubled.data()], expected)
    assert.equal([...meanwhile.data()], [2 * (rank + 1), 2 * run])
    assert.equal(
      [...all.data()],
      ranks.flatMap(() => expected),
    )
  }
  assert.is(graph.plan !== undefined, group.recordable)
  graph.dispose()

  // What belongs to no replay.
  const host = Tensor.from([1], 'f32', 'cpu')
  const wrong = (body: () => void): Graph<void> => {
    const made = new Graph(group.device, body)
    for (let run = 0; run < 2; ++run) made.run()
    return made
  }
  if (!group.recordable) {
    const byHost = wrong(() => group.allReduce([x], 'sum'))
    throwsError(() => byHost.run(), 'GRAPH', /allReduce by MPI in a step that is recorded/)
    return byHost.dispose()
  }
  throwsError(() => wrong(() => group.allReduce([host], 'sum')).run(), 'GRAPH', /an upload in a step that is recorded/)
  let last: Pending | undefined
  const unjoined = wrong(() => {
    last?.join()
    last = group.startAllReduce([x], 'sum')
  })
  last!.join()
  last = undefined
  throwsError(() => unjoined.run(), 'GRAPH', /1 forks of a step that is recorded were not joined in it/)
  throwsError(() => group.allReduce([x, host], 'sum'), 'DEVICE', /allReduce: expected tensors of one device/)
}

// Those of the host too, where that is another device.
for (const device of new Set([group.device, 'cpu']))
  withDevice(device, () =>
    scope(() => {
      refusals()
      reductions()
      gathers()
      exchanges()
      others()
      beside()
      for (const overlaps of [true, false]) {
        averages('later', overlaps)
        averages('ever', overlaps)
      }
      mistakes()
      if (device === group.device) recorded()
    }),
  )
assert.is(native.memory().handles, 0)
console.log(`rank ${rank} of ${size} ok`)
