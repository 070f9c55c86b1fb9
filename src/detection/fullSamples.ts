/** Samples for steps on a device without values: as many as there may be, of every size. */
import type { Regions } from './detector.js'
import type { Chooser } from './step.js'
import { sampling } from './targets.js'

/** Regions of one image of sizes that are taken from every map of a pyramid. */
export const regionsOfAllSizes = (count: number): Regions => ({
  boxes: Float64Array.from({ length: 4 * count }, (_, i) => (i % 4 < 2 ? 0 : 60 * 2 ** (Math.floor(i / 4) % 4))),
  images: new Int32Array(count),
})

/** As many samples as there may be, which depend on no value: regions are among the moved anchors and the objects of an image. */
export function fullSamples(regions: number, classes: number): Chooser {
  const anchorsOf = new Map<number, number>()
  return {
    wanted: sampling.anchors.count,
    anchors(anchors, _, index) {
      anchorsOf.set(index, anchors.length / 4)
      const indices = Int32Array.from({ length: Math.min(sampling.anchors.count, anchors.length / 4) }, (__, i) => i)
      const positives = Math.floor(indices.length * sampling.anchors.fraction)
      return { indices, positives, objects: new Int32Array(positives) }
    },
    regions(_, { objects }, index) {
      const count = Math.min(regions, anchorsOf.get(index)! + objects.length)
      const positives = Math.floor(count * sampling.regions.fraction)
      const labels = Int32Array.from({ length: count }, (__, i) => (i < positives ? 0 : classes))
      return { boxes: regionsOfAllSizes(count).boxes, labels, objects: new Int32Array(positives) }
    },
    masks: ({ objects }, _, __, side) => new Float64Array(objects.length * side * side),
  }
}
