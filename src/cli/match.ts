import { readFileSync } from 'node:fs'

import { decode, type Pixels } from '../data/decode.js'
import { scene } from '../data/scenes.js'
import { drawHeat, drawMatches, matchesOf, positionAt } from '../report/match.js'
import { seeImage, seeViews } from '../report/pairs.js'
import { writePicture } from '../report/svg.js'
import { checkChannels } from '../run/backbone.js'
import { withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { examples, numberFlag, print, type Register } from './command.js'
import { type ComputingFlags, openBackbone, withComputing } from './evalShared.js'

interface Flags extends ComputingFlags {
  weights: string
  out: string
  size: string
  most: string
  threshold: string
  point?: string
  seed: string
  json?: boolean
}

export const register: Register = (program, done) => {
  const command = program
    .command('match')
    .description('draw the dense correspondences between two views of an image, or between two images')
    .argument('<image>', 'an image file, or scene:N of the built-in data set')
    .argument('[other]', 'another image; without one, two random views of the first are compared')
    .requiredOption('--weights <file>', 'a checkpoint or backbone')
    .option('--out <path>', 'of the picture, without extension', 'matches')
    .option('--size <pixels>', 'side of the views, short side of whole images; the grid has size / 32 positions a side', '224')
    .option('--most <count>', 'matches to draw', '20')
    .option('--threshold <similarity>', 'smallest similarity to draw', '0')
    .option('--point <x,y>', 'a heat map instead: similarity to this point of the first picture, as shares of its width and height')
    .option('--seed <number>', 'of the two views', '0')
  withComputing(command)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      examples([
        [
          'densecl match photo.jpg --weights runs/photos/backbone.safetensors --threshold 0.9',
          'mutual nearest neighbours, as the authors draw them',
        ],
        [
          'densecl match cat.jpg dog.jpg --weights runs/photos/backbone.safetensors --size 448 --point 0.4,0.3',
          'where in dog.jpg is what lies there in cat.jpg',
        ],
      ]),
    )
    .action(async (image: string, other: string | undefined, flags: Flags) => {
      const size = numberFlag('size', flags.size, { least: 32, whole: true })
      const most = numberFlag('most', flags.most, { least: 0, whole: true })
      const threshold = numberFlag('threshold', flags.threshold, { least: -1, most: 1 })
      const seed = numberFlag('seed', flags.seed, { least: 0, whole: true })
      const point = flags.point === undefined ? undefined : pointOf(flags.point)
      const { backbone, compute } = await openBackbone(flags.weights, flags)
      try {
        checkChannels(backbone, 'match')
        const first = await pixelsOf(image)
        const second = other === undefined ? undefined : await pixelsOf(other)
        const pair = withCompute(compute, () =>
          second === undefined
            ? seeViews(backbone, first, { size, seed })
            : ([seeImage(backbone, first, size), seeImage(backbone, second, size)] as const),
        )
        const grids = pair.map(({ grid }) => grid)
        const out = flags.out.replace(/\.(png|svg)$/, '')
        if (point === undefined) {
          const matches = matchesOf(pair, { most, threshold })
          const picture = await writePicture(out, drawMatches(pair, matches))
          print(
            flags.json === true,
            { picture, grid: grids[0], grids, matches },
            `${matches.length} mutual matches on grids of ${grids.map((grid) => grid.join('x')).join(' and ')}: ${picture}`,
          )
        } else {
          const { svg, best } = drawHeat(pair, positionAt(pair[0], point))
          const picture = await writePicture(out, svg)
          print(
            flags.json === true,
            { picture, grids, best },
            `best match at position ${best.key} of a grid of ${grids[1]!.join('x')}, similarity ${best.similarity.toFixed(3)}: ${picture}`,
          )
        }
        done(0)
      } finally {
        backbone.dispose()
      }
    })
}

function pointOf(text: string): [number, number] {
  const [x, y, ...more] = text.split(',').map(Number)
  if (x === undefined || y === undefined || more.length > 0 || !(x >= 0 && x <= 1 && y >= 0 && y <= 1))
    return fail('CONFIG', `--point is ${text}: expected two shares in 0..1, x,y`)
  return [x, y]
}

async function pixelsOf(image: string): Promise<Pixels> {
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
