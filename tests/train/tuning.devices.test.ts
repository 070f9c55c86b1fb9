/**
 * Tuning on the device under test with a clock that the tests set: what is chosen, what a step then does, and which times are kept.
 */
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { densecl } from '../../src/methods/densecl/method.js'
import { resnet } from '../../src/nn/resnet.js'
import { allTensors } from '../../src/nn/module.js'
import { DeviceClock, isProduct, type NativeCall, type Time } from '../../src/ops/timing.js'
import {
  chosenPrologue,
  type ConvolutionShape,
  productOf,
  pointwiseWindows,
  shapeKey,
  shapeOfCall,
  tableTile,
  takesPrologue,
  type TuningChoice,
  untuned,
} from '../../src/ops/tuning.js'
import { fail } from '../../src/tensor/errors.js'
import { currentCompute, type Kernels, withCompute } from '../../src/tensor/compute.js'
import { rehearse } from '../../src/tensor/graph.js'
import { type NamedTensors, observe } from '../../src/tensor/native.js'
import { Tensor, withDevice } from '../../src/tensor/tensor.js'
import { resolveConfig } from '../../src/methods/index.js'
import type { BuiltMethod } from '../../src/methods/method.js'
import { settingsOf } from '../../src/run/options.js'
import { expectedCost, productCall, signatureOf, stepCalls } from '../../src/train/stepCalls.js'
import { choiceOf, fastest, timesFile, tune, type TunerOptions, type Tuning } from '../../src/train/tuner.js'
import { simulated, withCapability } from '../support/capability.js'
import { device } from '../support/devices.js'
import { suite, testWhere } from '../support/suite.js'
import { identity, withCache, writes } from '../support/tuning.js'

const test = suite(`tuning on ${device}`, device)

const [batch, imageSize] = [8, 32]
const options = { batch, imageSize, identity, hopper: () => true, untimed: [6, 7], multiprocessors: 4, budget: 1e9, now: () => 0 } as const

/** Runs `body` with a model and a cache folder of its own. */
async function withModel(body: (model: BuiltMethod, folder: string) => void, baseChannels = 8): Promise<void> {
  await withCache((folder) => {
    const backbone = resnet({ depth: 18, baseChannels })
    const sizes = { hidden: 16, featDim: 16, queueLength: 32 }
    const settings = settingsOf({ ...sizes, batchSize: batch, imageSize, keyMomentum: 0.9, normGroups: 2, seed: 1 }, 'test')
    const model = withDevice(device, () => densecl.build(resolveConfig(settings), { backbone, compute: 'bf16' }))
    try {
      body(model, folder)
    } finally {
      model.dispose()
    }
  })
}

const run = (model: BuiltMethod, time: Time, more: Partial<TunerOptions> = {}): Tuning =>
  tune({ method: model, ...options, level: 'epilogue', time, ...more })

/** Any clock with few different times, so that there are equals, and every time it gave. */
function dice(seed: number): { time: Time; given: Map<string, Map<string, number>>; twice: string[] } {
  const twice: string[] = []
  const given = new Map<string, Map<string, number>>()
  const time: Time = (call, { tile, splits }) => {
    const [signature, label] = [signatureOf(call), `${tile}/${splits}`]
    let hash = seed
    for (const letter of `${signature} ${label}`) hash = Math.imul(hash ^ letter.charCodeAt(0), 0x01000193)
    const value = 1 + ((hash >>> 8) % 8)
    if (!given.has(signature)) given.set(signature, new Map())
    if (given.get(signature)!.has(label)) twice.push(`${signature} ${label}`)
    given.get(signature)!.set(label, value)
    return value
  }
  return { time, given, twice }
}

