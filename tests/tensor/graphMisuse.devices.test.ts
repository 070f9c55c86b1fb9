/**
 * Recorded steps in the hands of somebody who keeps to nothing: a run gives what the body says, or throws an error that names what was
 * wrong, and the next ones go on.
 */
import { once } from 'node:events'
import { setTimeout } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'

import * as assert from 'uvu/assert'

import { add, relu, scale, sum, withCompute } from '../../src/engine.js'
import { conv2dNorm } from '../../src/ops/conv2dNorm.js'
import { Graph } from '../../src/tensor/graph.js'
import { native, runNative } from '../../src/tensor/native.js'
import { scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { device as tested } from '../support/devices.js'
import { recordSums } from '../support/recordedSums.js'
import { suite, throwsError } from '../support/suite.js'

const vector = (...values: number[]): Tensor => Tensor.from(values)

function cases(device: string): void {
  const test = suite(`misused graphs on ${device}`, device)
  const onDevice = <R>(body: () => R): R => scope(() => withDevice(device, body))
  const runs = <R>(graph: Graph<R>, count: number): void => {
    for (let run = 0; run < count; ++run) graph.run()
  }
  /** Runs a graph of the body, which counts its runs from 1: the first two must do, and the third must be refused. */
  const refused = (body: (run: number) => Tensor, ...words: RegExp[]): void => {
    let count = 0
    const graph = new Graph(device, () => body((count += 1)))
    runs(graph, 2)
    throwsError(() => graph.run(), 'GRAPH', ...words)
    assert.is(graph.plan, undefined)
    graph.dispose()
  }

  test('what the recorded run does otherwise than the run before it is refused, with the op, its parameter and both values', () => {
    onDevice(() => {
      const [x, y, four, flat] = [vector(1, 2), vector(3, 4), vector(1, 2, 3, 4), Tensor.from([1, 2, 3, 4], [2, 2])]
      refused((run) => scale(x, run / 8), /expected scale to be called with number 0\.25, .* but received 0\.375: .* lies in tensors/)
      refused((run) => Tensor.full([2], run), /fill .*value 2, .* received 3:/)
      refused((run) => sum(flat, { axes: [run % 2] }), /expected \w+ to be called with .* but received /)
      refused((run) => (run < 3 ? add(x, x) : relu(x)), /expected the recorded run to call add, .* but received relu/)
      refused((run) => (run < 3 ? add(x, x) : relu(add(x, x))), /asks for \d+ bytes .* had no more blocks/)
      refused((run) => {
        if (run === 3) runNative('fill', { y: x }, { value: 0 })
        return x
      }, /expected the recorded run to end, as the run before it, but received fill/)
      refused((run) => {
        if (run < 3) runNative('fill', { y: x }, { value: 1 })
        return x
      }, /expected the recorded run to make the 1 calls of the run before it but received 0/)
      refused((run) => (run < 3 ? relu(add(x, x)) : add(x, x)), /graph: .* run before/)
      refused((run) => scale(run < 3 ? x : y, 2), /expected scale to be called with the tensor x f32\[2\].* received another one/)
      refused((run) => scale(run < 3 ? x : four, 2), /f32\[2\], as in the run before, but received f32\[4\]/)
      refused((run) => scale(run < 3 ? four : flat, 2), /f32\[4\], as in the run before, but received f32\[2,2\]/)
      refused((run) => {
        const made = [scale(x, 2), scale(x, 3)]
        return relu(made[Number(run === 3)]!)
      }, /expected relu to be called with the tensor/)
      // What only the first run does is none of it, and NaN is itself.
      let count = 0
      const graph = new Graph(device, () => add(scale(x, NaN), scale(x, (count += 1) === 1 ? 7 : 2)))
      runs(graph, 5)
      assert.is(graph.plan!.launches, 3)
      graph.dispose()
    })
  })

  test('a body that catches what is thrown at it is refused all the same', () => {
    onDevice(() => {
      const x = vector(1, 2)
      refused((run) => {
        const [a, b] = [add(x, x), add(x, x)]
        try {
          scale(run === 3 ? b : a, run)
        } catch {
          scale(a, 2)
        }
        return b
      }, /the run before/)
      refused((run) => {
        const made = add(x, x)
        try {
          Tensor.empty([run === 3 ? 1000 : 10])
        } catch {
          // Without it.
        }
        return made
      }, /in another order/)
    })
  })

  test('a body that throws in any run leaves the graph as good as one that has not', () => {
    onDevice(() => {
      const x = vector(1)
      let kept: Tensor | undefined
      for (const fails of [1, 2, 3]) {
        let count = 0
        const graph = new Graph(device, () => {
          const twice = add(x, x)
          // Of the first run alone, which has to come to its end for that.
          if (fails === 1) kept ??= Tensor.zeros([1]).keep()
          if ((count += 1) === fails) throw new Error('the body')
          if (count === fails + 1 && fails === 1) Tensor.zeros([5])
          return scale(twice, 2)
        })
        for (let run = 1; run <= 7; ++run) {
          x.write(Float32Array.of(run))
          if (run === fails) assert.throws(() => graph.run(), /the body/)
          else assert.is(graph.run().item(), 4 * run, `run ${run}, of which ${fails} fails`)
        }
        assert.ok(graph.plan !== undefined)
        graph.dispose()
      }
      kept!.dispose()
    })
  })

  test('a tensor that a recorded step was given is missed once it is disposed, and with another one the graph begins anew', () => {
    onDevice(() => {
      let x = vector(1)
      const y = vector(10)
      const graph = new Graph(device, () => add(x, y))
      for (let turn = 0; turn < 3; ++turn) {
        runs(graph, 4)
        const view = x.alias()
        x.dispose()
        const others = [vector(50), vector(60)] // in its place
        view.write(Float32Array.of(2))
        assert.is(graph.run().item(), 12, 'the view is the tensor too')
        view.dispose()
        for (let run = 0; run < 2; ++run)
          throwsError(() => graph.run(), 'GRAPH', /expected the tensor a f32\[1\] of add to live/, /dispose the graph too/)
        assert.equal(
          others.map((each) => each.item()),
          [50, 60],
        )
        graph.dispose()
        x = vector(turn)
        assert.is(graph.run().item(), 10 + turn)
        x.write(Float32Array.of(1))
        graph.dispose()
      }
    })
  })

  test('a tensor that several recorded steps were given is missed by each of them, whichever others are still there', () => {
    onDevice(() => {
      const [x, y] = [vector(1), vector(10)]
      const graphs = [new Graph(device, () => add(x, y)), new Graph(device, () => scale(x, 3)), new Graph(device, () => relu(y))] as const
      for (const graph of graphs) runs(graph, 3)
      x.dispose()
      const missed = (graph: Graph<Tensor>): void =>
        throwsError(() => graph.run(), 'GRAPH', /expected the tensor \w f32\[1\] of \w+ to live/)
      missed(graphs[0])
      missed(graphs[1])
      graphs[1].dispose()
      missed(graphs[0])
      graphs[0].dispose()
      assert.is(graphs[2].run().item(), 10, 'what they shared with others lives')
      graphs[2].dispose()
    })
  })

  test('the result of one graph is an operand of another like any tensor, as long as it lives', () => {
    onDevice(() => {
      const x = vector(1)
      const first = new Graph(device, () => add(x, x))
      runs(first, 3)
      const made = first.run()
      const second = new Graph(device, () => scale(made, 3))
      for (let run = 0; run < 5; ++run) {
        x.write(Float32Array.of(run))
        first.run()
        assert.is(second.run().item(), 6 * run)
      }
      first.dispose()
      const others = [vector(50), vector(60)]
      throwsError(() => second.run(), 'GRAPH', /expected the tensor x f32\[1\] of scale to live/)
      assert.equal(
        others.map((each) => each.item()),
        [50, 60],
      )
      second.dispose()
    })
  })

  test('convolutions read weights that a graph makes as they are after each of its runs', () => {
    onDevice(() => {
      const [x, base] = [Tensor.full([1, 8, 8, 16], 1), Tensor.full([16, 3, 3, 16], 1)]
      const [one, zero] = [Tensor.full([16], 1), Tensor.zeros([16])]
      const weights = new Graph(device, () => scale(base, 1))
      const statistics = { weight: one, bias: zero, runningMean: zero, runningVar: one }
      const norm = (weight: Tensor): Tensor => conv2dNorm(x, weight, statistics, { padding: 1 })
      const agrees = (result: Tensor, run: number): void =>
        assert.ok(Math.abs(result.data()[16 * 9]! / (run * 144) - 1) < 1e-3, `run ${run}`)
      runs(weights, 3)
      const made = weights.run()
      const recorded = new Graph(device, () => norm(made))
      for (let run = 1; run < 6; ++run) {
        base.write(new Float32Array(base.size).fill(run))
        assert.is(weights.run(), made)
        for (let time = 0; time < 2; ++time) agrees(norm(made), run)
        agrees(recorded.run(), run)
      }
      recorded.dispose()
      weights.dispose()
    })
  })

  test('what a body returns and has not made stays that of whoever did', () => {
    onDevice(() => {
      const x = vector(1)
      const graph = new Graph(device, () => ({ x, twice: add(x, x) }))
      for (let run = 0; run < 5; ++run) {
        x.write(Float32Array.of(run))
        const { x: same, twice } = graph.run()
        assert.is(same, x)
        assert.equal([x.item(), twice.item()], [run, 2 * run])
      }
      graph.dispose()
      assert.is(x.item(), 4)
    })
  })

  test('disposing what a run returned is allowed, using it after that is not', () => {
    onDevice(() => {
      const x = vector(1)
      const graph = new Graph(device, () => ({ a: add(x, x), b: scale(x, 3) }))
      for (let run = 0; run < 3; ++run) graph.run().a.dispose()
      for (let run = 0; run < 3; ++run) {
        x.write(Float32Array.of(run))
        const { a, b } = graph.run()
        assert.is(b.item(), 3 * run)
        throwsError(() => a.data(), 'USE_AFTER_DISPOSE')
      }
      graph.dispose()
      graph.dispose()
      assert.equal([...graph.run().a.data()], [4])
      graph.dispose()
    })
  })

  test('a graph does not run in the body of a graph, neither itself nor another, recorded or not', () => {
    onDevice(() => {
      const x = vector(1)
      const inner = new Graph(device, () => add(x, x))
      const outer = new Graph(device, () => scale(inner.run(), 3))
      const own: { graph?: Graph<Tensor> } = {}
      own.graph = new Graph(device, (): Tensor => own.graph!.run())
      for (let turn = 0; turn < 4; ++turn) {
        for (const graph of [outer, own.graph]) throwsError(() => graph.run(), 'GRAPH', /outside of other graphs .* in the body of one on/)
        assert.is(inner.run().item(), 2)
      }
      // One that records nothing is a function like any.
      const plain = new Graph(device, () => scale(inner.run(), 3), false)
      for (let run = 0; run < 4; ++run) {
        x.write(Float32Array.of(run))
        assert.is(plain.run().item(), 6 * run)
      }
      for (const graph of [outer, own.graph, plain, inner]) graph.dispose()
    })
  })

  test('two graphs may take turns in any order', () => {
    onDevice(() => {
      const x = vector(1, 2)
      const [a, b] = [new Graph(device, () => relu(add(x, x))), new Graph(device, () => scale(add(x, x), 2))]
      for (let turn = 0; turn < 12; ++turn) {
        x.write(Float32Array.of(turn, turn))
        if (turn % 3 !== 0) assert.is(a.run().data()[1], 2 * turn)
        if (turn % 2 === 0) assert.is(b.run().data()[1], 4 * turn)
        if (turn === 8) a.dispose()
      }
      a.dispose()
      b.dispose()
    })
  })

  test('in other settings of compute a graph begins anew, and threads are none of them', () => {
    onDevice(() => {
      const x = vector(1)
      let bodies = 0
      const graph = new Graph(device, () => {
        bodies += 1
        return add(x, x)
      })
      const take = (count: number, options: Parameters<typeof withCompute>[0]): void => {
        for (let run = 0; run < count; ++run)
          withCompute(options, () => {
            x.write(Float32Array.of(run))
            assert.is(graph.run().item(), 2 * run)
          })
      }
      take(5, {})
      take(2, { threads: 1 })
      assert.is(bodies, 3)
      take(5, { fusion: 'pointwise' })
      assert.is(bodies, 6)
      take(1, {})
      assert.is(bodies, 7)
      graph.dispose()
    })
  })

  test('a body of one device that computes on another is refused', () => {
    if (device === 'cpu') return
    const there = withDevice('cpu', () => Tensor.from([1]).keep())
    onDevice(() => {
      refused(
        () => add(there, there),
        new RegExp(`expected ops on ${device}, where the step is recorded, but received add on cpu, which would not be repeated`),
      )
    })
    there.dispose()
  })

  test('a body that is no function is refused, and one that is asynchronous', () => {
    throwsError(() => new Graph(device, undefined as unknown as () => void), 'ARGUMENT', /expected body to be a function .* undefined/)
    const graph = new Graph(device, () => Promise.resolve(1))
    for (let run = 0; run < 4; ++run) throwsError(() => graph.run(), 'SCOPE', /a promise/)
    graph.dispose()
  })

  test('memory neither grows with runs nor with graphs, and one that runs out of it records when there is some', () => {
    onDevice(() => {
      const x = Tensor.full([1 << 16], 1)
      const body = (): Tensor => {
        const twice = add(x, x)
        return add(twice, twice)
      }
      const all = (): number => {
        const { live, cached } = native.memory(device)
        return live + cached
      }
      const graph = new Graph(device, body)
      runs(graph, 4)
      const before = native.memory(device)
      runs(graph, 50)
      assert.equal(native.memory(device), before)
      graph.dispose()
      const turn = (): number => {
        const each = new Graph(device, body)
        runs(each, 4)
        each.dispose()
        return all()
      }
      const once = turn()
      for (let count = 0; count < 10; ++count) assert.is(turn(), once)

      runs(graph, 2)
      const { live } = native.memory(device)
      native.setMemoryLimit(live + 1000, device)
      try {
        for (let run = 0; run < 2; ++run) throwsError(() => graph.run(), 'OUT_OF_MEMORY', /limit/)
      } finally {
        native.setMemoryLimit(0, device)
      }
      for (let run = 0; run < 4; ++run) assert.is(graph.run().data()[9], 4)
      assert.ok(graph.plan !== undefined)
      graph.dispose()
    })
  })

  if (device === 'cpu') {
    const engine = new URL('../../src/engine.js', import.meta.url).href
    const started = async (program: string): Promise<[Worker, Int32Array]> => {
      const shared = new SharedArrayBuffer(8)
      const text = `
        import { Graph, Tensor, add, scope } from '${engine}'
        import { parentPort, workerData } from 'node:worker_threads'
        const flags = new Int32Array(workerData)
        ${program}`
      const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(text)}`), { workerData: shared })
      await once(worker, 'message')
      return [worker, new Int32Array(shared)]
    }

    test('threads record steps at the same time, each its own', async () => {
      const recording = `
        const x = Tensor.full([1000], 1)
        let wrong = ''
        parentPort.postMessage('begun')
        for (let turn = 0; Atomics.load(flags, 0) === 0; ++turn) {
          const graph = new Graph('cpu', () => add(add(x, x), x))
          for (let run = 0; run < 4; ++run)
            try {
              if (graph.run().data()[turn % 1000] !== 3) wrong = 'a sum'
            } catch (error) {
              wrong = error.message
            }
          graph.dispose()
        }
        x.dispose()
        parentPort.postMessage(wrong)`
      const others = await Promise.all([started(recording), started(recording)])
      recordSums()
      for (const [worker, flags] of others) {
        const told = once(worker, 'message')
        Atomics.store(flags, 0, 1)
        assert.is((await told)[0], '')
        await worker.terminate()
      }
    })

    test('a thread that is ended in a step, or with recorded ones, leaves nothing of them', async () => {
      for (const last of [0, 2, 3, 4]) {
        const [worker, flags] = await started(`
          const x = Tensor.full([1 << 16], 1)
          let run = 0
          const graph = new Graph('cpu', () => {
            const y = add(x, x)
            if (run === ${last}) {
              Atomics.store(flags, 1, 1)
              for (;;);
            }
            return add(y, y)
          })
          parentPort.postMessage('begun')
          for (run = 1; run < 5; ++run) graph.run()
          Atomics.store(flags, 1, 1)
          Atomics.wait(flags, 0, 0)`)
        while (Atomics.load(flags, 1) === 0) await setTimeout(1)
        await worker.terminate()
        const x = vector(1)
        const graph = new Graph('cpu', () => add(x, x))
        runs(graph, 4)
        assert.ok(graph.plan !== undefined)
        graph.dispose()
        x.dispose()
      }
    })
  }

  test.run()
}

for (const device of new Set(['cpu', tested])) cases(device)
