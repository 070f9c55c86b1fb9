/** Detectors for other frameworks and from them: names of tensors, the order of anchors in a cell, containers. */
import type { BackboneKind } from '../nn/backbone.js'
import { allTensors } from '../nn/module.js'
import { fail } from '../tensor/errors.js'
import { detectron2Name, type ExportTarget, writeTensors } from '../weights/export.js'
import { inferResNet, readTensorFile, torchvisionNames } from '../weights/import.js'
import { loadStored, toStored } from '../weights/layout.js'
import type { StoredTensor, TensorFile } from '../weights/safetensors.js'
import { checksumKey } from '../weights/state.js'
import { buildDetector, type DetectorRecord, openDetector, publishedRecord, readRecord, recordKey } from './detectorFile.js'
import type { Detector } from './detector.js'
import { type DetectionStyleName, detectionStyles } from './styles.js'

/** A framework that has the detector of the form C4. */
export type DetectorTarget = Exclude<ExportTarget, 'torchvision'>

/** Parts beside the backbone under detectron2's names (docs/method.md, Names of tensors). */
const detectron2Parts: readonly (readonly [own: string, theirs: string])[] = [
  ['rpn_head.rpn_conv.', 'proposal_generator.rpn_head.conv.'],
  ['rpn_head.rpn_cls.', 'proposal_generator.rpn_head.objectness_logits.'],
  ['rpn_head.rpn_reg.', 'proposal_generator.rpn_head.anchor_deltas.'],
  ['roi_head.shared_head.norm.', 'roi_heads.res5.norm.'],
  ['roi_head.bbox_head.fc_cls.', 'roi_heads.box_predictor.cls_score.'],
  ['roi_head.bbox_head.fc_reg.', 'roi_heads.box_predictor.bbox_pred.'],
]

/** A framework's name of a tensor of a detector; ours are mmdetection's. */
export function detectorName(target: DetectorTarget, name: string): string {
  if (target === 'mmdet') return name
  const part = detectron2Parts.find(([own]) => name.startsWith(own))
  if (part !== undefined) return part[1] + name.slice(part[0].length)
  const [prefix, theirs] = name.startsWith('backbone.') ? ['backbone.', 'backbone.'] : ['roi_head.shared_head.', 'roi_heads.']
  return theirs + detectron2Name(name.slice(prefix.length))
}

/** The order of anchors in a cell by which a framework numbers the channels of its proposals. */
const orderOf = (target: DetectorTarget): 'size' | 'ratio' => (target === 'mmdet' ? 'ratio' : 'size')

/** The tensor of proposals `name` with its anchors, rows of the first axis, in the order `to` instead of `from`; any other as it is. */
function reordered(
  name: string,
  tensor: StoredTensor,
  { anchors, ratios }: Pick<DetectorRecord, 'anchors' | 'ratios'>,
  from: 'size' | 'ratio',
  to: 'size' | 'ratio',
): StoredTensor {
  const rows = name.startsWith('rpn_head.rpn_cls.') ? 1 : name.startsWith('rpn_head.rpn_reg.') ? 4 : 0
  if (rows === 0 || from === to) return tensor
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
      detectorName(target, each),
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
function framework({ tensors }: Pick<TensorFile, 'tensors'>): { target: DetectorTarget; tensors: Map<string, StoredTensor> } | undefined {
  for (const target of ['mmdet', 'detectron2'] as const) {
    const sign = detectorName(target, 'rpn_head.rpn_conv.weight')
    for (const container of ['', 'state_dict.', 'model.'])
      if (tensors.has(container + sign))
        return {
          target,
          tensors: new Map(
            [...tensors].flatMap(([name, tensor]) => (name.startsWith(container) ? [[name.slice(container.length), tensor]] : [])),
          ),
        }
  }
  return undefined
}

/** Whether a file holds a detector, ours or a framework's, of the form C4. */
export const holdsDetector = (path: string): boolean => framework(readTensorFile(path)) !== undefined

/**
 * The detector of a file: ours, one that writeDetector() wrote, or a framework's own on a ResNet, of which the published settings are
 * assumed. Throws FORMAT, FILE, IMPORT.
 */
export function importDetector(
  path: string,
  kindOf: (name: string) => BackboneKind | undefined,
): { model: Detector; record: DetectorRecord; assumed: boolean } {
  const file = readTensorFile(path)
  // The state of an evaluation has a detector's names too, but what it says of itself is no detector's.
  if (file.metadata[recordKey] !== undefined || file.metadata[checksumKey] !== undefined)
    return { ...openDetector(path, kindOf), assumed: false }
  const found =
    framework(file) ?? fail('FORMAT', `${path}: is no detector of the form C4: expected one that eval detection or export wrote`)
  const { [exportedKey]: said } = file.metadata
  const record = said === undefined ? assumedRecord(path, found) : readRecord(path, said)
  const own = detectionStyles[record.style].anchorOrder
  const stored = (name: string): StoredTensor | undefined => found.tensors.get(detectorName(found.target, name))
  const fill = (built: Detector): void => {
    for (const [name, tensor] of allTensors(built.state())) {
      const theirs = stored(name)
      if (theirs !== undefined) loadStored(path, name, tensor, reordered(name, theirs, record, orderOf(found.target), own))
      else if (!name.endsWith('num_batches_tracked')) fail('IMPORT', `${path}: the tensor ${detectorName(found.target, name)} is missing`)
    }
  }
  const model = buildDetector(path, record, kindOf, { stored, fill })
  return { model, record, assumed: said === undefined }
}

/** What a file of others is taken for: the published settings, classes that are numbers. */
function assumedRecord(path: string, { target, tensors }: NonNullable<ReturnType<typeof framework>>): DetectorRecord {
  const backbone = new Map(
    torchvisionNames().flatMap((name) => {
      const own = name.startsWith('layer4.') ? `roi_head.shared_head.${name}` : `backbone.${name}`
      const tensor = tensors.get(detectorName(target, own))
      return tensor === undefined ? [] : [[name, tensor] as const]
    }),
  )
  const rows = (name: string): number =>
    tensors.get(detectorName(target, name))?.shape[0] ?? fail('IMPORT', `${path}: the tensor ${detectorName(target, name)} is missing`)
  const style: DetectionStyleName = target
  return publishedRecord(style, { kind: 'resnet', options: inferResNet(path, backbone) }, rows('roi_head.bbox_head.fc_cls.bias') - 1)
}
