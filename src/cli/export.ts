import { existsSync, statSync } from 'node:fs'
import { extname, resolve } from 'node:path'

import { Option } from 'commander'

import { testRules } from '../detection/detect.js'
import { type DetectorRecord } from '../detection/detectorFile.js'
import { type DetectorTarget, holdsDetector, importDetector, writeDetector } from '../detection/exchange.js'
import { proposalLimits } from '../detection/proposals.js'
import { styleOf } from '../detection/styles.js'
import { type ClassifierRecord, holdsClassifier, importClassifier, normalisation, writeClassifier } from '../eval/classifierFile.js'
import { holdsSegmenter, openSegmenter } from '../eval/segmenterFile.js'
import { type Backbone, type BackboneKind, disposeHeads } from '../nn/backbone.js'
import { backboneKinds } from '../nn/backbones.js'
import type { Classifier } from '../nn/classifier.js'
import { allTensors } from '../nn/module.js'
import { writeOnnxDetector } from '../onnx/detector.js'
import { onnxOutputs, writeOnnx } from '../onnx/export.js'
import { channelWords, colourImages, type ImageFormat } from '../data/augment.js'
import { backboneHelp, imagesOf, kindOfFlag } from '../run/backbone.js'
import { imageSizeOfRun } from '../run/results.js'
import { fail } from '../tensor/errors.js'
import { classCount } from '../tensor/hint.js'
import { type ConfiguredFramework, loadingConfiguration, torchvisionProgram } from '../weights/configurations.js'
import { type ExportTarget, writeBackbone } from '../weights/export.js'
import { importBackbone } from '../weights/import.js'
import { timmCaution, writeTimmFolder } from '../weights/timm.js'
import { examples, print, refuseExisting, type Register } from './command.js'

/** What weights are written for, and the endings of the files that it reads; a folder for timm. */
const frameworks = {
  torchvision: ['.safetensors', '.pth'],
  timm: [''],
  mmdet: ['.pth'],
  mmseg: ['.pth'],
  detectron2: ['.pth'],
  onnx: ['.onnx'],
} as const
type Framework = keyof typeof frameworks

/** Names and container of a framework's files. */
const targetOf = (framework: Exclude<Framework, 'timm' | 'onnx'>): ExportTarget => (framework === 'mmseg' ? 'mmdet' : framework)

const isConfigured = (framework: Framework): framework is ConfiguredFramework => ['mmdet', 'mmseg', 'detectron2'].includes(framework)

interface Flags {
  for: Framework
  out: string
  outputs?: string
  raw?: boolean
  sizes?: boolean
  backbone?: string
  overwrite?: boolean
  json?: boolean
}

