/** Run folders as the commands leave them, for tests of what is shown of them. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { runCli, withFolder } from './suite.js'

/** A line of metrics. */
export const metricsRow = (epoch: number, more: Record<string, number | null> = {}): string => {
  const values = {
    globalStep: epoch * 10,
    epoch,
    loss: 6 - epoch / 10,
    lossGlobal: 3,
    lossDense: 3 - epoch / 10,
    lr: 0.03,
    imagesPerSecond: 100 + epoch,
    waitShare: 0.1,
    spread: 0.5,
    accuracyGlobal: 0.1,
    accuracyDense: 0.9,
    positiveGlobal: 0.8,
    negativeGlobal: 0.1,
    positiveDense: 0.9,
    negativeDense: 0.2,
    samePosition: 0.4,
    distinctMatches: 0.5,
    queueFill: 1,
  }
  return `${JSON.stringify({ ...values, ...more })}\n`
}

/** A run folder as pretrain leaves it, without the training. */
export function writeRun(folder: string, epochs: number): string {
  mkdirSync(folder, { recursive: true })
  writeFileSync(
    join(folder, 'config.yaml'),
    'epochs: 20\nbatchSize: 32\nqueueLength: 512\nimageSize: 64\ndepth: 18\ndata: "<b>photos</b>"\n',
  )
  writeFileSync(
    join(folder, 'metrics.jsonl'),
    `${JSON.stringify({ globalStep: 0, epoch: 0, knn: 0.1 })}\n${Array.from({ length: epochs }, (_, i) => metricsRow(i + 1)).join('')}`,
  )
  return folder
}

/** A trained run with pictures, made by the command itself. */
export async function withTrained(body: (run: string) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const run = join(folder, 'trained')
    const { code, err } = runCli([
      'pretrain',
      '--out',
      run,
      '--json',
      '--data',
      'scenes:40',
      '--knn-data',
      'scenes:20',
      '--image-size',
      '32',
      '--batch-size',
      '8',
      '--epochs',
      '2',
      '--checkpoint-every',
      '1',
      '--log-every',
      '1',
      '--depth',
      '18',
      '--base-channels',
      '4',
      '--queue-length',
      '16',
    ])
    assert.is(code, 0, err)
    await body(run)
  })
}

/** A folder of results as eval detection leaves it, with the table when it has one. */
export function writeDetection(results: string, iterations: number, done: number): string {
  const folder = join(results, 'detection-voc0712-c4')
  mkdirSync(join(folder, 'pictures'), { recursive: true })
  const began = { iterations, batchSize: 4, style: 'detectron2', classes: ['<b>raccoon'] }
  writeFileSync(join(folder, 'evaluation.json'), JSON.stringify({ kind: 'detection', unit: 'iteration', began }))
  const lines = Array.from({ length: done }, (_, i) => {
    const row = {
      globalStep: i + 1,
      loss: 2,
      anchorClass: 0.7,
      anchorBox: 0.1,
      regionClass: 1,
      regionBox: 0.2,
      lr: 0.01,
      imagesPerSecond: 8,
    }
    return `${JSON.stringify(row)}\n${i % 2 === 1 ? `${JSON.stringify({ globalStep: i + 1, ap50: 0.4321, cocoAp: 0.2 })}\n` : ''}`
  })
  writeFileSync(join(folder, 'metrics.jsonl'), lines.join(''))
  for (const name of ['pictures/at_000002.svg', 'pictures/at_000004.svg', 'samples.svg'])
    writeFileSync(join(folder, name), '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>')
  return folder
}
