/**
 * How each op is written in ONNX. A new op is a row here. Maps are [N, H, W, C] in the engine and [N, C, H, W] in ONNX: a value has either
 * form, or both, and whoever needs the other one gets it by a transposition, which a network of convolutions never needs.
 */
import { fail } from '../tensor/errors.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Operand, Translation, Written } from './translation.js'

/** What a row is given: the operands by name, the attributes of the op, and where to write. */
export interface Step {
  to: Translation
  op: string
  inputs: ReadonlyMap<string, Operand>
  attrs: unknown
  output: Operand
}

type Row = (step: Step) => Written

const of = ({ inputs }: Step, name: string): Operand => inputs.get(name)!
/** The value in the form that it has. */
const asIs =
  (body: (step: Step, x: string) => string): Row =>
  (step) => {
    const x = of(step, 'x')
    return x.first !== undefined ? { first: body(step, x.first) } : { plain: body(step, step.to.plain(x)) }
  }

/** An operator of one value that does the same. */
const same = (type: string): Row => asIs(({ to }, x) => to.graph.node(type, [x]))

/** An operator of two values, which broadcasts as NumPy does. */
const binary =
  (type: string): Row =>
  (step) => {
    const [a, b] = [of(step, 'a'), of(step, 'b')]
    const { to } = step
    if (a.first !== undefined && a.shape.join() === b.shape.join()) return { first: to.graph.node(type, [a.first, to.first(b)]) }
    return { plain: to.graph.node(type, [to.plain(a), to.plain(b)]) }
  }

interface Windows {
  strideH: number
  strideW: number
  paddingH: number
  paddingW: number
}
const windows = ({ strideH, strideW, paddingH, paddingW }: Windows) => ({
  strides: [strideH, strideW],
  pads: [paddingH, paddingW, paddingH, paddingW],
})

const convolution: Row = (step) => {
  const { to, attrs } = step
  const { numbers } = attrs as { numbers: Windows & { dilationH: number; dilationW: number } }
  const [x, weight, bias] = [of(step, 'x'), of(step, 'weight'), step.inputs.get('bias')]
  const [, kernelH, kernelW, depth] = weight.shape as [number, number, number, number]
  const inputs = [to.first(x), to.kernel(weight), ...(bias === undefined ? [] : [to.plain(bias)])]
  return {
    first: to.graph.node('Conv', inputs, {
      ...windows(numbers),
      dilations: [numbers.dilationH, numbers.dilationW],
      kernel_shape: [kernelH, kernelW],
      group: x.shape[3]! / depth,
    }),
  }
}

const poolingOf =
  (type: string, own: (numbers: { countPadding?: boolean }) => Record<string, number> = () => ({})): Row =>
  (step) => {
    const { numbers } = step.attrs as { numbers: Windows & { kernelH: number; kernelW: number; countPadding?: boolean } }
    const kernel = { kernel_shape: [numbers.kernelH, numbers.kernelW] }
    return { first: step.to.graph.node(type, [step.to.first(of(step, 'x'))], { ...windows(numbers), ...kernel, ...own(numbers) }) }
  }

/** Where the axes of a value with its channels last are where its channels are first. */
const toFirst = [0, 2, 3, 1]

