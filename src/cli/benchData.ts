/** `densecl bench data`: what a data set costs before any training, step by step. */
import { availableParallelism } from 'node:os'

import { Option } from 'commander'

import { environmentRow, writeResult } from '../bench/result.js'
import { mocoV2Augmentation } from '../data/augment.js'
import { Loader } from '../data/loader.js'
import { batchIndices, epochOrder, stepsPerEpoch } from '../data/sampler.js'
import type { Source } from '../data/source.js'
import { openSource } from '../data/sources.js'
import { namedDevice } from '../run/device.js'
import { decodePlace } from '../run/placement.js'
import { useDevice } from '../selftest/trust.js'
import { fail } from '../tensor/errors.js'
import { native } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'
import { type AddBench, deviceFlag } from './benchShared.js'
import { examples, heedingSignals, numberFlag } from './command.js'

interface Flags {
  data: string
  device: string
  decode: 'cpu' | 'gpu'
  imageSize: string
  batch: string
  workers: string
  seconds: string
  json?: boolean
  save?: string
}

export const addData: AddBench = (parent, done) => {
  parent
    .command('data')
    .description('time the loading of images, step by step')
    .option('--data <source>', 'anything that pretrain --data takes', 'scenes')
    .option(...deviceFlag)
    .addOption(new Option('--decode <where>', 'what decodes JPEGs: workers, or the GPU with nvJPEG').choices(['cpu', 'gpu']).default('cpu'))
    .option('--image-size <pixels>', 'side of the views', '224')
    .option('--batch <images>', 'images of a batch', '64')
    .option('--workers <counts>', 'numbers of worker threads to try, 0 is what training takes', '0')
    .option('--seconds <time>', 'how long each is measured', '10')
    .option('--json', 'print JSON')
    .option('--save <file>', 'write the result as JSON')
    .addHelpText('after', examples([['densecl bench data --data photos --workers 1,2,4', 'where loading spends its time']]))
    .action(
      heedingSignals(done, async (flags: Flags) => {
        const device = await useDevice(namedDevice(flags.device))
        const options = {
          data: flags.data,
          device,
          decode: decodePlace({ decode: flags.decode, channels: 3 }, device),
          imageSize: numberFlag('image-size', flags.imageSize, { least: 32, whole: true }),
          batch: numberFlag('batch', flags.batch, { least: 1, whole: true }),
          workers: flags.workers.split(',').map((text) => numberFlag('workers', text, { least: 0, whole: true })),
          seconds: numberFlag('seconds', flags.seconds, { least: 0.1 }),
        }
        const rows = await benchData(options, (row) => flags.json !== true && console.log(dataLine(row)))
        const result = { ...environmentRow(), bench: 'loading', ...options, rows }
        if (flags.json === true) console.log(JSON.stringify(result, undefined, 2))
        if (flags.save !== undefined) writeResult(flags.save, result)
        done(0)
      }),
    )
}

interface DataBenchOptions {
  data: string
  device: string
  /** What decodes JPEGs (LoaderOptions). */
  decode: 'cpu' | 'gpu'
  imageSize: number
  batch: number
  /** Numbers of workers to try; 0 is what training would take. */
  workers: number[]
  seconds: number
}

interface DataRow {
  workers: number
  imagesPerSecond: number
  /**
   * Milliseconds of one worker for an image: reading and, where the GPU does not do it, decoding; rendering both views (CPU) or placing
   * what becomes of them (GPU).
   */
  decode: number
  render: number
  /** Milliseconds an image between the start of the upload and the end of both views, on a GPU. */
  uploadAndAugment?: number
  /** The share of the images that the GPU decoded, where it is told to. */
  onGpu?: number
}

/** Loads for `seconds` with each number of workers, without keeping decoded images. */
async function benchData(options: DataBenchOptions, onRow: (row: DataRow) => void): Promise<DataRow[]> {
  const source = await openSource(options.data, { setting: '--data' })
  if (source.items.length < options.batch)
    fail('CONFIG', `bench data: --batch is ${options.batch} but ${options.data} holds ${source.items.length} images`)
  const rows: DataRow[] = []
  for (const workers of options.workers) {
    const row = await loadFor(source, workers === 0 ? Math.min(16, Math.max(1, availableParallelism() - 1)) : workers, options)
    rows.push(row)
    onRow(row)
  }
  return rows
}

function* endless(images: number, batch: number): Generator<{ epoch: number; indices: Int32Array }> {
  for (let epoch = 0; ; ++epoch) {
    const order = epochOrder(0, epoch, images)
    for (let step = 0; step < stepsPerEpoch(images, batch); ++step) yield { epoch, indices: batchIndices(order, batch, step) }
  }
}

async function loadFor(
  { items }: Source,
  workers: number,
  { device, decode, imageSize, batch, seconds }: DataBenchOptions,
): Promise<DataRow> {
  const loader = new Loader({
    items,
    imageSize,
    batchSize: batch,
    views: 'augmented',
    device,
    decode,
    dtype: deviceTraits(device).usualDType,
    augment: mocoV2Augmentation,
    seed: 0,
    workers,
    maxBroken: 1,
  })
  const { rendersViews } = deviceTraits(device)
  let [start, images, onDevice, batches] = [performance.now(), 0, 0, 0]
  try {
    for await (const made of loader.batches(endless(items.length, batch))) {
      const from = native.recordEvent(device)
      for (const view of made.views()) view.dispose()
      const to = native.recordEvent(device)
      // The workers' start, and what they had ahead, are not counted.
      if (++batches <= 4) {
        start = performance.now()
        Object.assign(loader.spent, { images: 0, onGpu: 0, decoding: 0, rendering: 0, uploading: 0 })
        continue
      }
      images += batch
      if (rendersViews) onDevice += native.elapsed(device, from, to)
      if (performance.now() - start > 1000 * seconds) break
    }
  } finally {
    await loader.close()
  }
  const elapsed = (performance.now() - start) / 1000
  const each = (total: number): number => (1000 * total) / Math.max(1, loader.spent.images)
  return {
    workers,
    imagesPerSecond: images / elapsed,
    decode: each(loader.spent.decoding),
    render: each(loader.spent.rendering),
    ...(rendersViews ? { uploadAndAugment: onDevice / images } : {}),
    ...(decode === 'gpu' ? { onGpu: loader.spent.onGpu / images } : {}),
  }
}

function dataLine({ workers, imagesPerSecond, decode, render, uploadAndAugment, onGpu }: DataRow): string {
  const parts = [
    `${imagesPerSecond.toFixed(0).padStart(6)} images/s`,
    ...(onGpu === undefined ? [] : [`${(100 * onGpu).toFixed(0)} % decoded on the GPU`]),
    `${onGpu === undefined ? 'decode' : 'read'} ${decode.toFixed(2)} ms`,
    `${uploadAndAugment === undefined ? 'augment' : 'place'} ${render.toFixed(2)} ms`,
  ]
  if (uploadAndAugment !== undefined) parts.push(`upload and augment ${uploadAndAugment.toFixed(3)} ms`)
  return `${String(workers).padStart(3)} workers  ${parts.join('  ')}  an image`
}
