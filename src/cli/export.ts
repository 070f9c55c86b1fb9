import { existsSync } from 'node:fs'

import { Option } from 'commander'

import { type DetectorRecord } from '../detection/detectorFile.js'
import { type DetectorTarget, holdsDetector, importDetector, writeDetector } from '../detection/exchange.js'
import { holdsClassifier, importClassifier, normalisation, writeClassifier } from '../eval/classifierFile.js'
import { backboneKinds } from '../nn/backbones.js'
import { allTensors } from '../nn/module.js'
import { backboneHelp, kindOfFlag } from '../run/backbone.js'
import { fail } from '../tensor/errors.js'
import { exportTargets, type ExportTarget, writeBackbone } from '../weights/export.js'
import { importBackbone } from '../weights/import.js'
import { examples, print, type Register } from './command.js'

export const register: Register = (program, done) => {
  program
    .command('export')
    .description('write a backbone, a classifier of eval finetune or a detector of eval detection, for another framework')
    .argument('<weights>', 'a checkpoint, backbone, classifier or detector, ours or foreign')
    .addOption(new Option('--for <framework>', 'whose names and container').choices([...exportTargets]).default('torchvision'))
    .requiredOption('--out <file>', '.safetensors or .pth')
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
          'densecl export runs/r50/eval/finetune-imagenet-full/classifier.safetensors --out classifier.pth',
          'torchvision: models.resnet50(num_classes=10).load_state_dict(torch.load("classifier.pth"))',
        ],
        [
          'densecl export runs/r50/eval/detection-voc0712-c4/detector.safetensors --for detectron2 --out detector.pth',
          'the whole detector; mmdet too, torchvision takes its backbone',
        ],
      ]),
    )
    .action(async (weights: string, flags: { for: ExportTarget; out: string; backbone?: string; overwrite?: boolean; json?: boolean }) => {
      if (existsSync(flags.out) && flags.overwrite !== true)
        return fail('WRITE', `export: ${flags.out} exists already; --overwrite replaces it`)
      if (holdsDetector(weights)) {
        const own = await kindOfFlag(flags.backbone)
        const { model, record } = importDetector(weights, (name) => own ?? backboneKinds.get(name))
        const tensors = [...allTensors(model.state())].length
        const what = `a detector of ${record.classes.length} classes on ${model.backbone.name}`
        if (flags.for === 'torchvision') writeBackbone(flags.out, model.backbone, flags.for)
        else writeDetector(flags.out, model, record, flags.for)
        print(
          flags.json === true,
          { out: flags.out, for: flags.for, part: flags.for === 'torchvision' ? 'backbone' : 'detector', classes: record.classes, tensors },
          flags.for === 'torchvision'
            ? `${lacking[record.form]}: this is the backbone alone of ${what}` +
                `${record.form === 'c4' ? ', its last stage as regions trained it' : ''}: ${flags.out}`
            : `${what}, ${tensors} tensors for ${flags.for}: ${flags.out}\n${settingsOf(flags.for, record)}`,
        )
        done(0)
        return
      }
      const kind = await kindOfFlag(flags.backbone)
      if (holdsClassifier(weights)) {
        const { model, record } = importClassifier(weights, kind)
        const whole = flags.for === 'torchvision'
        if (whole) writeClassifier(flags.out, model, record)
        else writeBackbone(flags.out, model.backbone, flags.for)
        const tensors = [...allTensors(whole ? model.state() : model.backbone.state())].length
        model.dispose()
        model.backbone.dispose()
        const { classes, imageSize } = record
        const what = `a classifier of ${classes.length} classes on ${model.backbone.name}`
        print(
          flags.json === true,
          { out: flags.out, for: flags.for, part: whole ? 'classifier' : 'backbone', classes, imageSize, tensors },
          whole
            ? `${what}, ${tensors} tensors for torchvision: ${flags.out}
${normalisedAs(imageSize)}` + (flags.out.endsWith('.pth') ? '; .pth has no room for the names of the classes, .safetensors has' : '')
            : `for ${flags.for} this is the backbone alone of ${what}: ${flags.out}`,
        )
        done(0)
        return
      }
      const { backbone, report } = importBackbone(weights, { kind })
      writeBackbone(flags.out, backbone, flags.for)
      const tensors = [...allTensors(backbone.state())].length
      print(
        flags.json === true,
        { out: flags.out, for: flags.for, ...report.options, tensors },
        `${backbone.name}, ${tensors} tensors for ${flags.for}: ${flags.out}`,
      )
      done(0)
    })
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