test('of every product the fastest kernels by the clock are taken, and the table of equals', async () => {
  for (const seed of [1, 2, 3]) {
    await withModel((model) => {
      const { time, given, twice } = dice(seed)
      const { products, level, left, remarks } = run(model, time)
      assert.equal([...twice, ...remarks], [])
      assert.is(level, 'epilogue')
      assert.is(left, 0)
      const calls = stepCalls(model, batch, imageSize, untuned('epilogue'))
        .map(productCall)
        .filter((made) => made !== undefined)
      assert.is(products.length, new Set(calls.map(({ key }) => key)).size)
      let equals = 0
      for (const { shape, tile, splits, chosen, table, count, prologue } of products) {
        assert.not.ok(prologue)
        const same = calls.filter(({ key }) => key === shape)
        assert.is(
          count,
          same.reduce((total, made) => total + made.count, 0),
        )
        const total = (label: string): number =>
          same.reduce((total, made) => total + made.count * (given.get(made.signature)!.get(label) ?? Infinity), 0)
        const usual = `${tableTile(device, shapeOfCall(same[0]!.op, same[0]!.call.tensors, same[0]!.call.numbers))}/0`
        const totals = [...given.get(same[0]!.signature)!.keys()].map(total)
        assert.is(total(`${tile}/${splits}`), Math.min(...totals))
        assert.is(chosen, Math.min(...totals))
        assert.is(table, total(usual))
        if (table === chosen) {
          assert.is(`${tile}/${splits}`, usual)
          equals += 1
        }
      }
      assert.ok(equals > 0 && equals < products.length)
    })
  }
})

/** The kernels that a step with a choice is given, by shape and prologue. */
function kernelsOfStep(model: BuiltMethod, tuning: Tuning): Map<string, Kernels> {
  const found = new Map<string, Kernels>()
  observe.op = (op, _, tensors, numbers) => {
    if (!isProduct(op)) return
    const shape = shapeOfCall(op, tensors as NamedTensors<Tensor>, numbers)
    found.set(`${shapeKey(shape)} ${takesPrologue(op, tensors)}`, { tile: numbers.tile as number, splits: (numbers.splits ?? 0) as number })
  }
  const views = [0, 1].map(() => Tensor.empty([batch, imageSize, imageSize, 3], 'bf16', device)) as [Tensor, Tensor]
  try {
    rehearse(() => withCompute(choiceOf(tuning), () => model.step(views).dispose()))
  } finally {
    delete observe.op
    for (const view of views) view.dispose()
  }
  return found
}

test('a step takes what was chosen, for every product, whatever the level and the prologues', async () => {
  const levels = new Set<string>()
  const prologues = new Set<string>()
  let split = false
  for (const seed of [1, 2, 3, 4]) {
    await withModel((model) => {
      const tuning = run(model, dice(seed).time, { level: seed < 3 ? 'auto' : 'full' })
      levels.add(tuning.level)
      const chosen = new Map(tuning.products.map(({ shape, prologue, tile, splits }) => [`${shape} ${prologue}`, { tile, splits }]))
      assert.is(chosen.size, tuning.products.length)
      assert.equal([...kernelsOfStep(model, tuning)].sort(), [...chosen].sort())
      if (tuning.level === 'full')
        prologues.add(
          tuning.products
            .filter(({ prologue }) => prologue)
            .map(({ shape }) => shape)
            .join(),
        )
      split ||= tuning.products.some(({ splits }) => splits > 0)
    })
  }
  assert.ok(
    levels.has('full') && split && prologues.size > 1,
    `levels ${[...levels].join()}, splits ${split}, ${prologues.size} different sets of prologues`,
  )
})

test('the level of fusion is the one whose calls take least, and prologues are taken where they gain', async () => {
  await withModel((model) => {
    // Passes over memory cost, products do not: everything is read through prologues.
    const full = run(model, (call) => (writes(call) ? 10 : 1), { level: 'auto' })
    assert.is(full.level, 'full')
    assert.ok(full.products.filter(({ prologue }) => prologue).length > 10)
    const [milliseconds] = full.levels.filter(({ level }) => level === 'full').map((found) => found.milliseconds)
    assert.is(milliseconds, full.chosen)
    assert.ok(full.levels.length === 3 && full.levels.every((other) => other.milliseconds >= full.chosen) && full.chosen < full.table)
  })
  await withModel((model) => {
    // A product with a prologue costs more than the pass that it saves.
    const slow = run(model, ({ op, tensors }) => (isProduct(op) && takesPrologue(op, tensors) ? 100 : 1), { level: 'auto' })
    assert.is(slow.level, 'epilogue')
    assert.not.ok(slow.products.some(({ prologue }) => prologue))
  })
  await withModel((model) => {
    // Statistics in the epilogue cost more than all passes.
    const slow = run(model, ({ op, tensors }) => (op === 'conv2d' && tensors.statistics !== undefined ? 1000 : 1), { level: 'auto' })
    assert.is(slow.level, 'pointwise')
    // A level that was asked for stays.
    rmSync(join(process.env.XDG_CACHE_HOME!, 'densecl'), { recursive: true })
    assert.is(
      run(model, ({ op, tensors }) => (op === 'conv2d' && tensors.statistics !== undefined ? 1000 : 1), { level: 'full' }).level,
      'full',
    )
  })
})

