/** How often a classifier is right, by class; and what one that does not look at the image would have. */
import { Group } from '../distributed/group.js'
import { largest } from '../tensor/numbers.js'

/** Shares of images whose class is the likeliest, or among the five likeliest. */
export interface Accuracy {
  top1: number
  top5: number
}

/** What a classifier reached on labelled images. */
export interface ClassificationResult extends Accuracy {
  /** Mean cross-entropy. */
  loss: number
  /** Images of each class, and the share of them that was right; NaN where there is none. */
  byClass: { images: number; top1: number }[]
}

/** How many classes do not score lower than `label`, of equal ones those that come earlier; what is not a number is never right. */
export function rankOf(scores: ArrayLike<number>, label: number): number {
  const own = scores[label]!
  let place = 0
  for (let c = 0; c < scores.length; ++c) if (c !== label && !(scores[c]! < own || (scores[c] === own && c > label))) place += 1
  return place
}

type Logits = ArrayLike<number> & Iterable<number>

/** Counts right answers. */
export class ClassificationScores {
  readonly #images: number[]
  readonly #right: number[]
  #top5 = 0
  #loss = 0

  constructor(readonly classes: number) {
    this.#images = Array.from({ length: classes }, () => 0)
    this.#right = Array.from({ length: classes }, () => 0)
  }

  /** The logits [classes] of an image of class `label`. */
  add(logits: Logits, label: number): void {
    const place = rankOf(logits, label)
    this.#images[label]! += 1
    this.#right[label]! += Number(place < 1)
    this.#top5 += Number(place < 5)
    const most = largest(logits)
    let sum = 0
    for (const logit of logits) sum += Math.exp(logit - most)
    this.#loss += most + Math.log(sum) - logits[label]!
  }

  /** The scores so far, of the images of all processes of a group. */
  result(group = Group.single): ClassificationResult {
    const [top5, loss, ...byClass] = group.sum([this.#top5, this.#loss, ...this.#images, ...this.#right]) as [number, number, ...number[]]
    const [images, right] = [byClass.slice(0, this.classes), byClass.slice(this.classes)]
    const count = images.reduce((sum, own) => sum + own, 0)
    return {
      top1: right.reduce((sum, own) => sum + own, 0) / count,
      top5: top5 / count,
      loss: loss / count,
      byClass: images.map((own, c) => ({ images: own, top1: right[c]! / own })),
    }
  }
}

/** The accuracy of guessing among `classes`, and of always naming the most frequent classes of the training images. */
export function blindAccuracies(train: Int32Array, val: Int32Array, classes: number): { chance: Accuracy; majority: Accuracy } {
  const counts = Array.from({ length: classes }, () => 0)
  for (const label of train) counts[label]! += 1
  const frequent = counts.map((_, c) => c).sort((a, b) => counts[b]! - counts[a]! || a - b)
  const share = (named: readonly number[]): number => val.reduce((sum, label) => sum + Number(named.includes(label)), 0) / val.length
  return {
    chance: { top1: 1 / classes, top5: Math.min(1, 5 / classes) },
    majority: { top1: share(frequent.slice(0, 1)), top5: share(frequent.slice(0, 5)) },
  }
}
