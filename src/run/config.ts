/**
 * Every option of a pre-training run, in one flat table: a key of the YAML file, `key=value`, and a flag `--key` are the
 * same thing (camelCase and kebab-case both work).
 */
import { readFileSync } from 'node:fs'

import { LineCounter, parseDocument } from 'yaml'
import { z } from 'zod'

import { maxBlurSigma, mocoV2Augmentation } from '../data/augment.js'
import { sourceFormats } from '../data/sources.js'
import { DenseclError, fail } from '../tensor/errors.js'

const count = z.int().min(1)
const share = z.number().min(0).max(1)
const positive = z.number().positive()
const range = z.tuple([z.number(), z.number()]).refine(([low, high]) => low <= high, 'a pair [low, high] with low <= high')

export const options = {
  data: z.string().default('scenes').describe('folder, list .txt, COCO .json, VOC tree, tar shards, or scenes[:count]'),
  format: z
    .enum(['auto', ...sourceFormats])
    .default('auto')
    .describe('how to read data'),
  knnData: z
    .string()
    .nullable()
    .default(null)
    .describe('labelled images to classify by kNN; default: ../val beside data, or a tenth of data'),
  imageSize: z.int().min(32).default(224).describe('side of the square views in pixels'),
  batchSize: count.default(256).describe('images a step'),
  epochs: count.default(200).describe('passes over the data'),
  seed: z.int().min(0).default(0).describe('of everything random'),
  workers: z.int().min(0).default(0).describe('data worker threads; 0 chooses'),
  device: z.string().default('auto').describe('cpu, cuda or cuda:N; auto takes the first GPU of a CUDA build, else the CPU'),
  precision: z
    .enum(['auto', 'f32', 'tf32', 'bf16'])
    .default('auto')
    .describe('of convolutions and activations; auto is bf16 on a GPU (parameters, statistics and losses stay f32), f32 on the CPU'),
  fusion: z
    .enum(['auto', 'pointwise', 'epilogue', 'full'])
    .default('auto')
    .describe(
      'how far convolutions and batch norms are fused on a GPU (docs/fusion.md); auto is what is fastest where that is timed, else epilogue',
    ),
  tune: z
    .boolean()
    .default(true)
    .describe("time the kernels for this model's convolutions at the start of a run on a GPU, some seconds once; false takes the tables"),
  graph: z.boolean().default(true).describe('record the training step on a GPU and replay it as one graph'),
  threads: z.int().min(0).default(0).describe('compute threads; 0 takes all cores'),
  cacheMegabytes: z.int().min(0).default(1024).describe('MiB of decoded images kept for later epochs'),
  maxBroken: share.default(0.01).describe('largest share of images that may be unreadable'),

  backbone: z.string().default('resnet').describe('resnet, or the path of a JavaScript module with another kind of backbone'),
  backboneOptions: z.record(z.string(), z.unknown()).default({}).describe('options of a backbone from a module, as a map'),
  depth: z.literal([18, 34, 50, 101, 152]).default(50).describe('of the ResNet'),
  baseChannels: count.default(64).describe('of the stem; every width scales with it'),
  init: z.enum(['original', 'mmselfsup']).default('original').describe('how weights are drawn'),
  hidden: count.nullable().default(null).describe("width of the heads' hidden layers; default: the backbone's channels"),
  featDim: count.default(128).describe('embedding dimension'),
  numGrid: count.nullable().default(null).describe("side of the dense grid; default: the backbone's"),

  queueLength: count.default(65536).describe('negatives in each queue'),
  keyMomentum: share.default(0.999).describe('of the key encoder'),
  temperature: positive.default(0.2).describe('of both losses'),
  denseWeight: share.default(0.5).describe('lambda: weight of the dense loss; 0 is MoCo v2'),
  denseWarmup: z.int().min(0).default(0).describe('steps with dense weight 0 before lambda applies'),
  normGroups: count.default(1).describe('groups of the batch with batch statistics of their own (256 / 32 = 8 in the paper)'),
  shuffle: z.boolean().default(true).describe('shuffle the key batch among the groups (shuffle-BN)'),

  lr: positive.default(0.03).describe('learning rate at the start'),
  momentum: share.default(0.9).describe('of SGD'),
  weightDecay: z.number().min(0).default(1e-4).describe('on every parameter'),
  schedule: z.enum(['cosine', 'constant']).default('cosine').describe('of the learning rate, to 0 at the end'),
  scheduleBy: z.enum(['epoch', 'step']).default('epoch').describe('when the learning rate changes'),
  warmupSteps: z.int().min(0).default(0).describe('steps of linear learning rate warm-up'),

  cropScale: range.default([...mocoV2Augmentation.cropScale]).describe('share of the area that a crop covers'),
  cropRatio: range.default([...mocoV2Augmentation.cropRatio]).describe('width over height of a crop'),
  jitter: share.default(mocoV2Augmentation.jitter).describe('probability of the colour adjustments'),
  brightness: share.default(mocoV2Augmentation.brightness).describe('reach of the brightness factor around 1'),
  contrast: share.default(mocoV2Augmentation.contrast).describe('reach of the contrast factor around 1'),
  saturation: share.default(mocoV2Augmentation.saturation).describe('reach of the saturation factor around 1'),
  hue: z.number().min(0).max(0.5).default(mocoV2Augmentation.hue).describe('reach of the hue shift, in turns'),
  grayscale: share.default(mocoV2Augmentation.grayscale).describe('probability of a grey view'),
  blur: share.default(mocoV2Augmentation.blur).describe('probability of a Gaussian blur'),
  blurSigma: range.default([...mocoV2Augmentation.blurSigma]).describe('standard deviation of the blur in pixels'),
  flip: share.default(mocoV2Augmentation.flip).describe('probability of a horizontal flip'),

  logEvery: count.default(50).describe('steps between two log lines'),
  checkpointEvery: count.default(10).describe('epochs between two kept checkpoints'),
  checkpointSteps: z.int().min(0).default(0).describe('steps between two writings of the last checkpoint; 0: each epoch'),
  keepCheckpoints: count.default(3).describe('kept checkpoints, the latest'),
  knnEvery: z.int().min(0).default(0).describe('epochs between two kNN evaluations; 0: before and after only'),
  knnImages: count.default(5000).describe('most labelled images that kNN looks neighbours up in'),
  knnK: count.default(20).describe('neighbours'),
  stopOnCollapse: z.boolean().default(true).describe('stop when all embeddings become one'),
} as const