/** Every op that a network may consist of in evaluation. */
export const rows: Readonly<Record<string, Row>> = {
  conv2d: convolution,
  groupedConv2d: convolution,
  batchNorm(step) {
    const { to } = step
    const { train, eps, relu, runningMean, runningVar } = step.attrs as {
      train: boolean
      eps: number
      relu: boolean
      runningMean: Tensor
      runningVar: Tensor
    }
    if (train) fail('ARGUMENT', 'onnx: expected batch norms with running statistics but received one that takes them from its batch')
    const parameters = ['weight', 'bias'].map((name) => to.plain(of(step, name)))
    const statistics = [runningMean, runningVar].map((tensor) => to.constant(tensor))
    const normal = to.graph.node('BatchNormalization', [to.first(of(step, 'x')), ...parameters, ...statistics], { epsilon: { float: eps } })
    const residual = step.inputs.get('residual')
    const sum = residual === undefined ? normal : to.graph.node('Add', [normal, to.first(residual)])
    return { first: relu ? to.graph.node('Relu', [sum]) : sum }
  },
  maxPool2d: poolingOf('MaxPool'),
  avgPool2d(step) {
    const { numbers } = step.attrs as { numbers: { adaptive: boolean } }
    const { to, output } = step
    if (!numbers.adaptive) return poolingOf('AveragePool', ({ countPadding = true }) => ({ count_include_pad: Number(countPadding) }))(step)
    if (output.shape[1] !== 1 || output.shape[2] !== 1)
      fail('ARGUMENT', `onnx: expected adaptive pooling to 1x1 but received ${output.shape[1]}x${output.shape[2]}`)
    return { first: to.graph.node('GlobalAveragePool', [to.first(of(step, 'x'))]) }
  },
  linear(step) {
    const [x, weight, bias] = [of(step, 'x'), of(step, 'weight'), step.inputs.get('bias')]
    const inputs = [x, weight, ...(bias === undefined ? [] : [bias])].map((each) => step.to.plain(each))
    return { plain: step.to.graph.node('Gemm', inputs, { transB: 1 }) }
  },
  matmul(step) {
    const { to } = step
    const flags = step.attrs as { transposeA: boolean; transposeB: boolean }
    const operands = (['a', 'b'] as const).map((name) => {
      const [x, turned] = [of(step, name), name === 'a' ? flags.transposeA : flags.transposeB]
      const rank = x.shape.length
      const order = [...x.shape.keys()].map((axis) => (axis < rank - 2 ? axis : 2 * rank - 3 - axis))
      return turned ? to.graph.node('Transpose', [to.plain(x)], { perm: order }) : to.plain(x)
    })
    return { plain: to.graph.node('MatMul', operands) }
  },
  layerNorm(step) {
    const { to } = step
    const { eps } = step.attrs as { eps: number }
    const x = to.plain(of(step, 'x'))
    const node = (type: string, ...inputs: string[]): string => to.graph.node(type, inputs)
    const mean = (value: string): string => to.graph.node('ReduceMean', [value], { axes: [-1] })
    const centred = node('Sub', x, mean(x))
    const deviation = node('Sqrt', node('Add', mean(node('Mul', centred, centred)), to.graph.scalar(eps)))
    const [weight, bias] = [step.inputs.get('weight'), step.inputs.get('bias')]
    const normal = node('Div', centred, deviation)
    const scaled = weight === undefined ? normal : node('Mul', normal, to.plain(weight))
    return { plain: bias === undefined ? scaled : node('Add', scaled, to.plain(bias)) }
  },
  l2Normalize(step) {
    const { to } = step
    const { eps } = step.attrs as { eps: number }
    const x = to.plain(of(step, 'x'))
    const norm = to.graph.node('ReduceL2', [x], { axes: [-1] })
    return { plain: to.graph.node('Div', [x, to.graph.node('Max', [norm, to.graph.scalar(eps)])]) }
  },
  add: binary('Add'),
  sub: binary('Sub'),
  mul: binary('Mul'),
  div: binary('Div'),
  pow: binary('Pow'),
  maximum: binary('Max'),
  minimum: binary('Min'),
  scale: asIs(({ to, attrs }, x) => {
    const { factor } = attrs as { factor: number | Tensor }
    return to.graph.node('Mul', [x, typeof factor === 'number' ? to.graph.scalar(factor) : to.constant(factor)])
  }),
  relu: same('Relu'),
  exp: same('Exp'),
  log: same('Log'),
  sqrt: same('Sqrt'),
  abs: same('Abs'),
  reciprocal: same('Reciprocal'),
  sigmoid: same('Sigmoid'),
  tanh: same('Tanh'),
  square: asIs(({ to }, x) => to.graph.node('Mul', [x, x])),
  silu: asIs(({ to }, x) => to.graph.node('Mul', [x, to.graph.node('Sigmoid', [x])])),
  gelu: asIs(({ to: { graph } }, x) => {
    const erf = graph.node('Erf', [graph.node('Mul', [x, graph.scalar(Math.SQRT1_2)])])
    return graph.node('Mul', [graph.node('Mul', [x, graph.scalar(0.5)]), graph.node('Add', [erf, graph.scalar(1)])])
  }),
  softmax(step) {
    const { axis, log } = step.attrs as { axis: number; log: boolean }
    return { plain: step.to.graph.node(log ? 'LogSoftmax' : 'Softmax', [step.to.plain(of(step, 'x'))], { axis }) }
  },
  sum(step) {
    const { from, kept, to: shape, scale } = step.attrs as { from: number[]; kept: number[]; to: number[]; scale: number }
    const { to } = step
    const x = to.plain(of(step, 'x'))
    const axes = [...from.keys()].filter((axis) => from[axis] !== kept[axis])
    const keepdims = Number(shape.length === from.length)
    const { other } = of(step, 'x')
    const isFixed = (axis: number): boolean => axes.includes(axis) || other[axis] === step.output.other[axis]
    if (keepdims === 0 ? axes.length !== from.length - shape.length : ![...from.keys()].every(isFixed))
      fail(
        'ARGUMENT',
        `onnx: expected a sum over axes of more than one element but received one from [${from.join(',')}] to [${shape.join(',')}]`,
      )
    // ReduceSum takes no axes for all of them.
    if (axes.length === 0) return { plain: to.graph.node('Identity', [x]) }
    // A mean is a sum that is divided by how many there were, which another image size changes.
    return scale === 1
      ? { plain: to.graph.node('ReduceSum', [x, to.graph.integers(axes)], { keepdims }) }
      : { plain: to.graph.node('ReduceMean', [x], { axes, keepdims }) }
  },
  reshape: (step) => ({ plain: step.to.graph.node('Reshape', [step.to.plain(of(step, 'x')), step.to.sizes(of(step, 'x'), step.output)]) }),
  broadcastTo(step) {
    const [x, { output, to }] = [of(step, 'x'), step]
    const repeats = output.shape.map((size, axis) => {
      const at = axis - output.shape.length + x.shape.length
      if (at >= 0 && x.shape[at] === size && x.other[at] === output.other[axis]) return 1
      return size === output.other[axis]
        ? size
        : fail(
            'ARGUMENT',
            `onnx: expected a fixed number of repetitions but received [${x.shape.join(',')}] to [${output.shape.join(',')}]`,
          )
    })
    return { plain: to.graph.node('Expand', [to.plain(x), to.graph.integers(repeats)]) }
  },
  permute(step) {
    const { order } = step.attrs as { order: readonly number[] }
    return { plain: step.to.graph.node('Transpose', [step.to.plain(of(step, 'x'))], { perm: order }) }
  },
  concat(step) {
    const parts = [...step.inputs.values()]
    const axis = parts[0]!.shape.findIndex((size, i) => size !== step.output.shape[i])
    const { to } = step
    const along = Math.max(0, axis)
    if (parts.every(({ first }) => first !== undefined))
      return {
        first: to.graph.node(
          'Concat',
          parts.map((part) => part.first!),
          { axis: toFirst[along]! },
        ),
      }
    return {
      plain: to.graph.node(
        'Concat',
        parts.map((part) => to.plain(part)),
        { axis: along },
      ),
    }
  },
  resizeBilinear(step) {
    const { alignCorners } = step.attrs as { alignCorners: boolean }
    const { to } = step
    const x = to.first(of(step, 'x'))
    const mode = { mode: 'linear', coordinate_transformation_mode: alignCorners ? 'align_corners' : 'half_pixel' }
    return { first: to.graph.node('Resize', [x, '', '', to.resized(step.output)], mode) }
  },
}
