/** Weights from anywhere into a backbone, under whatever prefix they stand (docs/method.md, Names of tensors), with a report. */
import { closeSync, openSync, readSync } from 'node:fs'

import type { Backbone, BackboneKind, BackboneLayout } from '../nn/backbone.js'
import { backboneKinds } from '../nn/backbones.js'
import { allTensors, refreshCopies } from '../nn/module.js'
import { areStrides, type ResNetDepth, resnetDepths, resnetKind } from '../nn/resnet.js'
import { Random } from '../tensor/random.js'
import { fail } from '../tensor/errors.js'
import type { FloatDType } from '../tensor/tensor.js'
import { type BackboneRecord, detectron2Name } from './export.js'
import { loadStored } from './layout.js'
import { readPthFile } from './pth.js'
import { readSafetensors, storedFromNumbers, type StoredTensor, storedValues, type TensorFile } from './safetensors.js'

/** All tensors of a safetensors file or of a PyTorch one, told apart by content. */
export const readWeights = (path: string): Map<string, StoredTensor> => readTensorFile(path).tensors

/** The same, and what the file says beside them: the metadata of safetensors, or the strings of the dictionary that PyTorch saved. */
export function readTensorFile(path: string): TensorFile {
  const head = Buffer.alloc(512)
  try {
    const descriptor = openSync(path, 'r')
    readSync(descriptor, head, 0, head.length, 0)
    closeSync(descriptor)
  } catch (error) {
    return fail('FILE', `${path}: cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`)
  }
  if (head.toString('latin1', 257, 262) === 'ustar')
    fail('FORMAT', `${path}: a tar file, as PyTorch wrote before version 0.1.10: load it with PyTorch and save it again`)
  const isPickle = head[0] === 0x80 && head[1]! >= 2 && head[1]! <= 5
  const isZip = head.readUInt32LE(0) === 0x04034b50
  return isPickle || isZip ? readPthFile(path) : readSafetensors(path)
}

/** What a file of weights held, and what of it a backbone took. */
export interface ImportReport {
  /** Names in the file begin with this. */
  prefix: string
  /** Under these prefixes the file has as many tensors of such a backbone; ImportOptions.prefix chooses. */
  others: string[]
  /** Classes of objects in a pickle that are no weights; nothing of them was executed. */
  passedOver: readonly string[]
  /** Those of the backbone: for a ResNet depth and baseChannels. */
  options: Readonly<Record<string, unknown>>
  matched: string[]
  /** Names in the model but not in the file. */
  missing: string[]
  /** Names in the file but not in the model, in full. */
  unexpected: string[]
}

/** Names that some program gives a backbone's tensors. */
interface Naming {
  /** Names that tell, after whatever prefix, that such a backbone is there. */
  marks: readonly string[]
  /** What a name after the prefix is called here; undefined for what is no part of the backbone. */
  nameOf: (short: string) => string | undefined
}

/** A backbone's tensors under their own names, and what stood before those of the file. */
interface Candidate {
  prefix: string
  found: Map<string, StoredTensor>
}

/** What follows another network in training, or precedes it: the one that was trained is meant where nothing else is said. */
const copies = /(^|[._])(encoder_k|key|momentum\w*|target\w*|student\w*|state_dict_ema|ema\w*)(?=[._])/

/** Every prefix under which a file has tensors of such a backbone, the likeliest first. */
function candidatesOf(tensors: Map<string, StoredTensor>, namings: readonly Naming[]): Candidate[] {
  const names = [...tensors.keys()]
  const all = namings.flatMap(({ marks, nameOf }) => {
    const before = (name: string): string[] => marks.filter((mark) => name.endsWith(mark)).map((mark) => name.slice(0, -mark.length))
    const prefixes = new Set(names.flatMap(before).filter((prefix) => prefix === '' || prefix.endsWith('.')))
    return [...prefixes].map((prefix): Candidate => {
      const found = new Map<string, StoredTensor>()
      for (const [name, tensor] of tensors) {
        const known = name.startsWith(prefix) ? nameOf(name.slice(prefix.length)) : undefined
        if (known !== undefined) found.set(known, tensor)
      }
      return { prefix, found }
    })
  })
  const rank = ({ prefix }: Candidate): number => (copies.test(prefix) ? 1000 : 0) + prefix.length
  return all.sort((a, b) => b.found.size - a.found.size || rank(a) - rank(b))
}

