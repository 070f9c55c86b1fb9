/** What a run folder holds, as a report shows it: read anew each time, complete or not. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'

import { parse } from 'yaml'
import { z } from 'zod'

import { findMethod } from '../methods/index.js'
import type { Method } from '../methods/method.js'
import { type EvaluationTable, savedTables } from '../run/results.js'
import { files } from '../run/runFolder.js'
import { type Metrics, readMetrics } from '../run/runLog.js'

export interface RunView {
  /** The path as it was asked for, and the last part of it. */
  path: string
  name: string
  config: Record<string, unknown>
  /** The method of the run, or why it is not known, in words. */
  method?: Method
  problem?: string
  environment: Record<string, unknown>
  metrics: Metrics[]
  /** Written at the end. */
  finished: boolean
  tables: { name: string; date: string; table: EvaluationTable }[]
  /** Paths of pictures: of the augmentation, and by epoch. */
  augmentation?: string
  epochs: { epoch: number; matches?: string; colours?: string }[]
  /** Tables of evaluations, by name. */
  samples: { name: string; path: string }[]
}

const record = z.record(z.string(), z.unknown())

const readOr = <T>(path: string, read: (text: string) => T, otherwise: T): T => {
  try {
    return read(readFileSync(path, 'utf8'))
  } catch {
    return otherwise // not there yet, or half written: the next look will tell
  }
}

/** The method that a configuration names; those of older runs name none. */
async function methodOf({ method = 'densecl' }: Record<string, unknown>): Promise<Pick<RunView, 'method' | 'problem'>> {
  try {
    return { method: (await findMethod(String(method))).method }
  } catch (error) {
    return { problem: error instanceof Error ? error.message : String(error) }
  }
}

/** Undefined while there is no run in the folder. */
export async function viewRun(path: string): Promise<RunView | undefined> {
  const at = files(path)
  if (!existsSync(at.config) && !existsSync(at.metrics)) return undefined
  const pictures = existsSync(at.pictures) ? readdirSync(at.pictures) : []
  const picture = (name: string): string | undefined =>
    ['png', 'svg']
      .map((extension) => `${name}.${extension}`)
      .filter((file) => pictures.includes(file))
      .map((file) => join(at.pictures, file))[0]
  const epochs = [...new Set(pictures.flatMap((file) => /^epoch_(\d+)-/.exec(file)?.[1] ?? []))].sort()
  const augmentation = picture('augmentation')
  const config = readOr(at.config, (text) => record.parse(parse(text)), {})
  const method = await methodOf(config)
  return {
    path,
    name: basename(resolve(path)),
    config,
    ...method,
    environment: readOr(at.environment, (text) => record.parse(JSON.parse(text)), {}),
    metrics: readMetrics(at.metrics),
    finished: existsSync(at.report),
    tables: savedTables(at.evaluations),
    ...(augmentation === undefined ? {} : { augmentation }),
    epochs: epochs.map((epoch) => {
      const [matches, colours] = ['matches', 'colours'].map((kind) => picture(`epoch_${epoch}-${kind}`))
      return { epoch: Number(epoch), ...(matches === undefined ? {} : { matches }), ...(colours === undefined ? {} : { colours }) }
    }),
    samples: samplesOf(at.evaluations),
  }
}

function samplesOf(folder: string): { name: string; path: string }[] {
  if (!existsSync(folder)) return []
  return readdirSync(folder)
    .sort()
    .flatMap((name) => {
      const path = ['png', 'svg'].map((extension) => join(folder, name, `samples.${extension}`)).find((file) => existsSync(file))
      return path === undefined ? [] : [{ name, path }]
    })
}

const mostMoments = 6

/** Few of the epochs with pictures: the first, the last, and some between. */
export function moments({ epochs }: RunView): RunView['epochs'] {
  if (epochs.length <= mostMoments) return epochs
  return Array.from({ length: mostMoments }, (_, i) => epochs[Math.round((i * (epochs.length - 1)) / (mostMoments - 1))]!)
}

/** The pictures of a page. */
export function picturesOf(run: RunView): string[] {
  const paths = [
    run.augmentation,
    ...moments(run).flatMap(({ matches, colours }) => [matches, colours]),
    ...run.samples.map(({ path }) => path),
  ]
  return paths.filter((path) => path !== undefined)
}
