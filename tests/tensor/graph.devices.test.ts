/** Recorded steps, on the CPU and on the device under test: same bits as without one, planned memory, and what may not be recorded. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { add, batchNorm, relu, scale, Tape } from '../../src/engine.js'
import { Graph, onEveryRun } from '../../src/tensor/graph.js'
import { native } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { scope, sizeOf, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { device as tested } from '../support/devices.js'
import { suite, throwsError } from '../support/suite.js'

const vector = (values: number[]): Tensor => Tensor.from(values, [values.length])

/** An instruction of a random program over a pool of tensors: make a sum, a product or a ReLU of some, or free one. */
interface Instruction {
  kind: 'add' | 'scale' | 'relu' | 'free'
  a: number
  b: number
  size: number
}
const instruction: fc.Arbitrary<Instruction> = fc.record({
  kind: fc.constantFrom('add', 'scale', 'relu', 'free'),
  a: fc.nat(),
  b: fc.nat(),
  size: fc.integer({ min: 1, max: 3 }),
})

/** Tensors of size * 300 values, from one input; what is left at the end is the result. */
function execute(program: readonly Instruction[], input: Tensor): Tensor[] {
  const pool: Tensor[] = []
  for (const { kind, a, b, size } of program) {
    const same = pool.filter((tensor) => tensor.size === 300 * size)
    const [x, y] = [same[a % same.length] ?? input, same[b % same.length] ?? input]
    if (kind === 'add') pool.push(add(x, y))
    else if (kind === 'scale') pool.push(scale(x, 0.5))
    else if (kind === 'relu') pool.push(relu(x))
    else if (pool.length > 0) pool.splice(a % pool.length, 1)[0]!.dispose()
  }
  return pool
}

