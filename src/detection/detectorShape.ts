/** What a detector is built from beside its backbone, in plain numbers as files have them. */
import type { RoiAlignOptions } from '../ops/roiAlign.js'
import type { Backbone } from '../nn/backbone.js'
import type { Build } from '../nn/layers.js'
import { publishedAnchors } from './anchors.js'
import type { Detector, DetectorForm } from './detector.js'
import { FasterRcnn } from './fasterRcnn.js'
import { MaskRcnn, publishedPyramid, type PyramidOptions } from './maskRcnn.js'
import { type DetectionStyleName, detectionStyles } from './styles.js'

/** What a detector is built from. */
export interface DetectorShape {
  form: DetectorForm
  style: DetectionStyleName
  classes: number
  /** Square roots of the areas of anchors, in a pyramid one of each map; the published ones where absent, as all that follows. */
  anchors?: readonly number[] | undefined
  ratios?: readonly number[] | undefined
  rounded?: boolean | undefined
  pooling?: Pick<RoiAlignOptions, 'samplingRatio' | 'aligned'> | undefined
  pyramid?: PyramidOptions | undefined
}

/** A detector of a shape on a backbone, which becomes part of it. Throws CONFIG where the backbone has not the maps that the form needs. */
export function detectorOf(build: Build, backbone: Backbone, shape: DetectorShape): Detector {
  const { form, style, classes, anchors = publishedAnchors.sizes, ratios = publishedAnchors.ratios, rounded, pooling } = shape
  const cell = { sizes: anchors, ratios, order: detectionStyles[style].anchorOrder, rounded }
  if (form === 'fpn') {
    const { pyramid = { ...publishedPyramid, levels: style } } = shape
    return new MaskRcnn(build, backbone, { classes, anchors: cell, init: style, pyramid, pooling })
  }
  const stride = backbone.maps.at(-2)?.stride ?? backbone.stride
  return new FasterRcnn(build, backbone, { classes, anchors: { ...cell, stride }, pooling })
}
