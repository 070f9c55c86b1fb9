/** Weights from anywhere into a backbone: every prefix style that DenseCL checkpoints have (densecl-spec 3), with a report. */
import { closeSync, openSync, readSync } from 'node:fs'

import { allTensors, disposeState } from '../nn/module.js'
import { ResNet, type ResNetDepth, resnetDepths, type ResNetOptions } from '../nn/resnet.js'
import { Random } from '../tensor/random.js'
import { fail } from '../tensor/errors.js'
import { detectron2Name } from './export.js'
import { loadStored, toStored } from './layout.js'
import { readPth } from './pth.js'
import { readSafetensors, type StoredTensor } from './safetensors.js'

/** All tensors of a safetensors file or of a PyTorch one, told apart by content. */
export function readWeights(path: string): Map<string, StoredTensor> {
  const head = Buffer.alloc(9)
  try {
    const descriptor = openSync(path, 'r')
    readSync(descriptor, head, 0, 9, 0)
    closeSync(descriptor)
  } catch (error) {
    return fail('FILE', `${path}: cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`)
  }
  const isPickle = head[0] === 0x80 && head[1]! >= 2 && head[1]! <= 5
  const isZip = head.readUInt32LE(0) === 0x04034b50
  return isPickle || isZip ? readPth(path) : readSafetensors(path).tensors
}

/** Where the backbone may be, in the order of preference among equally many matches. */
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

export interface ImportReport {
  /** Names in the file begin with this. */
  prefix: string
  depth: ResNetDepth
  baseChannels: number
  matched: string[]
  /** In the model but not in the file. */
  missing: string[]
  /** In the file but not in the model, by their full names. */
  unexpected: string[]
}

/** The backbone's tensors of a file under torchvision's names. */
function findBackbone(path: string, tensors: Map<string, StoredTensor>): { prefix: string; found: Map<string, StoredTensor> } {
  const fromDetectron2 = new Map(allNames().map((name) => [detectron2Name(name), name]))
  let best = { prefix: '', found: new Map<string, StoredTensor>() }
  for (const prefix of backbonePrefixes) {
    for (const container of containers) {
      const full = container + prefix
      const found = new Map<string, StoredTensor>()
      for (const [name, tensor] of tensors) {
        if (!name.startsWith(full)) continue
        const short = name.slice(full.length)
        const known = backboneName.test(short) ? short : fromDetectron2.get(short)
        if (known !== undefined) found.set(known, tensor)
      }
      if (found.size > best.found.size) best = { prefix: full, found }
    }
  }
  if (best.found.size === 0) {
    const some = [...tensors.keys()].slice(0, 3).join(', ')
    fail(
      'IMPORT',
      `${path}: no tensor matches a ResNet backbone under any known prefix (${backbonePrefixes.filter(Boolean).join(' ')}); the file has ${tensors.size} tensors${some === '' ? '' : `, such as ${some}`}`,
    )
  }
  return best
}

const backboneName = /^(conv1\.weight|bn1\.\w+|layer[1-4]\.\d+\.(conv\d\.weight|bn\d\.\w+|downsample\.[01]\.\w+))$/

/** Names of the deepest network, of which every other's are a part. */
function allNames(): string[] {
  const norm = (name: string): string[] => ['weight', 'bias', 'running_mean', 'running_var'].map((part) => `${name}.${part}`)
  const names = ['conv1.weight', ...norm('bn1')]
  for (let s = 1; s <= 4; ++s)
    for (let b = 0; b < 36; ++b) {
      for (let c = 1; c <= 3; ++c) names.push(`layer${s}.${b}.conv${c}.weight`, ...norm(`layer${s}.${b}.bn${c}`))
      names.push(`layer${s}.${b}.downsample.0.weight`, ...norm(`layer${s}.${b}.downsample.1`))
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
  if (depth === undefined || stem === undefined || stem.shape.length !== 4) {
    return fail(
      'IMPORT',
      `${path}: expected a ResNet-${Object.keys(resnetDepths).join(', ')} but the file has ${bottleneck ? 'bottleneck' : 'basic'} blocks ${blocks.join(', ')}${stem === undefined ? ' and no conv1' : ''}`,
    )
  }
  return { depth: depth as ResNetDepth, baseChannels: stem.shape[0]! }
}

/**
 * A backbone with the weights of any supported file. Every parameter must be there; counters may be missing. `layout` sets strides
 * and dilations, which weights know nothing of.
 */
export function importBackbone(
  path: string,
  layout: Pick<ResNetOptions, 'strides' | 'dilations' | 'contractDilation'> = {},
): { backbone: ResNet; report: ImportReport } {
  const tensors = readWeights(path)
  const { prefix, found } = findBackbone(path, tensors)
  const architecture = inferResNet(path, found)
  const backbone = new ResNet({ random: new Random(0), dtype: 'f32' }, { ...architecture, ...layout })
  try {
    return { backbone, report: { prefix, ...architecture, ...fill(path, backbone, tensors, found) } }
  } catch (error) {
    disposeState(backbone.state())
    throw error
  }
}

function fill(
  path: string,
  backbone: ResNet,
  tensors: Map<string, StoredTensor>,
  found: Map<string, StoredTensor>,
): Pick<ImportReport, 'matched' | 'missing' | 'unexpected'> {
  const matched: string[] = []
  const missing: string[] = []
  for (const [name, tensor] of allTensors(backbone.state())) {
    const stored = found.get(name)
    if (stored === undefined) missing.push(name)
    else {
      loadStored(name, tensor, stored)
      matched.push(name)
    }
  }
  const used = new Set(matched.map((name) => found.get(name)))
  const unexpected = [...tensors].filter(([, tensor]) => !used.has(tensor)).map(([name]) => name)
  const needed = missing.filter((name) => !name.endsWith('num_batches_tracked'))
  if (needed.length > 0)
    fail(
      'IMPORT',
      `${path}: ${needed.length} tensors of a ResNet are missing: ${needed.slice(0, 5).join(', ')}${needed.length > 5 ? ' ...' : ''}`,
    )
  return { matched, missing, unexpected }
}

/** A backbone's state as files hold it. */
export function storedBackbone(backbone: ResNet): Map<string, StoredTensor> {
  return new Map([...allTensors(backbone.state())].map(([name, tensor]) => [name, toStored(name, tensor)]))
}