function cases(device: string): void {
  const test = suite(`graphs on ${device}`, device)
  const onDevice = <R>(body: () => R): R => scope(() => withDevice(device, body))

  test('any program gives the same bits recorded as run, at most in the memory of all its tensors', () => {
    fc.assert(
      fc.property(fc.array(instruction, { minLength: 1, maxLength: 30 }), (program) =>
        onDevice(() => {
          const input = vector(Array.from({ length: 300 }, (_, i) => i - 150))
          const [eager, graph] = [new Graph(device, () => execute(program, input), false), new Graph(device, () => execute(program, input))]
          for (let step = 0; step < 5; ++step) {
            input.write(Float32Array.from({ length: 300 }, (_, i) => Math.sin(i + step)))
            const read = (tensors: Tensor[]): number[][] => tensors.map((tensor) => [...tensor.data()])
            assert.equal(read(graph.run()), read(eager.run()), `step ${step}`)
          }
          const plan = graph.plan!
          assert.ok(plan.live <= plan.arena && plan.arena <= plan.total, JSON.stringify(plan))
          assert.is(plan.launches, program.filter(({ kind }) => kind !== 'free').length)
          eager.dispose()
          graph.dispose()
        }),
      ),
      { numRuns: Number(process.env.DENSECL_TEST_RUNS ?? 30) },
    )
  })

  test('memory of tensors that do not live at the same time is shared', () => {
    onDevice(() => {
      const input = Tensor.full([1 << 20], 1)
      const chain = new Graph(device, () => {
        let x = add(input, input)
        for (let i = 0; i < 8; ++i) {
          const next = scale(x, 0.5)
          x.dispose()
          x = next
        }
        return x
      })
      // And is given back in between: the steps after that are recorded anew.
      const before = native.memory(device).live
      for (let turn = 0; turn < 2; ++turn) {
        chain.dispose()
        assert.is(native.memory(device).live, before)
        for (let step = 0; step < 4; ++step) assert.is(chain.run().data()[7], 2 ** -7)
      }
      assert.is(chain.plan!.arena, 2 << 22)
      assert.is(chain.plan!.live, 2 << 22)
      assert.is(chain.plan!.total, 9 << 22)
      chain.dispose()
    })
  })

  test('blocks are placed by area, duration and size, each in several orders, of which the best is taken', () => {
    // A number makes a tensor of so many units, -1 - i frees the i-th: one of each ranking alone finds room in what lives at one time, and
    // the last is found by none at once.
    const programs = [
      [5, -1, 3, 1, -2, -3, 3, 3, 7, 5, 1, 6, 1, -7, -4, 7, -8, -11, -5, -9, 2, 5, 2],
      [4, 7, 6, 3, 5, 1, 7, -2, 4, -4, 7, 4, -9, 3, 1, 5, -5, 5],
      [
        ...[1, 7, -1, -2, 3, -3, 5, 6, -5, 1, -6, 2, 6, 2, -7, 6, 4, -9, 4, -12, 2, -13, -8, 7, -11, 3, 1, -10, -14, -16, -4, -15],
        ...[3, 4, 2, -19, -17, 2, -20, -18, 1, -21, 6, 2, 6],
      ],
      [4, -1, 5, 3, -2, 2, -3, 6],
    ]
    onDevice(() => {
      for (const program of programs) {
        const graph = new Graph(device, () => {
          const made: Tensor[] = []
          for (const word of program)
            if (word > 0) made.push(Tensor.empty([64 * word]))
            else made[-1 - word]!.dispose()
          return made.filter((tensor) => !tensor.disposed)
        })
        for (let run = 0; run < 3; ++run) graph.run()
        const { arena, live } = graph.plan!
        assert.is(arena, live, program.join(' '))
        graph.dispose()
      }
    })
  })

  test('effects on the host happen once a run, results are the same tensors, and a tensor that outlives the graph keeps its memory', () => {
    onDevice(() => {
      let count = 0
      const input = vector([1, 2])
      const graph = new Graph(device, () => {
        onEveryRun(() => (count += 1))
        return { sum: add(input, input) }
      })
      for (let step = 1; step <= 5; ++step) {
        graph.run()
        assert.is(count, step)
      }
      const { sum } = graph.run()
      const read = sum.startRead()
      const view = sum.alias()
      input.write(Float32Array.of(3, 4))
      assert.is(graph.run().sum, sum)
      assert.equal([...read()], [2, 4])
      graph.dispose()
      assert.equal([...view.data()], [6, 8])
    })
  })

  test('a step that moves data, or does something else than the one before, cannot be recorded; the device goes on', () => {
    onDevice(() => {
      const input = vector([1, 2])
      const uploads = new Graph(device, () => add(input, vector([1, 1])))
      const reads = new Graph(device, () => scale(input, input.data()[0]!))
      let runs = 0
      const changes = new Graph(device, () => (++runs < 3 ? add(input, input) : add(Tensor.zeros([1000]), Tensor.zeros([1000]))))
      for (const [graph, what] of [
        [uploads, /an upload/],
        [reads, /a download/],
        [changes, /asks for 4096 bytes/],
      ] as const) {
        for (let run = 0; run < 2; ++run) graph.run()
        // Where moving them takes no time, a step that moves values is not recorded.
        if (deviceTraits(device).hostMemory && graph !== changes) {
          input.write(Float32Array.of(5, 6))
          assert.equal([...graph.run().data()], graph === uploads ? [6, 7] : [25, 30])
          assert.is(graph.plan, undefined)
          input.write(Float32Array.of(1, 2))
        } else throwsError(() => graph.run(), 'GRAPH', what)
        assert.equal([...add(input, input).data()], [2, 4])
        graph.dispose()
      }
    })
  })

  test('gradients through a frozen batch norm are recorded, and read the statistics as they are at each run', () => {
    onDevice(() => {
      const random = new Random(4)
      const drawn = (shape: number[], least = -1): Tensor =>
        Tensor.from(
          Float32Array.from({ length: sizeOf(shape) }, () => random.uniform(least, 1)),
          shape,
        )
      const [x, residual, weight, bias, mean] = [drawn([2, 3, 2, 5]), drawn([2, 3, 2, 5]), drawn([5], 0.5), drawn([5]), drawn([5])]
      const variance = drawn([5], 0.2)
      const watched = [x, weight, bias, residual]
      const step = (): Tensor[] => {
        const tape = new Tape().watch(watched)
        const y = tape.record(() => batchNorm(x, weight, bias, mean, variance, { train: false, relu: true, residual }))
        const gradients = tape.backward(y, watched, residual)
        return [y.keep(), ...gradients.map((gradient) => gradient.keep())]
      }
      const [graph, eager] = [new Graph(device, step), new Graph(device, step, false)]
      for (let run = 0; run < 5; ++run) {
        variance.write(Float32Array.from({ length: 5 }, (_, c) => 0.1 + c + run))
        assert.equal(
          graph.run().map((each) => [...each.data()]),
          eager.run().map((each) => [...each.data()]),
          `run ${run}`,
        )
      }
      graph.dispose()
      eager.dispose()
    })
  })

  test.run()
}

for (const device of new Set(['cpu', tested])) cases(device)
