/**
 * The claim of DenseCL in miniature: MoCo v2 and DenseCL pre-trained with equal budgets on the images at hand, and both, beside
 * random weights, measured on image-level and dense tasks, several seeds each.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import { stringify } from 'yaml'
import { z } from 'zod'

import { openSegmentation, type SegmentationSource } from '../data/segmentationSources.js'
import type { Source } from '../data/source.js'
import { openSource } from '../data/sources.js'
import { openVocClassification } from '../data/voc.js'
import { Random } from '../tensor/random.js'
import type { Backbone } from '../nn/backbone.js'
import { configure, presetSettings } from '../methods/index.js'
import { fail, systemReason } from '../tensor/errors.js'
import { interrupted as toEnd, interruption, isInterruption } from '../tensor/interruption.js'
import { withDevice } from '../tensor/tensor.js'
import { withCompute } from '../tensor/compute.js'
import { evaluationCompute } from '../eval/compute.js'
import type { Config } from '../run/config.js'
import { firstIssue, readConfigFile, type Setting, settingsOf } from '../run/options.js'
import { computeSettings, resolvePlacement } from '../run/placement.js'
import { backboneOf, loadBackboneKind } from '../run/backbone.js'
import { trustDevice } from '../selftest/trust.js'
import { pretrain } from '../train/pretrain.js'
import { files } from '../run/runFolder.js'
import { makeFolder, writeTextAtomic } from '../files/atomic.js'
import { writeBackbone } from '../weights/export.js'
import { importBackbone, type ImportOptions } from '../weights/import.js'
import { knnAccuracy } from '../eval/knn.js'
import { evaluateLinear } from '../eval/linear.js'
import { linearProtocols, stretched } from '../eval/linearProtocols.js'
import { evaluateSegmentation } from '../eval/segmentation.js'
import { type SegmentationProtocol, segmentationProtocols } from '../eval/segmentationProtocols.js'
import { checkSame, statePath } from '../run/results.js'
import { evaluateSvm, extractVoc } from '../eval/voc07.js'

/** What is pre-trained, and what the evaluations of it cost. */
export interface StudySize {
  describe: string
  /** A named configuration, and what is set beside it. */
  preset?: string
  config: Readonly<Record<string, unknown>>
  linearEpochs: number
  segmentation: Pick<SegmentationProtocol, 'iterations' | 'batchSize' | 'crop' | 'scale'>
}

export const studySizes: Record<string, StudySize> = {
  cpu: {
    describe: 'a night on a few cores: ResNet-18 of 32 base channels at 128 px, 60 epochs of some thousand images',
    preset: 'small',
    config: { imageSize: 128, epochs: 60, knnEvery: 0, denseWeight: 0.5 },
    linearEpochs: 20,
    segmentation: { iterations: 600, batchSize: 8, crop: 160, scale: [480, 180] },
  },
  gpu: {
    describe: 'ResNet-50 at 224 px, 100 epochs of some thousand images; meant for 20 minutes of an H200',
    preset: 'small',
    config: { depth: 50, baseChannels: 64, imageSize: 224, batchSize: 256, queueLength: 2048, epochs: 100, knnEvery: 0, denseWeight: 0.5 },
    linearEpochs: 20,
    segmentation: { iterations: 400, batchSize: 16, crop: 320, scale: [960, 360] },
  },
}

/** What is compared, by what each sets over everything else. */
const compared = {
  random: { name: 'random weights', sets: {} },
  mocov2: { name: 'MoCo v2', sets: { denseWeight: 0 } },
  densecl: { name: 'DenseCL', sets: {} },
} as const
export type Arm = keyof typeof compared
export const arms = Object.keys(compared) as readonly Arm[]
export const armName = (arm: Arm): string => compared[arm].name

interface StudyOptions {
  size: StudySize
  /** Labelled images: a folder with train and val. */
  images: string
  /** A VOC tree for SVM classification, and one for segmentation; what is absent is left out. */
  voc?: string | undefined
  vocSplits: readonly [train: string, test: string]
  segmentation?: string | undefined
  seeds: number
  out: string
  settings: readonly Setting[]
  line: (text: string) => void
  /** Asked between runs and evaluations, and by pre-training between steps; what it is not there for is src/tensor/interruption.ts. */
  interrupted?: () => boolean
}

