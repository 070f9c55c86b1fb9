/** Families of kernels: what stands in for one computes the same, and a machine of fewer multiprocessors or an older build is one. */
import * as assert from 'uvu/assert'

import { agrees, noiseTensor } from '../../src/selftest/compare.js'
import { checkProduct, productOps } from '../../src/selftest/products.js'
import { Random } from '../../src/tensor/random.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { deferNorm } from '../../src/ops/fusion.js'
import { infoNce } from '../../src/ops/losses.js'
import { denseMatch } from '../../src/ops/similarity.js'
import { avoidFamilies, kernelFamilies, type KernelFamily, kernelFamilyNames, usesFamily } from '../../src/tensor/families.js'
import { native } from '../../src/tensor/native.js'
import { scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits, forgetTraits } from '../../src/tensor/traits.js'
import { simulated, withCapability } from '../support/capability.js'
import { device, thorough } from '../support/devices.js'
import { relativeDistance } from '../support/gradients.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

const test = suite(`families of kernels on ${device}`, device)

function avoiding<R>(names: readonly KernelFamily[], body: () => R): R {
  avoidFamilies(device, names)
  try {
    return body()
  } finally {
    avoidFamilies(device, [])
  }
}

/** With variables of the environment, which the addon reads where it chooses kernels. */
function withVariables<R>(variables: Record<string, string>, body: () => R): R {
  const before = Object.keys(variables).map((name) => [name, process.env[name]] as const)
  Object.assign(process.env, variables)
  forgetTraits()
  try {
    return body()
  } finally {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
    forgetTraits()
  }
}

const onHopper = <R>(body: () => R): R => withCapability(90, body)

const draw = (random: Random, ...sizes: number[]): Tensor =>
  Tensor.from(
    Float32Array.from({ length: sizes.reduce((a, b) => a * b, 1) }, () => random.normal()),
    sizes,
  )

test('a device has the families that it does not avoid, and names what it does not know', () => {
  const own = [...kernelFamilies(device)]
  assert.ok(own.includes('mma.conv2d'))
  for (const name of own)
    assert.equal(
      [...avoiding([name as KernelFamily], () => kernelFamilies(device))],
      own.filter((each) => each !== name),
    )
  assert.equal([...kernelFamilies(device)], own)
  throwsError(
    () => native.avoidFamilies(device, ['mma.conv2d', 'mma.conv3d']),
    'ARGUMENT',
    'there is no family of kernels mma.conv3d; expected one of wgmma.conv2d, ',
  )
  assert.equal([...kernelFamilies(device)], own)
  assert.equal([...kernelFamilies('cpu')], [])
  throwsError(() => avoidFamilies('cpu', ['mma.conv2d']), 'ARGUMENT', /cpu has no families/)
})

test('FMAs stand in for tensor cores: convolutions, the contrastive loss and matching', () => {
  for (const op of productOps) {
    for (const finding of checkProduct(device, op, 'fma')) assert.ok(agrees(finding), JSON.stringify(finding))
    // Tensor cores are those of tests/ops on every form; here they are what the others are held against.
    if (!thorough || !usesFamily(device, `mma.${op}`)) continue
    for (const finding of checkProduct(device, op, 'mma')) assert.ok(agrees(finding), JSON.stringify(finding))
  }
  assert.equal(kernelFamilies(device).includes('mma.conv2d'), true)
})

test('what is avoided is not used: f32 keeps its bits, bf16 has those of exact sums', () => {
  scope(() =>
    withDevice(device, () => {
      const random = new Random(3)
      const [x, weight] = [draw(random, 2, 7, 6, 24), draw(random, 40, 3, 3, 24)]
      const run = (dtype: 'f32' | 'bf16'): Float32Array =>
        conv2d(x.to(dtype), weight.to(dtype), undefined, { padding: 1 }).data() as Float32Array
      const [f32, fma] = [run('f32'), avoiding(kernelFamilyNames, () => run('f32'))]
      assert.equal(fma, f32)
      // FMAs on bf16 operands are those on the same values in f32, rounded once.
      const exact = conv2d(x.to('bf16').to('f32'), weight.to('bf16').to('f32'), undefined, { padding: 1 }).to('bf16').data()
      assert.equal(
        relativeDistance(
          avoiding(kernelFamilyNames, () => run('bf16')),
          exact,
        ) < 1e-4,
        true,
      )
    }),
  )
})

