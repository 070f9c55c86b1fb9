import { Option } from 'commander'

import { embedImages, type Embedding, embeddings } from '../eval/embed.js'
import { openRows, type RowFile } from '../files/rowFiles.js'
import { fail } from '../tensor/errors.js'
import { examples, heedingSignals, type OutputFlags, print, quietFlag, refuseExisting, type Register } from './command.js'
import { imageSizeHelp, imageSizeOf, openBackbone, type PlacementFlags, progressOf, withPlacement, workersOf } from './evalShared.js'
import { itemsAt, refusalOf } from './imagePaths.js'

interface Flags extends PlacementFlags, OutputFlags {
  weights: string
  out: string
  features: Embedding
  imageSize?: string
  overwrite?: boolean
}

export const register: Register = (program, done) => {
  const command = program
    .command('embed')
    .description('write the features of images to a file: .npy, .jsonl or .parquet')
    .argument('<image...>', 'image files, and folders of them')
    .requiredOption('--weights <file>', 'a checkpoint or backbone, ours or foreign (.safetensors, .pth)')
    .requiredOption('--out <file>', '.npy (with the names of images in FILE.npy.txt), .jsonl, or .parquet')
    .addOption(
      new Option(
        '--features <name>',
        'pooled: the mean of the last map; dense: that map; feature1 to feature5: maps as evaluations pool them',
      )
        .choices([...embeddings])
        .default('pooled'),
    )
    .option('--image-size <pixels>', `side of the central crop; default: ${imageSizeHelp}`)
    .option('--overwrite', 'replace the file')
  withPlacement(command)
    .option(...quietFlag)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      examples([
        ['densecl embed photos/ --weights runs/photos/backbone.safetensors --out photos.npy', 'a row of numbers for each photo'],
        ['densecl embed photo.jpg --weights r50.pth --features dense --out photo.npy', 'the map [1, 7, 7, 2048] of one'],
      ]),
    )
    .action(
      heedingSignals(done, async (paths: string[], flags: Flags) => {
        refuseExisting('embed', flags, 'file')
        const { imageSize, note } = imageSizeOf(flags.imageSize, flags.weights, 224)
        const workers = workersOf(flags)
        const items = await itemsAt(paths)
        const { backbone, compute } = await openBackbone(flags.weights, flags)
        let file: RowFile | undefined
        try {
          const rows = (file = await openRows(flags.out))
          const progress = progressOf(flags, 'images')
          let shape: readonly number[] = []
          const options = { imageSize, workers, compute, progress: (count: number) => progress(count, items.length) }
          const broken = await embedImages(backbone, items, flags.features, options, (image, values, own) => {
            shape = own
            rows.write(image, values, own)
          })
          for (const [image, reason] of broken) console.error(refusalOf(image, reason))
          const images = items.length - broken.size
          if (images === 0) return fail('DATA', `embed: none of ${items.length} images could be read`)
          const written = rows.finish()
          file = undefined
          print(
            flags.json === true,
            { files: written, images, shape, features: flags.features, imageSize, broken: Object.fromEntries(broken) },
            `${images} x [${shape.join(', ')}] of ${backbone.description}, ${note}: ${written.join(', ')}`,
          )
          if (broken.size > 0) console.error(`densecl: ${broken.size} of ${items.length} images could not be read`)
          done(broken.size > 0 ? 1 : 0)
        } finally {
          file?.abandon()
          backbone.dispose()
        }
      }),
    )
}
