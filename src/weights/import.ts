/** Weights from anywhere into a backbone, under every prefix that checkpoints have (docs/method.md, Names of tensors), with a report. */
import { closeSync, openSync, readSync } from 'node:fs'

import type { Backbone, BackboneKind, BackboneLayout } from '../nn/backbone.js'
import { backboneKinds } from '../nn/backbones.js'
import { allTensors } from '../nn/module.js'
import { areStrides, type ResNetDepth, resnetDepths, resnetKind } from '../nn/resnet.js'
import { Random } from '../tensor/random.js'
import { fail } from '../tensor/errors.js'
import { type BackboneRecord, detectron2Name } from './export.js'
import { loadStored } from './layout.js'
import { readPthFile } from './pth.js'
import { readSafetensors, type StoredTensor, type TensorFile } from './safetensors.js'

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

/** Prefixes under which the backbone may be, in the order of preference among equally many matches. */
export const backbonePrefixes = [
  '',
  'backbone.',
  'encoder_q.0.',
  'module.encoder_q.0.',
  'module.encoder_q.',
  'module.backbone.',
  'module.',
  'encoder_k.module.0.',
  'encoder_k.0.',
] as const
const containers = ['', 'state_dict.', 'model.', 'model.state_dict.']

/** What a file of weights held, and what of it a backbone took. */
export interface ImportReport {
  /** Names in the file begin with this. */
  prefix: string
  /** Those of the backbone: for a ResNet depth and baseChannels. */
  options: Readonly<Record<string, unknown>>
  matched: string[]
  /** Names in the model but not in the file. */
  missing: string[]
  /** Names in the file but not in the model, in full. */
  unexpected: string[]
}

/** The backbone's tensors of a file under their own names, which `nameOf` gives for a name after a prefix. */
function findBackbone(
  path: string,
  tensors: Map<string, StoredTensor>,
  what: string,
  nameOf: (short: string) => string | undefined,
): { prefix: string; found: Map<string, StoredTensor> } {
  let best = { prefix: '', found: new Map<string, StoredTensor>() }
  for (const prefix of backbonePrefixes) {
    for (const container of containers) {
      const full = container + prefix
      const found = new Map<string, StoredTensor>()
      for (const [name, tensor] of tensors) {
        const known = name.startsWith(full) ? nameOf(name.slice(full.length)) : undefined
        if (known !== undefined) found.set(known, tensor)
      }
      if (found.size > best.found.size) best = { prefix: full, found }
    }
  }
  if (best.found.size === 0) {
    const some = [...tensors.keys()].slice(0, 3).join(', ')
    fail(
      'IMPORT',
      `${path}: no tensor matches a ${what} backbone under any known prefix ` +
        `(${backbonePrefixes.filter(Boolean).join(' ')}); the file has ${tensors.size} tensors${some === '' ? '' : `, such as ${some}`}`,
    )
  }
  return best
}

const backboneName = /^(conv1\.weight|bn1\.\w+|layer[1-4]\.\d+\.(conv\d\.weight|bn\d\.\w+|downsample\.[01]\.\w+))$/

/** torchvision's name of a tensor of a ResNet that torchvision or detectron2 has named. */
function torchvisionName(): (short: string) => string | undefined {
  const fromDetectron2 = new Map(torchvisionNames().map((name) => [detectron2Name(name), name]))
  return (short) => (backboneName.test(short) ? short : fromDetectron2.get(short))
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
export function inferResNet(path: string, tensors: Map<string, StoredTensor>): { depth: ResNetDepth; baseChannels: number } {
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
  return { depth: depth as ResNetDepth, baseChannels: stem.shape[0]! }
}

/** How importBackbone reads a file. */
export interface ImportOptions extends Pick<BackboneLayout, 'outputStride'> {
  /** What the backbone is where the program does not have its kind; the file, where it says what it holds, must hold that. */
  kind?: BackboneKind | undefined
}

/**
 * A backbone with the weights of any supported file. Every parameter must be there; counters may be missing. A ResNet is told by
 * names and shapes, another kind by what its file says of it.
 */
export function importBackbone(
  path: string,
  { kind: wanted, outputStride }: ImportOptions = {},
): { backbone: Backbone; report: ImportReport } {
  const { tensors, metadata } = readTensorFile(path)
  if ([...tensors.keys()].some((name) => name.includes('roi_head.shared_head.')))
    fail(
      'IMPORT',
      `${path}: is a detector, which has the last stage of its backbone in its head: expected weights of a backbone, such as those that ` +
        'it was trained from (densecl detect takes detectors, densecl export gives their backbone)',
    )
  const record = recordOf(metadata)
  const kind = kindOf(path, record, wanted)
  const build = (options: Record<string, unknown>): Backbone =>
    kind.build({ random: new Random(0), dtype: 'f32' }, options, { outputStride })
  let backbone: Backbone | undefined
  try {
    let source: ReturnType<typeof findBackbone>
    if (kind === resnetKind) {
      source = findBackbone(path, tensors, 'ResNet', torchvisionName())
      backbone = build({ ...inferResNet(path, source.found), ...recordedStrides(path, record) })
    } else {
      backbone = build(record?.options ?? {})
      const names = new Set([...allTensors(backbone.state())].map(([name]) => name))
      source = findBackbone(path, tensors, backbone.name, (short) => (names.has(short) ? short : undefined))
    }
    const filled = fill(path, backbone, tensors, source.found)
    return { backbone, report: { prefix: source.prefix, options: backbone.options, ...filled } }
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