test('without tensor cores no convolution takes a prologue, and deferred norms are computed for it', () => {
  scope(() =>
    withDevice(device, () => {
      const random = new Random(4)
      const [x, weight, scale, shift] = [
        draw(random, 2, 5, 5, 16).to('bf16'),
        draw(random, 24, 3, 3, 16).to('bf16'),
        draw(random, 1, 16),
        draw(random, 1, 16),
      ]
      const run = (): Float32Array =>
        conv2d(deferNorm({ x, scale, shift, relu: true }), weight, undefined, { padding: 1 }).data() as Float32Array
      assert.ok(relativeDistance(avoiding(kernelFamilyNames, run), run()) < 5e-3)
    }),
  )
})

test('without tensor cores the contrastive loss has its gradient, and none where none is wanted', () => {
  scope(() =>
    withDevice(device, () => {
      const random = new Random(5)
      const [query, positive, queue] = [draw(random, 9, 24).to('bf16'), draw(random, 9, 24).to('bf16'), draw(random, 50, 24).to('bf16')]
      const run = (): number => infoNce(query, positive, queue, 1).loss.item()
      assert.ok(Math.abs(avoiding(kernelFamilyNames, run) - run()) < 1e-3 * Math.abs(run()))
      const [index] = [avoiding(kernelFamilyNames, () => denseMatch(query.alias([1, 9, 24]), queue.alias([1, 50, 24])).index.data())]
      assert.is(index.length, 9)
    }),
  )
})

const given = 'a GPU has the capability that it has'
testWhere(simulated, given, test, 'a build without 90a has no kernels of Hopper, and computes the same by others', () => {
  const hopper = (): boolean => [...kernelFamilies(device)].some((name) => name.startsWith('wgmma'))
  for (const [architectures, expected] of [
    ['80-real 90a-real 90-virtual', true],
    ['90a-real', true],
    ['90', false],
    ['80', false],
    ['90-real', false],
    ['', false],
  ] as const) {
    assert.is(
      withVariables({ DENSECL_ARCHITECTURES: architectures }, () => onHopper(hopper)),
      expected,
      architectures,
    )
  }
  const losses = (): number[] =>
    scope(() =>
      withDevice(device, () => {
        // Sums over tiles of keys, which are of another size on Hopper: their last bits tell which kernel it was.
        const [query, positive, queue] = [
          [40, 64],
          [40, 64],
          [700, 64],
        ].map((shape, i) => noiseTensor(device, shape, 'bf16', i)) as [Tensor, Tensor, Tensor]
        const { loss, statistics } = infoNce(query, positive, queue, 0.2)
        return [loss.item(), ...statistics.data()]
      }),
    )
  const ampere = losses()
  assert.equal(
    withVariables({ DENSECL_ARCHITECTURES: '90' }, () => onHopper(losses)),
    ampere,
  )
  assert.not.equal(onHopper(losses), ampere)
  // An older capability in the environment does the same.
  assert.equal(
    withVariables({ DENSECL_CAPABILITY: '80' }, () => onHopper(losses)),
    ampere,
  )
})

test('DENSECL_MULTIPROCESSORS is an upper bound, and a number', () => {
  const own = deviceTraits(device).multiprocessors
  assert.is(
    withVariables({ DENSECL_MULTIPROCESSORS: '1' }, () => deviceTraits(device).multiprocessors),
    1,
  )
  assert.is(
    withVariables({ DENSECL_MULTIPROCESSORS: '100000' }, () => deviceTraits(device).multiprocessors),
    own,
  )
  for (const bad of ['0', '-2', 'all', '3.5', '4 ']) {
    throwsError(
      () => withVariables({ DENSECL_MULTIPROCESSORS: bad }, () => deviceTraits(device).multiprocessors),
      'ARGUMENT',
      `DENSECL_MULTIPROCESSORS is ${bad}: expected a number of multiprocessors, 1 or more`,
    )
  }
  for (const bad of ['9.0', '75', 'sm_90'])
    throwsError(
      () => withVariables({ DENSECL_CAPABILITY: bad }, () => kernelFamilies(device)),
      'ARGUMENT',
      `DENSECL_CAPABILITY is ${bad}: expected`,
    )
  assert.is(deviceTraits('cpu').multiprocessors, 0)
})

test.run()
