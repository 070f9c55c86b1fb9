/** One DenseCL step on random input, in a process of its own: prints one JSON line as bench/peers/densecl.py step does. */
import { parseArgs } from 'node:util'

import { DenseCL } from '../../src/densecl/model.js'
import { denseclStep } from '../../src/densecl/step.js'
import { Random } from '../../src/nn/random.js'
import type { ResNetDepth } from '../../src/nn/resnet.js'
import { Sgd } from '../../src/optim/sgd.js'
import { native } from '../../src/tensor/native.js'
import { Tensor } from '../../src/tensor/tensor.js'

const { values } = parseArgs({
  options: Object.fromEntries(['depth', 'image', 'batch', 'queue', 'hidden', 'steps', 'groups', 'threads'].map((name) => [name, { type: 'string' as const }])),
})
const number = (name: string, otherwise: number): number => Number(values[name] ?? otherwise)
const batch = number('batch', 32)
const image = number('image', 64)
native.setThreads(number('threads', 2))
const model = new DenseCL({
  backbone: { depth: number('depth', 18) as ResNetDepth },
  neck: { hidden: number('hidden', 512), featDim: 128 },
  queueLength: number('queue', 4096),
  seed: 0,
})
const sgd = new Sgd(model.parameters(), { momentum: 0.9, weightDecay: 1e-4 })
const random = new Random(1)
const view = (): Tensor => Tensor.from(Float32Array.from({ length: batch * image * image * 3 }, () => random.normal()), [batch, image, image, 3])
const views = { query: view(), key: view() }
const times: number[] = []
for (let i = 0; i < number('steps', 10) + 2; ++i) {
  const start = performance.now()
  const result = denseclStep(model, views, {
    temperature: 0.2,
    denseWeight: 0.5,
    keyMomentum: 0.999,
    normGroups: number('groups', 1),
    keyOrder: random.permutation(batch),
  })
  sgd.step(result.gradients, 0.03)
  result.dispose()
  times.push((performance.now() - start) / 1000)
}
times.splice(0, 2)
times.sort((a, b) => a - b)
console.log(
  JSON.stringify({
    seconds: times[Math.floor(times.length / 2)],
    fastest: times[0],
    slowest: times.at(-1),
    peak_bytes: process.resourceUsage().maxRSS * 1024,
    tensor_peak_bytes: native.memory().peak,
  }),
)