const withDot = (prefix: string): string => (prefix === '' || prefix.endsWith('.') ? prefix : `${prefix}.`)

/** The backbone's tensors of a file, under `wanted` or the likeliest prefix. Throws IMPORT where there are none. */
function findBackbone(
  path: string,
  { tensors, passedOver = [] }: TensorFile,
  what: string,
  namings: readonly Naming[],
  wanted: string | undefined,
): Candidate & { others: string[] } {
  const candidates = candidatesOf(tensors, namings)
  const best = wanted === undefined ? candidates[0] : candidates.find(({ prefix }) => prefix === withDot(wanted))
  if (best === undefined) {
    const quoted = candidates.slice(0, 8).map(({ prefix }) => `"${prefix}"`)
    if (quoted.length > 0) fail('IMPORT', `${path}: no ${what} under the prefix "${wanted}": expected one of ${quoted.join(', ')}`)
    const some = [...tensors.keys()].slice(0, 3).join(', ')
    fail(
      'IMPORT',
      `${path}: expected tensors of a ${what} but none of its ${tensors.size} is named like one` +
        (some === '' ? '' : `; it has such as ${some}`) +
        (passedOver.length === 0 ? '' : `; objects were passed over: ${passedOver.slice(0, 3).join(', ')}`),
    )
  }
  const others = candidates.filter((each) => each !== best && each.found.size === best.found.size).map(({ prefix }) => prefix)
  return { ...best, others }
}

const backboneName = /^(conv1\.weight|bn1\.\w+|layer[1-4]\.\d+\.(conv\d\.weight|bn\d\.\w+|downsample\.[01]\.\w+))$/
const orUndefined = (name: string): string | undefined => (backboneName.test(name) ? name : undefined)

/** How a ResNet's tensors are named: by torchvision, by detectron2, and in a Sequential of torchvision's layers without their names. */
function resnetNamings(): Naming[] {
  const fromDetectron2 = new Map(torchvisionNames().map((name) => [detectron2Name(name), name]))
  const layers: Readonly<Record<string, string>> = { 0: 'conv1', 1: 'bn1', 4: 'layer1', 5: 'layer2', 6: 'layer3', 7: 'layer4' }
  return [
    { marks: ['layer1.0.conv1.weight', 'layer1.0.bn1.weight'], nameOf: orUndefined },
    { marks: ['res2.0.conv1.weight', 'res2.0.conv1.norm.weight'], nameOf: (short) => fromDetectron2.get(short) },
    {
      marks: ['4.0.conv1.weight', '4.0.bn1.weight'],
      nameOf: (short) => {
        const [, index, rest] = /^(\d+)(\..+)$/.exec(short) ?? []
        return index !== undefined && Object.hasOwn(layers, index) ? orUndefined(`${layers[index]}${rest}`) : undefined
      },
    },
  ]
}

/** How a backbone is named that a file of ours holds. */
function ownNaming(backbone: Backbone): Naming {
  const names = [...allTensors(backbone.state())].map(([name]) => name)
  const known = new Set(names)
  return { marks: [names[0]!, names.at(-1)!], nameOf: (short) => (known.has(short) ? short : undefined) }
}

/** torchvision's names of the deepest ResNet, of which every other's are a part. */
export function torchvisionNames(): string[] {
  const names: string[] = []
  const add = (conv: string, norm: string): void => {
    names.push(`${conv}.weight`)
    for (const part of ['weight', 'bias', 'running_mean', 'running_var']) names.push(`${norm}.${part}`)
  }
  add('conv1', 'bn1')
  for (let s = 1; s <= 4; ++s)
    for (let b = 0; b < 36; ++b) {
      for (let c = 1; c <= 3; ++c) add(`layer${s}.${b}.conv${c}`, `layer${s}.${b}.bn${c}`)
      add(`layer${s}.${b}.downsample.0`, `layer${s}.${b}.downsample.1`)
    }
  return names
}