const schema = z.strictObject(options)
export type Config = z.infer<typeof schema>
export type ConfigKey = keyof Config
export const configKeys = Object.keys(options) as ConfigKey[]
export const defaults: Config = schema.parse({})

/** Where a value came from, for messages: a file and line, a flag, `key=value`, a preset. */
export interface Setting {
  key: string
  value: unknown
  from: string
}

/** Later settings win. Unknown keys and wrong values are all reported at once. */
export function resolveConfig(settings: readonly Setting[]): Config {
  const values: Record<string, unknown> = {}
  const origin: Record<string, string> = {}
  const problems: string[] = []
  for (const { key, value, from } of settings) {
    const known = configKey(key)
    if (known === undefined) {
      problems.push(`${from}: unknown option ${key} (did you mean ${nearest(key, configKeys)}?)`)
      continue
    }
    values[known] = value
    origin[known] = from
  }
  const result = schema.safeParse(values)
  if (!result.success) {
    for (const issue of result.error.issues) {
      const key = String(issue.path[0])
      problems.push(`${origin[key] ?? 'configuration'}: ${key} is ${JSON.stringify(values[key])}: ${issue.message}`)
    }
  }
  if (problems.length > 0) throw new DenseclError('CONFIG', problems.join('\n'))
  return checkTogether(result.data!)
}

function checkTogether(config: Config): Config {
  if (config.batchSize % config.normGroups !== 0)
    fail('CONFIG', `normGroups is ${config.normGroups}: expected a divisor of batchSize ${config.batchSize}`)
  if (config.cropScale[0] <= 0 || config.cropScale[1] > 1)
    fail('CONFIG', `cropScale is [${config.cropScale.join(', ')}]: expected shares of the area in 0..1`)
  if (config.cropRatio[0] <= 0) fail('CONFIG', `cropRatio is [${config.cropRatio.join(', ')}]: expected positive ratios`)
  if (config.blurSigma[0] <= 0) fail('CONFIG', `blurSigma is [${config.blurSigma.join(', ')}]: expected positive standard deviations`)
  if (config.blurSigma[1] > maxBlurSigma)
    fail('CONFIG', `blurSigma is [${config.blurSigma.join(', ')}]: expected at most ${maxBlurSigma}, what the kernels of a GPU hold`)
  return config
}

export const camelCase = (key: string): string => key.replace(/-([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
export const kebabCase = (key: string): string => key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
export const configKey = (key: string): ConfigKey | undefined => configKeys.find((known) => known === camelCase(key))

/** The value of a flag or of key=value: JSON where it is JSON (numbers, true, [0.2, 1], null), else the text itself. */
export function parseValue(text: string): unknown {
  try {
    return JSON.parse(text) as unknown
  } catch {
    return text
  }
}

/** The settings of a YAML file; errors name the file and line. */
export function readConfigFile(path: string): Setting[] {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    return fail('CONFIG', `${path}: cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`)
  }
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines })
  if (document.errors[0] !== undefined) fail('CONFIG', `${path}: ${document.errors[0].message}`)
  const values: unknown = document.toJS()
  if (values === null) return []
  if (typeof values !== 'object' || Array.isArray(values)) return fail('CONFIG', `${path}: expected a map of options`)
  return Object.entries(values as Record<string, unknown>).map(([key, value]) => {
    const node = (document.contents as unknown as { items: { key: { value: unknown; range: [number, number, number] } }[] }).items.find(
      (item) => item.key.value === key,
    )
    return { key, value, from: `${path} line ${node === undefined ? '?' : lines.linePos(node.key.range[0]).line}` }
  })
}

/** The candidate that begins with the word, else the one with the smallest edit distance. */
export function nearest(word: string, candidates: readonly string[]): string {
  const distance = (a: string, b: string): number => {
    let row = Array.from({ length: b.length + 1 }, (_, j) => j)
    for (let i = 1; i <= a.length; ++i) {
      const next = [i]
      for (let j = 1; j <= b.length; ++j) next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + Number(a[i - 1] !== b[j - 1])))
      row = next
    }
    return row[b.length]!
  }
  const begun = candidates.find((candidate) => candidate.startsWith(camelCase(word)))
  return begun ?? [...candidates].sort((a, b) => distance(camelCase(word), a) - distance(camelCase(word), b))[0]!
}
