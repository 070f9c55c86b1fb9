/** Every native op refuses a call that does not fit its row of native/core/ops.def, by the names of op and parameter. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { renderViews, wholeImage } from '../../src/data/augment.js'
import { Queue } from '../../src/methods/densecl/model.js'
import { Adam } from '../../src/optim/adam.js'
import { clipByGlobalNorm } from '../../src/optim/clip.js'
import { Lars } from '../../src/optim/lars.js'
import { checkFinite, Sgd } from '../../src/optim/sgd.js'
import { catalogue, type OpName } from '../../src/ops/catalogue.js'
import { conv2dNorm } from '../../src/ops/conv2dNorm.js'
import { deferNorm, deferNormGradient } from '../../src/ops/fusion.js'
import { permute } from '../../src/ops/permute.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { mapTensors, type NamedNumbers, type NamedTensors, observe, runNamed, runNative } from '../../src/tensor/native.js'
import { opSignatures } from '../../src/tensor/nativeOps.js'
import { Random } from '../../src/tensor/random.js'
import { type DType, scope, type Shape, Tensor } from '../../src/tensor/tensor.js'
import { suite, throwsError } from '../support/suite.js'
import { opCases } from './cases/index.js'

const test = suite('native calls')

interface Parameter {
  kind: string
  name: string
  dtype: string
  /** A name with three dots in front stands for any number of dimensions. */
  dimensions: string[]
  /** The axes, from the last one -1, that must not be of size 0. */
  filled: number[]
}
interface NumberParameter {
  kind: string
  name: string
}