test('only what pays of a convolution gets a prologue: forward and backward are decided apart', async () => {
  await withModel((model) => {
    const forwardOnly = run(
      model,
      ({ op, tensors }) => (op === 'normApply' ? 50 : op === 'conv2dBackwardWeight' && tensors.gradientX !== undefined ? 1000 : 1),
      { level: 'full' },
    )
    const of = (tuning: Tuning, direction: string): boolean =>
      tuning.products.some(({ shape, prologue }) => prologue && shape.startsWith(direction))
    assert.equal(
      ['forward', 'backward weight', 'backward input'].map((direction) => of(forwardOnly, direction)),
      [true, false, false],
    )
  })
  await withModel((model) => {
    const backwardOnly = run(
      model,
      ({ op, tensors }) => (op === 'normGradient' ? 50 : op === 'conv2d' && tensors.scale !== undefined ? 1000 : 1),
      { level: 'full' },
    )
    const of = (direction: string): boolean => backwardOnly.products.some(({ shape, prologue }) => prologue && shape.startsWith(direction))
    assert.equal(['forward', 'backward weight', 'backward input'].map(of), [false, true, true])
  })
})

testWhere(
  simulated,
  'the test sets the capability',
  test,
  "on Hopper the norm of x is a prologue of its own kernels, and no gradient's is",
  async () => {
    await withModel(
      (model) =>
        withCapability(90, () => {
          const prologuesOf = (tuning: Tuning): string[] => {
            assert.equal(
              [...kernelsOfStep(model, tuning)].sort(),
              tuning.products.map(({ shape, prologue, tile, splits }) => [`${shape} ${prologue}`, { tile, splits }]).sort(),
            )
            return ['forward', 'backward weight', 'backward input'].filter((direction) =>
              tuning.products.some(({ shape, prologue }) => prologue && shape.startsWith(direction)),
            )
          }
          const cost = (op: string, dear: NativeCall): number =>
            dear.op === 'normApply' ? 50 : dear.op === op && dear.tensors.scale !== undefined ? 1000 : 1
          assert.equal(prologuesOf(run(model, (call) => cost('', call), { level: 'full' })), ['forward', 'backward weight'])
          rmSync(join(process.env.XDG_CACHE_HOME!, 'densecl'), { recursive: true })
          assert.equal(prologuesOf(run(model, (call) => cost('conv2dBackwardWeight', call), { level: 'full' })), ['forward'])
          rmSync(join(process.env.XDG_CACHE_HOME!, 'densecl'), { recursive: true })
          // What the forward product had written is there for the gradient.
          assert.equal(prologuesOf(run(model, (call) => cost('conv2d', call), { level: 'full' })), [])
        }),
      64,
    )
  },
)

test('the most expensive are timed first, nothing is timed behind the budget, and the rest is left to the tables', async () => {
  await withModel((model) => {
    let now = 0
    const late: number[] = []
    const costs: number[] = []
    const calls = new Map(stepCalls(model, batch, imageSize, untuned('epilogue')).map((made) => [made.signature, made]))
    const found = run(
      model,
      (call) => {
        if (now >= 500) late.push(now)
        now += 7
        costs.push(expectedCost(calls.get(signatureOf(call))!))
        return 1
      },
      { level: 'auto', budget: 0.5, now: () => now },
    )
    assert.equal(late, [])
    assert.ok(costs.length > 50)
    assert.equal(
      costs,
      [...costs].sort((a, b) => b - a),
    )
    assert.ok(found.left > 0 && found.left < found.products.length)
    assert.is(found.left, found.products.filter(({ chosen }) => chosen === undefined).length)
    for (const { shape, tile, splits, chosen } of found.products) {
      if (chosen !== undefined) continue
      const made = [...calls.values()].map(productCall).find((other) => other?.key === shape)!
      assert.equal({ tile, splits }, { tile: tableTile(device, shapeOfCall(made.op, made.call.tensors, made.call.numbers)), splits: 0 })
    }
    assert.is(found.level, 'epilogue')
    assert.equal(found.levels, [])
    assert.ok(found.remarks.some((remark) => /levels of fusion are not compared.*0\.5 s/.test(remark)))
    // The next run goes on where this one stopped.
    now = 0
    const next = run(model, () => ((now += 0.01), 1), { level: 'epilogue', now: () => now })
    assert.is(next.left, 0)
    assert.ok(next.known > 0 && next.timed > 0)
  })
})

