import { join } from 'node:path'

import { Option } from 'commander'

import { defaultBoxSplits, openBoxes } from '../data/boxSources.js'
import { skippedLines } from '../data/source.js'
import { publishedAnchors } from '../detection/anchors.js'
import { recordLimits } from '../detection/detectorFile.js'
import { detectionStyles } from '../detection/styles.js'
import { shareOf } from '../eval/cocoBoxScores.js'
import { cocoResults } from '../eval/detections.js'
import { type DetectionResult, type DetectionTest, evaluateDetection } from '../eval/detection.js'
import { detectorNames } from '../eval/detectionIntroduction.js'
import { checkDetectionMemory } from '../eval/detectionMemory.js'
import { detectionProtocols, ofLength, preciseBatchesOf, protocolOf } from '../eval/detectionProtocols.js'
import { makeFolder, writeTextAtomic } from '../files/atomic.js'
import { identity } from '../distributed/launcher.js'
import { boxesPicture } from '../report/boxes.js'
import { writePicture } from '../report/svg.js'
import { checkChannels } from '../run/backbone.js'
import { percent, pictureAt, picturesOfEvaluation } from '../run/results.js'
import { entryOf } from '../run/options.js'
import { fail } from '../tensor/errors.js'
import { examples, heedingSignals, interruptedCode, nameSettings, numberFlag } from './command.js'
import { publishedLine } from './evalPublished.js'
import {
  type AddEvaluation,
  amongProcesses,
  checkMemory,
  conclude,
  deviations,
  evaluation,
  forceFlag,
  keepingUnlessFailed,
  openInitial,
  resultFolder,
  type SharedFlags,
  workersOf,
  resumableOptions,
  wholeFlag,
} from './evalShared.js'

interface Flags extends SharedFlags {
  data: string
  protocol: string
  style: string
  trainSplit?: string
  valSplit?: string
  iterations?: string
  batchSize?: string
  imagesAtOnce?: string
  lr?: string
  scales?: string
  testScale?: string
  longest?: string
  regions?: string
  testRegions?: string
  channels?: string
  anchors?: string
  init: string
  norm: string
  seed: string
  logEvery: string
  saveEvery: string
  testEvery: string
  resume?: boolean
  overwrite?: boolean
  force?: boolean
}

/** Images in the picture of a test on the way. */
const picturedOnTheWay = 4

export const addDetection: AddEvaluation = (parent, done) => {
  const names = Object.entries(detectionProtocols)
    .map(([name, { describe }]) => `\n  ${name.padEnd(12)} ${describe}`)
    .join('')
  nameSettings(evaluation(parent, 'detection', 'fine-tune a detector (Faster R-CNN C4, Mask R-CNN FPN) on the backbone and test it'), {
    frozenNorms: '--norm',
    form: '--protocol',
    train: 'images of --data',
    classes: 'classes of --data',
  })
    .requiredOption('--data <folder>', 'a VOCdevkit, a VOC tree (JPEGImages, Annotations, ImageSets/Main) or COCO (annotations, images)')
    .option('--protocol <name>', 'see below', 'voc0712-c4')
    .option('--style <code base>', 'whose rules where two published ones differ: detectron2 or mmdet', 'detectron2')
    .option('--train-split <lists>', 'lists to train on, such as 2007:trainval,2012:trainval (the default of a VOCdevkit) or train')
    .option('--val-split <lists>', 'lists to test on; default: 2007:test of a VOCdevkit, else val')
    .option('--iterations <count>', 'another length; the rate falls at the same shares of it')
    .option('--batch-size <images>', 'another batch size')
    .option(
      '--images-at-once <count>',
      'images of a batch, of all processes, that are computed together, where memory allows no more; default: all',
    )
    .option('--lr <rate>', 'another learning rate; default: the published one, in proportion to the batch size')
    .option('--scales <pixels,...>', 'other short sides of training images, one of which is drawn for each')
    .option('--test-scale <pixels>', 'another short side of test images')
    .option('--longest <pixels>', 'another limit of the long side')
    .option('--regions <count>', 'another number of regions of an image that are trained on; published: 512')
    .option('--test-regions <count>', 'another number of regions that are classified in a test image; published: 1000')
    .option('--channels <count>', 'another number of channels of the pyramid and its heads; published: 256')
    .option('--anchors <pixels,...>', 'other sides of the anchors; in coco-fpn-1x one for each of five maps')
    .option('--init <how>', 'weights, or random: the same detector from random weights, the baseline', 'weights')
    .addOption(
      new Option('--norm <how>', 'of the backbone in coco-fpn-1x: batch, or frozen: statistics and weights stay as they are')
        .choices(['batch', 'frozen'])
        .default('batch'),
    )
    .option('--seed <number>', 'of heads, order, sizes and samples', '0')
    .option('--test-every <iterations>', 'tests, and draws what is found in a few images, on the way; 0: at the end alone', '0')
    .option('--log-every <iterations>', 'between two lines', '20')
    .option('--save-every <iterations>', 'between two states', '500')
    .addOption(new Option('--resume', 'continue after the last state').conflicts('overwrite'))
    .option('--overwrite', 'replace an evaluation')
    .option(...forceFlag)
    .addHelpText(
      'after',
      `\nProtocols:${names}\n${examples([
        ['densecl eval detection runs/r50/backbone.safetensors --data VOCdevkit --device cuda', 'the published protocol'],
        [
          'densecl eval detection runs/photos/backbone.safetensors --data raccoons --iterations 400 --batch-size 4 ' +
            '--scales 192,224,256 --test-scale 224 --longest 400 --anchors 32,64,128,192 --regions 64 --test-regions 128',
          'a short run on a CPU',
        ],
      ])}`,
    )
    .action(
      heedingSignals(done, async (weights: string, flags: Flags) => {
        const { interrupted } = await amongProcesses(flags, {
          prepare: (own) => prepare(weights, own),
          identityOf: ({ backbone: { compute }, planned: { protocol, style, train, val, anchors, imagesAtOnce, seed } }) => [
            [protocol, style, anchors, imagesAtOnce, seed, compute],
            [train.items.length, val.items.length],
          ],
          evaluate: ({ backbone, planned, out }, shared, own) =>
            evaluateDetection(backbone, { ...planned, ...shared, ...runOptions(weights, own, planned, out), out }),
          conclude: (result, prepared, own) => report(weights, own, prepared, result),
          dispose: ({ backbone }) => backbone.dispose(),
        })
        done(interrupted ? interruptedCode() : 0)
      }),
    )
}

