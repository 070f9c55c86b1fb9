/** A test that leaks a tensor: handles.test.ts runs this file and asserts that it fails. */
import { Tensor } from '../../src/tensor/tensor.js'
import { suite } from '../support/suite.js'

const test = suite('leak')
test('leaves a tensor behind', () => void Tensor.zeros([3]))
test.run()
