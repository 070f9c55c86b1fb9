/** The step of one process among several, as the trainer goes through it: what its collectives carry, and when they may start. */
import * as assert from 'uvu/assert'

import { stepCalls } from '../../src/bench/step/calls.js'
import { sharedStep } from '../../src/bench/step/processes.js'
import { ownExchange, returning } from '../../src/distributed/keyOrder.js'
import { densecl } from '../../src/methods/densecl/method.js'
import { resolveConfig } from '../../src/methods/index.js'
import { resnet } from '../../src/nn/resnet.js'
import { settingsOf } from '../../src/run/options.js'
import { sizeOf, withDevice } from '../../src/tensor/tensor.js'
import { simulated } from '../support/capability.js'
import { device, thorough } from '../support/devices.js'
import { runCli, suite, testWhere } from '../support/suite.js'

const test = suite(`scale on ${device}`, device)
const where = (name: string, body: () => void): void =>
  testWhere(simulated && thorough, 'calls of a step are taken from simt', test, name, body)

const shape = { level: 'epilogue', depth: 18, image: 64, queue: 256, hidden: 64 } as const
const [batch, processes] = [4, 8]

where('the calls of a process without others are those of a step by itself', () => {
  const { calls, collectives } = sharedStep(shape, 2, 1)
  assert.equal(collectives, [])
  const alone = stepCalls(shape)(2)
  assert.is(calls.length, alone.length)
  for (const [i, call] of calls.entries()) assert.equal(call, alone[i])
})

where('collectives carry every gradient once, the images, what the key encoder makes of them, and the keys', () => {
  const { collectives } = sharedStep(shape, batch, processes)
  const config = resolveConfig(settingsOf({ imageSize: 64, queueLength: 256, hidden: 64, batchSize: batch }, 'test'))
  const sizes = withDevice(`dry:${device}`, () => {
    const method = densecl.build(config, { backbone: resnet({ depth: 18 }), compute: 'bf16' })
    try {
      return [...method.trained().parameters.values()].map(({ size }) => size)
    } finally {
      method.dispose()
    }
  })
  const of = (kind: string) => collectives.filter((call) => call.kind === kind)
  const reduced = of('allReduce').flatMap(({ shapes }) => shapes.map(sizeOf))
  const sorted = (all: readonly number[]): number[] => [...all].sort((a, b) => a - b)
  // The last are the loss, its two parts, and what is observed of each.
  assert.equal(sorted(reduced.slice(0, sizes.length)), sorted(sizes))
  assert.equal(sorted(reduced.slice(sizes.length)), [1, 1, 1, 4, 4])
  for (const { bytes, shapes } of of('allReduce')) assert.is(bytes, 4 * shapes.reduce((sum, each) => sum + sizeOf(each), 0))

  const [images, ...outputs] = of('exchange')
  assert.equal(images!.shapes, [[batch, 64, 64, 3]])
  const embeddings = [
    [batch, 128],
    [batch, 2, 2, 128],
    [batch, 128],
    [batch, 2, 2, 512],
  ]
  assert.equal(
    outputs.flatMap(({ shapes }) => shapes),
    embeddings,
  )
  const [keys, ...others] = of('allGather')
  assert.equal([keys!.shapes, keys!.bytes, others], [Array(2).fill([batch, 128]), 2 * 2 * batch * 128, []])
})

where('images leave before the queries are encoded, outputs come back at once, and keys are not waited for by gradients', () => {
  const { calls, collectives } = sharedStep(shape, batch, processes)
  const [images, outputs, keys] = collectives
  assert.equal(
    collectives.slice(0, 4).map(({ kind }) => kind),
    ['exchange', 'exchange', 'allGather', 'allReduce'],
  )
  const convolutions = (from: number, to: number): number => calls.slice(from, to).filter(({ op }) => op === 'conv2d').length
  const all = convolutions(0, calls.length)
  assert.is(convolutions(0, images!.start), 0)
  assert.is(convolutions(images!.start, images!.join), all / 2)
  assert.is(convolutions(images!.join, outputs!.start), all / 2)
  assert.ok(outputs!.join === outputs!.start && outputs!.join <= keys!.start)
  const backward = calls.map(({ op }) => op.includes('Backward'))
  assert.ok(keys!.start <= backward.indexOf(true) && keys!.join > backward.lastIndexOf(true))
})