type Prepared = Awaited<ReturnType<typeof prepare>>

/** What is evaluated, and where. */
async function prepare(weights: string, flags: Flags) {
  entryOf('--style', flags.style, detectionStyles)
  const style = flags.style as keyof typeof detectionStyles
  const published = protocolOf(entryOf('--protocol', flags.protocol, detectionProtocols), style)
  const { preciseBatches } = detectionStyles[style]
  const side = [8, recordLimits.side] as const
  const list = (flag: string, text: string | undefined, otherwise: readonly number[]): readonly number[] =>
    text?.split(',').map((each) => wholeFlag(flag, each, 0, ...side)) ?? otherwise
  if (flags.channels !== undefined && published.form !== 'fpn') fail('CONFIG', '--channels is of coco-fpn-1x, whose pyramid has them')
  const frozen = flags.norm === 'frozen'
  if (frozen && published.form !== 'fpn') fail('CONFIG', '--norm is frozen: expected batch without --protocol coco-fpn-1x')
  if (frozen && flags.init === 'random') fail('CONFIG', '--norm is frozen: expected batch with --init random, which has no statistics')
  const batchSize = wholeFlag('batch-size', flags.batchSize, published.batchSize)
  const protocol = {
    ...ofLength(published, wholeFlag('iterations', flags.iterations, published.iterations)),
    batchSize,
    lr: flags.lr === undefined ? (published.lr * batchSize) / published.batchSize : numberFlag('lr', flags.lr, { least: 1e-12 }),
    scales: list('scales', flags.scales, published.scales),
    testScale: wholeFlag('test-scale', flags.testScale, published.testScale, ...side),
    longest: wholeFlag('longest', flags.longest, published.longest, ...side),
    regions: wholeFlag('regions', flags.regions, published.regions),
    testRegions: wholeFlag('test-regions', flags.testRegions, published.testRegions, 1, recordLimits.regions),
    channels: wholeFlag('channels', flags.channels, published.channels, 1, recordLimits.channels),
    ...(frozen ? { frozenNorms: true } : {}),
  }
  const anchors = list('anchors', flags.anchors, publishedAnchors.sizes)
  const imagesAtOnce = wholeFlag('images-at-once', flags.imagesAtOnce, batchSize)
  const { backbone, compute, note, suffix, seed } = await openInitial(weights, flags)
  return keepingUnlessFailed(backbone, async () => {
    checkChannels(backbone, 'eval detection')
    const splits = defaultBoxSplits(flags.data)
    const masks = published.form === 'fpn'
    const train = openBoxes(flags.data, flags.trainSplit?.split(',') ?? splits.train, { masks })
    const val = openBoxes(flags.data, flags.valSplit?.split(',') ?? splits.val, { classes: train.classes, masks })
    if (identity().rank === 0) for (const line of [...skippedLines(train), ...skippedLines(val)]) console.error(line)
    const name = `detection-${flags.protocol}${suffix}`
    const folder = resultFolder(weights, flags)
    const out = join(folder, name)
    const workers = workersOf(flags)
    const planned = { protocol, style, train, val, anchors, imagesAtOnce, seed, workers, compute }
    const ofProcess = { ...planned, processes: identity().size }
    await checkMemory(flags, backbone, (limits) => checkDetectionMemory(backbone, ofProcess, limits))
    return { backbone, note, published, preciseBatches, planned, name, folder, out }
  })
}