export const register: Register = (program, done) => {
  program
    .command('export')
    .description('write a backbone, or what eval finetune, detection and segmentation trained, for another framework')
    .argument('<weights>', 'a checkpoint, backbone, classifier or detector, ours or foreign, or a segmenter of ours')
    .addOption(new Option('--for <framework>', 'whose names and container').choices(Object.keys(frameworks)).default('torchvision'))
    .requiredOption('--out <file>', '.safetensors or .pth (mmdet, mmseg and detectron2 read .pth alone), .onnx of onnx, a folder of timm')
    .option(
      '--outputs <names>',
      'of onnx: several of feature2 to feature5, the last map, and pooled; of a classifier logits, probabilities; of an FCN logits, labels',
    )
    .option('--raw', 'of onnx: the model takes images as bytes [N, H, W, 3] and normalises them itself')
    .option(
      '--sizes',
      'of an onnx detector: images may be smaller than their batch, and the input sizes [N, 2] has height and width of each',
    )
    .option('--overwrite', 'replace the file')
    .option('--backbone <module>', backboneHelp)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      examples([
        [
          'densecl export runs/r50/checkpoints/last.safetensors --out r50.pth',
          'torchvision: load_state_dict(torch.load("r50.pth"), strict=False)',
        ],
        [
          'densecl export runs/r50/backbone.safetensors --for timm --out r50',
          'a folder for timm.create_model("local-dir:r50", pretrained=True) and for the Hugging Face hub',
        ],
        [
          'densecl export runs/r50/backbone.safetensors --for mmdet --out r50.pth',
          'mmdetection, or mmseg; the configuration to paste is printed',
        ],
        [
          'densecl export runs/r50/backbone.safetensors --for detectron2 --out r50.pth',
          'detectron2; the configuration to paste is printed',
        ],
        [
          'densecl export runs/r50/backbone.safetensors --for onnx --raw --out r50.onnx',
          'onnxruntime and others: images of any size and number',
        ],
        [
          'densecl export runs/r50/eval/finetune-imagenet-full/classifier.safetensors --out classifier.pth',
          'torchvision: models.resnet50(num_classes=10).load_state_dict(torch.load("classifier.pth"))',
        ],
        [
          'densecl export runs/r50/eval/detection-voc0712-c4/detector.safetensors --for detectron2 --out detector.pth',
          'the whole detector; mmdet too, torchvision takes its backbone',
        ],
      ]),
    )
    .action(async (weights: string, flags: Flags) => {
      checkEnding(flags)
      refuseExisting('export', flags, flags.for === 'timm' ? 'folder' : 'file')
      const framework = flags.for
      if (framework === 'onnx') await exportOnnx(weights, flags)
      else if (holdsDetector(weights)) await exportDetector(weights, flags, framework)
      else {
        const kind = await kindOfFlag(flags.backbone)
        const { model, record } = holdsClassifier(weights) ? importClassifier(weights, kind) : {}
        const backbone = model?.backbone ?? importBackbone(weights, { kind }).backbone
        try {
          exportNetwork(weights, flags, framework, { backbone, ...(model === undefined ? {} : { classifier: { model, record: record! } }) })
        } finally {
          model?.dispose()
          backbone.dispose()
        }
      }
      done(0)
    })
}

/** Throws CONFIG for a file that the framework could not read, and for flags that would do nothing. */
function checkEnding({ for: target, out, outputs, raw, sizes }: Flags): void {
  const endings: readonly string[] = frameworks[target]
  if (target === 'timm') {
    if (['.safetensors', '.pth', '.onnx'].includes(extname(out)) || (existsSync(out) && !statSync(out).isDirectory()))
      fail('CONFIG', `export: expected a folder, which timm takes config.json and model.safetensors from, but received the file ${out}`)
  } else if (!endings.includes(extname(out)))
    fail('CONFIG', `export: expected a file ending in ${endings.join(' or ')}, which ${target} reads, but received ${out}`)
  const given = { '--outputs': outputs, '--raw': raw, '--sizes': sizes }
  const [idle] = target === 'onnx' ? [] : Object.entries(given).flatMap(([flag, value]) => (value === undefined ? [] : flag))
  if (idle !== undefined) fail('CONFIG', `export: ${idle} is of --for onnx: expected it without --for ${target}`)
}

/** Writes a backbone, or a classifier where the framework has those, and says how it is loaded. */
function exportNetwork(
  weights: string,
  { out, json }: Flags,
  framework: Exclude<Framework, 'onnx'>,
  { backbone, classifier }: { backbone: Backbone; classifier?: { model: Classifier; record: ClassifierRecord } },
  note?: string,
): void {
  const images = imagesOf(backbone)
  const whole = classifier !== undefined && (framework === 'torchvision' || framework === 'timm')
  const classes = classifier?.record.classes
  const imageSize = classifier?.record.imageSize ?? imageSizeOfRun(weights) ?? 224
  // Before anything is written: it throws where the framework cannot build such a backbone.
  const configuration = isConfigured(framework)
    ? loadingConfiguration(framework, resolve(out), backbone, images)
    : framework === 'torchvision' && !whole
      ? torchvisionProgram(resolve(out), backbone)
      : undefined
  if (framework === 'timm') {
    const named = classifier === undefined ? {} : { classifier: { model: classifier.model, classes: classes! } }
    writeTimmFolder(out, { backbone, ...named }, { size: imageSize, mean: images.mean, deviation: images.deviation })
  } else if (whole) writeClassifier(out, classifier.model, classifier.record)
  else writeBackbone(out, backbone, targetOf(framework))
  const tensors = [...allTensors(whole ? classifier.model.state() : backbone.state())].length
  const what = classifier === undefined ? backbone.description : `a classifier of ${classCount(classes!.length)} on ${backbone.description}`
  const written =
    classifier === undefined || whole
      ? `${what}, ${tensors} tensors for ${framework}`
      : `for ${framework} this is the backbone alone of ${what}`
  const caution = framework === 'timm' ? timmCaution(backbone) : undefined
  print(
    json === true,
    {
      out,
      for: framework,
      part: whole ? 'classifier' : 'backbone',
      ...(whole ? { classes } : {}),
      ...(whole || framework === 'timm' ? { imageSize } : {}),
      ...backbone.options,
      tensors,
      ...(configuration === undefined ? {} : { configuration }),
      ...(caution === undefined ? {} : { caution }),
    },
    [
      ...(note === undefined ? [] : [note]),
      `${written}: ${out}`,
      ...(whole || framework === 'timm' ? [normalisedAs(imageSize, images)] : []),
      ...(whole && out.endsWith('.pth') ? ['.pth has no room for the names of the classes, .safetensors has'] : []),
      ...(framework === 'timm' ? [`timm.create_model("local-dir:${out}", pretrained=True); hf upload OWNER/NAME ${out}`] : []),
      ...(caution === undefined ? [] : [`note: ${caution}`]),
      ...(configuration === undefined ? [] : ['', configuration]),
    ].join('\n'),
  )
}

