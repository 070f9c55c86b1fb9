/** What images show, by a classifier of a file. */
import type { Item } from '../data/source.js'
import { checkChannels } from '../run/backbone.js'
import type { Classifier } from '../nn/classifier.js'
import { softmax } from '../ops/softmax.js'
import type { ComputeOptions } from '../tensor/compute.js'
import type { ClassifierRecord } from './classifierFile.js'
import { evaluationCompute } from './compute.js'
import { overLogits } from './finetuneTraining.js'

/** A class that an image may show, and its probability. */
export interface Guess {
  class: string
  probability: number
}

/** What is said of an image: the likeliest classes, the likeliest first, or why it could not be read. */
export interface Prediction {
  image: string
  guesses: Guess[]
  error?: string
}

/** How images are classified. */
export interface ClassifyOptions {
  /** Classes that are named of each image. */
  top?: number
  workers?: number
  compute?: ComputeOptions
  /** Called after every batch. */
  progress?: (done: number) => void
}

/**
 * The classes of images: of each the central crop, cut and normalised as the record says, with running statistics. An image that cannot be
 * read has an error in place of guesses. Throws CONFIG where the classifier is of other channels than images have.
 */
export async function classifyImages(
  model: Classifier,
  { classes, imageSize }: Pick<ClassifierRecord, 'classes' | 'imageSize'>,
  items: readonly Item[],
  { top = 5, workers = 0, compute, progress }: ClassifyOptions = {},
): Promise<Prediction[]> {
  const { device } = model.backbone
  checkChannels(model.backbone, 'predict')
  const broken = new Map<string, string>()
  const found: Guess[][] = []
  const read = { imageSize, workers, maxBroken: 1, broken, ...(progress === undefined ? {} : { progress }) }
  await overLogits(model, [...items], evaluationCompute(device, compute), read, (logits, _, count) => {
    const probabilities = softmax(logits).data()
    for (let i = 0; i < count; ++i) {
      const own = [...probabilities.subarray(i * classes.length, (i + 1) * classes.length)]
      const order = own.map((_value, c) => c).sort((a, b) => own[b]! - own[a]! || a - b)
      found.push(order.slice(0, top).map((c) => ({ class: classes[c]!, probability: own[c]! })))
    }
  })
  return items.map((item, i) => {
    const error = broken.get(item.name)
    return { image: item.name, guesses: error === undefined ? found[i]! : [], ...(error === undefined ? {} : { error }) }
  })
}
