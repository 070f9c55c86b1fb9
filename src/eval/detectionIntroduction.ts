/** What the log of an evaluation by detection says at its start: what is going to happen. */
import { publishedAnchors } from '../detection/anchors.js'
import type { BoxSource } from '../data/boxes.js'
import { styleOf } from '../detection/styles.js'
import { Group } from '../distributed/group.js'
import type { Backbone } from '../nn/backbone.js'
import { native } from '../tensor/native.js'
import { largest, smallest } from '../tensor/numbers.js'
import type { DetectionOptions } from './detection.js'
import { outside, trainingObjects } from './detectionBatches.js'
import { detectionProtocols, preciseBatchesOf } from './detectionProtocols.js'

const mostNames = 8

/** What the forms of detectors are called. */
export const detectorNames = { c4: 'Faster R-CNN C4', fpn: 'Mask R-CNN FPN' } as const

/** The lines before the first iteration, or before iteration `position` goes on. */
export function introduction(backbone: Backbone, options: DetectionOptions, position: number): string[] {
  const { protocol, style: name, train, val, anchors = publishedAnchors.sizes, testEvery = 0 } = options
  const { dataName = 'images', weightsName = 'given weights', imagesAtOnce = protocol.batchSize, group = Group.single } = options
  const style = styleOf(name, protocol.form)
  const { iterations, batchSize, lr, warmup, steps, scales, testScale, longest } = protocol
  const published = detectionProtocols['voc0712-c4']!.batchSize
  const usable = train.items.filter((item) => trainingObjects(item, train, style).length > 0).length
  const left = train.items.length - usable
  const beyond = train.items.reduce((sum, item) => sum + outside(item), 0)
  const classes = `${train.classes.slice(0, mostNames).join(', ')}${train.classes.length > mostNames ? ', ...' : ''}`
  const seen = Math.min(batchSize, imagesAtOnce)
  const parts = Math.ceil(batchSize / imagesAtOnce)
  const precise = preciseBatchesOf(style.preciseBatches, iterations)
  const ofEach = (images: number): string => (group.size === 1 ? '' : `, ${images / group.size} by each of ${group.size} processes`)
  return [
    `data    ${dataName}: ${counted(train)} to train on, ${counted(val)} to test on`,
    `        ${train.classes.length} class${train.classes.length === 1 ? '' : 'es'}: ${classes}`,
    ...(left > 0 ? [`        ${left} training images without an object to train on are left out`] : []),
    ...(beyond > 0 ? [`        ${beyond} training objects lie wholly outside of their images and are left out`] : []),
    `model   ${detectorNames[protocol.form]} on ${backbone.description}, from ${weightsName}`,
    `style   ${name}: difficult objects ${style.difficult ? 'are' : 'are not'} trained on; anchors of ${anchors.join(', ')} px`,
    `images  short side ${range(scales)} px, in tests ${testScale}, long side at most ${longest}; ` +
      `${protocol.regions} regions of each, in tests ${protocol.testRegions}`,
    `rate    ${lr.toPrecision(3)} after ${warmup} iterations of warm-up, ` +
      `${steps.map((step, i) => `1/${10 ** (i + 1)} of it from ${step}`).join(', ')}, ${iterations} in all ` +
      `(${((iterations * batchSize) / Math.max(1, usable)).toFixed(1)} epochs)`,
    `batch   ${batchSize} images${batchSize === published ? '' : ` (published: ${published})`}${ofEach(batchSize)}`,
    ...(parts > 1
      ? [
          `        ${imagesAtOnce} at once${ofEach(imagesAtOnce)}: gradients are summed over ${parts} parts, ` +
            `batch norms see ${imagesAtOnce} images`,
        ]
      : []),
    ...(seen < published
      ? [
          `warning batch norms see ${seen} images at a time, not ${published}` +
            (protocol.form === 'c4' ? ': for small batches 51.2 AP is reported instead of 56.5' : ''),
        ]
      : []),
    ...(protocol.frozenNorms === true
      ? ['norms   of the backbone are frozen: their statistics and weights are those of the pre-training']
      : []),
    `norms   ${precise === 0 ? 'running statistics in tests' : `statistics of ${precise} batches after the last iteration`}`,
    `test    ${testEvery === 0 ? '' : `every ${testEvery} iterations and `}at the end`,
    `device  ${backbone.device}, ${native.describeDevice(backbone.device)}`,
    ...(position > 0 ? [`resume  at iteration ${position}`] : []),
  ]
}

const counted = ({ items }: BoxSource): string =>
  `${items.length} images with ${items.reduce((sum, { objects }) => sum + objects.length, 0)} objects`

function range(scales: readonly number[]): string {
  const [least, most] = [smallest(scales), largest(scales)]
  return least === most ? String(least) : `${least} to ${most}`
}
