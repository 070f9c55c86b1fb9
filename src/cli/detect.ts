import { readFileSync } from 'node:fs'
import { basename } from 'node:path'

import { decode } from '../data/decode.js'
import { maskArea } from '../data/runLengths.js'
import { detect, testRules } from '../detection/detect.js'
import { importDetector } from '../detection/exchange.js'
import { maskedObjects } from '../detection/foundMasks.js'
import { proposalLimits } from '../detection/proposals.js'
import { styleOf } from '../detection/styles.js'
import { holdsClassifier } from '../eval/classifierFile.js'
import { evaluationCompute } from '../eval/compute.js'
import { batchTensor, testView } from '../eval/detectionBatches.js'
import { cocoSegmentation } from '../eval/detections.js'
import { backboneKinds } from '../nn/backbones.js'
import { type BoxPicture, boxesPicture } from '../report/boxes.js'
import { writePicture } from '../report/svg.js'
import { kindOfFlag, backboneHelp } from '../run/backbone.js'
import { useDevice } from '../selftest/trust.js'
import { withCompute } from '../tensor/compute.js'
import { fail, systemReason } from '../tensor/errors.js'
import { scope, withDevice } from '../tensor/tensor.js'
import { examples, heedingSignals, numberFlag, print, type Register } from './command.js'

interface Flags {
  weights: string
  out: string
  score: string
  device: string
  backbone?: string
  json?: boolean
}

export const register: Register = (program, done) => {
  program
    .command('detect')
    .description('find objects in images with a detector that eval detection trained, and draw them')
    .argument('<image...>', 'image files')
    .requiredOption('--weights <file>', 'detector.safetensors of an evaluation, or a detector that export wrote')
    .option('--out <path>', 'of the picture, without extension', 'detections')
    .option('--score <probability>', 'the least of what is drawn and listed', '0.5')
    .option('--device <name>', 'cpu or cuda:N; auto takes a GPU where there is one', 'auto')
    .option('--backbone <module>', backboneHelp)
    .option('--json', 'print JSON: for each image the objects with class, box in its pixels, probability and COCO’s runs of its mask')
    .addHelpText(
      'after',
      examples([['densecl detect photo.jpg --weights runs/r50/eval/detection-voc0712-c4/detector.safetensors', 'boxes']]),
    )
    .action(
      heedingSignals(done, async (images: string[], flags: Flags) => {
        const least = numberFlag('score', flags.score, { least: 0, most: 1 })
        const device = await useDevice(flags.device)
        const own = await kindOfFlag(flags.backbone)
        if (holdsClassifier(flags.weights))
          fail(
            'FORMAT',
            `${flags.weights}: is a classifier, which says what a whole image shows: densecl predict takes it; expected a detector`,
          )
        const { model, record } = withDevice(device, () => importDetector(flags.weights, (name) => own ?? backboneKinds.get(name)))
        const style = styleOf(record.style, model.form)
        const limits = { ...proposalLimits[model.form].test, after: record.testRegions }
        try {
          const pictures: BoxPicture[] = []
          for (const path of images) {
            const pixels = await decode(read(path), path)
            const batch = testView(pixels, record, style)
            const [found] = withDevice(device, () =>
              withCompute(evaluationCompute(device), () =>
                scope(() => detect(model, batchTensor(batch, device), batch.images, style, limits, { ...testRules, score: least })),
              ),
            )
            const objects = withDevice(device, () => maskedObjects(found!, pixels))
            pictures.push({ name: basename(path), pixels, found: objects })
          }
          const picture = await writePicture(flags.out.replace(/\.(png|svg)$/, ''), boxesPicture(pictures, record.classes))
          const listed = pictures.map(({ found }, i) => ({
            image: images[i]!,
            objects: found.map(({ label, box, score, mask }) => ({
              class: record.classes[label]!,
              box,
              score,
              ...(mask === undefined ? {} : { pixels: maskArea(mask), segmentation: cocoSegmentation(mask) }),
            })),
          }))
          const lines = listed.flatMap(({ image, objects }) => [
            `${image}: ${objects.length} found`,
            ...objects.map(
              ({ class: name, box, score, pixels }) =>
                `  ${name} ${(100 * score).toFixed(0)} %  ${box.map((value) => value.toFixed(0)).join(' ')}` +
                (pixels === undefined ? '' : `  mask of ${pixels} pixels`),
            ),
          ])
          print(flags.json === true, { picture, images: listed }, [...lines, picture].join('\n'))
          done(0)
        } finally {
          model.dispose()
          model.backbone.dispose()
        }
      }),
    )
}

function read(path: string): Buffer {
  try {
    return readFileSync(path)
  } catch (error) {
    return fail('FILE', `detect: ${path} cannot be read (${systemReason(error)})`)
  }
}
