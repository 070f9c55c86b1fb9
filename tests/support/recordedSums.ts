/** Steps on the CPU that are recorded while other threads are at work. */
import * as assert from 'uvu/assert'

import { add } from '../../src/ops/arithmetic.js'
import { Graph } from '../../src/tensor/graph.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'

/** Records two hundred steps of three sums, and asserts that each has these alone, and their values. */
export function recordSums(): void {
  const input = Tensor.full([1000], 3).keep()
  for (let turn = 0; turn < 200; ++turn) {
    const graph = new Graph('cpu', () => scope(() => add(add(input, input), add(input, input))))
    for (let run = 0; run < 4; ++run) assert.is(graph.run().data()[turn], 12)
    assert.is(graph.plan!.launches, 3)
    graph.dispose()
  }
  input.dispose()
}
