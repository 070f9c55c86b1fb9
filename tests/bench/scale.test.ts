/** The model of a step on many GPUs, by made-up collectives: what more GPUs and better networks do. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import type { CollectiveCall } from '../../src/bench/step/processes.js'
import { collectiveTime, type Network, networks, scaledStep } from '../../src/bench/step/scale.js'
import { suite } from '../support/suite.js'

const test = suite('scale')

const calls = 12
const perfect: Network = {
  ...networks.cardPerGpu,
  nvlink: Infinity,
  card: Infinity,
  latency: 0,
  latencyDoubling: 0,
  straggling: 0,
  stragglingEightfold: 0,
}

const bytes = fc.integer({ min: 0, max: 200_000_000 })
const network = fc.record({
  gpus: fc.constantFrom(1, 4, 8),
  cards: fc.integer({ min: 1, max: 8 }),
  faster: fc.double({ min: 1, max: 20, noNaN: true }),
  card: fc.double({ min: 1, max: 100, noNaN: true }),
  ring: fc.double({ min: 0.1, max: 1, noNaN: true }),
  messages: fc.double({ min: 0.1, max: 1, noNaN: true }),
  latency: fc.double({ min: 0, max: 100, noNaN: true }),
  latencyDoubling: fc.double({ min: 0, max: 50, noNaN: true }),
  slowdown: fc.double({ min: 0, max: 0.5, noNaN: true }),
  straggling: fc.double({ min: 0, max: 0.1, noNaN: true }),
  stragglingEightfold: fc.double({ min: 0, max: 0.1, noNaN: true }),
})
/** A GPU reaches more within its node than its part of the node's cards. */
const named = network.map(({ faster, ...numbers }): Network => ({
  ...numbers,
  name: 'any',
  nvlink: (faster * numbers.card * numbers.cards) / numbers.gpus,
}))
const times = fc.array(fc.double({ min: 0, max: 2000, noNaN: true }), { minLength: calls, maxLength: calls })

/** An exchange of `all` bytes that gives every one of `processes` as much. */
const evenly = (all: number, processes: number): CollectiveCall['sends'] =>
  Array.from({ length: processes }, (_, peer) => ({ peer, bytes: all / processes }))

const none = { shapes: [], sends: [] } as const

/** As a DenseCL step has them: images, outputs, keys, buckets that are joined at the end. */
function stepOf(sizes: readonly number[], processes: number): CollectiveCall[] {
  const [images, map, pooled, key, first, second] = sizes as [number, number, number, number, number, number]
  const exchange = (at: number, all: number): CollectiveCall => ({
    ...none,
    kind: 'exchange',
    start: at,
    join: at,
    bytes: all,
    sends: evenly(all, processes),
  })
  const gather = (at: number): CollectiveCall => ({ ...none, kind: 'allGather', start: at, join: at, bytes: key / 1000 })
  const reduce = (start: number, all: number): CollectiveCall => ({ ...none, kind: 'allReduce', start, join: 11, bytes: all })
  return [exchange(2, images), exchange(4, map), exchange(4, pooled), gather(5), gather(6), reduce(8, first), reduce(11, second)]
}
const sizes = fc.array(bytes, { minLength: 6, maxLength: 6 })

test('no collective becomes shorter, and no step faster, when there are more GPUs', () => {
  fc.assert(
    fc.property(named, times, sizes, (connected, each, size) => {
      const widths = [1, connected.gpus, 8 * connected.gpus, 64 * connected.gpus]
      const steps = widths.map((processes) => ({ processes, collectives: stepOf(size, processes) }))
      const step = steps.map(({ processes, collectives }) => scaledStep(collectives, each, processes, connected).milliseconds)
      for (const [i, { processes, collectives }] of steps.entries()) {
        if (i === 0) continue
        assert.ok(step[i]! >= step[i - 1]! * (1 - 1e-12), `${step[i]} ms on ${processes} GPUs, ${step[i - 1]} on ${widths[i - 1]}`)
        for (const [k, call] of collectives.entries()) {
          const [before, now] = [
            collectiveTime(steps[i - 1]!.collectives[k]!, widths[i - 1]!, connected),
            collectiveTime(call, processes, connected),
          ]
          assert.ok(now >= before * (1 - 1e-12), `${call.kind}: ${now} us on ${processes} GPUs, ${before} on ${widths[i - 1]}`)
        }
      }
    }),
  )
})