test('a way of which not all is timed is not taken: prologues stay where they are usual', async () => {
  await withModel((model) => {
    const base = stepCalls(model, batch, imageSize, untuned('full'))
    let now = 0
    const time: Time = (call) => {
      if (!base.some(({ signature }) => signature === signatureOf(call))) now = 1000
      return 1
    }
    const { products, left, level } = run(model, time, { level: 'full', budget: 0.5, now: () => now })
    assert.is(level, 'full')
    assert.is(left, 0)
    const usual = new Set(
      base
        .map(productCall)
        .filter((made) => made !== undefined)
        .map(({ key, prologue }) => `${key} ${prologue}`),
    )
    assert.equal(products.map(({ shape, prologue }) => `${shape} ${prologue}`).sort(), [...usual].sort())
    assert.ok(products.some(({ prologue }) => prologue))
  })
})

test('kernels that fail are left out and named; a product that all fail for is left to the tables', async () => {
  await withModel((model) => {
    const found = run(model, (call, { tile }) => {
      if (tile === 1) fail('CUDA', 'an illegal address')
      if (call.op === 'conv2dBackwardInput') fail('CUDA', 'a misaligned address')
      return tile === 0 ? 2 : 3 - tile / 10
    })
    for (const { shape, tile, chosen } of found.products) {
      assert.is.not(tile, 1)
      assert.is(chosen === undefined, shape.startsWith('backward input'))
    }
    assert.is(found.left, found.products.filter(({ shape }) => shape.startsWith('backward input')).length)
    assert.ok(
      found.remarks.some((remark) => /left out: conv2d\(.*\bx bf16\[.*tile 1: an illegal address/.test(remark)),
      found.remarks[0],
    )
  })
})

test('times that are kept for this device, driver and build are not taken again; others are, and that is said', async () => {
  await withModel((model, folder) => {
    const never: Time = () => fail('TEST', 'a known call is timed')
    const first = run(model, dice(7).time, { level: 'auto' })
    assert.equal(first.remarks, [])
    assert.is(first.known, 0)
    const second = run(model, never, { level: 'auto' })
    assert.equal({ ...second, timed: 0, known: 0 }, { ...first, timed: 0, known: 0 })
    assert.is(second.known, first.timed)
    for (const [key, word] of [
      ['driver', /another driver, 1\.0; timed anew/],
      ['build', /another build, of today; timed anew/],
    ] as const) {
      const other = run(model, dice(8).time, { level: 'auto', identity: { ...identity, [key]: 'of tomorrow' } })
      assert.is(other.timed, first.timed)
      assert.match(other.remarks[0]!, word)
      assert.match(other.remarks[0]!, folder)
      rmSync(join(folder, 'densecl', timesFile(identity.device)))
      run(model, dice(7).time, { level: 'auto' })
    }
    const elsewhere = run(model, dice(8).time, { level: 'auto', identity: { ...identity, device: 'another GPU' } })
    assert.is(elsewhere.timed, first.timed)
    assert.is(readdirSync(join(folder, 'densecl')).length, 2, 'each kind of device has a file of its own')
  })
})

test('a cache that holds garbage or cannot be written costs its times, no more', async () => {
  await withModel((model, folder) => {
    const path = join(folder, 'densecl', timesFile(identity.device))
    mkdirSync(join(folder, 'densecl'))
    for (const garbage of ['{"device": "a G', 'null', '{"device":"a GPU","driver":"1.0","build":"of today","times":{"x":{"0":"fast"}}}']) {
      writeFileSync(path, garbage)
      const found = run(model, dice(1).time)
      assert.is(found.known, 0)
      assert.match(found.remarks[0]!, path)
      assert.is(run(model, dice(1).time).timed, 0, 'and is replaced')
    }
    process.env.XDG_CACHE_HOME = path
    const found = run(model, dice(1).time)
    assert.is(found.left, 0)
    assert.ok(
      found.remarks.some((remark) => /the times are not kept: .*the folder cannot be made/.test(remark)),
      found.remarks.join('\n'),
    )
  })
})

test('going through a step computes nothing and leaves the model as it was', async () => {
  await withModel((model) => {
    const state = (): number[][] => [...allTensors(model.state())].map(([, tensor]) => [...tensor.data()])
    model.restore!({ keyAhead: true })
    const before = state()
    stepCalls(model, batch, imageSize, untuned('full'))
    assert.equal(state(), before)
    assert.equal(model.record!(), { keyAhead: true })
    assert.is(observe.op, undefined)
  })
})

const small: ConvolutionShape = {
  direction: 'forward',
  input: [2, 4, 4, 576],
  weight: [8, 1, 1, 576],
  numbers: { ...pointwiseWindows, tile: 0, tf32: false },
  dtype: 'bf16',
}

test('the choice holds inside of its scope, also where that throws', () => {
  const { fusion } = currentCompute()
  const kernels = { tile: 1, splits: 0 }
  const [yes, no]: TuningChoice[] = [
    { fusion: 'full', kernels: () => ({ prologue: kernels }) },
    { fusion: 'pointwise', kernels: () => ({ plain: kernels }) },
  ] as const
  const now = (): unknown[] => [currentCompute().fusion, chosenPrologue(small)]
  withCompute(yes, () => {
    assert.equal(now(), ['full', true])
    withCompute(no, () => assert.equal(now(), ['pointwise', false]))
    assert.equal(now(), ['full', true])
    assert.throws(() => withCompute(no, () => fail('ARGUMENT', 'x')))
    assert.equal(now(), ['full', true])
  })
  assert.equal(now(), [fusion, undefined])
})

test('of equal times the usual kernels are the fastest, wherever they stand', () => {
  assert.is(fastest({ 1: 3, 2: 3, 3: 4 }, '2'), '2')
  assert.is(fastest({ 1: 3, 2: 4, '2/8': 3 }, '2'), '1')
  assert.is(fastest({ 0: 2, '1/3': 1 }, '2'), '1/3')
  assert.is(fastest({}, '2'), undefined)
})

test("the device's own clock times products and passes, with the operands of the call before freed", () => {
  const clock = new DeviceClock(device)
  try {
    const bf16 = (...shape: number[]): { shape: number[]; dtype: 'bf16' } => ({ shape, dtype: 'bf16' })
    const f32 = (...shape: number[]): { shape: number[]; dtype: 'f32' } => ({ shape, dtype: 'f32' })
    const product = {
      op: 'conv2dBackwardWeight',
      tensors: { dweight: f32(8, 3, 3, 8), dy: bf16(2, 5, 5, 8), x: bf16(2, 5, 5, 8) },
      numbers: { ...pointwiseWindows, paddingH: 1, paddingW: 1, tile: 0, tf32: false, relu: false, splits: 0 },
    }
    for (const kernels of [
      { tile: 0, splits: 0 },
      { tile: 3, splits: 2 },
    ])
      assert.ok(clock.time(product, kernels) > 0)
    const sum = { op: 'add', tensors: { y: bf16(3, 7), a: bf16(3, 7), b: bf16(3, 7) }, numbers: {} }
    assert.ok(clock.time(sum, { tile: 0, splits: 0 }) > 0)
    const tensors = { dweight: product.tensors.dweight, dy: f32(2 ** 50) }
    assert.throws(() => clock.time({ ...product, tensors }, { tile: 0, splits: 0 }), /memory/)
    assert.ok(clock.time(product, { tile: 0, splits: 0 }) > 0)
  } finally {
    clock.dispose()
  }
})

test('keys tell shapes apart that are one product', () => {
  const wide: ConvolutionShape = {
    ...small,
    input: [2, 4, 4, 64],
    weight: [8, 3, 3, 64],
    numbers: { ...small.numbers, paddingH: 1, paddingW: 1 },
  }
  assert.equal(productOf(small), productOf(wide))
  assert.is.not(shapeKey(small), shapeKey(wide))
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 12 }), { minLength: 13, maxLength: 13 }), fc.nat(12), (values, at) => {
      const of = (all: readonly number[]): string => {
        const [strideH, strideW, paddingH, paddingW, dilationH, dilationW] = all.slice(7) as [
          number,
          number,
          number,
          number,
          number,
          number,
        ]
        return shapeKey({
          direction: 'forward',
          input: all.slice(0, 4),
          weight: [...all.slice(4, 7), all[3]!],
          numbers: { strideH, strideW, paddingH, paddingW, dilationH, dilationW, tile: 0, tf32: false },
          dtype: 'bf16',
        })
      }
      assert.is.not(of(values), of(values.map((value, i) => (i === at ? value + 1 : value))))
    }),
  )
})

test.run()