/** Writes a detector, or its backbone where the framework has no such detector. */
async function exportDetector(weights: string, flags: Flags, framework: Exclude<Framework, 'onnx'>): Promise<void> {
  const own = await kindOfFlag(flags.backbone)
  const { model, record } = importDetector(weights, (name) => own ?? backboneKinds.get(name))
  const { backbone } = model
  try {
    if (framework === 'mmdet' || framework === 'detectron2') {
      writeDetector(flags.out, model, record, framework)
      const tensors = [...allTensors(model.state())].length
      print(
        flags.json === true,
        { out: flags.out, for: framework, part: 'detector', classes: record.classes, tensors },
        `a detector of ${classCount(record.classes.length)} on ${backbone.name}, ${tensors} tensors for ${framework}: ${flags.out}\n` +
          settingsOf(framework, record),
      )
    } else {
      const why = framework === 'torchvision' ? lacking[record.form] : `${framework} has no detectors`
      const note = `${why}: this is the backbone alone${record.form === 'c4' ? ', its last stage as regions trained it' : ''}`
      exportNetwork(weights, flags, framework, { backbone }, note)
    }
  } finally {
    model.dispose()
    backbone.dispose()
  }
}

/** Writes a network as an ONNX model. */
async function exportOnnx(weights: string, flags: Flags): Promise<void> {
  const { out, outputs, raw = false, json } = flags
  const own = await kindOfFlag(flags.backbone)
  if (holdsDetector(weights)) {
    exportOnnxDetector(weights, flags, own)
    return
  }
  if (flags.sizes === true) fail('CONFIG', `export: --sizes is of detectors, and ${weights} holds none`)
  const { model, record } = holdsClassifier(weights) ? importClassifier(weights, own) : {}
  const segmenting = holdsSegmenter(weights) ? openSegmenter(weights, (name) => own ?? backboneKinds.get(name)) : undefined
  const segmenter = segmenting?.model
  const backbone = model?.backbone ?? segmenter?.backbone ?? importBackbone(weights, { kind: own }).backbone
  try {
    const network = { backbone, classifier: model, segmenter }
    const images = imagesOf(backbone)
    const usual = segmenting === undefined ? (model === undefined ? onnxOutputs(network).slice(-2) : ['logits']) : ['labels']
    const chosen = outputs?.split(',') ?? usual
    const unknown = chosen.find((name) => !onnxOutputs(network).includes(name))
    if (unknown !== undefined)
      fail('CONFIG', `--outputs is ${outputs}: expected some of ${onnxOutputs(network).join(', ')}, not ${unknown}`)
    const classes = record?.classes ?? segmenting?.record.classes
    writeOnnx(out, network, {
      outputs: chosen,
      normalisation: images,
      raw,
      metadata: {
        ...(classes === undefined ? {} : { classes: JSON.stringify(classes) }),
        ...(record === undefined ? {} : { imageSize: String(record.imageSize) }),
        ...(segmenting === undefined ? {} : { scale: segmenting.record.scale.join(' ') }),
      },
    })
    print(
      json === true,
      { out, for: 'onnx', outputs: chosen, raw, ...(classes === undefined ? {} : { classes }) },
      `${segmenter === undefined ? '' : 'FCN on '}${backbone.name} for onnx, outputs ${chosen.join(', ')}: ${out}\n` +
        `images: ${inputOf(images, raw)}` +
        (segmenting === undefined ? '' : `, as in the test within ${segmenting.record.scale.join(' x ')}`),
    )
  } finally {
    model?.dispose()
    if (segmenter !== undefined) disposeHeads(segmenter)
    backbone.dispose()
  }
}

