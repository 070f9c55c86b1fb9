/**
 * The configuration by which another framework loads an exported backbone: text to paste. Facts of mmdetection 3
 * (configs/selfsup_pretrain), mmsegmentation 1 (configs/_base_/models/fcn_r50-d8.py) and detectron2 (config/defaults.py).
 */
import type { Backbone } from '../nn/backbone.js'
import { resnetDepths, ResNet, resnetStrides } from '../nn/resnet.js'
import { fail } from '../tensor/errors.js'

/** A framework whose configuration can be written. */
export type ConfiguredFramework = 'mmdet' | 'mmseg' | 'detectron2'

/** Mean and deviation of the channels of images in 0..255, as these frameworks have them. */
interface Normalisation {
  mean: readonly number[]
  deviation: readonly number[]
}

const list = (values: readonly (number | string)[]): string => `[${values.join(', ')}]`
const tuple = (values: readonly (number | string)[]): string => `(${values.join(', ')})`
const bytes = (values: readonly number[]): number[] => values.map((value) => Number((255 * value).toPrecision(6)))
/** A path as a string of Python, and of YAML within double quotes. */
const quoted = (path: string): string => JSON.stringify(path)

/** What differs of a ResNet from the one that the framework would build. */
interface Shape {
  depth: number
  base: number
  strides: readonly number[] | undefined
  channels: number[]
  inputs: number
}

function shapeOf(backbone: Backbone, framework: string): Shape {
  if (!(backbone instanceof ResNet))
    return fail('ARGUMENT', `export: expected a ResNet but received ${backbone.name}, which ${framework} has no names for`)
  const { strides } = backbone.options
  const { depth, baseChannels: base, inputs } = backbone
  if (inputs !== 1 && inputs !== 3)
    fail(
      'ARGUMENT',
      `export: expected a backbone of grey or RGB images, as ${framework} reads them, but received one of ${inputs} channels`,
    )
  return { depth, base, strides, channels: backbone.maps.slice(1).map(({ channels }) => channels), inputs }
}

const indented = (text: string, by: number): string =>
  text
    .split('\n')
    .map((line) => ' '.repeat(by) + line)
    .join('\n')

/** The arguments of the class ResNet of mmdetection and mmsegmentation, a line each. */
function mmResNet(path: string, { depth, base, inputs }: Shape, strides: readonly string[]): string {
  return [
    "type='ResNet',  # with the 7x7 stem; ResNetV1c and V1d have another",
    `depth=${depth},`,
    ...(inputs === 3 ? [] : [`in_channels=${inputs},`]),
    ...(base === 64 ? [] : [`stem_channels=${base},`, `base_channels=${base},`]),
    ...strides,
    "style='pytorch',  # the stride is on the 3x3 convolution",
    'frozen_stages=-1,  # nothing is frozen: self-supervised weights are fine-tuned as a whole',
    "norm_cfg=dict(type='SyncBN', requires_grad=True),  # 'BN' on one GPU",
    'norm_eval=False,',
    `init_cfg=dict(type='Pretrained', checkpoint=${quoted(path)})`,
  ].join('\n')
}

const preprocessor = (type: string, { mean, deviation }: Normalisation, inputs: number, rest: string): string =>
  `data_preprocessor=dict(
    type='${type}',
    mean=${list(bytes(mean))},
    std=${list(bytes(deviation))},
    bgr_to_rgb=${inputs === 3 ? 'True' : 'False'},${inputs === 3 ? '  # images are read as BGR, the weights take RGB' : ''}
    ${rest}),`

function mmdet(path: string, shape: Shape, normalisation: Normalisation): string {
  const { channels, strides } = shape
  const own = strides === undefined ? [] : [`strides=${tuple(strides)},`]
  const steps = mapStrides(strides)
  return `# mmdetection 3: into a configuration that begins with _base_ = ['../_base_/models/mask-rcnn_r50_fpn.py', ...]
model = dict(
${indented(preprocessor('DetDataPreprocessor', normalisation, shape.inputs, 'pad_size_divisor=32'), 4)}
    backbone=dict(
${indented(mmResNet(path, shape, own), 8)}),
    neck=dict(in_channels=${list(channels)})${
      steps === undefined
        ? ')'
        : `,
    # Trained with strides ${strides!.join('-')}, its maps lie ${steps.join(', ')} pixels apart:
    rpn_head=dict(anchor_generator=dict(strides=${list([...steps, 2 * steps.at(-1)!])})),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=${list(steps)}),
        mask_roi_extractor=dict(featmap_strides=${list(steps)})))`
    }`
}

/** Pixels between two places of the maps of the four stages; undefined for the published strides. */
const mapStrides = (strides: readonly number[] | undefined): number[] | undefined =>
  strides?.map((_, s) => 4 * strides.slice(0, s + 1).reduce((product, stride) => product * stride))

