/** Ops of two tensors with broadcasting, comparisons, and where. */
import { defineOp, expectDType, expectFloats, type Inputs } from '../autograd/op.js'
import { apply } from '../autograd/tape.js'
import { calledAs, fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { compareKinds } from '../tensor/nativeOps.js'
import { describe, type Shape, Tensor } from '../tensor/tensor.js'
import { scale } from './elementwise.js'
import { binary, broadcastShape, type Operand, shapesOf, spread, sumTo, withTensors } from './broadcast.js'

interface Binary extends Inputs {
  a: Tensor
  b: Tensor
}
interface Shapes {
  a: Shape
  b: Shape
}
type Saved = Record<'a' | 'b' | 'y', Tensor>
/** A gradient before it is summed over the axes of broadcasting, from dy and the saved tensors. */
type Rule = (dy: Tensor, saved: Saved) => Tensor

/** An op of a formula of native/core/maps.def that saves `saves` for the gradients da and db. */
const binaryOp = (name: 'sub' | 'mul' | 'div' | 'pow' | 'maximum' | 'minimum', saves: readonly (keyof Saved)[], da: Rule, db: Rule) =>
  defineOp<Binary, Shapes>({
    name,
    forward({ a, b }) {
      const y = binary(name, a, b)
      const known: Saved = { a, b, y }
      return { outputs: [y], saved: Object.fromEntries(saves.map((key) => [key, known[key]])) }
    },
    backward({ grad, saved, attrs, needs }) {
      return {
        a: needs.a ? sumTo(da(grad, saved as Saved), attrs.a) : undefined,
        b: needs.b ? sumTo(db(grad, saved as Saved), attrs.b) : undefined,
      }
    },
  })

export const addOp = defineOp<Binary, Shapes>({
  name: 'add',
  forward({ a, b }) {
    if (a.shape.join() !== b.shape.join()) return { outputs: [binary('add', a, b)] }
    const y = Tensor.empty(a.shape, a.dtype)
    runNative('add', { y, a, b })
    return { outputs: [y] }
  },
  // da = db = dy
  backward({ grad, attrs, needs }) {
    return { a: needs.a ? sumTo(grad, attrs.a) : undefined, b: needs.b ? sumTo(grad, attrs.b) : undefined }
  },
})

const negative = (x: Tensor): Tensor => spread(x, x.shape, -1)

// da = dy, db = -dy
export const subOp = binaryOp('sub', [], (dy) => dy, negative)

// da = dy b, db = dy a
export const mulOp = binaryOp(
  'mul',
  ['a', 'b'],
  (dy, { b }) => binary('mul', dy, b),
  (dy, { a }) => binary('mul', dy, a),
)

// da = dy / b, db = -dy y / b
export const divOp = binaryOp(
  'div',
  ['b', 'y'],
  (dy, { b }) => binary('div', dy, b),
  (dy, { b, y }) => negative(binary('mul', binary('div', dy, b), y)),
)

// da = dy b a^(b - 1), 0 where b = 0; db = dy a^b log a, 0 where a = 0 and b >= 0 (as in PyTorch)
export const powOp = binaryOp(
  'pow',
  ['a', 'b'],
  (dy, { a, b }) => binary('mul', dy, binary('powBase', a, b)),
  (dy, { a, b }) => binary('mul', dy, binary('powExponent', a, b)),
)

// The larger one gets dy; where they tie, each gets half of it (as in PyTorch). share(a, b) is 1, 1/2 or 0.
export const maximumOp = binaryOp(
  'maximum',
  ['a', 'b'],
  (dy, { a, b }) => binary('mul', dy, binary('share', a, b)),
  (dy, { a, b }) => binary('mul', dy, binary('share', b, a)),
)
export const minimumOp = binaryOp(
  'minimum',
  ['a', 'b'],
  (dy, { a, b }) => binary('mul', dy, binary('share', b, a)),
  (dy, { a, b }) => binary('mul', dy, binary('share', a, b)),
)

const broadcasting =
  (op: ReturnType<typeof binaryOp>) =>
  (a: Operand, b: Operand): Tensor =>
    withTensors(op.name, { a, b }, (inputs) => {
      expectFloats(op.name, inputs)
      broadcastShape(op.name, inputs)
      return apply(op, inputs, shapesOf(inputs))[0]!
    })

/** a + b with NumPy's broadcasting, for tensors of one floating dtype; one of them may be a number. */
export const add = broadcasting(addOp)
/** a - b with NumPy's broadcasting, for tensors of one floating dtype; one of them may be a number. */
export const sub = broadcasting(subOp)
const scaledAs = (name: string, x: Tensor, factor: number): Tensor => calledAs(name, new Set(['scale']), () => scale(x, factor))
const multiply = broadcasting(mulOp)
/** a * b, element by element, with NumPy's broadcasting, for tensors of one floating dtype; one of them may be a number. */
export const mul = (a: Operand, b: Operand): Tensor =>
  typeof b === 'number' && a instanceof Tensor
    ? scaledAs('mul', a, b)
    : typeof a === 'number' && b instanceof Tensor
      ? scaledAs('mul', b, a)
      : multiply(a, b)
/** a / b with NumPy's broadcasting, for tensors of one floating dtype; one of them may be a number. */
export const div = broadcasting(divOp)
/**
 * a to the power b with NumPy's broadcasting, for tensors of one floating dtype; one of them may be a number. A negative a gives NaN
 * unless b is a whole number. The gradient is 0 with respect to a where b = 0, and with respect to b where a = 0 and b >= 0.
 */
export const pow = broadcasting(powOp)
/**
 * The larger of a and b, element by element with NumPy's broadcasting, and NaN where one of them is NaN. Where they are equal each gets
 * half of the gradient.
 */
export const maximum = broadcasting(maximumOp)
/**
 * The smaller of a and b, element by element with NumPy's broadcasting, and NaN where one of them is NaN. Where they are equal each
 * gets half of the gradient.
 */
export const minimum = broadcasting(minimumOp)

/** -x of a floating dtype. */
export const neg = (x: Tensor): Tensor => scaledAs('neg', x, -1)

type Comparison = keyof typeof compareKinds

export const compareOp = defineOp<Binary, { kind: Comparison }>({
  name: 'compare',
  forward({ a, b }, { kind }) {
    const y = Tensor.empty(broadcastShape(kind, { a, b }), 'u8')
    runNative('compare', { y, a, b }, { kind: compareKinds[kind] })
    return { outputs: [y] }
  },
  backward: 'notDifferentiable',
})

const comparing =
  (kind: Comparison) =>
  (a: Operand, b: Operand): Tensor =>
    withTensors(kind, { a, b }, (inputs) => {
      expectDType(kind, 'b', inputs.b, inputs.a.dtype)
      return calledAs(kind, new Set(['compare']), () => apply(compareOp, inputs, { kind })[0]!)
    })

// A comparison broadcasts by NumPy's rules tensors of one dtype, whichever it is, and gives 1 or 0 as u8; it is not differentiable.

/** a = b element by element, with broadcasting: 1 or 0 as u8. Either may be a number. */
export const equal = comparing('equal')
/** Whether a and b differ, element by element with broadcasting: 1 or 0 as u8; NaN differs from everything. Either may be a number. */
export const notEqual = comparing('notEqual')
/** a < b element by element, with broadcasting: 1 or 0 as u8. Either may be a number. */
export const less = comparing('less')
/** a <= b element by element, with broadcasting: 1 or 0 as u8. Either may be a number. */
export const lessEqual = comparing('lessEqual')
/** a > b element by element, with broadcasting: 1 or 0 as u8. Either may be a number. */
export const greater = comparing('greater')
/** a >= b element by element, with broadcasting: 1 or 0 as u8. Either may be a number. */
export const greaterEqual = comparing('greaterEqual')

const choose = (condition: Tensor, a: Tensor, b: Tensor): Tensor => {
  const y = Tensor.empty(broadcastShape('where', { condition, a, b }), a.dtype, a.device)
  runNative('where', { y, condition, a, b })
  return y
}

export const whereOp = defineOp<Binary & { condition: Tensor }, Shapes>({
  name: 'where',
  forward({ a, b, condition }) {
    return { outputs: [choose(condition, a, b)], saved: { condition } }
  },
  // da = dy where the condition holds, db = dy where it does not, else 0
  backward({ grad, saved, attrs, needs }) {
    const zero = Tensor.zeros([], grad.dtype, grad.device)
    return {
      a: needs.a ? sumTo(choose(saved.condition!, grad, zero), attrs.a) : undefined,
      b: needs.b ? sumTo(choose(saved.condition!, zero, grad), attrs.b) : undefined,
    }
  },
})

/** a where `condition` (u8) is not 0, else b, with NumPy's broadcasting of all three; a and b are of one dtype, one may be a number. */
export function where(condition: Tensor, a: Operand, b: Operand): Tensor {
  expectDType('where', 'condition', condition, 'u8')
  return withTensors('where', { a, b }, (inputs) => {
    if (inputs.a.dtype !== inputs.b.dtype)
      fail('DTYPE', `where: expected one dtype but received a ${describe(inputs.a)} and b ${describe(inputs.b)}`)
    broadcastShape('where', { condition, ...inputs })
    return apply(whereOp, { ...inputs, condition }, shapesOf(inputs))[0]!
  })
}
