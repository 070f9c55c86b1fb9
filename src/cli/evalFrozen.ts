/** `densecl eval segmentation --frozen`: linear classifiers of the cells of frozen maps. */
import { defaultSplits, openSegmentation } from '../data/segmentationSources.js'
import { checkFrozenMemory } from '../eval/frozenMemory.js'
import { type CellScores, frozenSegmentation } from '../eval/frozenSegmentation.js'
import { checkChannels } from '../run/backbone.js'
import { percent } from '../run/results.js'
import { fail } from '../tensor/errors.js'
import { expectOneProcess, numberFlag } from './command.js'
import { checkMemory, conclude, openInitial, resultFolder, type SharedFlags, workersOf } from './evalShared.js'

export interface FrozenFlags extends SharedFlags {
  data: string
  trainSplit?: string
  valSplit: string
  scale?: string
  window: string
  windows: string
  force?: boolean
  init: string
  seed: string
}

/** Evaluates and prints. */
export async function evaluateFrozen(weights: string, flags: FrozenFlags): Promise<void> {
  expectOneProcess('eval segmentation --frozen')
  const window = numberFlag('window', flags.window, { least: 16, most: 8192, whole: true })
  const windows = numberFlag('windows', flags.windows, { least: 1, most: 1000, whole: true })
  const scale = flags.scale?.split(',').map((text) => numberFlag('scale', text, { least: 8, whole: true }))
  if (scale !== undefined && (scale.length !== 2 || scale[0]! < scale[1]!))
    fail('CONFIG', `--scale is ${flags.scale}: expected two sizes, long,short`)
  const { backbone, compute, note, suffix, seed } = await openInitial(weights, flags)
  try {
    checkChannels(backbone, 'eval segmentation')
    const train = openSegmentation(flags.data, flags.trainSplit?.split(',') ?? defaultSplits(flags.data).train)
    const val = openSegmentation(flags.data, flags.valSplit.split(','))
    const fitting = scale === undefined ? {} : { scale: [scale[0]!, scale[1]!] as const }
    await checkMemory(flags, backbone, (limits) =>
      checkFrozenMemory(backbone, { train, val }, { window, windows, workers: workersOf(flags), compute }, limits),
    )
    const maps = await frozenSegmentation(
      backbone,
      { train, val },
      { window, windows, ...fitting, seed, workers: workersOf(flags), compute },
    )
    // VOC's layout has the background first; elsewhere no class is none.
    const objects = val.classes[0] === 'background'
    const cells = ({ meanIou, balancedRecall, objectAuc }: CellScores): (string | number)[] =>
      [meanIou, balancedRecall, ...(objects ? [objectAuc] : [])].map(percent)
    const sized = scale === undefined ? 'images at their own size' : `images to fit ${scale.join('x')}`
    const table = {
      title: `Segmentation by frozen features, in %: cells of windows of ${window} px`,
      columns: ['stage', 'grid', 'cells', 'mean IoU', 'balanced recall', ...(objects ? ['object AUC'] : [])],
      rows: maps.flatMap(({ grid, cells: { val: count }, features, position }, level) => {
        const stage = level === 0 ? 'last' : 'before'
        return [
          [stage, `${grid}x${grid}`, count, ...cells(features)],
          [`${stage}: position alone`, `${grid}x${grid}`, count, ...cells(position)],
        ]
      }),
      notes: [
        `${windows} windows of each of ${train.items.length} training and ${val.items.length} test images, ${sized}`,
        'a cell has the class of most of its pixels',
        'balanced recall: mean share of the cells of each class that are found where all classes weigh the same in training',
        ...(objects ? ['object AUC: any class against the background, 50 is chance'] : []),
        note,
      ],
    }
    conclude(flags, resultFolder(weights, flags), `segmentation-frozen${suffix}`, table, {
      weights,
      init: flags.init,
      window,
      windows,
      seed,
      maps,
    })
  } finally {
    backbone.dispose()
  }
}