/** Scores in % of one network. */
export type Scores = Record<string, number>

export interface StudyRow {
  method: Arm
  seed: number
  scores: Scores
}

/** Every pre-training run and every evaluation keeps its result in the study's folder: a study that is started again goes on. */
export async function runStudy(options: StudyOptions): Promise<StudyRow[] | 'interrupted'> {
  try {
    return await studyRows(options)
  } catch (error) {
    if (isInterruption(error)) return 'interrupted'
    throw error
  }
}

const isInterrupted = ({ interrupted }: StudyOptions): boolean => toEnd() || interrupted?.() === true

async function studyRows(options: StudyOptions): Promise<StudyRow[] | 'interrupted'> {
  const train = await openSource(join(options.images, 'train'), { split: 'train' })
  const val = await openSource(join(options.images, 'val'), { split: 'val' })
  if (train.classes === undefined || train.classes.join() !== val.classes?.join())
    fail('DATA', `study: ${options.images} needs folders train and val with the same class folders`)
  const data: StudyData = { train, val }
  if (options.segmentation !== undefined)
    data.segmentation = { train: openSegmentation(options.segmentation, ['train']), val: openSegmentation(options.segmentation, ['val']) }
  await checkDifference(options)
  const rows: StudyRow[] = []
  for (let seed = 0; seed < options.seeds; ++seed) {
    for (const arm of arms) {
      const weights = await weightsOf(arm, seed, options)
      if (weights === undefined) return 'interrupted'
      rows.push({ method: arm, seed, scores: await evaluate(weights, arm, seed, data, options) })
      if (isInterrupted(options)) return 'interrupted'
    }
  }
  return rows
}

interface StudyData {
  train: Source
  val: Source
  segmentation?: { train: SegmentationSource; val: SegmentationSource }
}

async function configOf(arm: Arm, seed: number, { size, images, settings }: StudyOptions): Promise<Config> {
  const { config } = await configure([
    ...(size.preset === undefined ? [] : presetSettings(size.preset)),
    ...settingsOf({ ...size.config, data: join(images, 'train'), seed }, 'study'),
    ...settings,
    ...settingsOf(compared[arm].sets, 'study'),
  ])
  return config
}

/** Throws CONFIG where the settings leave nothing to compare. */
async function checkDifference(options: StudyOptions): Promise<void> {
  const [moco, dense] = await Promise.all((['mocov2', 'densecl'] as const).map((arm) => configOf(arm, 0, options)))
  if (JSON.stringify(moco) === JSON.stringify(dense))
    fail('CONFIG', 'study: denseWeight is 0: expected a weight for the dense loss, or DenseCL is MoCo v2')
}

const runOf = (arm: Arm, seed: number, { out }: StudyOptions): string => join(out, 'pretrain', `${arm}-seed${seed}`)

/** What a configuration says of the result. */
const comparable = ({ workers: _, device: __, threads: ___, ...rest }: Config): Record<string, unknown> => rest

/** The backbone of a method, pre-trained unless it is there; undefined when it was interrupted. */
async function weightsOf(arm: Arm, seed: number, options: StudyOptions): Promise<string | undefined> {
  const run = runOf(arm, seed, options)
  const config = await configOf(arm, seed, options)
  const { backbone, report, config: written, last } = files(run)
  if (existsSync(written)) {
    const { config: had } = await configure(readConfigFile(written))
    checkSame(written, comparable(had), comparable(config))
    if (existsSync(arm === 'random' ? backbone : report)) return backbone
  }
  if (arm === 'random') {
    makeFolder(run)
    const network = backboneOf(config, await loadBackboneKind(config.backbone))({ random: new Random(seed, 53), dtype: 'f32' })
    writeBackbone(backbone, network, 'torchvision')
    writeTextAtomic(written, stringify(config))
    network.dispose()
    return backbone
  }
  options.line(`pretrain ${armName(arm)}, seed ${seed}: ${config.epochs} epochs`)
  const result = await pretrain({
    config,
    out: run,
    resume: existsSync(last),
    overwrite: !existsSync(last),
    quiet: true,
    ...(options.interrupted === undefined ? {} : { interrupted: options.interrupted }),
  })
  return result.interrupted ? undefined : backbone
}

