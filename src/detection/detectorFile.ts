/** A detector in one file: weights under mmdetection's names, and what is needed to build it again and to use it as it was tested. */
import { existsSync } from 'node:fs'

import { z } from 'zod'

import type { Backbone, BackboneKind } from '../nn/backbone.js'
import { allTensors } from '../nn/module.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { Random } from '../tensor/random.js'
import type { BackboneRecord } from '../weights/export.js'
import { readState, restoreState, saveState } from '../weights/state.js'
import { FasterRcnn } from './fasterRcnn.js'
import { type DetectionStyleName, detectionStyles } from './styles.js'

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
  testRegions: z.number().int().positive().default(1000),
  backbone: z.object({ kind: z.string(), options: z.record(z.string(), z.unknown()) }),
})
/** What a file says of its detector. */
export type DetectorRecord = z.output<typeof detectorRecord>

const key = 'detector'

/** Writes a detector. */
export function saveDetector(path: string, model: FasterRcnn, record: Readonly<Omit<DetectorRecord, 'form' | 'backbone'>>): void {
  const { kind, options } = model.backbone
  const backbone: BackboneRecord = { kind: kind.name, options }
  saveState(path, allTensors(model.state()), key, { form: 'c4', ...record, backbone } satisfies DetectorRecord)
}

/** The detector of a file on the current device, and its record. `kindOf` finds a kind of backbone by name. Throws FORMAT, FILE. */
export function openDetector(
  path: string,
  kindOf: (name: string) => BackboneKind | undefined,
): { model: FasterRcnn; record: DetectorRecord } {
  if (!existsSync(path)) fail('FILE', `${path}: does not exist: expected the detector.safetensors of an evaluation`)
  const { file, record: read } = readState(path, key)
  if (read === undefined) fail('FORMAT', `${path}: is no detector: expected one that densecl eval detection wrote`)
  const { data: record, error } = detectorRecord.safeParse(read)
  if (error !== undefined)
    return fail('FORMAT', `${path}: its record of the detector: ${error.issues[0]!.path.join('.')}: ${error.issues[0]!.message}`)
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
    restoreState(path, file, allTensors(model.state()))
    return { model, record }
  } catch (error) {
    model?.dispose()
    backbone?.dispose()
    if (!(error instanceof DenseclError) || error.message.includes(path)) throw error
    return fail(error.code, `${path}: ${error.message}`)
  }
}