function mmseg(path: string, shape: Shape, normalisation: Normalisation): string {
  const { channels, strides } = shape
  const dense = strides === undefined || mapStrides(strides)!.at(-1)! > 8
  const own = dense
    ? ['strides=(1, 2, 1, 1),  # dilated instead to a stride of 8', 'dilations=(1, 1, 2, 4),', 'contract_dilation=True,']
    : [`strides=${tuple(strides)},`, 'dilations=(1, 1, 1, 1),', 'contract_dilation=False,']
  return `# mmsegmentation 1: into a configuration that begins with _base_ = ['../_base_/models/fcn_r50-d8.py', ...]
model = dict(
${indented(preprocessor('SegDataPreProcessor', normalisation, shape.inputs, 'pad_val=0,\n    seg_pad_val=255'), 4)}
    pretrained=None,  # init_cfg has the weights
    backbone=dict(
${indented(mmResNet(path, shape, own), 8)}),
    decode_head=dict(in_channels=${channels.at(-1)!}),
    auxiliary_head=dict(in_channels=${channels.at(-2)!}))`
}

function detectron2(path: string, shape: Shape, { mean, deviation }: Normalisation): string {
  const { depth, base, channels, strides, inputs } = shape
  const { bottleneck } = resnetDepths[depth as keyof typeof resnetDepths]
  if (!bottleneck && base !== 64)
    fail('ARGUMENT', `export: expected 64 base channels, as detectron2's ResNet-${depth} has, but received ${base}`)
  if (inputs !== 3)
    fail('ARGUMENT', `export: expected a backbone of RGB images, as detectron2 reads them, but received one of ${inputs} channels`)
  const widths =
    channels[0] === 256
      ? ''
      : `\n    STEM_OUT_CHANNELS: ${base}\n    RES2_OUT_CHANNELS: ${channels[0]!}${bottleneck ? `\n    WIDTH_PER_GROUP: ${base}` : ''}`
  const caution =
    strides === undefined
      ? ''
      : `\n# detectron2's stages have strides ${resnetStrides.join('-')}, but these weights were trained with ${strides.join('-')}: ` +
        'they fit, its maps are coarser.'
  return `# detectron2: into a configuration of _BASE_ "Base-RCNN-FPN.yaml" or "Base-RCNN-C4.yaml"${caution}
MODEL:
  WEIGHTS: ${quoted(path)}
  PIXEL_MEAN: ${list(bytes(mean))}  # of RGB
  PIXEL_STD: ${list(bytes(deviation))}
  BACKBONE:
    FREEZE_AT: 0  # nothing is frozen: self-supervised weights are fine-tuned as a whole
  RESNETS:
    DEPTH: ${depth}${widths}
    STRIDE_IN_1X1: False
    NORM: "SyncBN"  # "BN" on one GPU
  FPN:
    NORM: "SyncBN"
INPUT:
  FORMAT: "RGB"`
}

const writers = { mmdet, mmseg, detectron2 }

/**
 * The configuration by which `framework` loads the backbone that was exported to `path`: its class and sizes where they are not the
 * published ones, the stem, mean, deviation and order of the channels, what is frozen. Python of mmdetection and mmsegmentation, YAML of
 * detectron2. Throws ARGUMENT for a backbone that the framework cannot build.
 */
export const loadingConfiguration = (
  framework: ConfiguredFramework,
  path: string,
  backbone: Backbone,
  normalisation: Normalisation,
): string => writers[framework](path, shapeOf(backbone, framework), normalisation)

/**
 * Lines of Python by which torchvision's network gets the strides that a backbone was trained with, and its weights from `path`; undefined
 * where torchvision has no such network, or has those strides anyway.
 */
export function torchvisionProgram(path: string, backbone: Backbone): string | undefined {
  if (!(backbone instanceof ResNet)) return undefined
  const { depth, baseChannels, inputs, options } = backbone
  const { strides = resnetStrides } = options
  const others = strides.flatMap((stride, s) => (stride === resnetStrides[s] ? [] : [{ stage: s + 1, stride }]))
  if (baseChannels !== 64 || inputs !== 3 || others.length === 0 || strides[0] !== resnetStrides[0]) return undefined
  const { bottleneck } = resnetDepths[depth]
  const load = path.endsWith('.pth') ? 'torch.load' : 'safetensors.torch.load_file'
  return [
    `# torchvision's network has strides ${resnetStrides.join('-')}, but these weights were trained with ${strides.join('-')}:`,
    `import torch, torchvision${path.endsWith('.pth') ? '' : ', safetensors.torch'}`,
    `model = torchvision.models.resnet${depth}()`,
    ...others.map(({ stage, stride }) => {
      const block = `model.layer${stage}[0]`
      return `${block}.conv${bottleneck ? 2 : 1}.stride = ${block}.downsample[0].stride = (${stride}, ${stride})`
    }),
    `model.load_state_dict(${load}(${quoted(path)}), strict=False)`,
  ].join('\n')
}