/** An evaluation of a study goes on where it was cut off. */
const howToBegin = (out: string): { resume: boolean } => ({ resume: existsSync(statePath(out)) })

const keptScores = z.object({ what: z.record(z.string(), z.unknown()), scores: z.record(z.string(), z.number()) })

/** What a study has kept of an evaluation. Throws FORMAT for a file that is damaged. */
export function readScores(path: string): z.output<typeof keptScores> {
  let value: unknown
  try {
    value = JSON.parse(readFileSync(path, 'utf8'))
  } catch (error) {
    return fail('FORMAT', `${path}: no scores of a study (${error instanceof SyntaxError ? 'not JSON' : systemReason(error)})`)
  }
  const { data, error } = keptScores.safeParse(value)
  return data ?? fail('FORMAT', `${path}: no scores of a study (${firstIssue(error)}); remove it, and it is measured again`)
}

async function evaluate(weights: string, arm: Arm, seed: number, data: StudyData, options: StudyOptions): Promise<Scores> {
  const folder = join(runOf(arm, seed, options), 'eval')
  makeFolder(folder)
  const config = await configOf(arm, seed, options)
  const { device } = resolvePlacement(config)
  await trustDevice(device)
  const { imageSize, workers } = config
  const compute = evaluationCompute(device, { threads: computeSettings(config).threads })
  const kind = await loadBackboneKind(config.backbone)
  const scores: Scores = {}
  /** An evaluation, or its kept scores. */
  const measure = async (
    name: string,
    what: Record<string, unknown>,
    layout: Pick<ImportOptions, 'outputStride'>,
    body: (backbone: Backbone) => Promise<Scores>,
  ): Promise<void> => {
    if (isInterrupted(options)) return
    const path = join(folder, `study-${name}.json`)
    if (!existsSync(path)) {
      const { backbone } = withDevice(device, () => importBackbone(weights, { kind, ...layout }))
      const start = performance.now()
      try {
        const measured = await body(backbone)
        writeTextAtomic(path, `${JSON.stringify({ what, scores: measured, seconds: (performance.now() - start) / 1000 }, undefined, 2)}\n`)
      } finally {
        backbone.dispose()
      }
    }
    const kept = readScores(path)
    checkSame(path, kept.what, JSON.parse(JSON.stringify(what)) as Record<string, unknown>)
    Object.assign(scores, kept.scores)
    options.line(
      `${armName(arm)}, seed ${seed}: ${Object.entries(kept.scores)
        .map(([key, value]) => `${key} ${value.toFixed(2)} %`)
        .join(', ')}`,
    )
  }

  await measure('knn', { imageSize, k: 20 }, {}, async (backbone) => ({
    kNN: 100 * (await knnAccuracy(backbone, data.train.items, data.val.items, { imageSize, k: 20, workers, compute })),
  }))

  const protocol = {
    ...stretched(linearProtocols['imagenet-features']!, options.size.linearEpochs),
    heads: ['feature4', 'feature5'] as const,
    pipeline: 'centre' as const,
  }
  await measure('linear', { imageSize, epochs: protocol.epochs }, {}, async (backbone) => {
    const out = join(folder, 'linear')
    const { heads, interrupted } = await evaluateLinear(backbone, {
      protocol,
      train: data.train.items,
      val: data.val.items,
      classes: data.train.classes!.length,
      imageSize,
      out,
      ...howToBegin(out),
      quiet: true,
      seed,
      workers,
      compute,
    })
    if (interrupted) throw interruption()
    return Object.fromEntries(heads.map(({ head, top1 }) => [`linear ${head}`, 100 * top1]))
  })

  const { voc, vocSplits } = options
  if (voc !== undefined) {
    await measure('svm', { imageSize, voc, vocSplits }, {}, async (backbone) => {
      const [train, test] = vocSplits.map((split) => openVocClassification(voc, split)) as [
        ReturnType<typeof openVocClassification>,
        ReturnType<typeof openVocClassification>,
      ]
      const features = await extractVoc(backbone, train, test, 'feature5', { imageSize, workers, compute })
      try {
        return { 'SVM mAP': 100 * withCompute(compute, () => evaluateSvm(features)).map }
      } finally {
        features.dispose()
      }
    })
  }
  if (data.segmentation !== undefined) {
    const settings = { ...segmentationProtocols.voc12aug!, ...options.size.segmentation }
    await measure('segmentation', options.size.segmentation, { outputStride: 8 }, async (backbone) => {
      const out = join(folder, 'segmentation')
      const { scores: found, interrupted } = await evaluateSegmentation(backbone, {
        protocol: settings,
        train: data.segmentation!.train,
        val: data.segmentation!.val,
        out,
        ...howToBegin(out),
        quiet: true,
        seed,
        workers,
        compute,
      })
      if (interrupted) throw interruption()
      return { 'segmentation mIoU': 100 * found!.meanIou }
    })
  }
  return scores
}