/** Writes a detector as an ONNX model. */
function exportOnnxDetector(
  weights: string,
  { out, outputs, raw = false, sizes = false, json }: Flags,
  own: BackboneKind | undefined,
): void {
  if (outputs !== undefined) fail('CONFIG', 'export: --outputs is of other networks: a detector has boxes, scores, labels and masks')
  const { model, record } = importDetector(weights, (name) => own ?? backboneKinds.get(name))
  try {
    const { form, classes, testScale, longest, testRegions } = record
    const style = styleOf(record.style, form)
    writeOnnxDetector(out, model, {
      normalisation,
      raw,
      sizes,
      style,
      limits: { ...proposalLimits[form].test, after: testRegions },
      rules: testRules,
      metadata: { classes: JSON.stringify(classes), testScale: String(testScale), longest: String(longest) },
    })
    const found = ['boxes', 'scores', 'labels', ...(model.masks === undefined ? [] : ['masks']), 'image']
    print(
      json === true,
      { out, for: 'onnx', part: 'detector', outputs: found, raw, sizes, classes, testScale, longest },
      `a detector of ${classCount(classes.length)} on ${model.backbone.name} for onnx, outputs ${found.join(', ')}: ${out}\n` +
        `images: ${inputOf(colourImages, raw)}, short side ${testScale}, long side ${longest} at most; boxes are in their pixels; ` +
        (sizes
          ? 'smaller ones lie at the upper left of their batch, sizes [N, 2] has height and width of each'
          : 'all of a batch have one size'),
    )
  } finally {
    model.dispose()
    model.backbone.dispose()
  }
}

const inputOf = ({ channels, mean, deviation }: ImageFormat, raw: boolean): string =>
  raw ? `bytes [N, H, W, ${channels}]` : `floats [N, ${channels}, H, W] of mean ${mean.join(' ')} and deviation ${deviation.join(' ')}`

/** Why torchvision takes the backbone alone. */
const lacking = { c4: 'torchvision has no detector of the form C4', fpn: 'torchvision has other heads on its pyramids' } as const

/** How images are read. */
const normalisedAs = (imageSize: number, { channels, mean, deviation }: ImageFormat): string =>
  `images: short side ${Math.round((imageSize * 256) / 224)}, central crop ${imageSize}, ` +
  `${channelWords(channels)} in 0..1, mean ${mean.join(' ')}, deviation ${deviation.join(' ')}`

/** What the other framework must be set to. */
function settingsOf(target: DetectorTarget, { form, anchors, ratios, classes }: DetectorRecord): string {
  const images = 'RGB, mean 123.675 116.28 103.53, deviation 58.395 57.12 57.375'
  if (form === 'fpn')
    return target === 'mmdet'
      ? `Mask R-CNN with FPN and SyncBN in neck and heads, Shared4Conv1FCBBoxHead; ratios ${ratios.join(' ')}; ${images}`
      : `FastRCNNConvFCHead of 4 convolutions and 1 linear layer, NORM SyncBN in FPN and heads, NUM_CLASSES ${classes.length}; ` +
          `sizes ${anchors.join(' ')}, ratios ${ratios.join(' ')}; ${images}`
  return target === 'mmdet'
    ? `Faster R-CNN C4 with a norm after the shared head; scales ${anchors.map((size) => size / 16).join(' ')} of stride 16, ` +
        `ratios ${ratios.join(' ')}; ${images}`
    : `Res5ROIHeadsExtraNorm, STRIDE_IN_1X1 False, NUM_CLASSES ${classes.length}; sizes ${anchors.join(' ')}, ` +
        `ratios ${ratios.join(' ')}; ${images}`
}
