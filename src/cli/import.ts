import { extname } from 'node:path'

import { greyImages, type ImageFormat } from '../data/augment.js'
import { backboneHelp, kindOfFlag } from '../run/backbone.js'
import { saveDetector } from '../detection/detectorFile.js'
import { holdsDetector, importDetector } from '../detection/exchange.js'
import { holdsClassifier, importClassifier, writeClassifier } from '../eval/classifierFile.js'
import { backboneKinds } from '../nn/backbones.js'
import { fail } from '../tensor/errors.js'
import { classCount } from '../tensor/hint.js'
import { importBackbone } from '../weights/import.js'
import { writeBackbone } from '../weights/export.js'
import { examples, numberFlag, print, type Register } from './command.js'

interface Flags {
  out?: string
  prefix?: string
  channels?: string
  mean?: string
  deviation?: string
  backbone?: string
  json?: boolean
}

/** The images that --channels asks for. */
function wantedImages({ channels: count, mean, deviation }: Flags): ImageFormat | undefined {
  if (count === undefined) {
    if (mean !== undefined || deviation !== undefined) fail('CONFIG', '--mean and --deviation are of --channels: expected them with it')
    return undefined
  }
  const channels = numberFlag('channels', count, { least: 1, most: 1024, whole: true })
  const numbers = (name: string, text: string | undefined, otherwise: number): number[] => {
    const values =
      text?.split(',').map((each) => numberFlag(name, each, { least: 0, most: 1 })) ?? new Array<number>(channels).fill(otherwise)
    return values.length === channels ? values : fail('CONFIG', `--${name} is ${text}: expected ${channels} numbers, one for each channel`)
  }
  return {
    channels,
    mean: numbers('mean', mean, greyImages.mean[0]!),
    deviation: numbers('deviation', deviation, greyImages.deviation[0]!),
  }
}

export const register: Register = (program, done) => {
  program
    .command('import')
    .description("read a foreign checkpoint's backbone, a classifier or a detector, and say what matched")
    .argument('<weights>', '.safetensors, .pth, or a .pkl of detectron2')
    .option('--out <file>', 'also write it as torchvision names it (.safetensors or .pth), a detector as detect takes it (.safetensors)')
    .option('--prefix <name>', 'what stands before the names of the backbone, where the file has several; default: the likeliest')
    .option(
      '--channels <count>',
      'images that the backbone is to take instead of RGB: its stem is adapted (1: summed, more: repeated and scaled)',
    )
    .option('--mean <numbers>', 'with --channels: of each channel, in 0..1, such as 0.3,0.4; default: the mean of those of ImageNet')
    .option('--deviation <numbers>', 'with --channels: of each channel')
    .option('--backbone <module>', backboneHelp)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      examples([
        [
          'densecl import densecl_r50_imagenet_200ep.pth --out r50.safetensors',
          'the published weights; eval, match and export take them directly too',
        ],
      ]),
    )
    .action(async (weights: string, flags: Flags) => {
      const isDetector = holdsDetector(weights)
      const endings = isDetector ? ['.safetensors'] : ['.safetensors', '.pth']
      if (flags.out !== undefined && !endings.includes(extname(flags.out)))
        fail('CONFIG', `--out is ${flags.out}: expected a file ending in ${endings.join(' or ')}${isDetector ? ' for a detector' : ''}`)
      if (isDetector) {
        const own = await kindOfFlag(flags.backbone)
        const { model, record, assumed } = importDetector(weights, (name) => own ?? backboneKinds.get(name))
        if (flags.out !== undefined) saveDetector(flags.out, model, record)
        const lines = [
          `a detector of ${classCount(record.classes.length)} on ${model.backbone.description}, style ${record.style}`,
          ...(assumed ? ['the file says no settings: those of the published protocol are assumed'] : []),
          ...(flags.out === undefined ? [] : [`written    ${flags.out}`]),
        ]
        print(flags.json === true, { ...record, assumed, out: flags.out }, lines.join('\n'))
        done(0)
        return
      }
      const kind = await kindOfFlag(flags.backbone)
      if (holdsClassifier(weights)) {
        const { model, record, assumed } = importClassifier(weights, kind)
        if (flags.out !== undefined) writeClassifier(flags.out, model, record)
        model.dispose()
        model.backbone.dispose()
        const lines = [
          `a classifier of ${classCount(record.classes.length)} on ${model.backbone.description}, images of ${record.imageSize} px`,
          ...(assumed ? ['the file says no classes and no image size: numbers and 224 px are assumed'] : []),
          ...(flags.out === undefined ? [] : [`written    ${flags.out}`]),
        ]
        print(flags.json === true, { ...record, ...model.backbone.options, assumed, out: flags.out }, lines.join('\n'))
        done(0)
        return
      }
      const { backbone, report } = importBackbone(weights, { kind, prefix: flags.prefix, images: wantedImages(flags) })
      if (flags.out !== undefined) writeBackbone(flags.out, backbone, 'torchvision')
      const list = (names: string[]): string =>
        names.length === 0 ? '' : `: ${names.slice(0, 6).join(', ')}${names.length > 6 ? `, and ${names.length - 6} more` : ''}`
      const text = [
        `${backbone.description} under the prefix "${report.prefix}"`,
        `matched    ${report.matched.length}`,
        `missing    ${report.missing.length}${list(report.missing)}`,
        `unexpected ${report.unexpected.length}${list(report.unexpected)}`,
        ...(report.others.length === 0
          ? []
          : [`others     ${report.others.map((each) => `"${each}"`).join(', ')}: --prefix takes one of these`]),
        ...(report.passedOver.length === 0
          ? []
          : [`passed over ${report.passedOver.join(', ')}: no weights, and nothing of it was executed`]),
        ...(flags.out === undefined ? [] : [`written    ${flags.out}`]),
      ]
      const { prefix, options, ...lists } = report
      print(flags.json === true, { prefix, ...options, ...lists, out: flags.out }, text.join('\n'))
      done(0)
    })
}
