/**
 * Each rank of detector.test.ts: some updates of detectors in f64 by batches that all ranks can make, of which it takes its own; of some
 * batches one process has no objects. Rank 0 writes losses and parameters to the first argument; the second is a mistake to make, for the
 * test to notice.
 */
import { writeFileSync } from 'node:fs'

import * as assert from 'uvu/assert'

import type { Box } from '../../src/data/boxes.js'
import type { Detector, DetectorForm } from '../../src/detection/detector.js'
import { detectorOf } from '../../src/detection/detectorShape.js'
import { publishedPyramid } from '../../src/detection/maskRcnn.js'
import { styleOf } from '../../src/detection/styles.js'
import type { TrainingImage } from '../../src/detection/targets.js'
import { SharedGradients } from '../../src/distributed/buckets.js'
import { Group } from '../../src/distributed/group.js'
import { leaveTogether, openGroup } from '../../src/distributed/open.js'
import { updateDetector } from '../../src/eval/detectorTraining.js'
import { placesOf } from '../../src/eval/shares.js'
import { resnet } from '../../src/nn/resnet.js'
import { allTensors, disposeState } from '../../src/nn/module.js'
import { Sgd } from '../../src/optim/sgd.js'
import { Random } from '../../src/tensor/random.js'
import { scope } from '../../src/tensor/tensor.js'
import { agreeOnState } from '../../src/train/share.js'

const [out, wrong] = process.argv.slice(2)
// Gradients leave beside the pass, as on several machines.
const { rank, size, device } = openGroup()
const group = new Group(rank, size, device, true)
leaveTogether(group)

const [side, images, classes, regions] = [64, 8, 2, 12]
const object = (label: number, [left, top, right, bottom]: Box): TrainingImage['objects'][number] => ({
  label,
  box: [left, top, right, bottom],
  mask: { polygons: [[left, top, right, top, right, bottom]] },
})
const isMean = (message: string): boolean => message.startsWith('mean')

/** Which of two processes have objects in a step. */
type Having = readonly number[]

function modelOf(form: DetectorForm): Detector {
  const build = { random: new Random(1), dtype: 'f64' } as const
  const backbone = resnet({ depth: 18, baseChannels: 4 })(build)
  // Norms of a mask head need objects everywhere; here some processes have none.
  const pyramid = { ...publishedPyramid, channels: 8, width: 16, norm: false, levels: 'detectron2' } as const
  const anchors = form === 'c4' ? [16, 32] : [8, 16, 24, 32, 48]
  return detectorOf(build, backbone, { form, style: 'detectron2', classes, anchors, pyramid })
}

function train(form: DetectorForm, atOnce: number, steps: readonly Having[]): { losses: unknown[]; state: Record<string, number[]> } {
  const model = modelOf(form)
  const sgd = new Sgd(model.state().parameters, { momentum: 0.9, weightDecay: 1e-4 })
  const shared = new SharedGradients(group, 4096)
  const startAllReduce = group.startAllReduce.bind(group)
  let messages: string[] = []
  group.startAllReduce = (tensors, reduction) => {
    messages.push(`${reduction} of ${tensors.map(({ size }) => size).join(' ')}`)
    return startAllReduce(tensors, reduction)
  }
  const places = placesOf(images, wrong === 'ownParts' ? images : atOnce, group)
  const losses = steps.map((having, step) => {
    const random = new Random(2, step)
    const image = side * side * 3
    const values = Float32Array.from({ length: images * image }, () => random.normal())
    const all = Array.from({ length: images }, (_, i): TrainingImage => {
      const objects = having.includes(Math.floor((2 * (i % atOnce)) / atOnce))
        ? [object(i % classes, [4 + i, 8, 30 + 2 * i, 40]), object(0, [30, 20, 62, 60])]
        : []
      return { height: side, width: side, objects }
    })
    const own = Float32Array.from(places.flatMap((place) => [...values.subarray(place * image, (place + 1) * image)]))
    const batch = { values: own, shape: [places.length, side, side, 3] as const, images: places.map((place) => all[place]!) }
    const pass = {
      style: styleOf('detectron2', form),
      regions,
      imagesAtOnce: atOnce / group.size,
      random: (i: number) => new Random(3, step, wrong === 'ownPlaces' ? i : places[i]!),
    }
    messages = []
    const made = scope(() => updateDetector(model, [sgd], { ...batch, shape: [...batch.shape] }, { ...pass, rate: 1e-3 }, shared))
    group.agree('messages', messages.join())
    // From the second step on gradients leave before the sums of the last norms.
    const gradientsFirst = messages.findIndex(isMean) < messages.findLastIndex((message) => !isMean(message))
    if (group.size > 1) assert.is(gradientsFirst, step > 0)
    return made
  })
  group.startAllReduce = startAllReduce
  agreeOnState(model.state(), group)
  const state = Object.fromEntries([...allTensors(model.state())].map(([name, tensor]) => [name, [...tensor.data()]]))
  sgd.dispose()
  disposeState(model.state())
  return { losses, state }
}

// In the first step, where the plan is made, the one or the other has none.
const [first, second, both] = [[0], [1], [0, 1]]
const inParts = { 'c4 in parts': train('c4', images / 2, [first, second, both, second, first]) }
const found =
  wrong === undefined
    ? { ...inParts, c4: train('c4', images, [second, first, both]), fpn: train('fpn', images, [first, second, both]) }
    : inParts
if (group.rank === 0) writeFileSync(out!, JSON.stringify(found))
