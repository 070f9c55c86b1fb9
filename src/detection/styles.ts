/** Where the two code bases with published rows differ: every number of the training and test of a detector that is not the model's. */
import type { Box } from '../data/boxes.js'
import type { SizeRounding } from '../data/boxView.js'
import type { MaskForm } from '../data/instanceMasks.js'
import type { Resampling } from '../data/resizeBytes.js'
import type { AssignRules } from './assign.js'
import type { DetectorForm } from './detector.js'

/** What a code base does in its own way. */
export interface DetectionStyle {
  anchorOrder: 'size' | 'ratio'
  /** Which anchors stand for objects. */
  anchors: AssignRules
  /** Anchors that take part: all of the batch's, those whose cell is not behind the image's own padding, or those inside the image. */
  anchorsWithin: 'batch' | 'padding' | 'image'
  /** Which regions stand for objects. */
  regions: AssignRules
  /** Images of a device in the published runs, by whose own counts losses are divided; means over such groups are taken. */
  groupOf: number
  /** Losses of anchors are divided by a constant, the sample's wanted size times the images, or by the number of what was sampled. */
  anchorDivisor: 'constant' | 'sampled'
  /** Differences of moves below this count quadratically; 0 for absolute differences alone. */
  boxBeta: number
  /** Bounds of the logarithm of a side's change: from above only, or from both sides. */
  clamp: 'upper' | 'both'
  /** What is added to the corners of a VOC object for training; a difficult one is trained on, or not. */
  vocShift: Box
  difficult: boolean
  rounding: SizeRounding
  resampling: Resampling
  /** How masks of objects are taken to a view, and by it which rule of maskTargets() holds. */
  masks: MaskForm
  /** Sides of a batch are padded to multiples of this. */
  padTo: number
  /** Weight decay of the scales and shifts of batch norms. */
  normDecay: number
  /** Boxes are taken to the original image before, or after, those that overlap are dropped. */
  rescale: 'before' | 'after'
  /** Batches of which the population's statistics of batch norms are taken after training; 0 keeps the running ones. */
  preciseBatches: number
}

/** The styles as the form C4 has them. */
export const detectionStyles = {
  detectron2: {
    anchorOrder: 'size',
    anchors: { low: 0.3, high: 0.7, lowQuality: 'best' },
    anchorsWithin: 'batch',
    regions: { low: 0.5, high: 0.5, lowQuality: 'none' },
    groupOf: 2,
    anchorDivisor: 'constant',
    boxBeta: 0,
    clamp: 'upper',
    vocShift: [0, 0, 0, 0],
    difficult: true,
    rounding: 'detectron2',
    resampling: 'antialiased',
    masks: 'polygons',
    padTo: 1,
    normDecay: 0,
    rescale: 'after',
    preciseBatches: 200,
  },
  mmdet: {
    anchorOrder: 'ratio',
    anchors: { low: 0.3, high: 0.7, lowQuality: 'reassigned' },
    anchorsWithin: 'image',
    regions: { low: 0.5, high: 0.5, lowQuality: 'none' },
    groupOf: 2,
    anchorDivisor: 'sampled',
    boxBeta: 0,
    clamp: 'both',
    vocShift: [0, 0, -1, -1],
    difficult: false,
    rounding: 'mmdet',
    resampling: 'fourTaps',
    masks: 'bitmaps',
    padTo: 32,
    normDecay: 1e-4,
    rescale: 'before',
    preciseBatches: 0,
  },
} as const satisfies Record<string, DetectionStyle>

export type DetectionStyleName = keyof typeof detectionStyles

/** What is otherwise in the form with a feature pyramid. */
const pyramidStyles: Record<DetectionStyleName, Partial<DetectionStyle>> = {
  detectron2: { padTo: 32 },
  mmdet: { anchorsWithin: 'padding', regions: { low: 0.5, high: 0.5, lowQuality: 'reassigned' } },
}

/** A style as a form of detector has it. */
export const styleOf = (name: DetectionStyleName, form: DetectorForm): DetectionStyle =>
  form === 'c4' ? detectionStyles[name] : { ...detectionStyles[name], ...pyramidStyles[name] }
