/** Commands that are hurt: small ones, each with what it must leave whatever happened to it on the way. */
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'

import sharp from 'sharp'

import { readMetrics } from '../../src/run/runLog.js'
import { Random } from '../../src/tensor/random.js'
import { writeVocTree } from '../support/vocTree.js'

export interface Job {
  name: string
  /** The command that begins in `out`, or goes on with what is there. */
  args(out: string): string[]
  /** What it left, as comparable texts and bytes. */
  result(out: string): Map<string, Buffer | string>
}

/** Data, and weights once a pre-training run has made them. */
export interface Inputs {
  images: string
  voc: string
  weights: string
}

export async function makeInputs(folder: string): Promise<Inputs> {
  const [images, voc] = [join(folder, 'images'), join(folder, 'voc')]
  mkdirSync(images)
  const random = new Random(7)
  for (let i = 0; i < 40; ++i)
    await sharp(
      Uint8Array.from({ length: 256 * 192 * 3 }, () => random.below(256)),
      { raw: { width: 256, height: 192, channels: 3 } },
    )
      .png({ compressionLevel: 0 })
      .toFile(join(images, `${String(i).padStart(2, '0')}.png`))
  writeVocTree(voc, { train: 8, val: 4 })
  return { images, voc, weights: join(folder, 'weights', 'backbone.safetensors') }
}

/** Rows without what differs from run to run: times. */
function rowsOf(path: string, keys: readonly string[]): string {
  const rows = readMetrics(path).map((row) => Object.fromEntries(keys.flatMap((key) => (row[key] === undefined ? [] : [[key, row[key]]]))))
  return rows.map((row) => JSON.stringify(row)).join('\n')
}

const files = (folder: string, ...names: string[]): [string, Buffer][] => names.map((name) => [name, readFileSync(join(folder, name))])

/** Settings of pre-training; an epoch has five steps. */
export const tiny = [
  ...['imageSize=32', 'batchSize=8', 'epochs=3', 'depth=18', 'baseChannels=4', 'hidden=16', 'featDim=8', 'queueLength=16', 'workers=1'],
  ...['logEvery=1', 'checkpointSteps=2', 'checkpointEvery=1', 'knnEvery=1', 'knnImages=20', 'knnData=scenes:20', 'normGroups=2'],
]

export function jobsOf({ images, voc, weights }: Inputs): Job[] {
  const evaluation = (name: string, folder: string, keys: readonly string[], args: readonly string[]): Job => {
    const at = (out: string): string => join(out, folder)
    return {
      name,
      args: (out) => [...['eval', ...args, '--out', out], ...(existsSync(join(at(out), 'state.safetensors')) ? ['--resume'] : [])],
      result: (out) =>
        new Map<string, Buffer | string>([
          ...files(at(out), 'state.safetensors'),
          ['metrics', rowsOf(join(at(out), 'metrics.jsonl'), keys)],
          ['table', JSON.stringify((JSON.parse(readFileSync(join(out, `${folder}.json`), 'utf8')) as { table: unknown }).table)],
        ]),
    }
  }
  return [
    {
      name: 'pretrain',
      args: (out) => [
        ...['pretrain', '--out', out, 'data=scenes:40', ...tiny],
        existsSync(join(out, 'checkpoints', 'last.safetensors')) ? '--resume' : '--overwrite',
      ],
      result: (out) =>
        new Map<string, Buffer | string>([
          ...files(out, 'checkpoints/last.safetensors', 'backbone.safetensors'),
          ...files(out, ...[1, 2, 3].map((epoch) => `checkpoints/epoch_0000${epoch}.safetensors`)),
          ['metrics', rowsOf(join(out, 'metrics.jsonl'), ['globalStep', 'epoch', 'loss', 'lossDense', 'spread', 'lr', 'knn'])],
        ]),
    },
    evaluation(
      'eval linear',
      'linear-imagenet-avgpool',
      ['globalStep', 'epoch', 'loss', 'pooledTop1', 'pooledTop5'],
      [
        ...['linear', weights, '--train', 'scenes:48', '--val', 'scenes:20', '--image-size', '32', '--epochs', '5', '--batch-size', '16'],
        ...['--workers', '1'],
      ],
    ),
    evaluation(
      'eval segmentation',
      'segmentation-voc12aug',
      ['globalStep', 'loss', 'lossMain', 'lr', 'meanIou', 'pixelAccuracy'],
      [
        ...['segmentation', weights, '--data', voc, '--iterations', '6', '--batch-size', '2', '--crop', '32', '--scale', '64,48'],
        ...['--save-every', '1', '--log-every', '1', '--test-every', '2', '--workers', '1'],
      ],
    ),
    {
      name: 'pack',
      args: (out) => [
        ...['pack', images, '--out', out, '--image-size', '224', '--shard-megabytes', '1'],
        ...(existsSync(join(out, 'pack.json')) ? ['--resume'] : []),
      ],
      result: (out) =>
        new Map(
          readdirSync(out)
            .filter((name) => name.endsWith('.tar'))
            .map((name) => [basename(name), readFileSync(join(out, name))]),
        ),
    },
  ]
}
