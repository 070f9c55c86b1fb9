import { openSource } from '../data/sources.js'
import { type Correspondence, correspondence, drawnItems } from '../eval/correspondence.js'
import type { Backbone } from '../nn/backbone.js'
import { percent } from '../run/results.js'
import { examples, heedingSignals, numberFlag } from './command.js'
import {
  type AddEvaluation,
  conclude,
  evaluation,
  openBackbone,
  progressOf,
  randomLike,
  resultFolder,
  type SharedFlags,
  unreadable,
  workersOf,
} from './evalShared.js'

interface Flags extends SharedFlags {
  data: string
  imageSize: string
  images: string
  seed: string
}

/** Backbones that are compared on the same views. */
interface Scored {
  size: number
  weights: Correspondence[]
  random: Correspondence[]
}

export const addCorrespondence: AddEvaluation = (parent, done) => {
  evaluation(parent, 'correspondence', 'whether dense features find the same place in two random views of unseen images; no labels')
    .requiredOption('--data <data>', 'images that were not trained on, of any layout')
    .option('--image-size <pixels,...>', 'sides of the views, one result each', '64,128')
    .option('--images <count>', 'most images that are looked at, drawn by the seed', '400')
    .option('--seed <number>', 'of the images and the views', '0')
    .addHelpText(
      'after',
      examples([
        [
          'densecl eval correspondence runs/photos/backbone.safetensors --data photos/val --image-size 64',
          'seconds on a CPU; random weights and "always the same place" stand beside it',
        ],
      ]),
    )
    .action(
      heedingSignals(done, async (weights: string, flags: Flags) => {
        const sizes = flags.imageSize.split(',').map((text) => numberFlag('image-size', text, { least: 8, whole: true }))
        const seed = numberFlag('seed', flags.seed, { least: 0, whole: true })
        const most = numberFlag('images', flags.images, { least: 1, whole: true })
        const items = drawnItems((await openSource(flags.data, { split: 'val', setting: '--data' })).items, most, seed)
        const { backbone, compute, note } = await openBackbone(weights, flags)
        const untrained = randomLike(backbone, seed)
        const broken = new Map<string, string>()
        try {
          const score = (of: Backbone, imageSize: number, what: string): Promise<Correspondence[]> =>
            correspondence(of, items, {
              imageSize,
              seed,
              workers: workersOf(flags),
              maxBroken: 0.01,
              broken,
              compute,
              progress: (count) => progressOf(flags, `${what} at ${imageSize} px`)(count, items.length),
            })
          const scored: Scored[] = []
          for (const size of sizes)
            scored.push({ size, weights: await score(backbone, size, 'features'), random: await score(untrained, size, 'random weights') })
          const table = {
            title: `correspondence in %: the right position of the other view, or it and its neighbours, ${items.length} images`,
            columns: ['px', 'stage', 'grid', 'exact', 'near', 'random weights', 'near', 'same place', 'near'],
            rows: scored.flatMap(rowsOf),
            notes: [
              'views: crops of 20 to 100 %, flips and colours as in training, no blur; positions that both views show',
              'same place: the answer of features that know positions alone; more than it is content',
              ...unreadable(broken, 'and others stand in for them'),
              note,
            ],
          }
          conclude(flags, resultFolder(weights, flags), 'correspondence', table, {
            weights,
            data: flags.data,
            images: items.length,
            seed,
            scored,
          })
          done(0)
        } finally {
          untrained.dispose()
          backbone.dispose()
        }
      }),
    )
}

function rowsOf({ size, weights, random }: Scored): (string | number)[][] {
  return weights.map(({ grid, found, samePlace }, level) => [
    size,
    level === 0 ? 'last' : 'before',
    `${grid}x${grid}`,
    ...[found, random[level]!.found, samePlace].flatMap(({ exact, near }) => [percent(exact), percent(near)]),
  ])
}