test('where bytes and messages cost nothing, a step on many GPUs takes what it takes on one', () => {
  fc.assert(
    fc.property(times, sizes, fc.constantFrom(1, 8, 64, 512), (each, size, processes) => {
      const { compute, milliseconds, collectives } = scaledStep(stepOf(size, processes), each, processes, perfect)
      assert.ok(Math.abs(milliseconds - compute) <= 1e-12 * compute)
      for (const { exposed, milliseconds: taken } of collectives) assert.equal([exposed, taken], [0, 0])
    }),
  )
})

test('a step takes its calls, what they wait for, what they lose to collectives beside them, and the slowest GPU', () => {
  fc.assert(
    fc.property(named, times, sizes, (connected, each, size) => {
      const steady = { ...connected, straggling: 0, stragglingEightfold: 0 }
      const { compute, milliseconds, collectives } = scaledStep(stepOf(size, 64), each, 64, steady)
      const exposed = collectives.reduce((sum, { exposed: part }) => sum + part, 0)
      const taken = collectives.reduce((sum, { milliseconds: part }) => sum + part, 0)
      assert.ok(exposed <= taken + 1e-9)
      assert.ok(milliseconds >= compute + exposed - 1e-9)
      assert.ok(milliseconds <= compute * (1 + steady.slowdown) + exposed + 1e-9)
    }),
  )
})

test('a bucket that starts later waits longer or as long, and one that starts with the last call is exposed', () => {
  const each = Array.from({ length: calls }, () => 1000)
  const bucket = (start: number): CollectiveCall[] => [{ ...none, kind: 'allReduce', start, join: calls, bytes: 1e8 }]
  const exposed = (start: number): number => scaledStep(bucket(start), each, 64, networks.cardPerNode).collectives[0]!.exposed
  for (let start = 1; start <= calls; ++start) assert.ok(exposed(start) >= exposed(start - 1))
  const alone = collectiveTime(bucket(0)[0]!, 64, networks.cardPerNode) / 1e3
  assert.ok(Math.abs(exposed(calls) - alone) < 1e-9, `${exposed(calls)} of ${alone} ms`)
})

test('times of known sizes: rings within a node and between nodes, latency by doublings', () => {
  const near = (time: number, expected: number): void => assert.ok(Math.abs(time - expected) < 1e-6 * expected, `${time}, ${expected}`)
  const reduce = { kind: 'allReduce', bytes: 330e6, sends: [] } as const
  const { cardPerGpu, cardPerNode } = networks
  assert.is(collectiveTime(reduce, 1, cardPerGpu), 0)
  // 2 * 7/8 of 330 MB at 330 GB/s.
  near(collectiveTime(reduce, 8, cardPerGpu), 1750 + 25)
  // 2 * 7/8 of 330 MB by one card of 50 GB/s at 75 %; eight of them leave NVLink the slower part.
  near(collectiveTime(reduce, 64, cardPerNode), (1.75 * 330e6) / 37.5e3 + 25 + 60)
  near(collectiveTime(reduce, 64, cardPerGpu), 1.75 * Math.max(330e6 / 330e3, 330e6 / 300e3) + 85)
  // 1 MB of each of the 56 other GPUs comes into a node.
  near(collectiveTime({ kind: 'allGather', bytes: 1e6, sends: [] }, 64, cardPerNode), 56e6 / 37.5e3 + 85)
  const sends = [
    { peer: 0, bytes: 5e6 },
    { peer: 3, bytes: 3e6 },
    { peer: 9, bytes: 2e6 },
  ]
  // Eight GPUs send 2 MB out of the node by one card at 70 %; what stays does not pass.
  near(collectiveTime({ kind: 'exchange', bytes: 10e6, sends }, 16, cardPerNode), 16e6 / 35e3 + 45)
})

test.run()
