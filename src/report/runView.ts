/** What a run folder holds, as a report shows it: read anew each time, complete or not. */
import { existsSync, readFileSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'

import { parse } from 'yaml'
import { z } from 'zod'

import { isFile, namesIn } from '../files/look.js'
import { findMethod } from '../methods/index.js'
import type { Method } from '../methods/method.js'
import { type EvaluationRecord, type EvaluationTable, picturesOfEvaluation, readEvaluationRecord, savedTables } from '../run/results.js'
import { files } from '../run/runFolder.js'
import { type Metrics, readMetrics } from '../run/runLog.js'

export interface RunView {
  /** The path as it was asked for, and the last part of it. */
  path: string
  name: string
  /** Whether it is a run of pretrain, and no folder of evaluations alone. */
  pretrained: boolean
  config: Record<string, unknown>
  /** The method of the run, where it is known. */
  method?: Method
  /** What the page lacks and why, in words. */
  problems: string[]
  environment: Record<string, unknown>
  metrics: Metrics[]
  /** Written at the end. */
  finished: boolean
  /** Results of evaluations, by name. */
  tables: { name: string; date: string; table: EvaluationTable }[]
  /** Paths of pictures: of the augmentation, and by epoch. */
  augmentation?: string
  epochs: { epoch: number; matches?: string; colours?: string }[]
  /** Evaluations with a folder of their own. */
  evaluations: EvaluationView[]
  /** Of a study: its plan, the path of its plot, and its runs that have begun, each with the arm that it is of. */
  plan?: Record<string, unknown>
  plot?: string
  parts: { arm: string; run: RunView }[]
}

/** What the folder of an evaluation holds. */
export interface EvaluationView {
  name: string
  record?: EvaluationRecord
  metrics: Metrics[]
  /** Its result, when there is one. */
  result?: RunView['tables'][number]
  /** Paths of pictures: of the result, and on the way by position. */
  samples?: string
  pictures: { at: number; path: string }[]
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

/**
 * What is in the folder of a run, of results, or of one evaluation; undefined while there is none of these. What cannot be read is left
 * out.
 */
export async function viewRun(path: string): Promise<RunView | undefined> {
  const at = files(path)
  if (readEvaluationRecord(path) !== undefined) return viewResults(path, dirname(resolve(path)), [basename(resolve(path))])
  if (existsSync(join(path, 'plan.yaml'))) return viewStudy(path)
  if (!existsSync(at.config) && !existsSync(at.metrics)) {
    const names = evaluationsIn(path)
    return names.length === 0 && savedTables(path).length === 0 ? undefined : viewResults(path, path, names)
  }
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
    pretrained: true,
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
    evaluations: evaluationsIn(at.evaluations).map((name) => viewEvaluation(at.evaluations, name)),
    parts: [],
  }
}

/** A study (src/study) with its runs, of which those that have not begun have nothing to show. */
async function viewStudy(path: string): Promise<RunView> {
  const runs = join(path, 'pretrain')
  const views = await Promise.all(
    namesIn(runs)
      .sort()
      .flatMap((name) => {
        const arm = /^(.+)-seed\d+$/.exec(name)?.[1]
        return arm === undefined ? [] : [viewRun(join(runs, name)).then((run) => ({ arm, run }))]
      }),
  )
  const plot = ['png', 'svg'].map((extension) => join(path, `study.${extension}`)).find(isFile)
  return {
    ...viewResults(path, path, []),
    plan: readOr(join(path, 'plan.yaml'), (text) => record.parse(parse(text)), {}),
    ...(plot === undefined ? {} : { plot }),
    parts: views.flatMap(({ arm, run }) => (run === undefined || run.metrics.length === 0 ? [] : [{ arm, run }])),
  }
}

/** Evaluations `names` of a folder of results, without a run. */
function viewResults(path: string, folder: string, names: readonly string[]): RunView {
  return {
    path,
    name: basename(resolve(path)),
    pretrained: false,
    config: {},
    problems: [],
    environment: {},
    metrics: [],
    finished: true,
    tables: resolve(path) === resolve(folder) ? savedTables(folder) : [],
    epochs: [],
    evaluations: names.map((name) => viewEvaluation(folder, name)),
    parts: [],
  }
}

/** Names of evaluations that have a folder in a folder of results. */
const evaluationsIn = (folder: string): string[] =>
  namesIn(folder)
    .filter((name) => isFile(join(folder, name, 'evaluation.json')) || sampleOf(join(folder, name)) !== undefined)
    .sort()

const sampleOf = (folder: string): string | undefined =>
  ['png', 'svg'].map((extension) => join(folder, `samples.${extension}`)).find(isFile)

function viewEvaluation(results: string, name: string): EvaluationView {
  const folder = join(results, name)
  const [record, samples] = [readEvaluationRecord(folder), sampleOf(folder)]
  const result = savedTables(results).find((table) => table.name === name)
  const pictures = new Map<number, string>()
  for (const extension of ['svg', 'png'])
    for (const file of namesIn(picturesOfEvaluation(folder)).sort()) {
      const [, position] = new RegExp(`^at_(\\d+)\\.${extension}$`).exec(file) ?? []
      if (position !== undefined) pictures.set(Number(position), join(picturesOfEvaluation(folder), file))
    }
  return {
    name,
    ...(record === undefined ? {} : { record }),
    metrics: metricsOf(join(folder, 'metrics.jsonl'), []),
    ...(result === undefined ? {} : { result }),
    ...(samples === undefined ? {} : { samples }),
    pictures: [...pictures].map(([position, path]) => ({ at: position, path })).sort((a, b) => a.at - b.at),
  }
}

const mostMoments = 6

/** Few of a list: the first, the last, and some between. */
export const few = <T>(all: readonly T[]): T[] =>
  all.length <= mostMoments
    ? [...all]
    : Array.from({ length: mostMoments }, (_, i) => all[Math.round((i * (all.length - 1)) / (mostMoments - 1))]!)

/** The pictures of a page. */
export function picturesOf(run: RunView): string[] {
  const paths = [
    run.augmentation,
    run.plot,
    ...few(run.epochs).flatMap(({ matches, colours }) => [matches, colours]),
    ...run.evaluations.flatMap(({ samples, pictures }) => [samples, ...few(pictures).map(({ path }) => path)]),
  ]
  return paths.filter((path) => path !== undefined)
}
