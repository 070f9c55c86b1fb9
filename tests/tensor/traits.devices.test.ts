/** What a device with kernels says of itself agrees with what it does. */
import * as assert from 'uvu/assert'

import { conv2dForNorm } from '../../src/ops/conv2d.js'
import { usesFamily } from '../../src/tensor/families.js'
import { native } from '../../src/tensor/native.js'
import { scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { setCapability, simulated, withCapability } from '../support/capability.js'
import { device } from '../support/devices.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

const test = suite(`traits on ${device}`, device)

// Both variables bound what kernels are chosen by; the sentence is about the device.
const bounded = [process.env.DENSECL_CAPABILITY, process.env.DENSECL_MULTIPROCESSORS].some((text) => text !== undefined)
const unbounded = 'DENSECL_CAPABILITY or DENSECL_MULTIPROCESSORS is set'
testWhere(!bounded, unbounded, test, 'the sentence for people has the numbers that the traits have', () => {
  const { capability, multiprocessors, model } = deviceTraits(device)
  const sentence = native.describeDevice(device)
  assert.ok(sentence.includes(`compute capability ${Math.floor(capability / 10)}.${capability % 10}`))
  assert.ok(sentence.includes(`${multiprocessors} multiprocessors`))
  assert.ok(sentence.startsWith(model))
})

test('dtypes that are not among the traits are refused by ops, the others are computed with', () => {
  const { dtypes, usualDType } = deviceTraits(device)
  assert.is(usualDType, 'bf16')
  for (const dtype of ['f32', 'f64', 'bf16'] as const)
    withDevice(device, () =>
      scope(() => {
        const run = () => conv2dForNorm(Tensor.zeros([1, 2, 2, 8], dtype), Tensor.zeros([8, 1, 1, 8], dtype), {}, 1)
        if (dtypes.includes(dtype)) run()
        else throwsError(run, 'DTYPE')
      }),
    )
})

test('statistics of a convolution have a row for each of the rows that the traits say', () => {
  const { statisticsRows, epilogues } = deviceTraits(device)
  assert.ok(epilogues)
  for (const images of [1, 3])
    withDevice(device, () =>
      scope(() => {
        const { y, statistics } = conv2dForNorm(Tensor.full([images, 16, 9, 8], 1), Tensor.full([8, 1, 1, 8], 0.5), {}, 1)
        assert.equal(statistics!.shape, [Math.ceil((images * 16 * 9) / statisticsRows), 2, 8])
        // The means of constant rows are the constant: the last row covers what is left.
        assert.ok([...statistics!.data()].filter((_, i) => i % 16 < 8).every((mean) => mean === y.data()[0]))
      }),
    )
})

testWhere(simulated, 'a GPU has the capability that it has', test, 'a device of another capability has other traits', () => {
  const own = deviceTraits(device)
  withCapability(90, () => {
    assert.is(deviceTraits(device).capability, 90)
    assert.ok(usesFamily(device, 'wgmma.conv2d'))
  })
  assert.equal(deviceTraits(device), own)
  setCapability(own.capability)
  assert.not.ok(usesFamily(device, 'wgmma.conv2d'))
})

test.run()
