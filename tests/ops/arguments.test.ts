/** Wrong arguments: each error names the op, the argument, both shapes and both dtypes; and values with a known answer. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { batchNorm } from '../../src/ops/batchNorm.js'
import { catalogue } from '../../src/ops/catalogue.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { add, where } from '../../src/ops/arithmetic.js'
import { broadcastTo } from '../../src/ops/broadcastTo.js'
import { concat, stack } from '../../src/ops/concat.js'
import { dropout, relu, reshape } from '../../src/ops/elementwise.js'
import { gather } from '../../src/ops/gather.js'
import { linear } from '../../src/ops/linear.js'
import { crossEntropy, infoNce } from '../../src/ops/losses.js'
import { pad } from '../../src/ops/pad.js'
import { permute, transpose } from '../../src/ops/permute.js'
import { avgPool2d, maxPool2d } from '../../src/ops/pool2d.js'
import * as engine from '../../src/engine.js'
import { denseMatch, gatherRows, permuteBatch } from '../../src/ops/similarity.js'
import { slice } from '../../src/ops/slice.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { native, runNative } from '../../src/tensor/native.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { suite, throwsError } from '../support/suite.js'
import { opCases } from './cases/index.js'

const test = suite('arguments')
const zeros = (shape: number[], dtype: 'f32' | 'f64' | 'i32' = 'f32'): Tensor => Tensor.zeros(shape, dtype)

test('shape and dtype mistakes name everything', () => {
  scope(() => {
    throwsError(() => conv2d(zeros([1, 4, 4, 3]), zeros([8, 3, 3, 4])), 'SHAPE', /conv2d/, /weight/, /f32\[1,4,4,3\]/, /f32\[8,3,3,4\]/)
    throwsError(
      () => conv2d(zeros([1, 4, 4, 3]), zeros([8, 3, 3, 3], 'f64')),
      'DTYPE',
      /conv2d/,
      /x f32\[1,4,4,3\]/,
      /weight f64\[8,3,3,3\]/,
    )
    throwsError(() => conv2d(zeros([1, 2, 2, 3]), zeros([8, 3, 3, 3])), 'SHAPE', /larger than the padded x/)
    throwsError(() => conv2d(zeros([1, 4, 4, 3]), zeros([8, 3, 3, 3]), undefined, { stride: 0 }), 'ARGUMENT', /stride/, /received 0/)
    throwsError(() => linear(zeros([2, 3]), zeros([4, 5])), 'SHAPE', /linear/, /f32\[2,3\]/, /f32\[4,5\]/)
    throwsError(() => add(zeros([2]), zeros([3])), 'SHAPE', /add/, /\[2\]/, /f32\[3\]/)
    throwsError(() => relu(zeros([2], 'i32')), 'DTYPE', /relu/, /i32\[2\]/)
    throwsError(() => reshape(zeros([2, 3]), [7]), 'SHAPE', /reshape/, /\[7\]/)
    throwsError(() => concat([]), 'ARGUMENT', /concat/)
    throwsError(() => dropout(zeros([1]), NaN, 0), 'ARGUMENT', /NaN/)
    throwsError(() => maxPool2d(zeros([1, 4, 4, 1]), { kernel: 2, padding: 2 }), 'ARGUMENT', /maxPool2d/, /half the kernel/)
    throwsError(() => denseMatch(zeros([1, 2, 3]), zeros([2, 2, 3])), 'SHAPE', /denseMatch/, /key/)
    throwsError(() => infoNce(zeros([2, 3]), zeros([2, 3]), zeros([4, 5]), 0.2), 'SHAPE', /queue/)
    throwsError(() => infoNce(zeros([2, 3]), zeros([2, 3]), zeros([4, 3]), 0), 'ARGUMENT', /temperature/)
    throwsError(() => crossEntropy(zeros([2, 3]), Tensor.from([0, 3], [2], 'i32')), 'RANGE', /target 3/, /3 classes/)
    throwsError(() => gatherRows(zeros([1, 2, 3]), Tensor.from([2], [1, 1], 'i32')), 'RANGE', /index 2/)
    const norm = (x: Tensor, groups: number): Tensor =>
      batchNorm(x, zeros([2]), zeros([2]), zeros([2]), zeros([2]), { train: true, groups })
    throwsError(() => norm(zeros([3, 2, 2, 2]), 2), 'ARGUMENT', /groups/, /received 2/)
    throwsError(() => norm(zeros([1, 1, 1, 2]), 1), 'SHAPE', /more than one value/, /in 1 group: take a larger batchSize or imageSize$/)
  })
})

test('a tensor of another rank is refused by op, argument and rank', () => {
  scope(() => {
    const [map, kernel] = [zeros([1, 4, 4, 3]), zeros([2, 3, 3, 3])]
    const wrong: [op: string, name: string, rank: number, call: (tensor: Tensor) => unknown][] = [
      ['conv2d', 'x', 4, (x) => conv2d(x, kernel)],
      ['conv2d', 'weight', 4, (weight) => conv2d(map, weight)],
      ['linear', 'x', 2, (x) => linear(x, zeros([4, 3]))],
      ['linear', 'weight', 2, (weight) => linear(zeros([2, 3]), weight)],
      ['batchNorm', 'x', 4, (x) => batchNorm(x, zeros([3]), zeros([3]), zeros([3]), zeros([3]), { train: true })],
      ['maxPool2d', 'x', 4, (x) => maxPool2d(x, { kernel: 2 })],
      ['avgPool2d', 'x', 4, (x) => avgPool2d(x, { kernel: 2 })],
      ['adaptiveAvgPool2d', 'x', 4, (x) => engine.adaptiveAvgPool2d(x, 1)],
      ['dropout', 'x', 4, (x) => dropout(x, 0.5, 1, { whole: true })],
      ['infoNce', 'query', 2, (query) => infoNce(query, zeros([2, 3]), zeros([4, 3]), 0.2)],
      ['infoNce', 'queue', 2, (queue) => infoNce(zeros([2, 3]), zeros([2, 3]), queue, 0.2)],
      ['denseMatch', 'query', 3, (query) => denseMatch(query, zeros([1, 2, 3]))],
      ['denseMatch', 'key', 3, (key) => denseMatch(zeros([1, 2, 3]), key)],
      ['gatherRows', 'x', 3, (x) => gatherRows(x, zeros([1, 1], 'i32'))],
      ['gatherRows', 'index', 2, (index) => gatherRows(zeros([1, 2, 3]), index)],
    ]
    for (const [op, name, rank, call] of wrong)
      for (const other of [rank - 1, rank + 1])
        throwsError(
          () => call(zeros(new Array<number>(other).fill(3), name === 'index' ? 'i32' : 'f32')),
          'SHAPE',
          new RegExp(`^${op}: expected ${name} of rank ${rank} but received \\w+\\[3(,3){${other - 1}}\\]`),
        )
  })
})

test('a shape that is none, and what is no tensor, are refused by op and argument', () => {
  scope(() => {
    const x = zeros([2, 3])
    const none = undefined as unknown as Tensor
    throwsError(() => reshape(x, [-2, -3]), 'SHAPE', /reshape: expected a shape of non-negative integers but received \[-2,-3\]/)
    throwsError(() => reshape(x, [1.5, 4]), 'SHAPE', /reshape/, /\[1.5,4\]/)
    throwsError(() => Tensor.from([1, 2], 2 as unknown as number[]), 'SHAPE', /non-negative integers but received 2/)
    throwsError(() => pad(zeros([2], 'i32'), [[1, 1]], 0.5), 'ARGUMENT', /pad: expected value to be an integer/)
    for (const [name, call] of Object.entries({
      reshape: () => reshape(none, [1]),
      slice: () => slice(none, []),
      pad: () => pad(none, []),
      permute: () => permute(none, []),
      transpose: () => transpose(none),
      broadcastTo: () => broadcastTo(none, [1]),
      concat: () => concat([x, none]),
      stack: () => stack([x, none]),
      where: () => where(none, x, x),
      gather: () => gather(x, none),
      permuteBatch: () => permuteBatch(none, []),
    }))
      throwsError(call, 'ARGUMENT', new RegExp(`^${name}: expected \\w+ to be a tensor but received undefined`))
    assert.equal(slice(zeros([0]), [[undefined, undefined, -1]]).shape, [0])
    assert.equal(dropout(zeros([0, 2, 2, 3]), 0.5, 1, { whole: true }).shape, [0, 2, 2, 3])
    assert.equal(permuteBatch(zeros([0, 2, 3]), []).shape, [0, 2, 3])
  })
})

test('an error names what was called, not what does its work', () => {
  scope(() => {
    const whole = Tensor.zeros([2, 3], 'i32')
    const fraction = zeros([2, 3])
    const outside = Tensor.full([2], 9, 'i32')
    const unary = {
      exp: engine.exp,
      log: engine.log,
      abs: engine.abs,
      gelu: engine.gelu,
      mean: engine.mean,
      sum: engine.sum,
      max: engine.max,
    }
    const binary = {
      add,
      mul: engine.mul,
      div: engine.div,
      pow: engine.pow,
      maximum: engine.maximum,
      less: engine.less,
      equal: engine.equal,
    }
    const calls: Record<string, () => unknown> = {
      gather: () => gather(zeros([2, 3]), outside),
      gatherRows: () => gatherRows(zeros([1, 3, 3]), Tensor.full([1, 2], 9, 'i32')),
      permuteBatch: () => permuteBatch(zeros([2, 3]), [0, 9]),
      oneHot: () => engine.oneHot(outside, 3),
      neg: () => engine.neg(whole),
      mul: () => engine.mul(whole, 2),
      linear: () => linear(whole, whole),
      logSoftmax: () => engine.logSoftmax(whole),
      sort: () => engine.sort(whole),
      variance: () => engine.variance(whole),
      adaptiveAvgPool2d: () => engine.adaptiveAvgPool2d(Tensor.zeros([1, 2, 2, 1], 'i32'), 1),
      clipByValue: () => engine.clipByValue([whole], 1),
    }
    const named = (name: string, call: () => unknown): void => {
      try {
        call()
      } catch (error) {
        assert.match((error as Error).message, new RegExp(`^${name}: `))
        assert.match((error as Error).stack!, `${name}: `)
        return
      }
      assert.unreachable(`${name} takes anything`)
    }
    for (const [name, call] of Object.entries(calls)) named(name, call)
    for (const [name, op] of Object.entries(unary)) named(name, () => op(whole))
    for (const [name, op] of Object.entries(binary)) named(name, () => op(whole, fraction))
  })
})

test('NaN in is NaN out, never a number', () => {
  scope(() => {
    const nan = (shape: number[]): Tensor => Tensor.full(shape, NaN)
    assert.ok(Number.isNaN(relu(nan([1])).item()))
    assert.ok(Number.isNaN(maxPool2d(nan([1, 2, 2, 1]), { kernel: 2 }).item()))
    assert.ok(Number.isNaN(infoNce(nan([1, 4]), nan([1, 4]), Tensor.full([40, 4], 0.5), 0.2).loss.item()))
    assert.ok(
      conv2d(nan([1, 3, 3, 2]), Tensor.full([1, 3, 3, 2], 1))
        .data()
        .every(Number.isNaN),
    )
  })
})

test('infoNce: all similarities equal cost ln(K + 1), on both sides of every block of the queue', () => {
  scope(() => {
    for (const keys of [1, 15, 16, 17, 255, 256, 257, 513]) {
      const unit = (rows: number): Tensor => Tensor.full([rows, 4], 0.5)
      const { loss, statistics } = infoNce(unit(3), unit(3), unit(keys), 0.2)
      assert.ok(Math.abs(loss.item() - Math.log(keys + 1)) < 1e-5, `K ${keys}: ${loss.item()}`)
      const [positive, negative, accuracy] = statistics.data()
      assert.ok(Math.abs(positive! - 1) < 1e-6 && Math.abs(negative! - 1) < 1e-6 && accuracy === 0)
    }
  })
})

test('denseMatch: the lowest index wins a tie, negative similarities count', () => {
  scope(() => {
    const query = Tensor.from([1, 0, 0, 1], [1, 2, 2])
    const key = Tensor.from([-1, 0, 2, 0, 1, 0, 0, -3], [1, 4, 2])
    const { index, similarity } = denseMatch(query, key)
    assert.equal([...index.data()], [1, 0])
    assert.equal([...similarity.data()], [1, -0].map(Math.abs))
  })
})

test('average pooling counts the padding only when told to', () => {
  scope(() => {
    const x = Tensor.full([1, 2, 2, 1], 4)
    assert.equal([...avgPool2d(x, { kernel: 2, stride: 2, padding: 1 }).data()], [1, 1, 1, 1])
    assert.equal([...avgPool2d(x, { kernel: 2, stride: 2, padding: 1, countPadding: false }).data()], [4, 4, 4, 4])
  })
})

test('batch norm in groups is batch norm on each part', () => {
  scope(() => {
    const values = Float64Array.from({ length: 4 * 2 * 2 * 3 }, (_, i) => Math.sin(i * i))
    const parameters = (): [Tensor, Tensor, Tensor, Tensor] => [
      Tensor.from([1, 2, 3], [3], 'f64'),
      Tensor.from([0, 1, -1], [3], 'f64'),
      Tensor.zeros([3], 'f64'),
      Tensor.full([3], 1, 'f64'),
    ]
    const together = batchNorm(Tensor.from(values, [4, 2, 2, 3], 'f64'), ...parameters(), { train: true, groups: 2 }).data()
    const apart = [0, 1].flatMap((g) => [
      ...batchNorm(Tensor.from(values.subarray(g * 24, (g + 1) * 24), [2, 2, 2, 3], 'f64'), ...parameters(), { train: true }).data(),
    ])
    assert.equal([...together], apart)
  })
})

test('batch norm keeps its accuracy where the mean is far from 0', () => {
  scope(() => {
    const deviations = Float64Array.from({ length: 4096 }, (_, i) => Math.sin(i))
    const run = (dtype: 'f32' | 'f64'): ArrayLike<number> => {
      const x = Tensor.from(
        deviations.map((d) => 1000 + Math.fround(d)),
        [16, 16, 16, 1],
        dtype,
      )
      return batchNorm(x, Tensor.full([1], 1, dtype), Tensor.zeros([1], dtype), Tensor.zeros([1], dtype), Tensor.zeros([1], dtype), {
        train: true,
      }).data()
    }
    const [single, double] = [run('f32'), run('f64')]
    // The input itself rounds at 1000 * 2^-24; E[x^2] - E[x]^2 would err by 1000^2 * 2^-24 = 0.06.
    for (let i = 0; i < single.length; ++i) assert.ok(Math.abs(single[i]! - double[i]!) < 5e-4, `${single[i]} ${double[i]}`)
  })
})

// Calls are checked by the compiler too; these are what a caller without types, or a wrong cast, would pass.
const untyped = runNative as (op: string, tensors: object, numbers?: object) => void

test('a native call is refused by the name of what is missing, unknown, or of the wrong dtype, shape or kind', () => {
  scope(() => {
    const [y, x] = [Tensor.zeros([2, 3]), Tensor.zeros([2, 3])]
    throwsError(() => untyped('relu', { y }), 'ARGUMENT', /relu: the tensor x is missing/)
    throwsError(() => untyped('relu', { y, x, z: x }), 'ARGUMENT', /relu: has no tensor z; it has y, x/)
    throwsError(() => untyped('scale', { y, x }), 'ARGUMENT', /scale: the number number is missing/)
    throwsError(() => untyped('scale', { y, x }, { number: 1, other: 2 }), 'ARGUMENT', /scale: has no number other/)
    throwsError(() => untyped('relu', { y, x: Tensor.zeros([2, 3], 'i32') }), 'DTYPE', /expected x T\[S\.\.\.\] of a floating dtype/)
    throwsError(() => untyped('relu', { y, x: Tensor.zeros([2, 3], 'f64') }), 'DTYPE', /of dtype f32 as y but received f64\[2,3\]/)
    throwsError(
      () => untyped('relu', { y, x: Tensor.zeros([3, 2]) }),
      'SHAPE',
      /with the leading dimensions of y f32\[2,3\] but received f32\[3,2\]/,
    )
  })
})

test('every native op has a caller in src, every op of the catalogue a case', () => {
  assert.equal(Object.keys(opCases).sort(), Object.keys(catalogue).sort())
  const folder = join(packageRoot, 'src')
  const source = readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts'))
    .map((file) => readFileSync(join(folder, file), 'utf8'))
    .join('\n')
  for (const name of native.opSignatures().map((signature) => signature.split('(')[0]!))
    assert.match(source, new RegExp(`(run(Native|Product)\\(\\s*|op: )'${name}'`), name)
})

test.run()
