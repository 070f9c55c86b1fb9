/** A detector in one file: weights under mmdetection's names, and what is needed to build it again and to use it as it was tested. */
import { existsSync } from 'node:fs'

import { z } from 'zod'

import { vocClasses } from '../data/voc.js'
import type { Backbone, BackboneKind } from '../nn/backbone.js'
import { allTensors } from '../nn/module.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { Random } from '../tensor/random.js'
import type { BackboneRecord } from '../weights/export.js'
import { readState, restoreState, saveState } from '../weights/state.js'
import { FasterRcnn } from './fasterRcnn.js'
import { proposalLimits } from './proposals.js'
import { type DetectionStyleName, detectionStyles } from './styles.js'

/** How published detectors are tested, and their anchors. */
const publishedTest = {
  testScale: 800,
  longest: 1333,
  testRegions: proposalLimits.test.after,
  anchors: [32, 64, 128, 256, 512],
  ratios: [0.5, 1, 2],
}

const pixels = z.number().positive()
const detectorRecord = z.object({
  form: z.literal('c4'),
  style: z.enum(Object.keys(detectionStyles) as DetectionStyleName[]),
  classes: z.array(z.string()).min(1),
  /** Sides of the anchors, and heights over widths. */
  anchors: z.array(pixels).min(1),
  ratios: z.array(z.number().positive()).min(1),
  /** Short side of images, and the limit of the long one, in pixels. */
  testScale: pixels,
  longest: pixels,
  /** Regions of an image that are classified, at most. */
  testRegions: z.number().int().positive().default(publishedTest.testRegions),
  backbone: z.object({ kind: z.string(), options: z.record(z.string(), z.unknown()) }),
})
/** What a file says of its detector. */
export type DetectorRecord = z.output<typeof detectorRecord>

/** The key of the record in our own files. */
export const recordKey = 'detector'

/** Writes a detector. */
export function saveDetector(path: string, model: FasterRcnn, record: Readonly<Omit<DetectorRecord, 'form' | 'backbone'>>): void {
  const { kind, options } = model.backbone
  const backbone: BackboneRecord = { kind: kind.name, options }
  saveState(path, allTensors(model.state()), recordKey, { form: 'c4', ...record, backbone } satisfies DetectorRecord)
}

/** The detector of a file on the current device, and its record. `kindOf` finds a kind of backbone by name. Throws FORMAT, FILE. */
export function openDetector(
  path: string,
  kindOf: (name: string) => BackboneKind | undefined,
): { model: FasterRcnn; record: DetectorRecord } {
  if (!existsSync(path)) fail('FILE', `${path}: does not exist: expected the detector.safetensors of an evaluation`)
  const { file, record: read } = readState(path, recordKey)
  if (read === undefined) fail('FORMAT', `${path}: is no detector: expected one that densecl eval detection wrote`)
  const record = checkRecord(path, read)
  const model = buildDetector(path, record, kindOf, (built) => restoreState(path, file, allTensors(built.state())))
  return { model, record }
}

/** The record that a text holds. Throws FORMAT. */
export function readRecord(path: string, text: string): DetectorRecord {
  let read: unknown
  try {
    read = JSON.parse(text)
  } catch (error) {
    return fail('FORMAT', `${path}: its record of the detector is not JSON (${error instanceof Error ? error.message : String(error)})`)
  }
  return checkRecord(path, read)
}

function checkRecord(path: string, read: unknown): DetectorRecord {
  const { data: record, error } = detectorRecord.safeParse(read)
  if (error !== undefined)
    return fail('FORMAT', `${path}: its record of the detector: ${error.issues[0]!.path.join('.')}: ${error.issues[0]!.message}`)
  return record
}

/** What is assumed of a detector of which only style, backbone and the number of classes are known: the published settings. */
export const publishedRecord = (style: DetectionStyleName, backbone: BackboneRecord, classes: number): DetectorRecord => ({
  form: 'c4',
  style,
  classes: classes === vocClasses.length ? [...vocClasses] : Array.from({ length: classes }, (_, c) => `class ${c}`),
  ...publishedTest,
  backbone,
})

/** A detector as the record of the file `path` says, whose tensors `fill` writes. Nothing of it is left where that fails. Throws CONFIG. */
export function buildDetector(
  path: string,
  record: DetectorRecord,
  kindOf: (name: string) => BackboneKind | undefined,
  fill: (model: FasterRcnn) => void,
): FasterRcnn {
  const style = detectionStyles[record.style]
  const build = { random: new Random(0), dtype: 'f32' as const }
  const kind =
    kindOf(record.backbone.kind) ??
    fail('CONFIG', `${path}: its backbone is of the kind ${record.backbone.kind}: give its module with --backbone`)
  let [backbone, model]: [Backbone?, FasterRcnn?] = []
  try {
    backbone = kind.build(build, record.backbone.options)
    const { stride } = backbone.maps.at(-2)!
    const anchors = { sizes: record.anchors, ratios: record.ratios, stride, order: style.anchorOrder }
    model = new FasterRcnn(build, backbone, { classes: record.classes.length, anchors })
    fill(model)
    return model
  } catch (error) {
    model?.dispose()
    backbone?.dispose()
    if (!(error instanceof DenseclError) || error.message.includes(path)) throw error
    return fail(error.code, `${path}: ${error.message}`)
  }
}
