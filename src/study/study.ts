/**
 * The claim of dense contrastive learning in miniature: arms that differ in what src/study/arms.ts says of them, pre-trained on the images
 * at hand, several seeds each, and measured by what their dense features know.
 */
import { existsSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'

import { stringify } from 'yaml'

import { openSegmentation } from '../data/segmentationSources.js'
import { openSource } from '../data/sources.js'
import { evaluationCompute } from '../eval/compute.js'
import { makeFolder, writeTextAtomic } from '../files/atomic.js'
import { configure, optionsOf } from '../methods/index.js'
import type { DenseCLConfig } from '../methods/densecl/options.js'
import { backboneOf, loadBackboneKind } from '../run/backbone.js'
import type { Config } from '../run/config.js'
import { optionOf, readConfigFile, type Setting, settingsOf } from '../run/options.js'
import { computeSettings, resolvePlacement } from '../run/placement.js'
import { checkSame } from '../run/results.js'
import { begunConfig } from '../train/share.js'
import { files } from '../run/runFolder.js'
import { trustDevice } from '../selftest/trust.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { interrupted as toEnd, isInterruption } from '../tensor/interruption.js'
import { Random } from '../tensor/random.js'
import { withDevice } from '../tensor/tensor.js'
import { pretrain } from '../train/pretrain.js'
import { writeBackbone } from '../weights/export.js'
import { importBackbone } from '../weights/import.js'
import { type ArmBase, type ArmName, armOf, arms } from './arms.js'
import type { StudyRow } from './compare.js'
import { keepPlan, planPath, type StudyPlan } from './plan.js'
import { keptOr, type Measure, measuresOf, type OptionalMeasure, type StudyData } from './measures.js'
import type { StudySize } from './sizes.js'

export interface StudyOptions {
  size: StudySize
  sizeName: string
  arms: readonly ArmName[]
  seeds: number
  /** Labelled images: a folder with train and val. */
  images: string
  /** Trees with masks, each for a score of its own. */
  segmentation: readonly string[]
  /** A VOC tree and its lists for SVM classification. */
  voc?: StudyData['voc']
  also: readonly OptionalMeasure[]
  out: string
  /** Of all arms. */
  settings: readonly Setting[]
  line: (text: string) => void
  /** Told of what there is after each network, so that a study can be looked at while it goes on. */
  done?: (result: StudyResult) => Promise<void>
  /** Asked between runs and evaluations, and by pre-training between steps; what it is not there for is src/tensor/interruption.ts. */
  interrupted?: () => boolean
}

/** What a study has found, all of it or so far. */
export interface StudyResult {
  plan: StudyPlan
  rows: StudyRow[]
  /** Runs that ended in a loss that is no number or in a collapse, which says something of their arm. */
  failed: { arm: ArmName; seed: number; reason: string }[]
  /** Networks that are not there yet. */
  left: number
}

/** Every pre-training run and every measure keeps its result in the study's folder: a study that is started again goes on. */
export async function runStudy(options: StudyOptions): Promise<StudyResult | 'interrupted'> {
  try {
    return await study(options)
  } catch (error) {
    if (isInterruption(error)) return 'interrupted'
    throw error
  }
}

const isInterrupted = ({ interrupted }: StudyOptions): boolean => toEnd() || interrupted?.() === true

async function study(options: StudyOptions): Promise<StudyResult | 'interrupted'> {
  const data = await openData(options)
  const configs = await configsOf(options)
  const { imageSize } = configs.get(options.arms[0]!)!
  const measures = measuresOf(data, options.size, imageSize, options.also)
  const plan = keepPlan(options.out, await planned(options, data, measures))
  const total = options.seeds * options.arms.length
  const result: StudyResult = { plan, rows: [], failed: [], left: total }
  for (let seed = 0; seed < options.seeds; ++seed)
    for (const arm of options.arms) {
      const config = { ...configs.get(arm)!, seed }
      const at = `${total - result.left + 1} of ${total}`
      const weights = await weightsOf(arm, config, at, options)
      if (weights === undefined) return 'interrupted'
      if (weights instanceof DenseclError) {
        result.failed.push({ arm, seed, reason: weights.message })
        options.line(`${armOf(arm).name}, seed ${seed}: ${weights.message}`)
      } else result.rows.push(await measured({ arm, config, weights, data, measures }, options))
      if (isInterrupted(options)) return 'interrupted'
      result.left -= 1
      await options.done?.(result)
    }
  return result
}

async function openData({ images, segmentation, voc }: StudyOptions): Promise<StudyData> {
  const train = await openSource(join(images, 'train'), { split: 'train' })
  const val = await openSource(join(images, 'val'), { split: 'val' })
  if (train.classes === undefined || train.classes.join() !== val.classes?.join())
    fail('DATA', `study: ${images} needs folders train and val with the same class folders`)
  const trees = segmentation.map((path) => ({
    name: basename(resolve(path)),
    train: openSegmentation(path, ['train']),
    val: openSegmentation(path, ['val']),
  }))
  const twice = trees.find(({ name }, i) => trees.findIndex((tree) => tree.name === name) !== i)
  if (twice !== undefined) fail('CONFIG', `--segmentation names two folders ${twice.name}: expected names that tell their scores apart`)
  return { train, val, trees, ...(voc === undefined ? {} : { voc }) }
}

async function planned(options: StudyOptions, data: StudyData, measures: readonly Measure[]): Promise<Parameters<typeof keepPlan>[1]> {
  const base = await baseOf(options)
  const namesOf = (some: readonly Measure[]): string[] => some.flatMap(({ scores }) => scores)
  // The neighbours of a primary score are told with it.
  const primary = measures.filter((measure) => measure.primary).map(({ scores }) => scores[0]!)
  const { size, sizeName, seeds, images, segmentation, voc, settings } = options
  return {
    size: sizeName,
    settings: settings.map(({ from }) => from),
    config: { ...size.config, equalTime: size.equalTime },
    arms: Object.fromEntries(options.arms.map((arm) => [arm, { describe: armOf(arm).describe, sets: { ...armOf(arm).sets(base) } }])),
    seeds,
    data: {
      images: { path: images, train: data.train.items.length, val: data.val.items.length },
      segmentation: data.trees.map(({ train, val }, i) => ({ path: segmentation[i], train: train.items.length, val: val.items.length })),
      ...(voc === undefined ? {} : { voc }),
    },
    primary,
    secondary: namesOf(measures).filter((name) => !primary.includes(name)),
  }
}

/** The settings of all arms. */
const common = ({ size, images, settings }: StudyOptions): Setting[] => [
  ...settingsOf({ ...size.config, data: join(images, 'train') }, 'study'),
  ...settings,
]

async function baseOf(options: StudyOptions): Promise<ArmBase> {
  const { lr, denseWeight, epochs } = (await configure(common(options))).config as DenseCLConfig
  return { lr, denseWeight, epochs, equalTime: options.size.equalTime }
}

/** The configuration of every arm, of seed 0. Throws CONFIG where the settings leave nothing to compare. */
export async function configsOf(options: StudyOptions): Promise<Map<ArmName, Config>> {
  const { method } = await configure(common(options))
  for (const { key, from } of options.settings) {
    const own = optionOf(optionsOf(method), key)
    if (own === 'data' || own === 'seed') fail('CONFIG', `${from}: expected no ${own}, which the study sets by --images and --seeds`)
    if (own !== undefined && Object.hasOwn(arms['geometry-image'].sets(), own))
      fail('CONFIG', `${from}: expected no ${own}, which the arms set; choose them by --arms`)
  }
  const base = await baseOf(options)
  const role = (arm: ArmName): string => armOf(arm).role
  if (base.denseWeight === 0 && options.arms.some((arm) => role(arm) === 'dense'))
    fail('CONFIG', 'study: denseWeight is 0: expected a weight for the dense loss, or its arms are MoCo v2')
  if (base.denseWeight === 1 && options.arms.some((arm) => role(arm) === 'control'))
    fail('CONFIG', 'study: denseWeight is 1: expected less, as the controls have the learning rate times 1 - denseWeight')
  const configs = new Map<ArmName, Config>()
  for (const arm of options.arms)
    configs.set(arm, (await configure([...common(options), ...settingsOf(armOf(arm).sets(base), `arm ${arm}`)])).config)
  return configs
}

const runOf = (arm: ArmName, seed: number, { out }: StudyOptions): string => join(out, 'pretrain', `${arm}-seed${seed}`)

/** What a configuration says of the result, as a run is begun with it. */
function comparable(config: Config): Record<string, unknown> {
  const { workers: _, device: __, threads: ___, ...rest } = begunConfig(config, 1)
  return rest
}

/** The backbone of an arm, pre-trained unless it is there; the reason where that cannot be, and undefined when it was interrupted. */
async function weightsOf(arm: ArmName, config: Config, at: string, options: StudyOptions): Promise<string | DenseclError | undefined> {
  const { seed } = config
  const run = runOf(arm, seed, options)
  const { backbone, report, config: written, last } = files(run)
  if (existsSync(written)) {
    const { config: had } = await configure(readConfigFile(written))
    checkSame(written, comparable(had), comparable(config))
    if (existsSync(arm === 'random' ? backbone : report)) return backbone
  }
  makeFolder(run)
  const { name, describe } = armOf(arm)
  const sets = armOf(arm).sets(await baseOf(options))
  writeTextAtomic(join(run, 'arm.yaml'), stringify({ arm, describe, sets: { ...sets }, seed, plan: planPath(options.out) }))
  if (arm === 'random') {
    const network = backboneOf(config, await loadBackboneKind(config.backbone))({ random: new Random(seed, 53), dtype: 'f32' })
    writeBackbone(backbone, network, 'torchvision')
    writeTextAtomic(written, stringify(config))
    network.dispose()
    return backbone
  }
  options.line(`${at}: pretrain ${name}, seed ${seed}, ${config.epochs} epochs`)
  try {
    const { interrupted } = await pretrain({
      config,
      out: run,
      resume: existsSync(last),
      overwrite: !existsSync(last),
      quiet: true,
      ...(options.interrupted === undefined ? {} : { interrupted: options.interrupted }),
    })
    return interrupted ? undefined : backbone
  } catch (error) {
    // The other arms need not wait for somebody to look.
    if (error instanceof DenseclError && ['NAN', 'COLLAPSE'].includes(error.code)) return error
    throw error
  }
}

/** A network and what it is measured on. */
interface Network {
  arm: ArmName
  config: Config
  weights: string
  data: StudyData
  measures: readonly Measure[]
}

async function measured({ arm, config, weights, data, measures }: Network, options: StudyOptions): Promise<StudyRow> {
  const { seed, imageSize, workers } = config
  const folder = join(runOf(arm, seed, options), 'eval')
  makeFolder(folder)
  const { device } = resolvePlacement(config)
  await trustDevice(device)
  const compute = evaluationCompute(device, { threads: computeSettings(config).threads })
  const kind = await loadBackboneKind(config.backbone)
  const row: StudyRow = { arm, seed, scores: {}, blind: {} }
  for (const measure of measures) {
    if (isInterrupted(options)) break
    const { scores, blind } = await keptOr(folder, measure, async () => {
      const { backbone } = withDevice(device, () => importBackbone(weights, { kind, ...measure.layout }))
      try {
        return await measure.take({ backbone, data, size: options.size, imageSize, seed, workers, compute, folder })
      } finally {
        backbone.dispose()
      }
    })
    Object.assign(row.scores, scores)
    Object.assign(row.blind!, blind)
    const said = Object.entries(scores).map(([key, value]) => `${key} ${value.toFixed(2)} %`)
    options.line(`${armOf(arm).name}, seed ${seed}: ${said.join(', ')}`)
  }
  return row
}
