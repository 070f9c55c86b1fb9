/** What a detector of a framework is taken for, of which only tensors are known: their shapes, and what that framework always has. */
import { vocClasses } from '../data/voc.js'
import { fail } from '../tensor/errors.js'
import type { BackboneRecord, ExportTarget } from '../weights/export.js'
import { inferResNet, torchvisionNames } from '../weights/import.js'
import type { StoredTensor } from '../weights/safetensors.js'
import { publishedAnchors } from './anchors.js'
import type { DetectorForm } from './detector.js'
import { type DetectorRecord, publishedTest } from './detectorFile.js'
import { detectorName, type Named } from './detectorNames.js'
import { publishedPyramid, type PyramidOptions } from './maskRcnn.js'
import type { DetectionStyleName } from './styles.js'

/** Tensors of a detector under the names of a framework. */
export interface ForeignDetector {
  target: ExportTarget
  tensors: Map<string, StoredTensor>
}

/** The published settings of a file of others, and the sizes that its tensors have. Classes are numbers. Throws IMPORT. */
export function assumedRecord(path: string, { target, tensors }: ForeignDetector): DetectorRecord {
  const form: DetectorForm = tensors.has(detectorName(target, 'neck.lateral_convs.0.conv.weight')) ? 'fpn' : 'c4'
  const has = (name: string, named: Named = { form }): boolean => tensors.has(detectorName(target, name, named))
  const rows = (name: string, named: Named = { form }): number => {
    const theirs = detectorName(target, name, named)
    return tensors.get(theirs)?.shape[0] ?? fail('IMPORT', `${path}: the tensor ${theirs} is missing`)
  }
  if (target === 'torchvision' && tensors.has('rpn.head.conv.1.0.weight'))
    fail('IMPORT', `${path}: its proposals have two convolutions, as torchvision's second version: only one is known here`)
  const backbone: BackboneRecord = { kind: 'resnet', options: inferResNet(path, backboneOf(target, form, tensors)) }
  const style: DetectionStyleName = target === 'mmdet' ? 'mmdet' : 'detectron2'
  const classes = rows('roi_head.bbox_head.fc_cls.bias') - 1
  const names = classes === vocClasses.length ? [...vocClasses] : Array.from({ length: classes }, (_, c) => nameOf(target, c))
  const record = {
    style,
    classes: names,
    ...publishedTest,
    anchors: [...publishedAnchors.sizes],
    ratios: [...publishedAnchors.ratios],
    backbone,
  }
  if (form === 'c4') return { form, ...record }
  const count = (part: string): number => {
    let found = 0
    while (has(`${part}.${found}.conv.weight`)) found += 1
    return found
  }
  const boxConvolutions = count('roi_head.bbox_head.shared_convs')
  const named = { form, boxConvolutions }
  const pyramid: PyramidOptions = {
    ...publishedPyramid,
    channels: rows('rpn_head.rpn_conv.bias'),
    width: rows('roi_head.bbox_head.shared_fcs.0.bias', named),
    boxConvolutions,
    boxLinears: boxConvolutions === 0 && has('roi_head.bbox_head.shared_fcs.1.bias', named) ? 2 : 1,
    maskConvolutions: count('roi_head.mask_head.convs'),
    norm: has('neck.lateral_convs.0.bn.weight'),
    levels: target,
  }
  // torchvision's way with regions and anchors, which no tensor says.
  const own = target === 'torchvision' ? { rounded: true, pooling: { samplingRatio: 2, aligned: false } } : {}
  return { form, ...record, ...own, pyramid }
}

/** torchvision's classes are COCO's numbers, some of which stand for nothing. */
const nameOf = (target: ExportTarget, c: number): string => (target === 'torchvision' ? `category ${c + 1}` : `class ${c}`)

/** The tensors of the backbone under torchvision's names. */
function backboneOf(target: ExportTarget, form: DetectorForm, tensors: ForeignDetector['tensors']): Map<string, StoredTensor> {
  return new Map(
    torchvisionNames().flatMap((name) => {
      const own = form === 'c4' && name.startsWith('layer4.') ? `roi_head.shared_head.${name}` : `backbone.${name}`
      const tensor = tensors.get(detectorName(target, own, { form }))
      return tensor === undefined ? [] : [[name, tensor] as const]
    }),
  )
}

/** A tensor of torchvision, whose background comes first and has moves and a mask, as ours: last, and with neither. */
export function backgroundLast(name: string, tensor: StoredTensor): StoredTensor {
  const { shape, bytes } = tensor
  const first = name.includes('.fc_reg.') ? 4 : name.includes('.fc_cls.') || name.includes('.conv_logits.') ? 1 : 0
  if (first === 0) return tensor
  const rows = shape[0]!
  const each = bytes.length / rows
  const rest = bytes.subarray(first * each)
  if (!name.includes('.fc_cls.')) return { ...tensor, shape: [rows - first, ...shape.slice(1)], bytes: rest }
  const moved = new Uint8Array(bytes.length)
  moved.set(rest)
  moved.set(bytes.subarray(0, each), rest.length)
  return { ...tensor, bytes: moved }
}
