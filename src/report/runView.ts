/** What a run folder holds, as a report shows it: read anew each time, complete or not. */
import { existsSync, readFileSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'

import { parse } from 'yaml'
import { z } from 'zod'

import { isFile, namesIn } from '../files/look.js'
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
  /** The method of the run, where it is known. */
  method?: Method
  /** What the page lacks and why, in words. */
  problems: string[]
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

const words = (error: unknown): string => (error instanceof Error ? error.message : String(error))

const record = z.record(z.string(), z.unknown())

const readOr = <T>(path: string, read: (text: string) => T, otherwise: T): T => {
  try {
    return read(readFileSync(path, 'utf8'))
  } catch {
    return otherwise // not there yet, or half written: the next look will tell
  }
}

/** The method that a configuration names; those of older runs name none. */
async function methodOf({ method = 'densecl' }: Record<string, unknown>, problems: string[]): Promise<Method | undefined> {
  try {
    return (await findMethod(String(method))).method
  } catch (error) {
    problems.push(`curves of the method are missing: ${words(error)}`)
    return undefined
  }
}

function metricsOf(path: string, problems: string[]): Metrics[] {
  try {
    return readMetrics(path)
  } catch (error) {
    problems.push(`curves are missing: ${words(error)}`)
    return []
  }
}

/** Undefined while there is no run in the folder. What cannot be read is left out of it. */
export async function viewRun(path: string): Promise<RunView | undefined> {
  const at = files(path)
  if (!existsSync(at.config) && !existsSync(at.metrics)) return undefined
  const pictures = namesIn(at.pictures).filter((name) => isFile(join(at.pictures, name)))
  const picture = (name: string): string | undefined =>
    ['png', 'svg']
      .map((extension) => `${name}.${extension}`)
      .filter((file) => pictures.includes(file))
      .map((file) => join(at.pictures, file))[0]
  const epochs = [...new Set(pictures.flatMap((file) => /^epoch_(\d+)-/.exec(file)?.[1] ?? []))].sort()
  const augmentation = picture('augmentation')
  const config = readOr(at.config, (text) => record.parse(parse(text)), {})
  const problems: string[] = []
  const method = await methodOf(config, problems)
  return {
    path,
    name: basename(resolve(path)),
    config,
    ...(method === undefined ? {} : { method }),
    problems,
    environment: readOr(at.environment, (text) => record.parse(JSON.parse(text)), {}),
    metrics: metricsOf(at.metrics, problems),
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
  return namesIn(folder).flatMap((name) => {
    const path = ['png', 'svg'].map((extension) => join(folder, name, `samples.${extension}`)).find(isFile)
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
