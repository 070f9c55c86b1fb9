import { readFileSync } from 'node:fs'

import { decode } from '../data/decode.js'
import { scene } from '../data/scenes.js'
import { fail } from '../tensor/errors.js'
import { matchPicture } from '../report/match.js'
import { writePicture } from '../report/svg.js'
import { importBackbone } from '../weights/import.js'
import { examples, numberFlag, print, type Register } from './command.js'

export const register: Register = (program, done) => {
  program
    .command('match')
    .description('draw the dense correspondences between two views of an image')
    .argument('<image>', 'an image file, or scene:N of the built-in data set')
    .requiredOption('--weights <file>', 'a checkpoint or backbone')
    .option('--out <path>', 'of the picture, without extension', 'matches')
    .option('--size <pixels>', 'side of the views; the grid has size / 32 positions a side', '224')
    .option('--most <count>', 'matches to draw', '20')
    .option('--threshold <similarity>', 'smallest similarity to draw', '0')
    .option('--seed <number>', 'of the two views', '0')
    .option('--json', 'print JSON')
    .addHelpText('after', examples([['densecl match photo.jpg --weights runs/photos/backbone.safetensors --threshold 0.9', 'mutual nearest neighbours, as the authors draw them']]))
    .action(async (image: string, flags: { weights: string; out: string; size: string; most: string; threshold: string; seed: string; json?: boolean }) => {
      const options = {
        size: numberFlag('size', flags.size, { least: 32, whole: true }),
        most: numberFlag('most', flags.most, { least: 0, whole: true }),
        threshold: numberFlag('threshold', flags.threshold, { least: -1, most: 1 }),
        seed: numberFlag('seed', flags.seed, { least: 0, whole: true }),
      }
      const { backbone } = importBackbone(flags.weights)
      const { svg, matches, grid } = await matchPicture(backbone, await pixelsOf(image), options)
      const path = await writePicture(flags.out.replace(/\.(png|svg)$/, ''), svg)
      print(flags.json === true, { picture: path, grid, matches }, `${matches.length} mutual matches on a ${grid.join('x')} grid: ${path}`)
      done(0)
    })
}

async function pixelsOf(image: string) {
  const index = /^scene:(\d+)$/.exec(image)?.[1]
  if (index !== undefined) return scene(1, Number(index)).pixels
  let bytes: Buffer
  try {
    bytes = readFileSync(image)
  } catch (error) {
    return fail('FILE', `match: ${image} cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`)
  }
  return decode(bytes, image)
}
