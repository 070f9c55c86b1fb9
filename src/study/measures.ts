/** What a study asks of each network. Every measure keeps its result in the folder of the run, and is not made twice. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import { z } from 'zod'

import type { SegmentationSource } from '../data/segmentationSources.js'
import type { Source } from '../data/source.js'
import { openVocClassification } from '../data/voc.js'
import { correspondence, drawnItems } from '../eval/correspondence.js'
import { checkFrozenMemory } from '../eval/frozenMemory.js'
import { frozenSegmentation } from '../eval/frozenSegmentation.js'
import { knnAccuracy } from '../eval/knn.js'
import { evaluateLinear } from '../eval/linear.js'
import { linearProtocols, stretched } from '../eval/linearProtocols.js'
import { evaluateSegmentation } from '../eval/segmentation.js'
import { segmentationProtocols } from '../eval/segmentationProtocols.js'
import { evaluateSvm, extractVoc } from '../eval/voc07.js'
import { writeTextAtomic } from '../files/atomic.js'
import type { Backbone } from '../nn/backbone.js'
import { checkSame, statePath } from '../run/results.js'
import { firstIssue } from '../tensor/issues.js'
import { type ComputeOptions, withCompute } from '../tensor/compute.js'
import { fail, systemReason } from '../tensor/errors.js'
import { interruption } from '../tensor/interruption.js'
import type { ImportOptions } from '../weights/import.js'
import type { StudySize } from './sizes.js'

/** Scores in % by their names. */
export type Scores = Record<string, number>

/** Scores of a network, and what an answer has that looks at no image: the same place, or what is most frequent at a place. */
export interface Measured {
  scores: Scores
  blind?: Scores
}

/** What the measures are taken on. */
export interface StudyData {
  train: Source
  val: Source
  /** Trees with masks by the names of their folders. */
  trees: { name: string; train: SegmentationSource; val: SegmentationSource }[]
  voc?: { path: string; splits: readonly [train: string, test: string] }
}

/** A network that is measured, and with what. */
export interface Subject {
  backbone: Backbone
  data: StudyData
  size: StudySize
  imageSize: number
  seed: number
  workers: number
  compute: ComputeOptions
  /** Where results, and evaluations that take long, are kept. */
  folder: string
}

export interface Measure {
  /** The name of its file. */
  name: string
  /** Scores that the study is decided by. */
  primary?: true
  layout?: Pick<ImportOptions, 'outputStride'>
  /** The names of its scores, and what a kept result must have been made with. */
  scores: readonly string[]
  what: Readonly<Record<string, unknown>>
  take(subject: Subject): Promise<Measured>
}

/** Measures that are only made where they are asked for: they cost more than the others together and have no range on small networks. */
export const optionalMeasures = ['linear', 'svm', 'segmentation'] as const
export type OptionalMeasure = (typeof optionalMeasures)[number]

/** VOC's layout has the background first; elsewhere every pixel has a class. */
const hasBackground = ({ val }: StudyData['trees'][number]): boolean => val.classes[0] === 'background'

/** The measures of a study, the primary ones first. */
export function measuresOf(data: StudyData, size: StudySize, imageSize: number, also: readonly OptionalMeasure[]): Measure[] {
  const frozen = data.trees.map((tree) => frozenOf(tree, size))
  const optional: Record<OptionalMeasure, () => Measure[]> = {
    linear: () => [linearOf(size, imageSize)],
    svm: () => [svmOf(data, imageSize)],
    segmentation: () => data.trees.map((tree) => segmentationOf(tree, size)),
  }
  return [
    correspondenceOf(size, imageSize),
    ...frozen.filter(({ primary }) => primary),
    {
      name: 'knn',
      scores: ['kNN'],
      what: { imageSize, k: 20 },
      take: async ({ backbone, data: { train, val }, workers, compute }) => ({
        scores: { kNN: 100 * (await knnAccuracy(backbone, train.items, val.items, { imageSize, k: 20, workers, compute })) },
      }),
    },
    ...frozen.filter(({ primary }) => primary === undefined),
    ...optionalMeasures.filter((name) => also.includes(name)).flatMap((name) => optional[name]()),
  ]
}

function correspondenceOf({ correspondence: { images } }: StudySize, imageSize: number): Measure {
  const [exact, near] = ['correspondence', 'correspondence, near']
  return {
    name: 'correspondence',
    primary: true,
    scores: [exact, near],
    what: { imageSize, images },
    async take({ backbone, data, seed, workers, compute }) {
      const [last] = await correspondence(backbone, drawnItems(data.val.items, images, seed), { imageSize, seed, workers, compute })
      const { found, samePlace } = last!
      return {
        scores: { [exact]: 100 * found.exact, [near]: 100 * found.near },
        blind: { [exact]: 100 * samePlace.exact, [near]: 100 * samePlace.near },
      }
    },
  }
}

