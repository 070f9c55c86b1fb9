/**
 * Each rank of evaluations.test.ts: short evaluations that train, shared among the ranks. Rank 0 writes what they found to a file in the
 * folder of the first argument, which has the data.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { openBoxes } from '../../src/data/boxSources.js'
import { openSegmentation } from '../../src/data/segmentationSources.js'
import { openSource } from '../../src/data/sources.js'
import { leaveTogether, openGroup } from '../../src/distributed/open.js'
import type { DetectionStyleName } from '../../src/detection/styles.js'
import { evaluateDetection } from '../../src/eval/detection.js'
import { detectionProtocols, ofLength } from '../../src/eval/detectionProtocols.js'
import { finetune } from '../../src/eval/finetune.js'
import { finetuneOfLength, finetuneProtocols } from '../../src/eval/finetuneProtocols.js'
import { evaluateLinear } from '../../src/eval/linear.js'
import { linearProtocols, stretched } from '../../src/eval/linearProtocols.js'
import { evaluateSegmentation } from '../../src/eval/segmentation.js'
import { segmentationProtocols } from '../../src/eval/segmentationProtocols.js'
import { dilated8, ResNet } from '../../src/nn/resnet.js'
import { readMetrics } from '../../src/run/runLog.js'
import { Random } from '../../src/tensor/random.js'
import { setThreads } from '../../src/tensor/runtime.js'
import type { FloatDType } from '../../src/tensor/tensor.js'

const [folder = '', ...kinds] = process.argv.slice(2)
setThreads(1)
const group = openGroup()
leaveTogether(group)
const network = (options = {}, compute: FloatDType = 'f32'): ResNet =>
  new ResNet({ random: new Random(1), dtype: 'f32', compute }, { depth: 18, baseChannels: 4, ...options })
const outOf = (kind: string): string => join(folder, `${kind}-${group.size}`)
const shared = (kind: string) => ({ out: outOf(kind), quiet: true, logEvery: 1, workers: 1, group })
const labelled = async () => {
  const [train, val] = [await openSource('scenes:34'), await openSource('scenes:7', { split: 'val' })]
  return { train: train.items, val: val.items, classes: train.classes! }
}

/** A short evaluation with a detector; what is found. */
async function detection(kind: string, style: DetectionStyleName, iterations: number, imagesAtOnce = 12) {
  const source = openBoxes(join(folder, 'boxes'), ['train'])
  const sizes = { batchSize: 12, lr: 1e-4, scales: [48, 64], testScale: 64, longest: 96, regions: 64, testRegions: 16 }
  const protocol = { ...ofLength(detectionProtocols['voc0712-c4']!, iterations), ...sizes }
  const options = { protocol, style, train: source, val: source, anchors: [16, 24], imagesAtOnce, ...shared(kind) }
  const { test } = await evaluateDetection(network(), options)
  return { scores: test!.voc.mean, found: test!.detections.length }
}

/** A short fine-tuning by two settings; what is found. */
async function tuning(kind: string, compute: FloatDType) {
  const protocol = {
    ...finetuneOfLength(finetuneProtocols['imagenet-1percent']!, 2),
    batchSize: 8,
    lrs: [1e-4, 1e-5],
    headMultipliers: [1],
  }
  const options = { protocol, imageSize: 32, chooseBy: 'held-out', ...(await labelled()), ...shared(kind) } as const
  const { test, tried } = await finetune(network({}, compute), options)
  return { ...test, tried: tried.map(({ top1 }) => top1) }
}

const evaluations: Record<string, () => Promise<unknown>> = {
  async segmentation() {
    const data = join(folder, 'voc')
    const protocol = { ...segmentationProtocols.voc12aug!, iterations: 6, batchSize: 6, crop: 32, scale: [48, 40] as const, lr: 1e-4 }
    const [train, val] = [openSegmentation(data, ['train']), openSegmentation(data, ['val'])]
    const { scores, samples } = await evaluateSegmentation(network(dilated8), {
      protocol,
      train,
      val,
      testEvery: 3,
      ...shared('segmentation'),
    })
    return { scores, samples: samples.map(({ name }) => name) }
  },
  detection: () => detection('detection', 'mmdet', 3),
  // Parts of eight and of four images; this style takes statistics of batch norms too.
  detectionInParts: () => detection('detectionInParts', 'detectron2', 2, 8),
  finetune: () => tuning('finetune', 'f32'),
  finetuneInBf16: () => tuning('finetuneInBf16', 'bf16'),
  async linear() {
    const { classes, ...items } = await labelled()
    const results = []
    for (const pipeline of ['crop', 'centre'] as const) {
      // The last batch is of two images.
      const protocol = { ...stretched(linearProtocols['imagenet-features']!, 2), batchSize: 8, lr: 1e-3, pipeline }
      const options = { protocol, imageSize: 32, classes: classes.length, ...items, ...shared(`linear-${pipeline}`) }
      results.push(await evaluateLinear(network(), { ...options, cacheBytes: pipeline === 'crop' ? 0 : 2 ** 30 }))
    }
    return results
  },
}

const outcomes: Record<string, unknown> = {}
for (const kind of kinds) {
  const found = await evaluations[kind]!()
  if (group.rank !== 0) continue
  const folders = kind === 'linear' ? ['linear-crop', 'linear-centre'] : [kind]
  outcomes[kind] = { found, rows: folders.map((each) => readMetrics(join(outOf(each), 'metrics.jsonl'))) }
}
if (group.rank === 0) writeFileSync(join(folder, `found-${group.size}.json`), JSON.stringify(outcomes))
