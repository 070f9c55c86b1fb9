/** The options that every pre-training run has, whatever its method; a method adds rows of its own (src/methods/method.ts). */
import { z } from 'zod'

import { withoutSecrets } from '../data/addresses.js'
import { mostWorkers } from '../data/workerPool.js'
import { maxBlurSigma, mocoV2Augmentation } from '../data/augment.js'
import { sourceFormats } from '../data/sources.js'
import { fail } from '../tensor/errors.js'
import { called } from '../tensor/settingNames.js'
import { resnetStrides } from '../nn/resnet.js'
import { optimizerNames } from '../optim/choose.js'
import { free, type OptionValues, section } from './options.js'

const count = z.int().min(1)
const share = z.number().min(0).max(1)
const positive = z.number().positive()
const range = z.tuple([z.number(), z.number()]).refine(([low, high]) => low <= high, 'expected a pair [low, high] with low <= high')

export const commonOptions = {
  method: free(
    z
      .string()
      .default('densecl')
      .describe('what is trained: a method by name, or the path of a JavaScript module whose default export is one'),
  ),

  ...section('data', {
    data: free(
      z
        .string()
        .overwrite(withoutSecrets)
        .default('scenes')
        .describe('folder, list .txt, COCO .json, VOC tree, tar shards, https://host/shard-{000..146}.tar, or scenes[:count]'),
    ),
    format: free(
      z
        .enum(['auto', ...sourceFormats])
        .default('auto')
        .describe('how to read data'),
    ),
    knnData: free(
      z
        .string()
        .overwrite(withoutSecrets)
        .nullable()
        .default(null)
        .describe('labelled images to classify by kNN; default: ../val beside data, or a tenth of data'),
    ),
    channels: count.max(1024).default(3).describe('of the images: 3 for colour, 1 for grey, or as many as TIFF and .npy files have'),
    mean: z
      .array(share)
      .nullable()
      .default(null)
      .describe("of each channel, in 0..1 (check-data prints them); default: ImageNet's of colour and grey images"),
    deviation: z.array(positive).nullable().default(null).describe('of each channel, with mean'),
    workers: free(z.int().min(0).max(mostWorkers).default(0).describe('data worker threads; 0 chooses')),
    cacheMegabytes: free(z.int().min(0).default(1024).describe('MiB of decoded images kept for later epochs')),
    shardCache: free(
      z
        .string()
        .nullable()
        .default(null)
        .describe('folder where shards of other machines are kept; default: in the cache folder of the user'),
    ),
    shardCacheGigabytes: free(positive.nullable().default(null).describe('GB of shards of other machines that are kept; default: 50')),
    maxBroken: free(share.default(0.01).describe('largest share of images that may be unreadable')),
  }),
  ...section('training', {
    imageSize: z.int().min(32).max(8192).default(224).describe('side of the square views in pixels'),
    batchSize: count.default(256).describe('images a step'),
    epochs: count.default(200).describe('passes over the data'),
    seed: z.int().min(0).default(0).describe('of everything random'),
    normGroups: count
      .nullable()
      .default(null)
      .describe('groups of the batch with batch statistics of their own (256 / 32 = 8 in the paper); default: one a process'),
    stopOnCollapse: free(z.boolean().default(true).describe('stop when all embeddings become one')),
  }),
  ...section('model', {
    backbone: z.string().default('resnet').describe('resnet, or the path of a JavaScript module with another kind of backbone'),
    backboneOptions: z.record(z.string(), z.unknown()).default({}).describe('options of a backbone from a module, as a map'),
    depth: z.literal([18, 34, 50, 101, 152]).default(50).describe('of the ResNet'),
    baseChannels: count.max(1024).default(64).describe('of the stem; every width scales with it'),
    strides: z
      .array(z.int().min(1).max(4))
      .length(4)
      .default([...resnetStrides])
      .describe('of the four stages of the ResNet; 1, 2, 1, 1 has a dense grid of 8 x 8 at 64 pixels'),
    init: z.enum(['original', 'mmselfsup']).default('original').describe('how weights are drawn'),
  }),
  ...section('optimizer', {
    lr: positive.default(0.03).describe('learning rate at the start'),
    optimizer: z.enum(optimizerNames).default('sgd').describe('what updates the parameters'),
    momentum: z.number().min(0).lt(1).default(0.9).describe('of SGD and LARS; beta1 of AdamW'),
    weightDecay: z.number().min(0).default(1e-4).describe('on every parameter by SGD, on all but biases and norms by the others'),
    schedule: z.enum(['cosine', 'constant', 'step']).default('cosine').describe('of the learning rate: to 0 at the end, or by milestones'),
    milestones: z.array(count).default([]).describe('epochs at which the schedule step multiplies the learning rate by lrDecay'),
    lrDecay: positive.default(0.1).describe('what the learning rate is multiplied by at each milestone'),
    scheduleBy: z.enum(['epoch', 'step']).default('epoch').describe('when the learning rate changes'),
    warmupSteps: z.int().min(0).default(0).describe('steps of linear learning rate warm-up'),
  }),
  ...section('augmentation', {
    cropScale: range.default([...mocoV2Augmentation.cropScale]).describe('share of the area that a crop covers'),
    keyCropScale: range.nullable().default(null).describe('the same of the second view, where it is another'),
    mostPixels: count
      .max(2 ** 26)
      .nullable()
      .default(null)
      .describe('on a GPU images of more pixels are reduced before crops are cut of them; default: as many as the smallest crops need'),
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
  }),
  ...section('device', {
    device: free(z.string().default('auto').describe('cpu, cuda or cuda:N; auto takes the first GPU of a CUDA build, else the CPU')),
    precision: z
      .enum(['auto', 'f32', 'tf32', 'bf16'])
      .default('auto')
      .describe('of convolutions and activations; auto is f32 on the CPU, bf16 on a GPU (parameters, statistics and losses stay f32)'),
    fusion: z
      .enum(['auto', 'pointwise', 'epilogue', 'full'])
      .default('auto')
      .describe(
        'how far convolutions and batch norms are fused on a GPU (docs/fusion.md); auto is what is fastest where that is ' +
          'timed, else epilogue',
      ),
    tune: free(
      z
        .boolean()
        .default(true)
        .describe(
          "time the kernels for this model's convolutions at the start of a run on a GPU, some seconds once; false takes the tables",
        ),
    ),
    decode: free(
      z
        .enum(['auto', 'cpu', 'gpu'])
        .default('auto')
        .describe('where JPEGs are decoded: by the data workers, or on the GPU by nvJPEG (docs/cuda.md); auto is cpu'),
    ),
    graph: free(z.boolean().default(true).describe('record the training step and replay it, on a GPU as one graph')),
    threads: free(z.int().min(0).default(0).describe('compute threads; 0 takes all cores')),
  }),
  ...section('log', {
    logTo: free(
      z
        .string()
        .nullable()
        .default(null)
        .describe('where records of the log go too: a .jsonl or .csv file, or a JavaScript module whose default export takes each'),
    ),
    logEvery: free(count.default(50).describe('steps between two log lines; the end of an epoch has one too')),
    checkpointEvery: free(count.default(10).describe('epochs between two kept checkpoints')),
    checkpointSteps: free(z.int().min(0).default(0).describe('steps between two writings of the last checkpoint; 0: each epoch')),
    keepCheckpoints: free(count.default(3).describe('kept checkpoints, the latest')),
    knnEvery: free(z.int().min(0).default(0).describe('epochs between two kNN evaluations; 0: before and after only')),
    denseEvery: free(
      z
        .int()
        .min(0)
        .default(0)
        .describe('epochs between two looks at whether dense features find places again (eval correspondence); 0: none'),
    ),
    knnImages: free(count.default(5000).describe('most labelled images that kNN looks neighbours up in')),
    knnK: free(count.default(20).describe('neighbours')),
  }),
} as const

