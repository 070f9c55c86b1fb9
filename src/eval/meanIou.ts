/** Scores of a segmentation: counts of pixels by true and predicted class, and what is made of them. */
import { ignoredLabel } from '../data/masks.js'

/** The scores of a segmentation, overall and by class. */
export interface SegmentationScores {
  /** Intersection over union of each class, and the share of its pixels that are found; NaN for a class that is nowhere. */
  iou: number[]
  accuracy: number[]
  /** Means over the classes that are somewhere. */
  meanIou: number
  meanAccuracy: number
  /** Share of labelled pixels that are right. */
  pixelAccuracy: number
}

const mean = (values: number[]): number => {
  const known = values.filter((value) => !Number.isNaN(value))
  return known.reduce((a, b) => a + b, 0) / known.length
}

/** Counts of pixels by true and predicted class, and the scores that follow from them. */
export class ConfusionMatrix {
  /** [true class, predicted class] */
  readonly counts: Float64Array

  /** Of the pixels that `counts` tells of, none when absent. */
  constructor(
    readonly classes: number,
    counts: ArrayLike<number> = new Float64Array(classes * classes),
  ) {
    this.counts = Float64Array.from(counts)
  }

  /** Counts the pixels of one image; those without a label are left out. */
  add(labels: ArrayLike<number>, predicted: ArrayLike<number>): void {
    for (let i = 0; i < labels.length; ++i) if (labels[i]! !== ignoredLabel) this.counts[labels[i]! * this.classes + predicted[i]!]! += 1
  }

  /** The scores of the pixels so far. */
  scores(): SegmentationScores {
    const { classes, counts } = this
    const all = Array.from({ length: classes }, (_, c) => c)
    const right = all.map((c) => counts[c * classes + c]!)
    const inTruth = all.map((c) => all.reduce((sum, p) => sum + counts[c * classes + p]!, 0))
    const inPrediction = all.map((p) => all.reduce((sum, c) => sum + counts[c * classes + p]!, 0))
    const iou = all.map((c) => right[c]! / (inTruth[c]! + inPrediction[c]! - right[c]!))
    const accuracy = all.map((c) => right[c]! / inTruth[c]!)
    const total = inTruth.reduce((a, b) => a + b, 0)
    return { iou, accuracy, meanIou: mean(iou), meanAccuracy: mean(accuracy), pixelAccuracy: right.reduce((a, b) => a + b, 0) / total }
  }
}
