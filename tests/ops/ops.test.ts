/** The properties that every op of the catalogue has, over random shapes and parameters. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Random } from '../../src/tensor/random.js'
import { catalogue, type OpName } from '../../src/ops/catalogue.js'
import { scope } from '../../src/tensor/tensor.js'
import { withCompute } from '../../src/tensor/compute.js'
import { checkGradients, relativeDifference } from '../support/gradients.js'
import { suite } from '../support/suite.js'
import { opCases } from './cases/index.js'
import { runAs } from './cases/opCase.js'

const runs = Number(process.env.DENSECL_TEST_RUNS ?? 40)
const seeds = fc.integer({ min: 0, max: 2 ** 30 })

for (const [name, opCase] of Object.entries(opCases)) {
  const test = suite(name)

  const differentiable = catalogue[name as OpName].backward !== 'notDifferentiable'
  if (differentiable) {
    test(`${name}: its gradients are those of finite differences`, () => {
      fc.assert(
        fc.property(opCase.parameters, seeds, (p, seed) => {
          scope(() => {
            const random = new Random(seed)
            const inputs = opCase.inputs(p, random)
            const count = opCase.differentiable ?? inputs.length
            checkGradients((changed) => opCase.run(p, [...changed, ...inputs.slice(count)]), inputs.slice(0, count), random)
          })
        }),
        { numRuns: runs },
      )
    })
  }

  test(`${name}: f32 agrees with f64 to the length of its sums times epsilon`, () => {
    fc.assert(
      fc.property(opCase.parameters, seeds, (p, seed) => {
        scope(() => {
          const inputs = opCase.inputs(p, new Random(seed))
          const error = relativeDifference(
            runAs(opCase, p, inputs, 'f32').data(),
            runAs(opCase, p, inputs, 'f64').data(),
            opCase.magnitude?.(p),
          )
          const bound = 4 * opCase.accumulates(p) * 2 ** -23
          assert.ok(error <= bound, `relative error ${error}, allowed ${bound}`)
        })
      }),
      { numRuns: runs },
    )
  })

  test(`${name}: the same bits with one thread and with several`, () => {
    fc.assert(
      fc.property(opCase.parameters, seeds, (p, seed) => {
        scope(() => {
          const inputs = opCase.inputs(p, new Random(seed))
          const [one, three] = [1, 3].map((threads) => withCompute({ threads }, () => runAs(opCase, p, inputs, 'f32').data()))
          assert.equal(three, one)
        })
      }),
      { numRuns: 15 },
    )
  })

  test.run()
}
