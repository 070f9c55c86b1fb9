/**
 * Pooled features of random images by a ResNet in evaluation mode, in a process of their own: a JSON line for each size of --batch, as
 * bench/peers/inference.py prints. With --onnx FILE the network is written there instead.
 */
import { parseArgs } from 'node:util'

import { normal } from '../../src/bench/pool.js'
import { evaluationCompute } from '../../src/eval/compute.js'
import { pooledFeatures } from '../../src/eval/features.js'
import { resnet, type ResNetDepth } from '../../src/nn/resnet.js'
import { writeOnnx } from '../../src/onnx/export.js'
import { withCompute } from '../../src/tensor/compute.js'
import { fail } from '../../src/tensor/errors.js'
import { native, resolveDevice } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, withDevice } from '../../src/tensor/tensor.js'
import { timeSteps } from './steps.js'

const text = { type: 'string' } as const
const { values } = parseArgs({
  options: { depth: text, base: text, image: text, batch: text, steps: text, threads: text, device: text, precision: text, onnx: text },
})
const whole = (name: 'depth' | 'base' | 'image' | 'steps' | 'threads', otherwise: number): number => {
  const value = Number(values[name] ?? otherwise)
  return Number.isInteger(value) && value > 0
    ? value
    : fail('CONFIG', `--${name} is ${values[name]}: expected a whole number of at least 1`)
}
native.setThreads(whole('threads', 2))
const device = resolveDevice(values.device ?? 'cpu')
const image = whole('image', 224)
withDevice(device, () => {
  const random = new Random(1)
  const compute = (values.precision ?? 'f32') as FloatDType
  const network = resnet({ depth: whole('depth', 50) as ResNetDepth, baseChannels: whole('base', 64) })({ random, dtype: 'f32', compute })
  if (values.onnx !== undefined) {
    const normalisation = { mean: [0, 0, 0], deviation: [1, 1, 1] }
    return writeOnnx(values.onnx, { backbone: network }, { outputs: ['pooled'], normalisation, raw: false, metadata: {} })
  }
  for (const batch of (values.batch ?? '1,32').split(',').map(Number)) {
    const images = normal(random, [batch, image, image, 3], 'f32')
    const pass = (): Float32Array => scope(() => pooledFeatures(network, images, ['pooled'])[0]!.data() as Float32Array)
    withCompute(evaluationCompute(device), () => {
      const times = timeSteps(device, whole('steps', 20), pass, {})
      const features = pass()
      if (!features.every(Number.isFinite)) fail('NAN', `features of batch ${batch} on ${device} are not all numbers`)
      console.log(JSON.stringify({ batch, ...times }))
    })
    images.dispose()
  }
})
