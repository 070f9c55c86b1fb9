import { existsSync } from 'node:fs'
import { extname } from 'node:path'

import { Option } from 'commander'

import { type DetectorRecord } from '../detection/detectorFile.js'
import { type DetectorTarget, holdsDetector, importDetector, writeDetector } from '../detection/exchange.js'
import { holdsClassifier, importClassifier, normalisation, writeClassifier } from '../eval/classifierFile.js'
import { backboneKinds } from '../nn/backbones.js'
import { allTensors } from '../nn/module.js'
import { imagenetDeviation, imagenetMean } from '../data/augment.js'
import { onnxOutputs, writeOnnx } from '../onnx/export.js'
import { backboneHelp, kindOfFlag } from '../run/backbone.js'
import { fail } from '../tensor/errors.js'
import { exportTargets, type ExportTarget, writeBackbone } from '../weights/export.js'
import { importBackbone } from '../weights/import.js'
import { examples, print, type Register } from './command.js'

interface Flags {
  for: ExportTarget | 'onnx'
  out: string
  outputs?: string
  raw?: boolean
  backbone?: string
  overwrite?: boolean
  json?: boolean
}

export const register: Register = (program, done) => {
  program
    .command('export')
    .description('write a backbone, a classifier of eval finetune or a detector of eval detection, for another framework')
    .argument('<weights>', 'a checkpoint, backbone, classifier or detector, ours or foreign')
    .addOption(new Option('--for <framework>', 'whose names and container').choices([...exportTargets, 'onnx']).default('torchvision'))
    .requiredOption('--out <file>', '.safetensors or .pth (mmdet and detectron2 read .pth alone), .onnx of onnx')
    .option(
      '--outputs <names>',
      'of onnx: several of feature2 to feature5, the last map, and pooled; of a classifier logits, probabilities',
    )
    .option('--raw', 'of onnx: the model takes images as bytes [N, H, W, 3] and normalises them itself')
    .option('--overwrite', 'replace the file')
    .option('--backbone <module>', backboneHelp)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      examples([
        [
          'densecl export runs/r50/checkpoints/last.safetensors --out r50.pth',
          'torchvision and timm: load_state_dict(torch.load("r50.pth"), strict=False)',
        ],
        [
          'densecl export runs/r50/backbone.safetensors --for mmdet --out r50.pth',
          'mmdetection, mmsegmentation: init_cfg=dict(type="Pretrained", checkpoint="r50.pth")',
        ],
        [
          'densecl export runs/r50/backbone.safetensors --for detectron2 --out r50.pth',
          'detectron2: MODEL.WEIGHTS; RGB input, STRIDE_IN_1X1 False',
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
      if (existsSync(flags.out) && flags.overwrite !== true)
        return fail('WRITE', `export: ${flags.out} exists already; --overwrite replaces it`)
      checkEnding(flags)
      const target = flags.for
      if (target === 'onnx') {
        await exportOnnx(weights, flags)
        done(0)
        return
      }
      if (holdsDetector(weights)) {
        const own = await kindOfFlag(flags.backbone)
        const { model, record } = importDetector(weights, (name) => own ?? backboneKinds.get(name))
        const tensors = [...allTensors(model.state())].length
        const what = `a detector of ${record.classes.length} classes on ${model.backbone.name}`
        if (target === 'torchvision') writeBackbone(flags.out, model.backbone, target)
        else writeDetector(flags.out, model, record, target)
        print(
          flags.json === true,
          { out: flags.out, for: target, part: target === 'torchvision' ? 'backbone' : 'detector', classes: record.classes, tensors },
          target === 'torchvision'
            ? `${lacking[record.form]}: this is the backbone alone of ${what}` +
                `${record.form === 'c4' ? ', its last stage as regions trained it' : ''}: ${flags.out}`
            : `${what}, ${tensors} tensors for ${target}: ${flags.out}\n${settingsOf(target, record)}`,
        )
        done(0)
        return
      }
      const kind = await kindOfFlag(flags.backbone)
      if (holdsClassifier(weights)) {
        const { model, record } = importClassifier(weights, kind)
        const whole = target === 'torchvision'
        if (whole) writeClassifier(flags.out, model, record)
        else writeBackbone(flags.out, model.backbone, target)
        const tensors = [...allTensors(whole ? model.state() : model.backbone.state())].length
        model.dispose()
        model.backbone.dispose()
        const { classes, imageSize } = record
        const what = `a classifier of ${classes.length} classes on ${model.backbone.name}`
        print(
          flags.json === true,
          { out: flags.out, for: target, part: whole ? 'classifier' : 'backbone', classes, imageSize, tensors },
          whole
            ? `${what}, ${tensors} tensors for torchvision: ${flags.out}
${normalisedAs(imageSize)}` + (flags.out.endsWith('.pth') ? '; .pth has no room for the names of the classes, .safetensors has' : '')
            : `for ${target} this is the backbone alone of ${what}: ${flags.out}`,
        )
        done(0)
        return
      }
      const { backbone, report } = importBackbone(weights, { kind })
      writeBackbone(flags.out, backbone, target)
      const tensors = [...allTensors(backbone.state())].length
      print(
        flags.json === true,
        { out: flags.out, for: target, ...report.options, tensors },
        `${backbone.name}, ${tensors} tensors for ${target}: ${flags.out}`,
      )
      done(0)
    })
}

/** Throws ARGUMENT for a file that the framework could not read, and for flags that would do nothing. */
function checkEnding({ for: target, out, outputs, raw }: Flags): void {
  const endings = target === 'onnx' ? ['.onnx'] : target === 'torchvision' ? ['.safetensors', '.pth'] : ['.pth']
  if (!endings.includes(extname(out)))
    fail('ARGUMENT', `export: expected a file ending in ${endings.join(' or ')}, which ${target} reads, but received ${out}`)
  const idle = target === 'onnx' ? undefined : outputs !== undefined ? '--outputs' : raw === true ? '--raw' : undefined
  if (idle !== undefined) fail('ARGUMENT', `export: ${idle} is of --for onnx: expected it without --for ${target}`)
}

/** Writes a backbone or a classifier as an ONNX model. */
async function exportOnnx(weights: string, { out, outputs, raw = false, backbone: module, json }: Flags): Promise<void> {
  if (holdsDetector(weights))
    fail('ARGUMENT', `${weights}: is a detector, which onnx is not written for: expected a backbone or a classifier`)
  const kind = await kindOfFlag(module)
  const { model, record } = holdsClassifier(weights) ? importClassifier(weights, kind) : {}
  const backbone = model?.backbone ?? importBackbone(weights, { kind }).backbone
  try {
    const network = { backbone, classifier: model }
    const chosen = outputs?.split(',') ?? (model === undefined ? onnxOutputs(network).slice(-2) : ['logits'])
    writeOnnx(out, network, {
      outputs: chosen,
      normalisation: { mean: [...imagenetMean], deviation: [...imagenetDeviation] },
      raw,
      metadata: { ...(record === undefined ? {} : { classes: JSON.stringify(record.classes), imageSize: String(record.imageSize) }) },
    })
    const images = raw
      ? 'bytes [N, H, W, 3]'
      : `floats [N, 3, H, W] of mean ${imagenetMean.join(' ')} and deviation ${imagenetDeviation.join(' ')}`
    print(
      json === true,
      { out, for: 'onnx', outputs: chosen, raw, ...(record === undefined ? {} : { classes: record.classes }) },
      `${backbone.name} for onnx, outputs ${chosen.join(', ')}: ${out}\nimages: ${images}`,
    )
  } finally {
    model?.dispose()
    backbone.dispose()
  }
}

/** Why torchvision takes the backbone alone. */
const lacking = { c4: 'torchvision has no detector of the form C4', fpn: 'torchvision has other heads on its pyramids' } as const

/** How images are read for a classifier. */
const normalisedAs = (imageSize: number): string =>
  `images: short side ${Math.round((imageSize * 256) / 224)}, central crop ${imageSize}, RGB in 0..1, ` +
  `mean ${normalisation.mean.join(' ')}, deviation ${normalisation.deviation.join(' ')}`

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
