/** The orders in which images are taken. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { epochBatches, epochOrder, iterationBatches, orderedBatches, stepsPerEpoch } from '../../src/data/sampler.js'
import { suite } from '../support/suite.js'

const test = suite('sampler')
const sorted = (values: Iterable<number>): number[] => [...values].sort((a, b) => a - b)
const upTo = (count: number): number[] => Array.from({ length: count }, (_, i) => i)
const seeds = fc.integer({ min: 0, max: 2 ** 31 - 1 })

test('every epoch has an order of its own, which is a permutation and a function of seed and epoch', () => {
  fc.assert(
    fc.property(seeds, fc.integer({ min: 0, max: 500 }), (seed, epoch) => {
      const order = epochOrder(seed, epoch, 50)
      assert.equal(sorted(order), upTo(50))
      assert.equal(epochOrder(seed, epoch, 50), order)
      // Two permutations of 50 are equal once in 10^64.
      for (const other of [epochOrder(seed, epoch + 1, 50), epochOrder(seed + 1, epoch, 50)]) assert.is.not(other.join(), order.join())
    }),
  )
})

test('batches of epochs: whole ones of different images, shuffled anew, and a later start is the rest of an earlier one', () => {
  const sizes = fc.record({ count: fc.integer({ min: 20, max: 60 }), batchSize: fc.integer({ min: 1, max: 20 }), seed: seeds })
  fc.assert(
    fc.property(sizes, ({ count, batchSize, seed }) => {
      const steps = stepsPerEpoch(count, batchSize)
      assert.ok(steps * batchSize <= count && (steps + 1) * batchSize > count)
      const batches = [...epochBatches({ count, batchSize, seed, until: 3 })]
      assert.equal(
        batches.map(({ epoch }) => epoch),
        [0, 1, 2].flatMap((epoch) => Array.from({ length: steps }, () => epoch)),
      )
      const epochs = [0, 1, 2].map((wanted) => batches.filter(({ epoch }) => epoch === wanted).flatMap(({ indices }) => [...indices]))
      for (const order of epochs) {
        assert.is(order.length, steps * batchSize)
        assert.is(new Set(order).size, order.length)
        assert.ok(order.every((index) => index >= 0 && index < count))
      }
      assert.is(new Set(epochs.map((order) => order.join())).size, 3)
      assert.equal([...epochBatches({ count, batchSize, seed, from: 1, until: 3 })], batches.slice(steps))
    }),
  )
})

test('batches of iterations run through whole epochs, each in an order of its own, across their ends', () => {
  const sizes = fc.record({ count: fc.integer({ min: 15, max: 40 }), batchSize: fc.integer({ min: 1, max: 100 }), seed: seeds })
  fc.assert(
    fc.property(sizes, ({ count, batchSize, seed }) => {
      const until = Math.ceil((3 * count) / batchSize)
      const batches = [...iterationBatches({ seed, count, batchSize, from: 0, until })]
      assert.equal(
        batches.map(({ epoch }) => epoch),
        upTo(until),
      )
      const all = batches.flatMap(({ indices }) => [...indices])
      assert.is(all.length, until * batchSize)
      const epochs = [0, 1, 2].map((epoch) => all.slice(epoch * count, (epoch + 1) * count))
      for (const order of epochs) assert.equal(sorted(order), upTo(count))
      assert.is(new Set(epochs.map((order) => order.join())).size, 3)
      const from = Math.floor(until / 2)
      assert.equal([...iterationBatches({ seed, count, batchSize, from, until })], batches.slice(from))
    }),
  )
})

test('batches in order have every image once, the last one what is left', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 50 }), fc.integer({ min: 1, max: 20 }), (count, batchSize) => {
      const batches = [...orderedBatches(count, batchSize)].map(({ indices }) => [...indices])
      assert.equal(batches.flat(), upTo(count))
      assert.ok(batches.every(({ length }, i) => (i < batches.length - 1 ? length === batchSize : length >= 1 && length <= batchSize)))
    }),
  )
})

test.run()