/** Depth and width by the names and shapes; an error says what the file has instead. */
export function inferResNet(
  path: string,
  tensors: Map<string, StoredTensor>,
): { depth: ResNetDepth; baseChannels: number; channels?: number } {
  const blocks = [1, 2, 3, 4].map((s) => {
    let count = 0
    while (tensors.has(`layer${s}.${count}.conv1.weight`)) count += 1
    return count
  })
  const bottleneck = tensors.has('layer1.0.conv3.weight')
  const stem = tensors.get('conv1.weight')
  const depth = Object.keys(resnetDepths)
    .map(Number)
    .find((d) => {
      const plan = resnetDepths[d as ResNetDepth]
      return plan.bottleneck === bottleneck && plan.blocks.join() === blocks.join()
    })
  if (depth === undefined || stem?.shape.length !== 4) {
    return fail(
      'IMPORT',
      `${path}: expected a ResNet-${Object.keys(resnetDepths).join(', ')} but the file ` +
        `has ${bottleneck ? 'bottleneck' : 'basic'} blocks ${blocks.join(', ')}${stem === undefined ? ' and no conv1' : ''}`,
    )
  }
  const [baseChannels, channels] = stem.shape as [number, number]
  return { depth: depth as ResNetDepth, baseChannels, ...(channels === 3 ? {} : { channels }) }
}

/** How importBackbone reads a file. */
export interface ImportOptions extends Pick<BackboneLayout, 'outputStride'> {
  /** What the backbone is where the program does not have its kind; the file, where it says what it holds, must hold that. */
  kind?: BackboneKind | undefined
  /** What stands before the names of the backbone in the file, where it has several; the likeliest when absent. */
  prefix?: string | undefined
  /** Of a ResNet: the images that it is to take, where they have other channels than those that it was trained on (adaptedStem()). */
  images?: { channels: number; mean: readonly number[]; deviation: readonly number[] } | undefined
  /** The dtype of activations; bf16 for mixed precision, that of the weights, f32, when absent. */
  compute?: FloatDType | undefined
}

/**
 * The stem [O, 3, KH, KW] of an RGB network for images of another number of channels, as timm adapts it: for grey the sum over the
 * colours, so that a grey image gives what it gave as RGB; for more the colours' weights over and over, scaled by 3 / channels.
 */
function adaptedStem(path: string, stem: StoredTensor, channels: number): StoredTensor {
  const [outputs, colours, height, width] = stem.shape as [number, number, number, number]
  if (colours === channels) return stem
  if (colours !== 3) fail('IMPORT', `${path}: its stem takes ${colours} channels: expected 3, which others are made of, or ${channels}`)
  const values = storedValues(stem)
  const area = height * width
  const at = (o: number, c: number, i: number): number => values[(o * 3 + c) * area + i]!
  const adapted = Float64Array.from({ length: outputs * channels * area }, (_, index) => {
    const [o, c, i] = [Math.floor(index / (channels * area)), Math.floor(index / area) % channels, index % area]
    return channels === 1 ? at(o, 0, i) + at(o, 1, i) + at(o, 2, i) : (at(o, c % 3, i) * 3) / channels
  })
  return storedFromNumbers(adapted, [outputs, channels, height, width], stem.dtype === 'F64' ? 'F64' : 'F32')
}

/**
 * A backbone with the weights of any supported file. Every parameter must be there; counters may be missing. A ResNet is told by
 * names and shapes, another kind by what its file says of it.
 */
