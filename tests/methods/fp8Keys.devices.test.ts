/** Training steps whose key encoder keeps its maps in E4M3, on Hopper's kernels: near those in bf16, and refused elsewhere. */
import * as assert from 'uvu/assert'

import { densecl } from '../../src/methods/densecl/method.js'
import { resolveConfig } from '../../src/methods/index.js'
import { resnet } from '../../src/nn/resnet.js'
import { Sgd } from '../../src/optim/sgd.js'
import { settingsOf } from '../../src/run/options.js'
import { observe } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { Trainer } from '../../src/train/trainer.js'
import { simulated, withCapability } from '../support/capability.js'
import { device } from '../support/devices.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

const test = suite(`keys in FP8 on ${device}`, device)
const available = simulated || deviceTraits(device).capability === 90
const side = 32

const build = (where: string, keyPrecision: 'fp8' | null, compute: 'bf16' | 'f32') => {
  const sizes = { imageSize: side, batchSize: 4, normGroups: 2, queueLength: 64, hidden: 64, shuffle: true }
  const config = resolveConfig(settingsOf({ ...sizes, keyPrecision }, 'test'))
  const backbone = resnet({ depth: 18, baseChannels: 64, blocks: [1, 2] })
  return { config, method: withDevice(where, () => densecl.build(config, { backbone, compute })) }
}

/** The losses of three steps, how many convolutions of theirs took E4M3, and what a run says at its beginning. */
function run(keyPrecision: 'fp8' | null, graph: boolean): { losses: number[]; eighths: number; introduction: string } {
  const { config, method } = build(device, keyPrecision, 'bf16')
  const { parameters, copies } = method.trained()
  const sgd = withDevice(device, () => new Sgd(parameters, config, copies))
  const random = new Random(7)
  const values = (): Float32Array => Float32Array.from({ length: 4 * side * side * 3 }, () => random.normal())
  const images = [values(), values()]
  const view = (i: number): Tensor => Tensor.from(images[i]!, [4, side, side, 3], 'bf16', device)
  const held = [0, 1].map((i) => view(i).keep())
  const views = (): [Tensor, Tensor] => [held[0]!.alias().keep(), held[1]!.alias().keep()]
  const trainer = new Trainer(method, sgd, { graph, views })
  let eighths = 0
  observe.op = (name, work) => {
    eighths += Number(name === 'conv2dE4m3')
    work()
  }
  try {
    const losses = [0, 1, 2].map((step) => {
      const result = trainer.step(step, 0.01)
      const [loss] = result.readings.loss.values
      result.dispose()
      return loss!
    })
    return { losses, eighths, introduction: method.introduce!({ images: 4 }).join('\n') }
  } finally {
    delete observe.op
    trainer.dispose()
    sgd.dispose()
    method.dispose()
    for (const tensor of held) tensor.dispose()
  }
}

testWhere(available, 'no GPU of compute capability 9.0', test, 'steps are near those in bf16, the same bits recorded or not', () => {
  withCapability(90, () => {
    const [plain, eighth, recorded] = [run(null, false), run('fp8', false), run('fp8', true)]
    // Of the stage of 128 channels all but the first convolution and the shortcut, once a step: queries stay in bf16.
    assert.equal([plain.eighths, eighth.eighths], [0, 9])
    assert.match(eighth.introduction, /^keys {4}FP8/m)
    assert.not.match(plain.introduction, /FP8/)
    assert.equal(recorded.losses, eighth.losses)
    assert.not.equal(eighth.losses, plain.losses)
    plain.losses.forEach((loss, i) => assert.ok(Math.abs(loss - eighth.losses[i]!) < 0.05, `step ${i}: ${eighth.losses[i]} for ${loss}`))
  })
})

test('where nothing takes E4M3, and in f32, they are refused before a step', () => {
  const expected = /^keyPrecision is fp8: expected bf16 on a GPU of compute capability 9\.0 .*, or on a CPU/
  throwsError(() => build('cpu', 'fp8', 'f32'), 'CONFIG', expected, /f32 on cpu$/)
  throwsError(() => withCapability(90, () => build(device, 'fp8', 'f32')), 'CONFIG', expected, /f32 on \w+/)
  if (simulated) throwsError(() => build(device, 'fp8', 'bf16'), 'CONFIG', expected, /bf16 on \w+/)
})

test.run()
