import * as assert from 'uvu/assert'

import { defineOp } from '../../src/autograd/op.js'
import { apply, noGrad, Tape, valueAndGradients } from '../../src/autograd/tape.js'
import { Random } from '../../src/tensor/random.js'
import { add, mul } from '../../src/ops/arithmetic.js'
import { relu, scale } from '../../src/ops/elementwise.js'
import { linear } from '../../src/ops/linear.js'
import { infoNce } from '../../src/ops/losses.js'
import { native } from '../../src/tensor/native.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { checkGradients, randomTensor } from '../support/gradients.js'
import { suite, throwsError } from '../support/suite.js'
import { wrongSquare } from './wrongGradient.fails.js'

const test = suite('tape')

test('the gradient of a tensor used twice is the sum', () => {
  scope(() => {
    const x = Tensor.from([1, -2], [2], 'f64')
    const tape = new Tape().watch([x])
    const y = tape.record(() => add(scale(x, 3), add(x, x)))
    const [dx] = tape.backward(y, [x])
    assert.equal([...dx!.data()], [5, 5])
  })
})

test('a target that the output does not depend on has a gradient of zeros', () => {
  scope(() => {
    const x = Tensor.from([1], [1], 'f64')
    const other = Tensor.from([1, 2], [2], 'f64')
    const tape = new Tape().watch([x, other])
    const y = tape.record(() => scale(x, 2))
    const [, dother] = tape.backward(y, [x, other])
    assert.equal([...dother!.data()], [0, 0])
  })
})

test('each target is told of once, when its gradient is what it will be: zeros as soon as no op is left that could add to them', () => {
  scope(() => {
    const [unused, aside, x, twice] = [1, 2, 3, 4].map((value) => Tensor.from([value], [1], 'f64')) as [Tensor, Tensor, Tensor, Tensor]
    const targets = [x, twice, aside, unused]
    const tape = new Tape().watch(targets)
    const y = tape.record(() => {
      const product = mul(x, twice)
      mul(aside, twice)
      return add(product, scale(twice, 2))
    })
    const told: [number, number, boolean][] = []
    const gradients = tape.backward(y, targets, undefined, (place, gradient, reached) => told.push([place, gradient.item(), reached]))
    assert.equal(told, [
      [3, 0, false],
      [2, 0, false],
      [0, 4, true],
      [1, 5, true],
    ])
    assert.equal(
      gradients.map((gradient) => gradient.item()),
      [4, 5, 0, 0],
    )
  })
})

test('a target that is named twice has its gradient twice', () => {
  scope(() => {
    const x = Tensor.from([1, 2], 'f64')
    const tape = new Tape().watch([x])
    const y = tape.record(() => mul(x, x))
    for (const gradient of tape.backward(y, [x, x])) assert.equal([...gradient.data()], [2, 4])
  })
})

test('a seed of another dtype, and what is no tensor, are refused before the tape ends', () => {
  scope(() => {
    const x = Tensor.from([1, 2])
    const tape = new Tape().watch([x])
    const y = tape.record(() => mul(x, x))
    throwsError(() => tape.backward(y, [x], Tensor.full([2], 1, 'i32')), 'DTYPE', /backward: expected seed .*f32 but received i32\[2\]/)
    throwsError(() => tape.backward(y, [x], 1 as unknown as Tensor), 'ARGUMENT', /backward: expected seed to be a tensor but received 1/)
    throwsError(() => tape.backward(y, [5 as unknown as Tensor]), 'ARGUMENT', /targets\[0\]/)
    throwsError(
      () => valueAndGradients(() => 5 as unknown as Tensor, [x]),
      'ARGUMENT',
      /valueAndGradients: expected the loss to be a tensor/,
    )
    assert.equal([...tape.backward(y, [x])[0]!.data()], [2, 4])
  })
})

test('what runs under noGrad is a constant', () => {
  scope(() => {
    const x = Tensor.from([2], [1], 'f64')
    const tape = new Tape().watch([x])
    const y = tape.record(() =>
      add(
        scale(x, 2),
        noGrad(() => scale(x, 100)),
      ),
    )
    assert.is(tape.backward(y, [x])[0]!.item(), 2)
  })
})

