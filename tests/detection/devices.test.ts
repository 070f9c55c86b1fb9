/** A detector's step on the device under test: PyTorch's in float64, and the CPU's over several updates by every optimiser. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { FasterRcnn } from '../../src/detection/fasterRcnn.js'
import { type Chooser, detectionLosses } from '../../src/detection/step.js'
import { detectionStyles } from '../../src/detection/styles.js'
import { sampleAnchors, sampleRegions, type TrainingImage } from '../../src/detection/targets.js'
import type { Box } from '../../src/data/boxes.js'
import { training } from '../../src/nn/layers.js'
import { disposeState } from '../../src/nn/module.js'
import { ResNet } from '../../src/nn/resnet.js'
import { optimizerNames, optimizerOf, type OptimizerName } from '../../src/optim/choose.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { writeGoldenDetector } from '../support/detectionGolden.js'
import { device, thorough } from '../support/devices.js'
import { goldenRows } from '../support/golden.js'
import { relativeDistance } from '../support/gradients.js'
import { hasTorch, noTorch } from '../support/python.js'
import { suite, testWhere, withFolder } from '../support/suite.js'

const test = suite(`detectors on ${device}`, device)

function check(folder: string): void {
  let rows = 0
  for (const { name, dtype, error, tolerance } of goldenRows(folder, device)) {
    assert.ok(error <= tolerance, `${name} ${dtype}: relative error ${error}, allowed ${tolerance}`)
    rows += 1
  }
  assert.ok(rows > 60, `${rows} rows`)
}

if (thorough) {
  testWhere(hasTorch, noTorch, test, "a step drawn by a seed is PyTorch's, in f32 and in mixed precision", () =>
    withFolder((folder) => {
      for (const form of ['c4', 'fpn'] as const) writeGoldenDetector(folder, form, 5)
      check(folder)
    }),
  )
  const shared = join(packageRoot, '..', 'shared', 'golden', 'detection')
  testWhere(existsSync(shared), 'the golden detectors are not here', test, 'the golden detectors', () => check(shared))
}

const style = detectionStyles.detectron2
const classes = 3
const images: TrainingImage[] = [0, 1].map((i) => {
  const random = new Random(21, i)
  const box = (): Box => {
    const [w, h] = [random.uniform(14, 44), random.uniform(14, 44)]
    const [x, y] = [random.uniform(0, 80 - w), random.uniform(0, 64 - h)]
    return [x, y, x + w, y + h]
  }
  return { height: 64, width: 80, objects: [0, 1, 2].slice(i).map((label) => ({ label, box: box() })) }
})

/** Draws by seeds: anchors as in training, regions among boxes near the objects, whatever is proposed. */
const chooser = (step: number): Chooser => ({
  wanted: 256,
  anchors: (anchors, image, i) => sampleAnchors(new Random(22, step, i), anchors, image, style),
  regions: (_, image, i) => {
    const random = new Random(23, step, i)
    const near = image.objects.flatMap(({ box }) => [0, 1, 2, 3].flatMap(() => box.map((value) => value + random.uniform(-5, 5))))
    return sampleRegions(random, Float64Array.from(near), image, classes, style)
  },
})

/** The losses of three updates, and how far they move the weights behind the map and those of the classes. */
function train(where: string, compute: 'f32' | 'bf16', optimizer: OptimizerName): { losses: number[]; moves: number[] } {
  return withDevice(where, () => {
    const build = { random: new Random(24), dtype: 'f32', compute } as const
    const backbone = new ResNet(build, { depth: 18, baseChannels: 8 })
    const anchors = { sizes: [16, 32], ratios: [0.5, 1, 2], stride: 16, order: 'size' as const }
    const model = new FasterRcnn(build, backbone, { classes, anchors, regionSize: 6 })
    const { parameters, copies } = model.state()
    const updates = optimizerOf({ optimizer, momentum: 0.9, weightDecay: 1e-4 }, parameters, copies)
    const watched = [...parameters].map(([name, parameter]) => copies.get(name) ?? parameter)
    const read = (): number[] =>
      ['rpn_head.rpn_cls.weight', 'roi_head.bbox_head.fc_cls.weight'].flatMap((name) => [...parameters.get(name)!.data()])
    const [losses, before]: [number[], number[]] = [[], read()]
    for (let step = 0; step < 3; ++step)
      scope(() => {
        const random = new Random(25, step)
        const x = Tensor.from(
          Float32Array.from({ length: 2 * 64 * 80 * 3 }, () => random.normal()),
          [2, 64, 80, 3],
        )
        const tape = new Tape().watch(watched)
        const limits = { before: 200, after: 20, overlap: 0.7 }
        const made = tape.record(() => detectionLosses(model, x, images, chooser(step), training, style, limits))
        const { anchorClass, anchorBox, regionClass, regionBox } = made
        losses.push(...[anchorClass, anchorBox, regionClass, regionBox].map((loss) => loss.item()))
        updates.step(tape.backward(made.total, watched), optimizer === 'adamw' ? 1e-3 : 0.02)
      })
    const moves = read().map((value, i) => value - before[i]!)
    updates.dispose()
    disposeState(model.state())
    return { losses, moves }
  })
}

// With shuffled threads and under the sanitizer one is enough.
for (const optimizer of thorough ? optimizerNames : (['sgd'] as const))
  test(`three updates by ${optimizer} follow the CPU in f32 and in mixed precision`, () => {
    const exact = train('cpu', 'f32', optimizer)
    for (const compute of thorough ? (['f32', 'bf16'] as const) : (['f32'] as const)) {
      const { losses, moves } = train(device, compute, optimizer)
      const errors = losses.map((loss, i) => Math.abs(loss / exact.losses[i]! - 1))
      const [worst, apart] = [Math.max(...errors), relativeDistance(moves, exact.moves)]
      // Sums of thousands of f32 terms; a loss is a mean over values that bf16 rounds to 2^-9 in each of some 25 layers, its gradient a
      // sum of them. AdamW divides by their size, so that small ones, which are rounding, move weights as far as large ones. The CPU's
      // convolutions of 3x3 are sums of other terms (Winograd's): single ReLUs near zero differ.
      const [lossBound, moveBound] = compute === 'f32' ? [1e-4, 3e-3] : [4 * 2 ** -9, optimizer === 'adamw' ? 0.2 : 0.1]
      assert.ok(worst < lossBound, `${compute}: a loss differs by ${worst}`)
      assert.ok(apart < moveBound, `${compute}: moves of weights differ by ${apart}`)
    }
  })

test.run()
