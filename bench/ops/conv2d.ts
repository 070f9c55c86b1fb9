/** The 23 convolution shapes of ResNet-50, three directions each: GFLOP/s. Usage: conv2d.js [batch] [filter] */
import { Random } from '../../src/nn/random.js'
import { native, runNative } from '../../src/tensor/native.js'
import { Tensor } from '../../src/tensor/tensor.js'
import { median } from '../result.js'

interface Layer {
  name: string
  size: number
  c: number
  o: number
  kernel: number
  stride: number
}

/** Input sides at 224 pixels. */
export const resnet50Layers: Layer[] = [{ name: 'stem', size: 224, c: 3, o: 64, kernel: 7, stride: 2 }]
let inputs = 64
for (const [s, size] of [56, 56, 28, 14].entries()) {
  const width = 64 * 2 ** s
  const stride = s === 0 ? 1 : 2
  const at = size / stride
  const layer = (name: string, side: number, c: number, o: number, kernel: number, step = 1): Layer => ({ name: `layer${s + 1}.${name}`, size: side, c, o, kernel, stride: step })
  resnet50Layers.push(layer('0.conv1', size, inputs, width, 1), layer('0.conv2', size, width, width, 3, stride), layer('0.conv3', at, width, 4 * width, 1), layer('0.downsample', size, inputs, 4 * width, 1, stride))
  resnet50Layers.push(layer('1.conv1', at, 4 * width, width, 1))
  if (s > 0) resnet50Layers.push(layer('1.conv2', at, width, width, 3))
  inputs = 4 * width
}

const [batch = '8', filter = ''] = process.argv.slice(2)
native.setThreads(2)
const random = new Random(1)
const tensor = (shape: number[]): Tensor => Tensor.from(Float32Array.from({ length: shape.reduce((n, d) => n * d, 1) }, () => random.normal()), shape)

function measure(op: string, tensors: Tensor[], numbers: number[], flops: number): number {
  const times: number[] = []
  runNative(op, tensors, numbers)
  for (let spent = 0; spent < 300 && times.length < 20; ) {
    const start = performance.now()
    runNative(op, tensors, numbers)
    times.push(performance.now() - start)
    spent += times.at(-1)!
  }
  return flops / (median(times) * 1e6)
}

console.log('layer                    GFLOP   forward  backward input  backward weight   (GFLOP/s)')
const inverse = [0, 0, 0]
let total = 0
for (const { name, size, c, o, kernel, stride } of resnet50Layers.filter((layer) => layer.name.includes(filter))) {
  const out = size / stride
  const x = tensor([Number(batch), size, size, c])
  const w = tensor([o, kernel, kernel, c])
  const y = tensor([Number(batch), out, out, o])
  const numbers = [stride, stride, (kernel - 1) / 2, (kernel - 1) / 2, 1, 1]
  const flops = 2 * Number(batch) * out * out * o * c * kernel * kernel
  const rates = [measure('conv2d', [y, x, w], numbers, flops), measure('conv2dBackwardInput', [x, y, w], numbers, flops), measure('conv2dBackwardWeight', [w, y, x], numbers, flops)]
  rates.forEach((rate, i) => (inverse[i]! += flops / rate))
  total += flops
  console.log(`${name.padEnd(22)} ${(flops / 1e9).toFixed(2).padStart(7)} ${rates.map((rate) => rate.toFixed(1).padStart(12)).join('')}`)
  for (const t of [x, w, y]) t.dispose()
}
console.log(`all                    ${(total / 1e9).toFixed(2).padStart(7)} ${inverse.map((sum) => (total / sum).toFixed(1).padStart(12)).join('')}`)
