/** A detector in one file: weights under mmdetection's names, and what is needed to build it again and to use it as it was tested. */
import { existsSync } from 'node:fs'

import { z } from 'zod'

import type { Backbone, BackboneKind } from '../nn/backbone.js'
import { allTensors, refreshCopies } from '../nn/module.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { Random } from '../tensor/random.js'
import { currentDevice, type FloatDType, sizeOf, withDevice } from '../tensor/tensor.js'
import type { BackboneRecord } from '../weights/export.js'
import { readState, restoreState, saveState } from '../weights/state.js'
import type { Detector } from './detector.js'
import { detectorOf } from './detectorShape.js'
import { MaskRcnn } from './maskRcnn.js'
import { proposalLimits } from './proposals.js'
import { type DetectionStyleName, detectionStyles } from './styles.js'

/** How published detectors are tested. */
export const publishedTest = { testScale: 800, longest: 1333, testRegions: proposalLimits.c4.test.after }

/** What a detector may have at most, so that a record of nonsense takes no memory: sides in pixels, regions of an image, channels. */
export const recordLimits = { side: 16384, regions: 100_000, channels: 8192 } as const
const pixels = z.number().positive().max(recordLimits.side)
const count = (most: number): z.ZodNumber => z.number().int().positive().max(most)
const pyramidRecord = z.object({
  channels: count(recordLimits.channels),
  width: count(65536),
  boxConvolutions: z.number().int().min(0).max(16),
  boxLinears: count(8),
  maskConvolutions: z.number().int().min(0).max(16),
  norm: z.boolean(),
  frozen: z.boolean().optional(),
  canonical: pixels,
  levels: z.enum(['detectron2', 'mmdet', 'torchvision']),
})
const detectorRecord = z.object({
  form: z.enum(['c4', 'fpn']),
  style: z.enum(Object.keys(detectionStyles) as DetectionStyleName[]),
  classes: z.array(z.string()).min(1).max(100_000),
  /** Sides of the anchors, and heights over widths; whether they are whole pixels. */
  anchors: z.array(pixels).min(1).max(64),
  ratios: z.array(z.number().min(0.001).max(1000)).min(1).max(64),
  rounded: z.boolean().optional(),
  /** How the bins of regions are sampled where that is not RoIAlign's default. */
  pooling: z.object({ samplingRatio: z.number().int().min(0).max(64).optional(), aligned: z.boolean().optional() }).optional(),
  /** Short side of images, and the limit of the long one, in pixels. */
  testScale: pixels,
  longest: pixels,
  /** Regions of an image that are classified, at most. */
  testRegions: count(recordLimits.regions).default(publishedTest.testRegions),
  /** Of the form with a pyramid. */
  pyramid: pyramidRecord.optional(),
  backbone: z.object({ kind: z.string(), options: z.record(z.string(), z.unknown()) }),
})
/** What a file says of its detector. */
export type DetectorRecord = z.output<typeof detectorRecord>

/** The key of the record in our own files. */
export const recordKey = 'detector'

/** Writes a detector. */
export function saveDetector(path: string, model: Detector, record: Readonly<Omit<DetectorRecord, 'form' | 'pyramid' | 'backbone'>>): void {
  const { kind, options } = model.backbone
  const backbone: BackboneRecord = { kind: kind.name, options }
  const pyramid = model instanceof MaskRcnn ? { pyramid: model.options.pyramid } : {}
  saveState(path, allTensors(model.state()), recordKey, { form: model.form, ...record, ...pyramid, backbone } satisfies DetectorRecord)
}

/**
 * The detector of a file on the current device, and its record. `kindOf` finds a kind of backbone by name; `compute` is the dtype of
 * activations, f32 when absent. Throws FORMAT, FILE.
 */
export function openDetector(
  path: string,
  kindOf: (name: string) => BackboneKind | undefined,
  compute?: FloatDType,
): { model: Detector; record: DetectorRecord } {
  if (!existsSync(path)) fail('FILE', `${path}: does not exist: expected the detector.safetensors of an evaluation`)
  const { file, record: read } = readState(path, recordKey)
  if (read === undefined) fail('FORMAT', `${path}: is no detector: expected one that densecl eval detection wrote`)
  const record = checkRecord(path, read)
  const stored = (name: string) => file.tensors.get(name)
  const fill = (built: Detector) => restoreState(path, file, allTensors(built.state()))
  const model = buildDetector(path, record, kindOf, { stored, fill }, compute)
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

/** Where the tensors of a detector come from. */
export interface DetectorTensors {
  /** What a file has for a tensor of ours; undefined for none. */
  stored: (name: string) => { readonly shape: readonly number[] } | undefined
  /** Writes all of them. */
  fill: (model: Detector) => void
}

/**
 * A detector as the record of the file `path` says, with the tensors of that file. Nothing of it is left where that fails, and nothing is
 * allocated where the file has other tensors than its record asks for. Throws CONFIG, SHAPE.
 */
export function buildDetector(
  path: string,
  record: DetectorRecord,
  kindOf: (name: string) => BackboneKind | undefined,
  { stored, fill }: DetectorTensors,
  compute: FloatDType = 'f32',
): Detector {
  const kind =
    kindOf(record.backbone.kind) ??
    fail('CONFIG', `${path}: its backbone is of the kind ${record.backbone.kind}: give its module with --backbone`)
  const built = (filled: (model: Detector) => void) => builtFrom(path, record, kind, compute, filled)
  withDevice(`dry:${currentDevice()}`, () => built((twin) => expectShapes(path, twin, stored))).release()
  return built(fill).model
}

/** Throws SHAPE where a stored tensor is not as large as the detector's. */
function expectShapes(path: string, model: Detector, stored: DetectorTensors['stored']): void {
  for (const [name, tensor] of allTensors(model.state())) {
    const found = stored(name)
    if (found !== undefined && sizeOf(found.shape) !== tensor.size)
      fail('SHAPE', `${path}: ${name}: the file has [${found.shape.join(',')}] but its record asks for ${tensor.size} numbers`)
  }
}

function builtFrom(
  path: string,
  record: DetectorRecord,
  kind: BackboneKind,
  compute: FloatDType,
  fill: (model: Detector) => void,
): { model: Detector; release: () => void } {
  const build = { random: new Random(0), dtype: 'f32' as const, compute }
  let [backbone, model]: [Backbone?, Detector?] = []
  const release = (): void => {
    model?.dispose()
    backbone?.dispose()
  }
  try {
    backbone = kind.build(build, record.backbone.options)
    model = detectorOf(build, backbone, { ...record, classes: record.classes.length })
    fill(model)
    refreshCopies(model.state())
    return { model, release }
  } catch (error) {
    release()
    if (!(error instanceof DenseclError) || error.message.includes(path)) throw error
    return fail(error.code, `${path}: ${error.message}`)
  }
}