/** Student's t for 95 %, by degrees of freedom: a table, and after it the expansion about the normal quantile. */
function studentT(freedom: number): number {
  const z = 1.959964
  return (
    [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262][freedom - 1] ??
    z + (z ** 3 + z) / (4 * freedom) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * freedom ** 2)
  )
}

/** A mean and half the width of its 95 % interval, which is NaN for one value. */
export function interval(values: readonly number[]): { mean: number; half: number } {
  const n = values.length
  const mean = values.reduce((a, b) => a + b, 0) / n
  if (n < 2) return { mean, half: NaN }
  const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1))
  return { mean, half: (studentT(n - 1) * deviation) / Math.sqrt(n) }
}

interface StudySummary {
  /** Mean and interval of each method for each score, and of the differences DenseCL - MoCo v2 seed by seed. */
  scores: { name: string; methods: Record<Arm, { mean: number; half: number }>; difference: { mean: number; half: number } }[]
  verdicts: string[]
}

function verdict(name: string, a: Arm, b: Arm, { mean, half }: { mean: number; half: number }): string {
  const what = `${name}: ${armName(a)} - ${armName(b)} = ${mean >= 0 ? '+' : ''}${mean.toFixed(2)}`
  if (Number.isNaN(half)) return `${what}, from one seed: shows nothing`
  const range = `(95 % interval ${(mean - half).toFixed(2)} to ${(mean + half).toFixed(2)})`
  return Math.abs(mean) > half ? `${what} ${range}: ${armName(mean > 0 ? a : b)} is ahead` : `${what} ${range}: no difference is shown`
}

/** What the rows show, and what they do not. */
export function summarise(rows: readonly StudyRow[]): StudySummary {
  const names = Object.keys(rows[0]!.scores)
  const of = (name: string, arm: Arm): number[] => rows.filter((row) => row.method === arm).map(({ scores }) => scores[name]!)
  const scores = names.map((name) => {
    const [moco, dense] = [of(name, 'mocov2'), of(name, 'densecl')]
    return {
      name,
      methods: Object.fromEntries(arms.map((arm) => [arm, interval(of(name, arm))])) as Record<Arm, { mean: number; half: number }>,
      difference: interval(dense.map((value, i) => value - moco[i]!)),
    }
  })
  const pairs: [Arm, Arm][] = [
    ['densecl', 'mocov2'],
    ['densecl', 'random'],
    ['mocov2', 'random'],
  ]
  const verdicts = pairs.flatMap(([a, b]) =>
    names.map((name) => verdict(name, a, b, interval(of(name, a).map((value, i) => value - of(name, b)[i]!)))),
  )
  return { scores, verdicts }
}
