/**
 * `node dist/tests/ops/fuzz.js SECONDS SEED FILE`: random ops of the catalogue, forward and backward, on odd shapes and values. What is
 * tried is written to FILE first, so that it is known when the process ends. Each outcome must be a result or an error of DensECL that
 * is not INTERNAL.
 */
import { writeFileSync } from 'node:fs'

import fc from 'fast-check'

import { Tape } from '../../src/autograd/tape.js'
import { catalogue, type OpName } from '../../src/ops/catalogue.js'
import { DenseclError } from '../../src/tensor/errors.js'
import { native } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor } from '../../src/tensor/tensor.js'
import { opCases } from './cases/index.js'

const [seconds, seed, file] = [Number(process.argv[2]), Number(process.argv[3]), process.argv[4]!]
native.setMemoryLimit(2 ** 29)

const sizes = fc.constantFrom(0, 1, 2, 17, 33)
const fills = [NaN, Infinity, -Infinity, 1e30, 0] as const

/** A change of a size: of one tensor along one axis, or `together` of every axis of that size in all tensors. */
interface Change {
  tensor: number
  axis: number
  size: number
  together: boolean
}

const trial = fc
  .constantFrom(...(Object.keys(opCases) as OpName[]))
  .chain((name) =>
    fc.record({
      name: fc.constant(name),
      parameters: opCases[name].parameters,
      changes: fc.array(fc.record<Change>({ tensor: fc.nat(5), axis: fc.nat(4), size: sizes, together: fc.boolean() }), { maxLength: 3 }),
      number: fc.option(fc.record({ at: fc.nat(12), value: fc.constantFrom(0, 1, 2, 3, 17) })),
      fill: fc.option(fc.constantFrom(...fills)),
      dtype: fc.constantFrom<FloatDType>('f32', 'f64'),
      seed: fc.nat(1000),
    }),
  )

/** `value` with its `at`-th number, counted through all that it holds, replaced. */
function replaceNumber(value: unknown, at: number, by: number): unknown {
  let seen = 0
  const copy = (part: unknown): unknown => {
    if (typeof part === 'number') return seen++ === at ? by : part
    if (Array.isArray(part)) return part.map(copy)
    if (part !== null && typeof part === 'object') return Object.fromEntries(Object.entries(part).map(([key, each]) => [key, copy(each)]))
    return part
  }
  return copy(value)
}

function changed(shapes: number[][], { tensor, axis, size, together }: Change): number[][] {
  const shape = shapes[tensor % shapes.length]!
  if (shape.length === 0) return shapes
  const [at, old] = [axis % shape.length, shape[axis % shape.length]]
  if (together) return shapes.map((each) => each.map((d) => (d === old ? size : d)))
  return shapes.map((each) => (each === shape ? each.with(at, size) : each))
}

const count = { given: 0, refused: 0 }
const report = fc.check(
  fc.property(trial, ({ name, parameters, changes, number, fill, dtype, seed: values }) => {
    writeFileSync(file, JSON.stringify({ name, parameters, changes, number, fill: String(fill), dtype, values }))
    const opCase = opCases[name]
    scope(() => {
      const random = new Random(values)
      const sound = opCase.inputs(parameters, random)
      const shapes = changes.reduce(
        changed,
        sound.map((x) => [...x.shape]),
      )
      const inputs = sound.map((x, i) => {
        const shape = shapes[i]!
        const data =
          shape.join() === x.shape.join()
            ? Float64Array.from(x.data())
            : Float64Array.from({ length: shape.reduce((n, d) => n * d, 1) }, () => random.uniform(-1, 1))
        if (fill !== null && data.length > 0) data[values % data.length] = fill
        return Tensor.from(data, shape, 'f64').to(dtype)
      })
      const p = number === null ? parameters : replaceNumber(parameters, number.at, number.value)
      try {
        const watched = inputs.slice(0, opCase.differentiable ?? inputs.length)
        const tape = new Tape().watch(watched)
        const y = tape.record(() => opCase.run(p, inputs))
        if (catalogue[name].backward !== 'notDifferentiable') tape.backward(y, watched, Tensor.full(y.shape, 1, y.dtype))
        count.given += 1
      } catch (error) {
        if (!(error instanceof DenseclError) || error.code === 'INTERNAL') throw error
        count.refused += 1
      }
    })
  }),
  { seed, numRuns: 1_000_000, interruptAfterTimeLimit: seconds * 1000 },
)
if (report.counterexample !== null) {
  console.error(JSON.stringify(report.counterexample), report.errorInstance)
  process.exit(1)
}
console.log(JSON.stringify(count))
