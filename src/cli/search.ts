import { basename } from 'node:path'

import type { Box } from '../data/boxes.js'
import type { Pixels } from '../data/decode.js'
import { type Item, loadPixels } from '../data/source.js'
import { searchImages } from '../eval/search.js'
import { type BoxPicture, boxesPicture } from '../report/boxes.js'
import { writePicture } from '../report/svg.js'
import { checkChannels } from '../run/backbone.js'
import { fail } from '../tensor/errors.js'
import { examples, heedingSignals, numberFlag, type OutputFlags, print, quietFlag, type Register } from './command.js'
import { imageSizeHelp, imageSizeOf, openBackbone, type PlacementFlags, progressOf, withPlacement, workersOf } from './evalShared.js'
import { itemsAt, refusalOf } from './imagePaths.js'

interface Flags extends PlacementFlags, OutputFlags {
  weights: string
  region?: string
  top: string
  out: string
  imageSize?: string
}

/** Cells of a side where a region is looked for, at least. */
const leastCells = 8

export const register: Register = (program, done) => {
  const command = program
    .command('search')
    .description('find the images, or regions of images, that are most like a query, and draw them')
    .argument('<query>', 'an image file')
    .argument('<image...>', 'image files, and folders of them')
    .requiredOption('--weights <file>', 'a checkpoint or backbone, ours or foreign (.safetensors, .pth)')
    .option('--region <left,top,right,bottom>', 'a part of the query, as shares of its sides: where in the images is what looks like it')
    .option('--top <count>', 'images that are shown, the likest first', '12')
    .option('--out <path>', 'of the picture, without extension', 'search')
    .option(
      '--image-size <pixels>',
      `side of the squares that images are squeezed to; default: ${imageSizeHelp}; for a region twice that, ${leastCells} cells at least`,
    )
  withPlacement(command)
    .option(...quietFlag)
    .option('--json', 'print JSON: for each image its similarity, and the likest part of it in pixels')
    .addHelpText(
      'after',
      examples([
        ['densecl search cat.jpg photos/ --weights runs/photos/backbone.safetensors', 'photos that look like it'],
        ['densecl search cat.jpg photos/ --weights r50.pth --region 0.4,0.2,0.7,0.5', 'where what is there looks like that part'],
      ]),
    )
    .action(
      heedingSignals(done, async (path: string, paths: string[], flags: Flags) => {
        const top = numberFlag('top', flags.top, { least: 1, most: 100, whole: true })
        const region = flags.region === undefined ? undefined : regionOf(flags.region)
        const known = imageSizeOf(flags.imageSize, flags.weights, 224).imageSize
        const workers = workersOf(flags)
        const [query, items] = [(await itemsAt([path]))[0], await itemsAt(paths)]
        if (query?.name !== path) fail('DATA', `search: the query ${path} is a folder: expected one image`)
        const { backbone, compute } = await openBackbone(flags.weights, flags)
        // A region needs a grid that it stands out of.
        const finer = region !== undefined && flags.imageSize === undefined
        const imageSize = finer ? Math.max(2 * known, leastCells * backbone.stride) : known
        try {
          // Pictures are drawn in colour, which grey images have too.
          checkChannels(backbone, 'search', [1, 3])
          const progress = progressOf(flags, 'images')
          const { hits, broken } = await searchImages(backbone, query, items, {
            ...{ imageSize, workers, compute, region, top },
            progress: (count) => progress(count, items.length + 1),
          })
          const found = await Promise.all(
            hits.map(async ({ item, similarity, box }) => ({ item, similarity, ...(await placed(item, box)) })),
          )
          const whole = region === undefined
          const pictures: BoxPicture[] = [
            { name: `query: ${basename(path)}`, found: [], ...withTruth(await placed(query, region ?? [0, 0, 1, 1]), whole) },
            ...found.map(({ item, pixels, box, similarity }) => ({
              name: `${basename(item.name)}  ${similarity.toFixed(3)}`,
              pixels,
              found: whole ? [] : [{ label: 0, box, score: similarity }],
            })),
          ]
          const picture = await writePicture(
            flags.out.replace(/\.(png|svg)$/, ''),
            boxesPicture(pictures, ['like it'], 'what is looked for'),
          )
          const listed = found.map(({ item, similarity, box }) => ({ image: item.name, similarity, ...(whole ? {} : { box }) }))
          for (const [image, reason] of broken) console.error(refusalOf(image, reason))
          print(
            flags.json === true,
            { picture, query: path, images: listed, broken: Object.fromEntries(broken) },
            [...listed.map(({ image, similarity }) => `${similarity.toFixed(3)}  ${image}`), picture].join('\n'),
          )
          done(broken.size > 0 ? 1 : 0)
        } finally {
          backbone.dispose()
        }
      }),
    )
}

/** An image, and a part of it in its pixels. */
async function placed(item: Item, [left, top, right, bottom]: Box): Promise<{ pixels: Pixels; box: Box }> {
  const pixels = await loadPixels(item)
  const { width, height } = pixels
  return { pixels, box: [left * width, top * height, right * width, bottom * height] }
}

const withTruth = ({ pixels, box }: { pixels: Pixels; box: Box }, whole: boolean): Pick<BoxPicture, 'pixels' | 'truth'> => ({
  pixels,
  ...(whole ? {} : { truth: [{ label: 0, box }] }),
})

function regionOf(text: string): Box {
  const [left, top, right, bottom, ...more] = text.split(',').map(Number)
  const isShare = (value: number | undefined): boolean => value !== undefined && value >= 0 && value <= 1
  if (more.length > 0 || ![left, top, right, bottom].every(isShare) || !(left! < right! && top! < bottom!))
    return fail('CONFIG', `--region is ${text}: expected left,top,right,bottom as shares of 0 to 1, such as 0.4,0.2,0.7,0.5`)
  return [left!, top!, right!, bottom!]
}
