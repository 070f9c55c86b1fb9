/** Detectors for other frameworks and from them: names of tensors, the order of anchors in a cell, containers. */
import type { BackboneKind } from '../nn/backbone.js'
import { allTensors } from '../nn/module.js'
import { fail } from '../tensor/errors.js'
import type { FloatDType } from '../tensor/tensor.js'
import { type ExportTarget, exportTargets, writeTensors } from '../weights/export.js'
import { readTensorFile } from '../weights/import.js'
import { loadStored, toStored } from '../weights/layout.js'
import type { StoredTensor, TensorFile } from '../weights/safetensors.js'
import { checksumKey } from '../weights/state.js'
import { buildDetector, type DetectorRecord, openDetector, readRecord, recordKey } from './detectorFile.js'
import { detectorName, presentName } from './detectorNames.js'
import type { Detector } from './detector.js'
import { assumedRecord, backgroundLast, type ForeignDetector } from './foreignDetector.js'
import { detectionStyles } from './styles.js'

/** A framework that detectors are written for. */
export type DetectorTarget = Exclude<ExportTarget, 'torchvision'>

/** The order of anchors in a cell by which a framework numbers the channels of its proposals. */
const orderOf = (target: ExportTarget): 'size' | 'ratio' => (target === 'detectron2' ? 'size' : 'ratio')

/** The tensor of proposals `name` with its anchors, rows of the first axis, in the order `to` instead of `from`; any other as it is. */
function reordered(
  name: string,
  tensor: StoredTensor,
  { form, anchors, ratios }: Pick<DetectorRecord, 'form' | 'anchors' | 'ratios'>,
  from: 'size' | 'ratio',
  to: 'size' | 'ratio',
): StoredTensor {
  const rows = name.startsWith('rpn_head.rpn_cls.') ? 1 : name.startsWith('rpn_head.rpn_reg.') ? 4 : 0
  // A map of a pyramid has one size of anchors.
  if (rows === 0 || from === to || form === 'fpn') return tensor
  const count = anchors.length * ratios.length
  // Where the anchors of the outer and of the inner loop of `to` lie in `from`.
  const inner = to === 'size' ? ratios.length : anchors.length
  const bytes = new Uint8Array(tensor.bytes.length)
  const each = bytes.length / count
  for (let at = 0; at < count; ++at) {
    const source = (at % inner) * (count / inner) + Math.floor(at / inner)
    bytes.set(tensor.bytes.subarray(source * each, (source + 1) * each), at * each)
  }
  return { ...tensor, bytes }
}

/** Where an exported file keeps what its tensors do not say. */
const exportedKey = 'densecl_detector'

/**
 * Writes a detector for `target`: .safetensors, or .pth in the container of the framework's checkpoints. What tensors do not say - style,
 * classes, anchors, sizes of images - is kept beside them, so that importDetector() gives the same detector again.
 */
export function writeDetector(path: string, model: Detector, record: DetectorRecord, target: DetectorTarget): void {
  const { kind, name } = model.backbone
  if (kind.torchvision !== true)
    fail('ARGUMENT', `export: expected a detector on a ResNet but received one on ${name}, which ${target} has no names for`)
  const own = detectionStyles[record.style].anchorOrder
  const tensors = new Map(
    [...allTensors(model.state())].map(([each, tensor]) => [
      detectorName(target, each, record),
      reordered(each, toStored(each, tensor), record, own, orderOf(target)),
    ]),
  )
  const said = { [exportedKey]: JSON.stringify(record) }
  writeTensors(path, tensors, said, () =>
    target === 'mmdet'
      ? { state_dict: tensors, meta: { CLASSES: record.classes }, author: 'densecl', ...said }
      : { model: tensors, __author__: 'densecl', ...said },
  )
}

/** A file's tensors under the names of a framework, without its container. */
function framework({ tensors }: Pick<TensorFile, 'tensors'>): ForeignDetector | undefined {
  for (const target of exportTargets) {
    const sign = detectorName(target, 'rpn_head.rpn_conv.weight')
    const present = target === 'torchvision' ? presentName : (name: string) => name
    for (const container of ['', 'state_dict.', 'model.']) {
      const own = new Map(
        [...tensors].flatMap(([name, tensor]) => (name.startsWith(container) ? [[present(name.slice(container.length)), tensor]] : [])),
      )
      if (own.has(sign)) return { target, tensors: own }
    }
  }
  return undefined
}

/** Whether a file holds a detector, ours or a framework's. */
export const holdsDetector = (path: string): boolean => framework(readTensorFile(path)) !== undefined

/**
 * The detector of a file: ours, one that writeDetector() wrote, or a framework's own on a ResNet, of which the published settings are
 * assumed. `compute` is the dtype of activations, f32 when absent. Throws FORMAT, FILE, IMPORT.
 */
export function importDetector(
  path: string,
  kindOf: (name: string) => BackboneKind | undefined,
  compute?: FloatDType,
): { model: Detector; record: DetectorRecord; assumed: boolean } {
  const file = readTensorFile(path)
  // The state of an evaluation has a detector's names too, but what it says of itself is no detector's.
  if (file.metadata[recordKey] !== undefined || file.metadata[checksumKey] !== undefined)
    return { ...openDetector(path, kindOf, compute), assumed: false }
  const found =
    framework(file) ?? fail('FORMAT', `${path}: is no detector: expected one that eval detection or export wrote, or a framework's`)
  const { [exportedKey]: said } = file.metadata
  const record = said === undefined ? assumedRecord(path, found) : readRecord(path, said)
  const own = detectionStyles[record.style].anchorOrder
  const named = { form: record.form, boxConvolutions: record.pyramid?.boxConvolutions ?? 0 }
  const stored = (name: string): StoredTensor | undefined => {
    const tensor = found.tensors.get(detectorName(found.target, name, named))
    return tensor !== undefined && found.target === 'torchvision' ? backgroundLast(name, tensor) : tensor
  }
  const fill = (built: Detector): void => {
    for (const [name, tensor] of allTensors(built.state())) {
      const theirs = stored(name)
      if (theirs !== undefined) loadStored(path, name, tensor, reordered(name, theirs, record, orderOf(found.target), own))
      else if (!name.endsWith('num_batches_tracked'))
        fail('IMPORT', `${path}: the tensor ${detectorName(found.target, name, named)} is missing`)
    }
  }
  const model = buildDetector(path, record, kindOf, { stored, fill }, compute)
  return { model, record, assumed: said === undefined }
}
