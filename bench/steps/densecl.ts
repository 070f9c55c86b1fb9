/** One DenseCL step on random input, in a process of its own: prints one JSON line as bench/peers/densecl.py step does. */
import { parseArgs } from 'node:util'

import { DenseCL } from '../../src/densecl/model.js'
import { Random } from '../../src/nn/random.js'
import type { ResNetDepth } from '../../src/nn/resnet.js'
import { fusion, type FusionLevel } from '../../src/ops/fusion.js'
import { Sgd } from '../../src/optim/sgd.js'
import { native } from '../../src/tensor/native.js'
import { type FloatDType, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { Trainer } from '../../src/train/trainer.js'

const { values } = parseArgs({
  options: Object.fromEntries(['depth', 'image', 'batch', 'queue', 'hidden', 'steps', 'groups', 'threads', 'device', 'precision', 'graph', 'fusion'].map((name) => [name, { type: 'string' as const }])),
})
const number = (name: string, otherwise: number): number => Number(values[name] ?? otherwise)
const batch = number('batch', 32)
const image = number('image', 64)
native.setThreads(number('threads', 2))
const device = String(values.device ?? 'cpu')
const compute = (values.precision ?? (device === 'cpu' ? 'f32' : 'bf16')) as FloatDType
const onDevice = <R>(body: () => R): R => withDevice(device, body)
const model = onDevice(
  () =>
    new DenseCL({
      backbone: { depth: number('depth', 18) as ResNetDepth },
      neck: { hidden: number('hidden', 512), featDim: 128 },
      queueLength: number('queue', 4096),
      seed: 0,
      compute,
    }),
)
const sgd = onDevice(() => new Sgd(model.parameters(), { momentum: 0.9, weightDecay: 1e-4 }, model.query.state().copies))
const random = new Random(1)
const view = (): Tensor => Tensor.from(Float32Array.from({ length: batch * image * image * 3 }, () => random.normal()), [batch, image, image, 3], compute, device)
const inputs = { query: view(), key: view() }
const groups = number('groups', 1)
fusion.level = (values.fusion ?? fusion.level) as FusionLevel
const trainer = new Trainer(model, sgd, {
  temperature: 0.2,
  keyMomentum: 0.999,
  normGroups: groups,
  graph: values.graph !== 'false',
  views: () => ({ query: inputs.query.alias(), key: inputs.key.alias() }),
})
const times: number[] = []
const warmUp = device === 'cpu' ? 2 : 5
let host = 0
for (let i = 0; i < number('steps', 10) + warmUp; ++i) {
  const start = performance.now()
  trainer.step({ lr: 0.03, denseWeight: 0.5, keyOrder: groups > 1 ? random.permutation(batch) : undefined })
  if (i >= warmUp) host += (performance.now() - start) / 1000
  native.synchronize(device)
  times.push((performance.now() - start) / 1000)
}
times.splice(0, warmUp)
times.sort((a, b) => a - b)
console.log(
  JSON.stringify({
    seconds: times[Math.floor(times.length / 2)],
    fastest: times[0],
    slowest: times.at(-1),
    host_seconds: host / times.length,
    peak_bytes: device === 'cpu' ? process.resourceUsage().maxRSS * 1024 : native.memory(device).peak,
    launches: trainer.graph.plan?.launches,
    tensor_peak_bytes: native.memory(device).peak,
  }),
)
