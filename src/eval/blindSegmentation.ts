/**
 * What a segmentation scores that never looks at an image: everything the most frequent class, and at each place the class that is most
 * frequent there. A network that is not above the second has learnt the layout of the pictures.
 */
import { readFile } from 'node:fs/promises'

import { decodeMask, ignoredLabel, type Mask } from '../data/masks.js'
import type { SegmentationSource } from '../data/segmentationSources.js'
import { stopIfInterrupted } from '../tensor/interruption.js'
import { ConfusionMatrix, type SegmentationScores } from './meanIou.js'

/** Scores by masks alone. */
export interface BlindScores {
  /** Every pixel of the most frequent class of the training masks. */
  majority: SegmentationScores
  /** At each of `cells` x `cells` places of the picture the class that is most frequent there in the training masks. */
  position: SegmentationScores
}

/** Places along a side: fine enough for a horizon, coarse enough that each has pixels of every mask. */
const cells = 64

/** Counts the training masks and scores what they say on the test masks. Throws DATA for a mask that cannot be read. */
export async function blindScores(train: SegmentationSource, val: SegmentationSource): Promise<BlindScores> {
  const classes = val.classes.length
  // [place, class]
  const counts = new Float64Array(cells * cells * classes)
  for await (const mask of masksOf(train))
    forPlaces(mask, (place, at) => {
      const label = mask.labels[at]!
      // A mask counts the same at each place, whatever its size.
      if (label !== ignoredLabel) counts[place * classes + label]! += 1 / (mask.width * mask.height)
    })
  const total = Array.from({ length: classes }, (_, label) => sumOf(counts, classes, label))
  const most = argmax(total)
  const likeliest = Uint8Array.from({ length: cells * cells }, (_, place) => {
    const here = counts.subarray(place * classes, (place + 1) * classes)
    // Where no mask has a label, what is most frequent everywhere.
    return here.some((count) => count > 0) ? argmax(here) : most
  })

  const [majority, position] = [new ConfusionMatrix(classes), new ConfusionMatrix(classes)]
  for await (const mask of masksOf(val)) {
    const predicted = new Uint8Array(mask.labels.length)
    majority.add(mask.labels, predicted.fill(most))
    forPlaces(mask, (place, at) => (predicted[at] = likeliest[place]!))
    position.add(mask.labels, predicted)
  }
  return { majority: majority.scores(), position: position.scores() }
}

const sumOf = (counts: Float64Array, classes: number, label: number): number => {
  let sum = 0
  for (let at = label; at < counts.length; at += classes) sum += counts[at]!
  return sum
}

const argmax = (values: ArrayLike<number>): number => {
  let best = 0
  for (let i = 1; i < values.length; ++i) if (values[i]! > values[best]!) best = i
  return best
}

/** Calls `body` with the place and the index of every pixel. */
function forPlaces({ width, height }: Mask, body: (place: number, at: number) => void): void {
  for (let y = 0; y < height; ++y) {
    const row = Math.floor((y * cells) / height) * cells
    for (let x = 0; x < width; ++x) body(row + Math.floor((x * cells) / width), y * width + x)
  }
}

async function* masksOf({ items, classes, map }: SegmentationSource): AsyncGenerator<Mask> {
  for (const { mask } of items) {
    stopIfInterrupted()
    yield decodeMask(await readFile(mask), mask, classes.length, map)
  }
}
