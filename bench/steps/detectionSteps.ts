/** Training steps of a detector on random images: what detection.js times and profile.js takes apart. */
import { Tape } from '../../src/autograd/tape.js'
import { emptyPools, normal } from '../../src/bench/pool.js'
import { appendRow } from '../../src/bench/result.js'
import type { DetectorForm } from '../../src/detection/detector.js'
import { detectorOf } from '../../src/detection/detectorShape.js'
import { proposalLimits } from '../../src/detection/proposals.js'
import { detectionLosses, randomChooser } from '../../src/detection/step.js'
import { styleOf } from '../../src/detection/styles.js'
import type { TrainingImage } from '../../src/detection/targets.js'
import { evaluationCompute } from '../../src/eval/compute.js'
import { detectionProtocols, detectionTraining } from '../../src/eval/detectionProtocols.js'
import { training } from '../../src/nn/layers.js'
import { trainable } from '../../src/nn/module.js'
import { resnet, type ResNetDepth } from '../../src/nn/resnet.js'
import { Sgd } from '../../src/optim/sgd.js'
import { withCompute } from '../../src/tensor/compute.js'
import { fail } from '../../src/tensor/errors.js'
import { native, resolveDevice } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, withDevice } from '../../src/tensor/tensor.js'
import { flagsOf } from './flags.js'
import { type StepRow, timeSteps, type Watch } from './steps.js'

const numbers = { depth: 50, base: 64, height: 800, width: 1333, batch: 2, classes: 20, regions: 512, steps: 2, threads: 2 }

/** Some objects a picture, as many in each run, which fill their boxes: bench/peers/detection.py has the same. */
function imagesOf(batch: number, height: number, width: number, classes: number): TrainingImage[] {
  return Array.from({ length: batch }, (_, image) => ({
    height,
    width,
    objects: Array.from({ length: 4 }, (__, i) => {
      const [left, top] = [(0.1 + 0.15 * i) * width, (0.05 + 0.1 * i + 0.02 * image) * height]
      const [right, bottom] = [left + (0.1 + 0.1 * i) * width, top + (0.3 + 0.05 * i) * height]
      const mask = { polygons: [[left, top, right, top, right, bottom, left, bottom]] as const }
      return { box: [left, top, right, bottom] as const, label: i % classes, mask }
    }),
  }))
}

/** Runs the steps that the flags ask for, of the `--form` c4 or fpn on `--batch` images of `--height` by `--width`, and gives their row. */
export function runDetectionSteps(argv: readonly string[], onRow: (row: StepRow) => void, watch: Watch = {}): void {
  const { number, values } = flagsOf(argv, numbers, ['device', 'rows', 'form', 'precision'])
  const [batch, height, width, classes] = [number('batch'), number('height'), number('width'), number('classes')]
  native.setThreads(number('threads'))
  const device = resolveDevice(values.device ?? 'cpu')
  const compute = (values.precision ?? 'f32') as FloatDType
  const form: DetectorForm = values.form === 'fpn' ? 'fpn' : 'c4'
  const style = styleOf('detectron2', form)
  withDevice(device, () => {
    const backbone = resnet({ depth: number('depth') as ResNetDepth, baseChannels: number('base') })({
      random: new Random(1),
      dtype: 'f32',
      compute,
    })
    const model = detectorOf({ random: new Random(2), dtype: 'f32', compute }, backbone, { form, style: 'detectron2', classes })
    const { parameters, copies } = model.state()
    const watched = trainable(model.state())
    const sgd = new Sgd(parameters, detectionTraining, copies)
    const x = normal(new Random(3), [batch, height, width, 3], 'f32')
    emptyPools()
    const images = imagesOf(batch, height, width, classes)
    const { lr, batchSize } = detectionProtocols[form === 'c4' ? 'voc0712-c4' : 'coco-fpn-1x']!
    let [taken, loss] = [0, 0]
    const step = (): void =>
      withCompute(evaluationCompute(device), () =>
        scope(() => {
          const tape = new Tape().watch(watched)
          const chooser = randomChooser(new Random(4, taken++), classes, style, number('regions'))
          const { total } = tape.record(() => detectionLosses(model, x, images, chooser, training, style, proposalLimits[form].train))
          loss = total.item()
          sgd.step(tape.backward(total, watched), (lr * batch) / batchSize)
        }),
      )
    const row = { batch, ...timeSteps(device, number('steps'), step, watch), loss }
    if (!Number.isFinite(loss)) fail('NUMERIC', `the loss is ${loss} after ${taken} steps on ${device}`)
    if (values.rows !== undefined) appendRow(values.rows, { flags: argv.join(' '), ...row })
    onRow(row)
    for (const part of [sgd, model, backbone, x]) part.dispose()
  })
}