export function importBackbone(
  path: string,
  { kind: wanted, outputStride, prefix, images, compute }: ImportOptions = {},
): { backbone: Backbone; report: ImportReport } {
  const file = readTensorFile(path)
  const { tensors, metadata, passedOver = [] } = file
  if ([...tensors.keys()].some((name) => name.includes('roi_head.shared_head.')))
    fail(
      'IMPORT',
      `${path}: is a detector, which has the last stage of its backbone in its head: expected weights of a backbone, such as those that ` +
        'it was trained from (densecl detect takes detectors, densecl export gives their backbone)',
    )
  const record = recordOf(metadata)
  const kind = kindOf(path, record, wanted)
  const build = (options: Record<string, unknown>): Backbone =>
    kind.build({ random: new Random(0), dtype: 'f32', unset: true, compute }, options, { outputStride })
  let backbone: Backbone | undefined
  try {
    let source: ReturnType<typeof findBackbone>
    if (kind === resnetKind) {
      source = findBackbone(path, file, 'ResNet', resnetNamings(), prefix)
      const stem = source.found.get('conv1.weight')
      if (images !== undefined && stem?.shape.length === 4) {
        const { channels } = images
        source.found.set('conv1.weight', adaptedStem(path, stem, channels))
        tensors.set([...tensors].find(([, tensor]) => tensor === stem)![0], source.found.get('conv1.weight')!)
      }
      const { mean, deviation } = images ?? record?.options ?? {}
      backbone = build({
        ...inferResNet(path, source.found),
        ...recordedStrides(path, record),
        ...(mean == null ? {} : { mean }),
        ...(deviation == null ? {} : { deviation }),
      })
    } else {
      backbone = build(record?.options ?? {})
      source = findBackbone(path, file, backbone.name, [ownNaming(backbone)], prefix)
    }
    const filled = fill(path, backbone, tensors, source.found)
    refreshCopies(backbone.state())
    return { backbone, report: { prefix: source.prefix, others: source.others, passedOver, options: backbone.options, ...filled } }
  } catch (error) {
    backbone?.dispose()
    throw error
  }
}

/** What a file says of its backbone; undefined where it says nothing, or something else under that name, as files of others may. */
function recordOf({ backbone }: TensorFile['metadata']): BackboneRecord | undefined {
  if (backbone?.startsWith('{') !== true) return undefined
  try {
    const { kind, options } = JSON.parse(backbone) as Partial<BackboneRecord>
    return typeof kind === 'string' && typeof options === 'object' && options !== null ? { kind, options } : undefined
  } catch {
    return undefined
  }
}

/** The strides of a ResNet, which no shape of a tensor tells; none in files of others. */
function recordedStrides(path: string, record: BackboneRecord | undefined): { strides?: number[] } {
  const strides = record?.options.strides
  if (strides === undefined) return {}
  return areStrides(strides)
    ? { strides }
    : fail(
        'IMPORT',
        `${path}: its record "backbone" is damaged: expected strides of four integers of 1 to 4 but it has ${JSON.stringify(strides)}`,
      )
}

/** What a file holds. The code of a kind that the program does not have is never run because a file names it. */
function kindOf(path: string, record: BackboneRecord | undefined, wanted: BackboneKind | undefined): BackboneKind {
  if (record === undefined) return wanted ?? resnetKind
  if (wanted !== undefined)
    return wanted.name === record.kind
      ? wanted
      : fail('IMPORT', `${path}: expected a backbone of the kind ${wanted.name} but the file has one of the kind ${record.kind}`)
  return (
    backboneKinds.get(record.kind) ??
    fail(
      'IMPORT',
      `${path}: holds a backbone of the kind ${record.kind}: expected one of ${[...backboneKinds.keys()].join(', ')}, or ` +
        'the module that has it, given as --backbone',
    )
  )
}

function fill(
  path: string,
  backbone: Backbone,
  tensors: Map<string, StoredTensor>,
  found: Map<string, StoredTensor>,
): Pick<ImportReport, 'matched' | 'missing' | 'unexpected'> {
  const matched: string[] = []
  const missing: string[] = []
  for (const [name, tensor] of allTensors(backbone.state())) {
    const stored = found.get(name)
    if (stored === undefined) missing.push(name)
    else {
      loadStored(path, name, tensor, stored)
      matched.push(name)
    }
  }
  const used = new Set(matched.map((name) => found.get(name)))
  const unexpected = [...tensors].filter(([, tensor]) => !used.has(tensor)).map(([name]) => name)
  const needed = missing.filter((name) => !name.endsWith('num_batches_tracked'))
  if (needed.length > 0)
    fail(
      'IMPORT',
      `${path}: ${needed.length} tensors of ${backbone.name} are ` +
        `missing: ${needed.slice(0, 5).join(', ')}${needed.length > 5 ? ' ...' : ''}`,
    )
  return { matched, missing, unexpected }
}
