/** Names of a detector's tensors in other frameworks; ours are mmdetection's (docs/method.md, Names of tensors). */
import { detectron2Name, type ExportTarget } from '../weights/export.js'
import type { DetectorForm } from './detector.js'

/** What names depend on beside the framework. */
export interface Named {
  form: DetectorForm
  /** Convolutions of the head of a pyramid, behind which torchvision counts on. */
  boxConvolutions?: number
}

type Rule = readonly [own: RegExp, theirs: string | ((match: readonly string[], named: Named) => string)]
const next = (text: string, by: number): string => String(Number(text) + by)

/** Parts that both forms have, then those of a pyramid. */
const detectron2Rules: readonly Rule[] = [
  [/^rpn_head\.rpn_conv\./, 'proposal_generator.rpn_head.conv.'],
  [/^rpn_head\.rpn_cls\./, 'proposal_generator.rpn_head.objectness_logits.'],
  [/^rpn_head\.rpn_reg\./, 'proposal_generator.rpn_head.anchor_deltas.'],
  [/^roi_head\.shared_head\.norm\./, 'roi_heads.res5.norm.'],
  [/^roi_head\.bbox_head\.fc_cls\./, 'roi_heads.box_predictor.cls_score.'],
  [/^roi_head\.bbox_head\.fc_reg\./, 'roi_heads.box_predictor.bbox_pred.'],
  [/^neck\.lateral_convs\.(\d+)\.(conv|bn)\./, ([, i, layer]) => `backbone.fpn_lateral${next(i!, 2)}.${layer === 'bn' ? 'norm.' : ''}`],
  [/^neck\.fpn_convs\.(\d+)\.(conv|bn)\./, ([, i, layer]) => `backbone.fpn_output${next(i!, 2)}.${layer === 'bn' ? 'norm.' : ''}`],
  [
    /^roi_head\.bbox_head\.shared_convs\.(\d+)\.(conv|bn)\./,
    ([, i, layer]) => `roi_heads.box_head.conv${next(i!, 1)}.${layer === 'bn' ? 'norm.' : ''}`,
  ],
  [/^roi_head\.bbox_head\.shared_fcs\.(\d+)\./, ([, i]) => `roi_heads.box_head.fc${next(i!, 1)}.`],
  [
    /^roi_head\.mask_head\.convs\.(\d+)\.(conv|bn)\./,
    ([, i, layer]) => `roi_heads.mask_head.mask_fcn${next(i!, 1)}.${layer === 'bn' ? 'norm.' : ''}`,
  ],
  [/^roi_head\.mask_head\.upsample\./, 'roi_heads.mask_head.deconv.'],
  [/^roi_head\.mask_head\.conv_logits\./, 'roi_heads.mask_head.predictor.'],
]

/** The two layers of a unit in torchvision, whose names are numbers. */
const layerAt = (layer: string): string => (layer === 'bn' ? '1' : '0')

const torchvisionRules: readonly Rule[] = [
  [/^backbone\./, 'backbone.body.'],
  [/^neck\.lateral_convs\.(\d+)\.(conv|bn)\./, ([, i, layer]) => `backbone.fpn.inner_blocks.${i}.${layerAt(layer!)}.`],
  [/^neck\.fpn_convs\.(\d+)\.(conv|bn)\./, ([, i, layer]) => `backbone.fpn.layer_blocks.${i}.${layerAt(layer!)}.`],
  [/^rpn_head\.rpn_conv\./, 'rpn.head.conv.0.0.'],
  [/^rpn_head\.rpn_cls\./, 'rpn.head.cls_logits.'],
  [/^rpn_head\.rpn_reg\./, 'rpn.head.bbox_pred.'],
  [/^roi_head\.bbox_head\.shared_convs\.(\d+)\.(conv|bn)\./, ([, i, layer]) => `roi_heads.box_head.${i}.${layerAt(layer!)}.`],
  [
    /^roi_head\.bbox_head\.shared_fcs\.(\d+)\./,
    // Two layers alone are called fc6 and fc7; behind convolutions and a flattening one is counted with them.
    ([, i], { boxConvolutions = 0 }) =>
      boxConvolutions === 0 ? `roi_heads.box_head.fc${next(i!, 6)}.` : `roi_heads.box_head.${boxConvolutions + 1}.`,
  ],
  [/^roi_head\.bbox_head\.fc_cls\./, 'roi_heads.box_predictor.cls_score.'],
  [/^roi_head\.bbox_head\.fc_reg\./, 'roi_heads.box_predictor.bbox_pred.'],
  [/^roi_head\.mask_head\.convs\.(\d+)\.(conv|bn)\./, ([, i, layer]) => `roi_heads.mask_head.${i}.${layerAt(layer!)}.`],
  [/^roi_head\.mask_head\.upsample\./, 'roi_heads.mask_predictor.conv5_mask.'],
  [/^roi_head\.mask_head\.conv_logits\./, 'roi_heads.mask_predictor.mask_fcn_logits.'],
]

function byRules(rules: readonly Rule[], name: string, named: Named): string | undefined {
  for (const [own, theirs] of rules) {
    const match = own.exec(name)
    if (match !== null) return (typeof theirs === 'string' ? theirs : theirs(match, named)) + name.slice(match[0].length)
  }
  return undefined
}

/** A framework's name of a tensor of a detector. */
export function detectorName(target: ExportTarget, name: string, named: Named = { form: 'c4' }): string {
  if (target === 'mmdet') return name
  if (target === 'torchvision') return byRules(torchvisionRules, name, named) ?? name
  const part = byRules(detectron2Rules, name, named)
  if (part !== undefined) return part
  const [prefix, theirs] = name.startsWith('backbone.')
    ? (['backbone.', named.form === 'fpn' ? 'backbone.bottom_up.' : 'backbone.'] as const)
    : (['roi_head.shared_head.', 'roi_heads.'] as const)
  return theirs + detectron2Name(name.slice(prefix.length))
}

/** torchvision's present name of a tensor that older files, its published ones among them, call otherwise. */
export const presentName = (name: string): string =>
  name
    .replace(/^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$/, '$1.0.$2')
    .replace(/^rpn\.head\.conv\.(weight|bias)$/, 'rpn.head.conv.0.0.$1')
    .replace(/^roi_heads\.mask_head\.mask_fcn(\d)\./, (_, i: string) => `roi_heads.mask_head.${next(i, -1)}.0.`)