/** The last map, trained on either list of the tree and tested on the other: some hundred images have few cells. */
function frozenOf(tree: StudyData['trees'][number], { objects, scenes }: StudySize): Measure {
  const background = hasBackground(tree)
  const windows = background ? objects : scenes
  const name = `${background ? 'object AUC' : 'frozen mIoU'}, ${tree.name}`
  return {
    name: `frozen-${tree.name}`,
    ...(background ? { primary: true } : {}),
    scores: [name],
    what: { ...windows },
    async take({ backbone, seed, workers, compute }) {
      checkFrozenMemory(backbone, tree, { ...windows, workers, compute })
      const [last] = await frozenSegmentation(backbone, tree, {
        ...{ ...windows, maps: 1, balanced: false, bothWays: true },
        ...{ seed, workers, compute },
      })
      const score = (of: 'features' | 'position'): number => 100 * (background ? last![of].objectAuc : last![of].meanIou)
      if (Number.isNaN(score('features')))
        fail(
          'DATA',
          `study: ${name}: expected windows with cells of objects and of the background in both lists; the tree has too few images`,
        )
      return { scores: { [name]: score('features') }, blind: { [name]: score('position') } }
    },
  }
}

/** An evaluation of a study goes on where it was cut off. */
const howToBegin = (out: string): { resume: boolean } => ({ resume: existsSync(statePath(out)) })

function linearOf({ linearEpochs }: StudySize, imageSize: number): Measure {
  const protocol = {
    ...stretched(linearProtocols['imagenet-features']!, linearEpochs),
    heads: ['feature4', 'feature5'] as const,
    pipeline: 'centre' as const,
  }
  const name = (head: string): string => `linear ${head}`
  return {
    name: 'linear',
    scores: protocol.heads.map(name),
    what: { imageSize, epochs: protocol.epochs },
    async take({ backbone, data: { train, val }, folder, seed, workers, compute }) {
      const out = join(folder, 'linear')
      const { heads, interrupted } = await evaluateLinear(backbone, {
        protocol,
        train: train.items,
        val: val.items,
        classes: train.classes!.length,
        imageSize,
        out,
        ...howToBegin(out),
        quiet: true,
        seed,
        workers,
        compute,
      })
      if (interrupted) throw interruption()
      return { scores: Object.fromEntries(heads.map(({ head, top1 }) => [name(head), 100 * top1])) }
    },
  }
}

function svmOf({ voc }: StudyData, imageSize: number): Measure {
  const { path, splits } = voc ?? fail('CONFIG', '--also names svm: expected a VOC tree with --voc')
  return {
    name: 'svm',
    scores: ['SVM mAP'],
    what: { imageSize, voc: path, vocSplits: splits },
    async take({ backbone, workers, compute }) {
      const [train, test] = [openVocClassification(path, splits[0]), openVocClassification(path, splits[1])]
      const features = await extractVoc(backbone, train, test, 'feature5', { imageSize, workers, compute })
      try {
        return { scores: { 'SVM mAP': 100 * withCompute(compute, () => evaluateSvm(features)).map } }
      } finally {
        features.dispose()
      }
    },
  }
}

function segmentationOf(tree: StudyData['trees'][number], size: StudySize): Measure {
  const name = `segmentation mIoU, ${tree.name}`
  return {
    name: `segmentation-${tree.name}`,
    layout: { outputStride: 8 },
    scores: [name],
    what: size.segmentation,
    async take({ backbone, folder, seed, workers, compute }) {
      const out = join(folder, `segmentation-${tree.name}`)
      const { scores, interrupted } = await evaluateSegmentation(backbone, {
        protocol: { ...segmentationProtocols.voc12aug!, ...size.segmentation },
        train: tree.train,
        val: tree.val,
        out,
        ...howToBegin(out),
        quiet: true,
        seed,
        workers,
        compute,
      })
      if (interrupted) throw interruption()
      return { scores: { [name]: 100 * scores!.meanIou } }
    },
  }
}

const numbers = z.record(z.string(), z.number())
const keptScores = z.object({ what: z.record(z.string(), z.unknown()), scores: numbers, blind: numbers.optional() })

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

/** The result of a measure, taken by `take` unless `folder` has it. Throws CONFIG where that was made with other settings. */
export async function keptOr(folder: string, { name, what }: Measure, take: () => Promise<Measured>): Promise<Measured> {
  const path = join(folder, `study-${name}.json`)
  if (!existsSync(path)) {
    const start = performance.now()
    const measured = await take()
    writeTextAtomic(path, `${JSON.stringify({ what, ...measured, seconds: (performance.now() - start) / 1000 }, undefined, 2)}\n`)
  }
  const { what: had, scores, blind } = readScores(path)
  checkSame(path, had, JSON.parse(JSON.stringify(what)) as Record<string, unknown>)
  return { scores, ...(blind === undefined ? {} : { blind }) }
}