test('saved tensors survive the scope of the forward pass and are freed by backward', () => {
  const random = new Random(1)
  scope(() => {
    const x = randomTensor(random, [8, 16])
    const w = randomTensor(random, [4, 16])
    const tape = new Tape().watch([w])
    const y = tape.record(() => scope(() => linear(relu(x), w)))
    const during = native.memory().handles
    tape.backward(y, [w])
    assert.is(native.memory().handles, during - 2 + 1, 'linear saved two tensors; relu none, as x is not watched; one gradient was made')
  })
})

test('gradients are taken once: a second backward and a second record say so, as does a disposed tape', () => {
  scope(() => {
    const x = Tensor.from([1, 2], [2], 'f64')
    const tape = new Tape().watch([x])
    const y = tape.record(() => add(x, x))
    throwsError(() => tape.backward(y, [x], Tensor.zeros([3], 'f64')), 'SHAPE', /seed \[2\]/, /f64\[3\]/)
    assert.equal([...tape.backward(y, [x])[0]!.data()], [2, 2])
    throwsError(() => tape.backward(y, [x]), 'TAPE', /backward/, /have been taken already/)
    throwsError(() => tape.record(() => add(x, x)), 'TAPE', /record/, /have been taken already/)
    const other = new Tape().watch([x])
    const z = other.record(() => add(x, x))
    other.dispose()
    throwsError(() => other.backward(z, [x]), 'TAPE', /has been disposed/)
  })
})

test('valueAndGradients is a tape around a loss of one element, and frees what it made when that is none', () => {
  scope(() => {
    const [x, y] = [Tensor.from([3], [1], 'f64'), Tensor.from([5], [1], 'f64')]
    const { value, gradients } = valueAndGradients(() => add(scale(x, 2), y), [y, x])
    assert.equal([value.item(), ...gradients.map((gradient) => gradient.item())], [11, 1, 2])
    const before = native.memory().handles
    throwsError(() => scope(() => valueAndGradients(() => Tensor.zeros([2]), [x])), 'SHAPE', /loss of one element/, /f32\[2\]/)
    throwsError(() => scope(() => valueAndGradients(() => Tensor.zeros([1]), [x])), 'TAPE', /not computed from a watched tensor/)
    assert.is(native.memory().handles, before)
  })
})

test('an output outside of the tape is an error that names it', () => {
  scope(() => {
    const x = Tensor.from([2], [1], 'f64')
    throwsError(() => new Tape().backward(x, [x]), 'TAPE', /f64\[1\]/)
  })
})

test('a gradient of the wrong shape names op, input and both shapes', () => {
  const bad = defineOp<{ x: Tensor | undefined }>({
    name: 'bad',
    forward: ({ x }) => ({ outputs: [x!.alias()] }),
    backward: () => ({ x: Tensor.zeros([3], 'f64') }),
  })
  scope(() => {
    const x = Tensor.from([2], [1], 'f64')
    const tape = new Tape().watch([x])
    const y = tape.record(() => apply(bad, { x }, {})[0]!)
    throwsError(() => tape.backward(y, [x]), 'TAPE', /bad/, /of x/, /f64\[3\]/, /f64\[1\]/)
  })
})

test('keys and queue of infoNce are constants: a gradient for them is an error', () => {
  scope(() => {
    const random = new Random(2)
    const [q, k, queue] = [
      [2, 4],
      [2, 4],
      [6, 4],
    ].map((shape) => randomTensor(random, shape)) as [Tensor, Tensor, Tensor]
    const tape = new Tape().watch([q, queue])
    const { loss } = tape.record(() => infoNce(q, k, queue, 0.2))
    throwsError(() => tape.backward(loss, [q, queue]), 'TAPE', /infoNce/, /stop-gradient/)
  })
})

test('the gradient check catches a wrong gradient', () => {
  const random = new Random(3)
  const x = randomTensor(random, [5])
  let caught = ''
  try {
    checkGradients(([input]) => wrongSquare(input!), [x], random)
  } catch (error) {
    caught = (error as Error).message
  }
  assert.match(caught, /the gradient is .* but differences give/)
  x.dispose()
})

test.run()
