/** Training steps of a segmenting network on random images: what segmentation.js times and profile.js takes apart. */
import { emptyPools, normal } from '../../src/bench/pool.js'
import { evaluationCompute } from '../../src/eval/compute.js'
import { segmentationProtocols } from '../../src/eval/segmentationProtocols.js'
import { buildSegmenter, disposeSegmenter, updateSegmenter } from '../../src/eval/segmenterTraining.js'
import { dilated8, ResNet, type ResNetDepth } from '../../src/nn/resnet.js'
import { withCompute } from '../../src/tensor/compute.js'
import { fail } from '../../src/tensor/errors.js'
import { native, resolveDevice } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { flagsOf } from './flags.js'
import { type StepRow, timeSteps, type Watch } from './steps.js'

const numbers = { depth: 50, base: 64, image: 512, batch: 2, classes: 21, steps: 2, threads: 2 }

/** Runs the steps that the flags ask for, on `--batch` crops of `--image` pixels a side, and gives their row. */
export function runSegmentationSteps(argv: readonly string[], onRow: (row: StepRow) => void, watch: Watch = {}): void {
  const { number, values } = flagsOf(argv, numbers, ['device', 'precision'])
  native.setThreads(number('threads'))
  const device = resolveDevice(values.device ?? 'cpu')
  const compute = (values.precision ?? 'f32') as FloatDType
  const [batch, image, classes] = [number('batch'), number('image'), number('classes')]
  withDevice(device, () => {
    const shape = { depth: number('depth') as ResNetDepth, baseChannels: number('base'), ...dilated8 }
    const backbone = new ResNet({ random: new Random(1), dtype: 'f32', compute }, shape)
    const segmenter = buildSegmenter(backbone, { classes, alignCorners: false, random: new Random(2) })
    const random = new Random(3)
    const x = normal(random, [batch, image, image, 3], 'f32')
    emptyPools()
    const drawn = Int32Array.from({ length: batch * image * image }, () => random.below(classes))
    const labels = Tensor.from(drawn, [batch, image, image], 'i32')
    const rate = segmentationProtocols.voc12aug!.lr
    let [draw, loss] = [0, 0]
    const step = (): void =>
      withCompute(evaluationCompute(device), () =>
        scope(() => {
          loss = updateSegmenter(segmenter, { x, labels, labelled: 1, draw: draw++, rate }).main
        }),
      )
    const row = { batch, ...timeSteps(device, number('steps'), step, watch), loss }
    if (!Number.isFinite(loss)) fail('NUMERIC', `the loss is ${loss} after ${draw} steps on ${device}`)
    onRow(row)
    disposeSegmenter(segmenter)
    for (const part of [backbone, x, labels]) part.dispose()
  })
}
