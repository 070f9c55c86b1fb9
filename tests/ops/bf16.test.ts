/** Every op of the CPU in bf16 against its own f64, from the same rounded inputs. */
import type { OpName } from '../../src/ops/catalogue.js'
import { checkAgreement } from '../support/agreement.js'
import { suite } from '../support/suite.js'
import { opCases } from './cases/index.js'

const runs = Number(process.env.DENSECL_TEST_RUNS ?? 25)

const test = suite('bf16 on the CPU')

for (const name of Object.keys(opCases) as OpName[]) {
  const { parameters, large } = opCases[name]
  test(`${name} in bf16`, () => {
    checkAgreement('cpu', name, parameters, runs, ['bf16'])
    if (large !== undefined) checkAgreement('cpu', name, large, Math.ceil(runs / 5), ['bf16'])
  })
}

test.run()
