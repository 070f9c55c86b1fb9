import { knnAccuracy } from '../eval/knn.js'
import { computeSettings } from '../run/placement.js'
import type { PlannedRun } from './run.js'

/** The share of labelled images that kNN classifies right; all processes of the run call it. Undefined where there are no labels. */
export async function knnOf({ share, group, built, labelled }: PlannedRun): Promise<number | undefined> {
  if (labelled === undefined) return undefined
  const { imageSize, knnK, workers, maxBroken } = share
  const options = { imageSize, k: knnK, workers, maxBroken, compute: computeSettings(share) }
  return knnAccuracy(built.backbone, labelled.bank, labelled.queries, options, group)
}