where('exchanges send the rows that the order of keys says', () => {
  for (const size of [2, processes]) {
    const exchanges = sharedStep(shape, batch, size).collectives.filter(({ kind }) => kind === 'exchange')
    const way = ownExchange({ images: batch * size, groups: size }, 0, size)
    for (const [i, { sends, bytes }] of exchanges.entries()) {
      const expected = (i === 0 ? way : returning(way)).sends.map(({ peer, rows }) => ({ peer, bytes: (rows * bytes) / batch }))
      assert.equal(sends, expected)
      assert.is(
        sends.reduce((sum, { bytes: part }) => sum + part, 0),
        bytes,
      )
    }
  }
})

where('a bucket starts when the gradients in it are complete, and those that follow are not', () => {
  // Of several buckets: 44 MB of gradients.
  const { calls, collectives } = sharedStep(shape, batch, processes)
  const buckets = collectives.filter(({ kind }) => kind === 'allReduce')
  assert.ok(buckets.length > 1, `${buckets.length} buckets`)
  /** A linear layer's gradient is made as that of a convolution. */
  const keyOf = (sizes: readonly number[]): string => sizes.filter((size) => size !== 1).join()
  const made = new Map<string, number[]>()
  for (const [i, { op, tensors }] of calls.entries())
    if (op === 'conv2dBackwardWeight') {
      const key = keyOf(tensors.dweight!.shape)
      made.set(key, [...(made.get(key) ?? []), i])
    }
  const sent = new Map<string, number>()
  let weights = 0
  for (const { start, join, shapes } of buckets) {
    assert.ok(join >= start)
    for (const key of shapes.map(keyOf)) {
      const at = made.get(key)
      if (at === undefined) continue
      const count = sent.get(key) ?? 0
      assert.ok(at[count]! < start, `gradient ${count} of ${key} is made by call ${at[count]} but its bucket starts before ${start}`)
      sent.set(key, count + 1)
      weights += 1
    }
  }
  assert.is(weights, calls.filter(({ op }) => op === 'conv2dBackwardWeight').length)
  const last = calls.map(({ op }) => op).lastIndexOf('conv2dBackwardWeight')
  assert.ok(buckets[0]!.start < last, 'the first bucket passes beside the backward pass')
  // What reads averages waits for them, and nothing before it.
  const check = calls.findIndex(({ op }) => op === 'checkFinite')
  for (const { join } of buckets) assert.is(join, check)
})

const ways = ['gpu', 'network', 'gradients'] as const
type Row = Record<(typeof ways)[number], unknown> & Record<'gpus' | 'efficiency', number>

where('bench scale has a row for every width that the queue has room for, none better than one GPU', () => {
  const { code, out, err } = runCli(['bench', 'scale', '--batch', '256', '--json'])
  assert.is(code, 0, err)
  const { rows, how } = JSON.parse(out) as { how: string; rows: Row[] }
  assert.is(how, 'model, not measured')
  // 512 GPUs give 131,072 keys a step.
  assert.equal([...new Set(rows.map(({ gpus }) => gpus))], [1, 8, 64])
  for (const row of rows) {
    assert.ok(row.gpus === 1 ? row.efficiency === 1 : row.efficiency < 1 && row.efficiency > 0)
    for (const wider of rows)
      if (wider.gpus > row.gpus && ways.every((way) => wider[way] === row[way])) assert.ok(wider.efficiency < row.efficiency)
  }
})

test.run()
