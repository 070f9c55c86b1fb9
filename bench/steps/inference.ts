/**
 * Pooled features of random images by a ResNet in evaluation mode, in a process of their own: a JSON line for each size of --batch, as
 * bench/peers/inference.py prints. With --onnx FILE the network is written there instead.
 */
import { normal } from '../../src/bench/pool.js'
import { evaluationCompute } from '../../src/eval/compute.js'
import { pooledFeatures } from '../../src/eval/features.js'
import { resnet, type ResNetDepth } from '../../src/nn/resnet.js'
import { writeOnnx } from '../../src/onnx/export.js'
import { withCompute } from '../../src/tensor/compute.js'
import { fail } from '../../src/tensor/errors.js'
import { Graph } from '../../src/tensor/graph.js'
import { native, resolveDevice } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, withDevice } from '../../src/tensor/tensor.js'
import { flagsOf, wholeNumber } from './flags.js'
import { timeSteps } from './steps.js'

const numbers = { depth: 50, base: 64, image: 224, steps: 20, threads: 2 }
const { number, values } = flagsOf(process.argv.slice(2), numbers, ['batch', 'device', 'precision', 'onnx'])
native.setThreads(number('threads'))
const device = resolveDevice(values.device ?? 'cpu')
const image = number('image')
withDevice(device, () => {
  const random = new Random(1)
  const compute = (values.precision ?? 'f32') as FloatDType
  const network = resnet({ depth: number('depth') as ResNetDepth, baseChannels: number('base') })({ random, dtype: 'f32', compute })
  if (values.onnx !== undefined) {
    const normalisation = { mean: [0, 0, 0], deviation: [1, 1, 1] }
    return writeOnnx(values.onnx, { backbone: network }, { outputs: ['pooled'], normalisation, raw: false, metadata: {} })
  }
  for (const batch of (values.batch ?? '1,32').split(',').map((text) => wholeNumber('batch', text))) {
    const images = normal(random, [batch, image, image, 3], 'f32')
    const graph = new Graph(device, () => pooledFeatures(network, images, ['pooled'])[0]!)
    const pass = (): Float32Array => graph.run().data() as Float32Array
    withCompute(evaluationCompute(device), () => {
      const times = timeSteps(device, number('steps'), pass, {})
      const features = pass()
      if (!features.every(Number.isFinite)) fail('NAN', `features of batch ${batch} on ${device} are not all numbers`)
      console.log(JSON.stringify({ batch, ...times }))
    })
    graph.dispose()
    images.dispose()
  }
})
