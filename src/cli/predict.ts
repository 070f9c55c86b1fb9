import { holdsDetector } from '../detection/exchange.js'
import { importClassifier } from '../eval/classifierFile.js'
import { classifyImages, type Prediction } from '../eval/classify.js'
import { fail } from '../tensor/errors.js'
import { withDevice } from '../tensor/tensor.js'
import { examples, heedingSignals, numberFlag, type OutputFlags, print, quietFlag, type Register } from './command.js'
import { placementOf, type PlacementFlags, progressOf, withPlacement, workersOf } from './evalShared.js'
import { itemsAt, refusalOf } from './imagePaths.js'

interface Flags extends PlacementFlags, OutputFlags {
  weights: string
  top: string
}

export const register: Register = (program, done) => {
  const command = program
    .command('predict')
    .description('say what images show, by a classifier that eval finetune trained')
    .argument('<image...>', 'image files, and folders of them')
    .requiredOption('--weights <file>', 'classifier.safetensors of an evaluation, or a ResNet of torchvision with its last layer')
    .option('--top <count>', 'classes that are named of each image', '5')
  withPlacement(command)
    .option(...quietFlag)
    .option('--json', 'print JSON: for each image classes with probabilities, or an error')
    .addHelpText(
      'after',
      examples([
        ['densecl predict photo.jpg holiday/ --weights runs/photos/eval/finetune-imagenet-full/classifier.safetensors', 'what they show'],
      ]),
    )
    .action(
      heedingSignals(done, async (paths: string[], flags: Flags) => {
        const top = numberFlag('top', flags.top, { least: 1, whole: true })
        const workers = workersOf(flags)
        const { device, kind, dtype, compute } = await placementOf(flags)
        if (holdsDetector(flags.weights))
          fail('FORMAT', `${flags.weights}: is a detector, which finds objects: densecl detect takes it; expected a classifier`)
        const { model, record, assumed } = withDevice(device, () => importClassifier(flags.weights, kind, dtype))
        try {
          const items = await itemsAt(paths)
          const predictions = await classifyImages(model, record, items, {
            top,
            workers,
            compute,
            progress: (count) => progressOf(flags, 'images')(count, items.length),
          })
          if (assumed) console.error(`${flags.weights}: says no classes and no image size: numbers and ${record.imageSize} px are assumed`)
          print(flags.json === true, { weights: flags.weights, images: predictions }, predictions.map(lineOf).join('\n'))
          const broken = predictions.filter(({ error }) => error !== undefined).length
          if (broken > 0) console.error(`densecl: ${broken} of ${items.length} images could not be read`)
          done(broken > 0 ? 1 : 0)
        } finally {
          model.dispose()
          model.backbone.dispose()
        }
      }),
    )
}

function lineOf({ image, guesses, error }: Prediction): string {
  if (error !== undefined) return refusalOf(image, error)
  return `${image}: ${guesses.map((guess) => `${guess.class} ${(100 * guess.probability).toFixed(1)} %`).join(', ')}`
}