function runOptions(weights: string, flags: Flags, { protocol, val }: Prepared['planned'], out: string) {
  return {
    ...resumableOptions(flags, { logEvery: 20, saveEvery: 500 }),
    dataName: flags.data,
    weightsName: flags.init === 'weights' ? weights : 'random weights',
    onTest: async ({ iteration, samples }: DetectionTest): Promise<void> => {
      if (iteration === protocol.iterations) return
      makeFolder(picturesOfEvaluation(out))
      const some = samples.filter((_, i) => i % Math.ceil(samples.length / picturedOnTheWay) === 0)
      await writePicture(pictureAt(out, iteration), boxesPicture(some, val.classes))
    },
  }
}

/** Writes and prints what was found. */
async function report(
  weights: string,
  flags: Flags,
  { backbone, note, published, preciseBatches, planned, name, folder, out }: Prepared,
  { iterations, test }: DetectionResult,
): Promise<void> {
  if (test === undefined) {
    console.error(`interrupted at iteration ${iterations}; continue with --resume`)
    return
  }
  const { protocol, style, train, val, anchors, imagesAtOnce } = planned
  const { batchSize } = protocol
  const { detections, samples, voc, coco, masks: ofMasks } = test
  const picture = await writePicture(join(out, 'samples'), boxesPicture(samples, val.classes))
  writeTextAtomic(join(out, 'detections.json'), `${JSON.stringify(cocoResults(val, detections))}\n`)
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length
  const ap = (score: number): string => percent(shareOf(score))
  const maskAp = (score: number | undefined): string[] => (score === undefined ? [] : [ap(score)])
  const table = {
    title: `Detection (${detectorNames[published.form]}, ${flags.protocol}, ${style}) in %: ${val.items.length} images`,
    columns: ['class', 'AP50', 'COCO AP', ...(ofMasks === undefined ? [] : ['mask AP'])],
    rows: [
      ...val.classes.map((label, c) => [label, percent(voc.byClass[0]![c]!), ap(coco.apByClass[c]!), ...maskAp(ofMasks?.apByClass[c])]),
      ['mean', percent(voc.mean[0]!), ap(coco.ap), ...maskAp(ofMasks?.ap)],
      ...(voc.overlaps.length > 1 ? [['mean of 10 overlaps, AP75', percent(mean(voc.mean)), ap(coco.ap75), ...maskAp(ofMasks?.ap75)]] : []),
    ],
    notes: [
      `${train.items.length} training images; AP50 by VOC 2007's 11 points, COCO AP by COCO's rules`,
      `${detections.length} objects found`,
      ...deviations([
        ['backbone', backbone.name, 'ResNet-50'],
        ['iterations', protocol.iterations, published.iterations],
        ['batch size', batchSize, published.batchSize],
        ['images at once', imagesAtOnce, published.batchSize],
        ['learning rate', protocol.lr, published.lr],
        ['short sides', protocol.scales.join(' '), published.scales.join(' ')],
        ['test side', protocol.testScale, published.testScale],
        ['long side', protocol.longest, published.longest],
        ['regions', protocol.regions, published.regions],
        ['test regions', protocol.testRegions, published.testRegions],
        ['channels', protocol.channels, published.channels],
        ['norms of the backbone', flags.norm, 'batch'],
        ['anchors', anchors.join(' '), publishedAnchors.sizes.join(' ')],
        ['batches for statistics of batch norms', preciseBatchesOf(preciseBatches, protocol.iterations), preciseBatches],
      ]),
      ...publishedLine(flags.protocol, 'this protocol, a measure of runs that deviate in nothing'),
      note,
    ],
  }
  conclude(flags, folder, name, table, {
    weights,
    init: flags.init,
    style,
    protocol,
    picture,
    voc: { ...voc },
    coco: { ...coco },
    ...(ofMasks === undefined ? {} : { masks: { ...ofMasks } }),
  })
}
