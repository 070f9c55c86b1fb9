/** A segmenting network in one file: mmsegmentation's names, and what is needed to build it again and to use it as it was tested. */
import { z } from 'zod'

import { type BackboneKind, disposeHeads } from '../nn/backbone.js'
import { Fcn } from '../nn/fcn.js'
import { allTensors } from '../nn/module.js'
import { firstIssue } from '../tensor/issues.js'
import { fail } from '../tensor/errors.js'
import { Random } from '../tensor/random.js'
import { backboneMetadata, type BackboneRecord } from '../weights/export.js'
import { readTensorFile } from '../weights/import.js'
import { checkWhole, restoreState, saveState } from '../weights/state.js'

const side = z.int().min(1).max(65536)
const segmenterRecord = z.object({
  /** Names of the classes, in the order of the logits. */
  classes: z.array(z.string()).min(2).max(256),
  alignCorners: z.boolean(),
  /** Images are scaled to fit into long x short; they are tested in windows of `crop` at the stride `slide`, or whole where it is 0. */
  scale: z.tuple([side, side]),
  crop: side,
  slide: z.int().min(0).max(65536),
  /** The stride that was asked of the backbone's last map. */
  outputStride: z.int().min(1).max(64),
  backbone: z.object({ kind: z.string(), options: z.record(z.string(), z.unknown()) }),
})
/** What a file says of its network. */
export type SegmenterRecord = z.output<typeof segmenterRecord>

/** The key of the record in a file's metadata. */
export const segmenterKey = 'densecl_segmenter'

/** Writes a segmenting network. */
export function saveSegmenter(path: string, model: Fcn, record: Omit<SegmenterRecord, 'backbone' | 'alignCorners'>): void {
  const { kind, options } = model.backbone
  const backbone: BackboneRecord = { kind: kind.name, options }
  const whole = { ...record, alignCorners: model.options.alignCorners, backbone } satisfies SegmenterRecord
  saveState(path, allTensors(model.state()), segmenterKey, whole, backboneMetadata(model.backbone))
}

/** Whether a file holds a segmenting network of ours. */
export const holdsSegmenter = (path: string): boolean => readTensorFile(path).metadata[segmenterKey] !== undefined

/** The network of a file on the current device, and its record. `kindOf` finds a kind of backbone by name. Throws FORMAT, CONFIG, FILE. */
export function openSegmenter(path: string, kindOf: (name: string) => BackboneKind | undefined): { model: Fcn; record: SegmenterRecord } {
  const file = readTensorFile(path)
  checkWhole(path, file)
  const said = file.metadata[segmenterKey]
  if (said === undefined) fail('FORMAT', `${path}: is no segmenting network: expected segmenter.safetensors of densecl eval segmentation`)
  const record = readRecord(path, said)
  const kind =
    kindOf(record.backbone.kind) ??
    fail('CONFIG', `${path}: its backbone is of the kind ${record.backbone.kind}: give its module with --backbone`)
  const build = { random: new Random(0), dtype: 'f32', unset: true } as const
  const backbone = kind.build(build, record.backbone.options, { outputStride: record.outputStride })
  let model: Fcn | undefined
  try {
    model = new Fcn(build, backbone, { classes: record.classes.length, alignCorners: record.alignCorners })
    restoreState(path, file, allTensors(model.state()))
    return { model, record }
  } catch (error) {
    if (model !== undefined) disposeHeads(model)
    backbone.dispose()
    throw error
  }
}

function readRecord(path: string, text: string): SegmenterRecord {
  let read: unknown
  try {
    read = JSON.parse(text)
  } catch (error) {
    return fail('FORMAT', `${path}: its record of the network is not JSON (${error instanceof Error ? error.message : String(error)})`)
  }
  const { data, error } = segmenterRecord.safeParse(read)
  return data ?? fail('FORMAT', `${path}: its record of the network: ${firstIssue(error)}`)
}