/** The rows of ops.def, read by other means than those of the package. */
const declared = new Map(
  readFileSync(join(packageRoot, 'native', 'core', 'ops.def'), 'utf8')
    .replace(/\/\/.*$/gm, '')
    .split(/^OP\(/m)
    .slice(1)
    .map((row) => [
      /^\w+/.exec(row)![0],
      {
        tensors: [...row.matchAll(/([A-Z_]+)\((\w+), "(\w+)\[([^\]]*)\]"\)/g)].map(([, kind, name, dtype, dimensions]): Parameter => ({
          kind: kind!,
          name: name!,
          dtype: dtype!,
          dimensions: dimensions!.replaceAll('+', '').split(',').filter(Boolean),
          filled: [...dimensions!.split(',').entries()].flatMap(([axis, name]) =>
            name.endsWith('+') ? [axis - dimensions!.split(',').length] : [],
          ),
        })),
        numbers: [...row.matchAll(/(REAL|FLAG|INTEGER|LARGE_INTEGER|INTEGERS)\((\w+)/g)].map(([, kind, name]): NumberParameter => ({
          kind: kind!,
          name: name!,
        })),
      },
    ]),
)

interface Described {
  shape: Shape
  dtype: DType
}
interface Call {
  tensors: NamedTensors<Described>
  numbers: NamedNumbers
}

const presentIn = ({ tensors }: Call): number => Object.values(tensors).filter((value) => value !== undefined).length

/** One call of each op that was made while `body` ran: the one with the most tensors. */
function callsOf(body: () => void): Map<string, Call> {
  const calls = new Map<string, Call>()
  observe.op = (op, run, tensors, numbers) => {
    const call = { tensors: mapTensors(tensors, ({ shape, dtype }) => ({ shape: shape!, dtype: dtype as DType })), numbers }
    if (presentIn(call) > (calls.has(op) ? presentIn(calls.get(op)!) : 0)) calls.set(op, call)
    run()
  }
  try {
    scope(body)
  } finally {
    delete observe.op
  }
  return calls
}

/** Each op once or more, as the package calls it. */
function callEveryOp(): void {
  for (const [name, opCase] of Object.entries(opCases))
    for (const p of fc.sample(opCase.parameters, { seed: 1, numRuns: 8 })) {
      const inputs = opCase.inputs(p, new Random(1))
      const watched = inputs.slice(0, opCase.differentiable ?? inputs.length)
      const tape = new Tape().watch(watched)
      const y = tape.record(() => opCase.run(p, inputs))
      if (catalogue[name as OpName].backward !== 'notDifferentiable') tape.backward(y, watched, Tensor.full(y.shape, 1, y.dtype))
    }
  const parameters = new Map([['p', Tensor.zeros([2, 3])]])
  const gradients = [Tensor.full([2, 3], 1)]
  const emaTarget = { parameters: new Map([['p', Tensor.zeros([2, 3])]]), copies: new Map<string, Tensor>(), momentum: 0.5 }
  const foundInf = Tensor.zeros([1], 'i32')
  checkFinite(foundInf, gradients)
  clipByGlobalNorm(gradients, 1)
  for (const optimizer of [new Sgd(parameters, { momentum: 0.9, weightDecay: 0 }), new Adam(parameters), new Lars(parameters)]) {
    optimizer.step(gradients, 0.1, { foundInf, emaTarget })
    optimizer.dispose()
  }
  const tensors = { averages: [...emaTarget.parameters.values()], sources: [...parameters.values()], copies: [undefined] }
  runNative('ema', tensors, { momentum: 0.5 })
  const queue = new Queue(new Random(1), 5, 2, 'f32')
  queue.enqueue(Tensor.zeros([3, 2]))
  queue.keys.dispose()
  queue.pointer.dispose()
  const x = Tensor.zeros([2, 3, 4, 5])
  permute(x, [0, 3, 1, 2]).to('f64')
  const vector = (rows: number): Tensor => Tensor.zeros([rows, 5])
  deferNorm({ x, scale: vector(2), shift: vector(2), relu: true }).data()
  deferNormGradient({ dz: x, x, mean: vector(2), coefficients: Tensor.zeros([3, 2, 5]) }).data()
  const channels = (): Tensor => Tensor.zeros([5])
  const norm = { weight: channels(), bias: channels(), runningMean: channels(), runningVar: channels() }
  conv2dNorm(x, Tensor.zeros([5, 1, 1, 5]), norm, { residual: x })
  callsOfE4m3()
  const views = [Tensor.zeros([1, 4, 4, 3]), Tensor.zeros([1, 4, 4, 3])] as const
  const view = wholeImage({ width: 4, height: 4, data: new Uint8Array(0) })
  const placed = { view, offset: 0, height: 4, width: 4 }
  renderViews(views, 0, Tensor.zeros([48], 'u8'), [placed, placed])
}

/** Those in E4M3, with tensors that only a GPU takes. */
function callsOfE4m3(): void {
  const map = (dtype: DType): Tensor => Tensor.zeros([2, 3, 4, 5], dtype)
  const vector = (): Tensor => Tensor.zeros([2, 5])
  const windows = { strideH: 1, strideW: 1, paddingH: 0, paddingW: 0, dilationH: 1, dilationW: 1, tile: 0 }
  const convolution = { y: map('bf16'), x: map('e4m3'), weight: Tensor.zeros([5, 1, 1, 5], 'bf16'), statistics: Tensor.zeros([1, 2, 5]) }
  throwsError(() => runNative('conv2dE4m3', convolution, windows), 'ARGUMENT', /^conv2dE4m3: .*statistics/)
  const affine = { scale: vector(), shift: vector(), residualScale: vector(), residualShift: vector() }
  const norm = { y: map('e4m3'), x: map('bf16'), residual: map('bf16'), ...affine }
  throwsError(() => runNative('normE4m3', norm, { relu: true }), 'ARGUMENT', /^normE4m3: .*residualScale/)
}

const calls = callsOf(callEveryOp)

/** The first tensor that a call has of a parameter. */
function firstOf({ tensors }: Call, name: string): Described | undefined {
  const value = tensors[name]
  return Array.isArray(value) ? (value as (Described | undefined)[]).find(Boolean) : (value as Described | undefined)
}

/** Runs the call on tensors of zeros, with the first tensor of `name` changed. */
function runSpoiled(op: string, call: Call, name: string, change: (tensor: Described) => Described): void {
  scope(() => {
    const spoiled = firstOf(call, name)
    const made = (tensor: Described): Tensor => {
      const { shape, dtype } = tensor === spoiled ? change(tensor) : tensor
      return Tensor.zeros(shape, dtype)
    }
    runNamed(op, mapTensors(call.tensors, made), call.numbers)
  })
}

test('every op is called, with the names of its row', () => {
  assert.equal([...declared.keys()].sort(), opSignatures.map((signature) => signature.split('(')[0]).sort())
  assert.equal([...calls.keys()].sort(), [...declared.keys()].sort())
})

for (const [op, { tensors, numbers }] of declared) {
  const call = calls.get(op)!
  const present = tensors.filter(({ name }) => firstOf(call, name) !== undefined)
  const lists = present.filter(({ kind }) => kind.endsWith('LIST'))
  /** Whether another tensor of the call says what a letter stands for. */
  const shared = (letter: string, of: (parameter: Parameter) => string[]): boolean =>
    present.reduce((count, parameter) => count + of(parameter).filter((other) => other === letter).length, 0) > 1
  const dimensionsOf = ({ dimensions }: Parameter): string[] => dimensions
  const isSaid = (dimension: string): boolean => /^\d/.test(dimension) || (!dimension.startsWith('_') && shared(dimension, dimensionsOf))
  const refused = (parameter: Parameter, code: string, change: (tensor: Described) => Described): void => {
    throwsError(() => runSpoiled(op, call, parameter.name, change), code, new RegExp(`^${op}: `), new RegExp(`\\b${parameter.name}\\b`))
  }

  test(`${op}: a tensor of the wrong dtype is refused`, () => {
    for (const parameter of present) {
      const { dtype } = parameter
      if (dtype === '_' || (/^[B-SU-Z]$/.test(dtype) && !shared(dtype, (other) => [other.dtype]))) continue
      refused(parameter, 'DTYPE', ({ shape, dtype: was }) => ({ shape, dtype: was === 'i32' ? 'f32' : 'i32' }))
    }
  })

  test(`${op}: a tensor of the wrong rank is refused`, () => {
    for (const parameter of present) {
      const packed = parameter.dimensions[0]?.endsWith('...') === true
      const alike = lists.length > 1 && lists.includes(parameter)
      if (packed && !parameter.dimensions.some(isSaid) && !alike) continue
      refused(parameter, 'SHAPE', ({ shape, dtype }) => ({ shape: [...shape, 7], dtype }))
      if (!packed && parameter.dimensions.length > 0) refused(parameter, 'SHAPE', ({ shape, dtype }) => ({ shape: shape.slice(1), dtype }))
    }
  })

  test(`${op}: a tensor of a size that another does not have is refused`, () => {
    for (const parameter of present) {
      const { dimensions } = parameter
      const { shape } = firstOf(call, parameter.name)!
      const packed = dimensions[0]?.endsWith('...') === true ? shape.length - dimensions.length + 1 : 0
      for (const axis of shape.keys()) {
        const dimension = packed === 0 ? dimensions[axis]! : axis < packed ? dimensions[0]! : dimensions[axis - packed + 1]!
        const alike = lists.length > 1 && lists.includes(parameter)
        if (isSaid(dimension) || alike)
          refused(parameter, 'SHAPE', ({ dtype }) => ({ shape: shape.map((size, i) => size + Number(i === axis)), dtype }))
      }
    }
  })

  test(`${op}: a tensor of no elements along an axis that must have some is refused`, () => {
    for (const { name, filled } of present)
      for (const axis of filled) {
        const empty = ({ shape, dtype }: Described): Described => ({ shape: shape.with(axis, 0), dtype })
        // Other tensors share the axis, so theirs is emptied with it.
        const letter = tensors.find((parameter) => parameter.name === name)!.dimensions.at(axis)!
        const emptied = (other: Described): Described => {
          const { dimensions } = tensors.find((parameter) => firstOf(call, parameter.name) === other)!
          const at = dimensions.lastIndexOf(letter) - dimensions.length
          return letter !== '_' && at < 0 && dimensions.includes(letter) ? { ...other, shape: other.shape.with(at, 0) } : other
        }
        scope(() => {
          const whole = firstOf(call, name)
          const made = mapTensors(call.tensors, (tensor) => {
            const { shape, dtype } = tensor === whole ? empty(tensor) : emptied(tensor)
            return Tensor.zeros(shape, dtype)
          })
          throwsError(
            () => runNamed(op, made, call.numbers),
            'SHAPE',
            new RegExp(`^${op}: expected ${name} .* with at least one element along axis`),
          )
        })
      }
  })

  test(`${op}: a missing or unknown name is refused, and a number of the wrong kind`, () => {
    scope(() => {
      const made = mapTensors(call.tensors, ({ shape, dtype }) => Tensor.zeros(shape, dtype))
      const named = (name: string): RegExp => new RegExp(`^${op}: .*\\b${name}\\b`)
      throwsError(() => runNamed(op, { ...made, unheard: Tensor.zeros([1]) }, call.numbers), 'ARGUMENT', named('unheard'))
      throwsError(() => runNamed(op, made, { ...call.numbers, unheard: 1 }), 'ARGUMENT', named('unheard'))
      for (const { kind, name } of tensors) {
        const { [name]: _, ...others } = made
        if (!kind.startsWith('OPTIONAL') || kind.endsWith('LIST'))
          throwsError(() => runNamed(op, others, call.numbers), 'ARGUMENT', named(name))
      }
      for (const { kind, name } of numbers) {
        const { [name]: _, ...others } = call.numbers
        throwsError(() => runNamed(op, made, others), 'ARGUMENT', named(name))
        const wrong = { REAL: undefined, FLAG: 2, INTEGER: 0.5, LARGE_INTEGER: 0.5, INTEGERS: [0.5] }[kind]
        if (wrong !== undefined) throwsError(() => runNamed(op, made, { ...call.numbers, [name]: wrong }), 'ARGUMENT', named(name))
      }
    })
  })
}

test('windows that do not follow from the sizes are refused, and groups that do not divide the batch', () => {
  const windows = { strideH: 1, strideW: 1, paddingH: 0, paddingW: 0, dilationH: 1, dilationW: 1, tile: 0, tf32: false }
  const pool = { kernelH: 2, kernelW: 2, strideH: 2, strideW: 2, paddingH: 0, paddingW: 0 }
  scope(() => {
    const zeros = (...shape: number[]): Tensor => Tensor.zeros(shape)
    const [x, weight, y] = [zeros(2, 6, 6, 3), zeros(4, 3, 3, 3), zeros(2, 4, 5, 4)]
    const pattern = /expected d?y of 4x4 windows but received f32\[2,4,5,4\]/
    throwsError(() => runNative('conv2d', { y, x, weight }, { ...windows, relu: false }), 'SHAPE', /^conv2d/, pattern)
    throwsError(() => runNative('conv2dBackwardInput', { dx: x, dy: y, weight }, windows), 'SHAPE', /^conv2dBackwardInput/, pattern)
    const numbers = { ...windows, relu: false, splits: 0 }
    throwsError(() => runNative('conv2dBackwardWeight', { dweight: weight, dy: y, x }, numbers), 'SHAPE', pattern)
    const averaged = { ...pool, countPadding: true, adaptive: false }
    throwsError(() => runNative('avgPool2d', { y: zeros(2, 3, 2, 3), x }, averaged), 'SHAPE', /avgPool2d: expected y of 3x3 windows/)
    const vectors = zeros(3, 3)
    throwsError(
      () => runNative('normApply', { y: x, x, scale: vectors, shift: vectors }, { relu: true }),
      'SHAPE',
      /scale .*divide the batch/,
    )
  })
})

test.run()