/** What the sections of the options are about, in the order of --help. */
export const sectionTitles: Readonly<Record<string, string>> = {
  data: 'Data',
  training: 'Training',
  model: 'Model',
  optimizer: 'Optimiser and learning rate',
  augmentation: 'Augmentation',
  device: 'Device and speed',
  log: 'Log, checkpoints and evaluation on the way',
}

/** The common options of a run; the configuration of a method is this and the method's own. */
export type Config = OptionValues<typeof commonOptions>

/** Throws CONFIG where mean and deviation are not those of the channels. */
function checkImages({ channels, mean, deviation, data }: Config): void {
  if (channels === 3 && mean !== null)
    fail(
      'CONFIG',
      `${called('mean')} is [${mean.join(', ')}]: expected none for 3 channels, which every evaluation normalises as ImageNet's`,
    )
  if (channels !== 1 && channels !== 3 && (mean === null || deviation === null))
    fail(
      'CONFIG',
      `${called('channels')} is ${channels}: expected mean and deviation of each; ` +
        `densecl check-data ${data} --channels ${channels} prints them`,
    )
  if ((mean === null) !== (deviation === null))
    fail('CONFIG', `${called(mean === null ? 'mean' : 'deviation')} is missing: expected both or none`)
  for (const [name, values] of Object.entries({ mean, deviation }))
    if (values !== null && values.length !== channels)
      fail('CONFIG', `${called(name)} is [${values.join(', ')}]: expected ${channels} numbers, one for each channel`)
}

/** Throws CONFIG where options contradict each other. */
export function checkConfig(config: Config): void {
  if (config.normGroups !== null && config.batchSize % config.normGroups !== 0)
    fail('CONFIG', `${called('normGroups')} is ${config.normGroups}: expected a divisor of ${called('batchSize')} ${config.batchSize}`)
  if (config.schedule === 'step' && config.milestones.length === 0)
    fail('CONFIG', `${called('schedule')} is step: expected ${called('milestones')}, such as [120, 160], but received none`)
  checkImages(config)
  if (config.cropScale[0] <= 0 || config.cropScale[1] > 1)
    fail('CONFIG', `${called('cropScale')} is [${config.cropScale.join(', ')}]: expected shares of the area in 0..1`)
  const { keyCropScale } = config
  if (keyCropScale !== null && (keyCropScale[0] <= 0 || keyCropScale[1] > 1))
    fail('CONFIG', `${called('keyCropScale')} is [${keyCropScale.join(', ')}]: expected shares of the area in 0..1`)
  if (config.cropRatio[0] <= 0) fail('CONFIG', `${called('cropRatio')} is [${config.cropRatio.join(', ')}]: expected positive ratios`)
  if (config.blurSigma[0] <= 0)
    fail('CONFIG', `${called('blurSigma')} is [${config.blurSigma.join(', ')}]: expected positive standard deviations`)
  if (config.blurSigma[1] > maxBlurSigma)
    fail(
      'CONFIG',
      `${called('blurSigma')} is [${config.blurSigma.join(', ')}]: expected at most ${maxBlurSigma}, what the kernels of a GPU hold`,
    )
}
