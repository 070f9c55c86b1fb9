import { basename } from 'node:path'

import { maskArea } from '../data/runLengths.js'
import { loadPixels } from '../data/source.js'
import { detect, testRules } from '../detection/detect.js'
import { importDetector } from '../detection/exchange.js'
import { type MaskedObject, maskedObjects } from '../detection/foundMasks.js'
import { proposalLimits } from '../detection/proposals.js'
import { styleOf } from '../detection/styles.js'
import { holdsClassifier } from '../eval/classifierFile.js'
import { batchTensor, testPlacement, testView } from '../eval/detectionBatches.js'
import { checkFindingMemory } from '../eval/detectionMemory.js'
import { cocoSegmentation } from '../eval/detections.js'
import { backboneKinds } from '../nn/backbones.js'
import { type BoxPicture, boxesPicture } from '../report/boxes.js'
import { writePicture } from '../report/svg.js'
import { withCompute } from '../tensor/compute.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { stopIfInterrupted } from '../tensor/interruption.js'
import { scope, withDevice } from '../tensor/tensor.js'
import { examples, heedingSignals, numberFlag, type OutputFlags, print, quietFlag, type Register } from './command.js'
import { type ComputingFlags, placementOf, progressOf, withComputing } from './evalShared.js'
import { itemsAt } from './imagePaths.js'

interface Flags extends ComputingFlags, OutputFlags {
  weights: string
  out: string
  score: string
}

/** Images in a picture: of a folder it would have no end. */
const mostPictured = 48

/** What was found in an image, or why it could not be read. */
interface Seen {
  image: string
  objects: MaskedObject[]
  error?: string
}

export const register: Register = (program, done) => {
  const command = program
    .command('detect')
    .description('find objects in images with a detector that eval detection trained, and draw them')
    .argument('<image...>', 'image files, and folders of them')
    .requiredOption('--weights <file>', 'detector.safetensors of an evaluation, or a detector that export wrote')
    .option('--out <path>', `of the picture of the first ${mostPictured} images, without extension`, 'detections')
    .option('--score <probability>', 'the least of what is drawn and listed', '0.5')
  withComputing(command)
    .option(...quietFlag)
    .option(
      '--json',
      'print JSON: for each image the objects with class, box in its pixels, probability and COCO’s runs of its mask, or an error',
    )
    .addHelpText(
      'after',
      examples([['densecl detect photo.jpg --weights runs/r50/eval/detection-voc0712-c4/detector.safetensors', 'boxes']]),
    )
    .action(
      heedingSignals(done, async (images: string[], flags: Flags) => {
        const least = numberFlag('score', flags.score, { least: 0, most: 1 })
        const { device, kind, dtype, compute } = await placementOf(flags)
        if (holdsClassifier(flags.weights))
          fail(
            'FORMAT',
            `${flags.weights}: is a classifier, which says what a whole image shows: densecl predict takes it; expected a detector`,
          )
        const { model, record } = withDevice(device, () => importDetector(flags.weights, (name) => kind ?? backboneKinds.get(name), dtype))
        const style = styleOf(record.style, model.form)
        const limits = { ...proposalLimits[model.form].test, after: record.testRegions }
        try {
          const items = await itemsAt(images)
          const pictures: BoxPicture[] = []
          const seen: Seen[] = []
          let largest = 0
          for (const item of items) {
            stopIfInterrupted()
            progressOf(flags, 'images')(seen.length + 1, items.length)
            const pixels = await loadPixels(item).catch(unreadable)
            if (pixels instanceof DenseclError) {
              seen.push({ image: item.name, objects: [], error: pixels.message })
              continue
            }
            const { boxes } = testPlacement(pixels, record, style)
            if (boxes.width * boxes.height > largest) checkFindingMemory(model.backbone, record, pixels)
            largest = Math.max(largest, boxes.width * boxes.height)
            const batch = testView(pixels, record, style)
            const objects = withDevice(device, () =>
              withCompute(compute, () => {
                const rules = { ...testRules, score: least }
                const [found] = scope(() => detect(model, batchTensor(batch, device), batch.images, style, limits, rules))
                return maskedObjects(found!, pixels)
              }),
            )
            seen.push({ image: item.name, objects })
            if (pictures.length < mostPictured) pictures.push({ name: basename(item.name), pixels, found: objects })
          }
          const picture = await writePicture(flags.out.replace(/\.(png|svg)$/, ''), boxesPicture(pictures, record.classes))
          const listed = seen.map(({ objects, ...image }) => ({
            ...image,
            objects: objects.map(({ label, box, score, mask }) => ({
              class: record.classes[label]!,
              box,
              score,
              ...(mask === undefined ? {} : { pixels: maskArea(mask), segmentation: cocoSegmentation(mask) }),
            })),
          }))
          const lines = listed.flatMap(({ image, objects, error }) => [
            error ?? `${image}: ${objects.length} found`,
            ...objects.map(
              ({ class: name, box, score, pixels }) =>
                `  ${name} ${(100 * score).toFixed(0)} %  ${box.map((value) => value.toFixed(0)).join(' ')}` +
                (pixels === undefined ? '' : `  mask of ${pixels} pixels`),
            ),
          ])
          print(flags.json === true, { picture, images: listed }, [...lines, picture].join('\n'))
          const broken = seen.filter(({ error }) => error !== undefined).length
          if (broken > 0) console.error(`densecl: ${broken} of ${items.length} images could not be read`)
          done(broken > 0 ? 1 : 0)
        } finally {
          model.dispose()
          model.backbone.dispose()
        }
      }),
    )
}

/** An error that names an image, which others are looked at without; any other is thrown. */
function unreadable(error: unknown): DenseclError {
  if (error instanceof DenseclError && error.code === 'DECODE') return error
  throw error
}
