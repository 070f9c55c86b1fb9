/** Backbones for other frameworks: names, containers, and the folders they go to. */
import { extname } from 'node:path'

import { writeAtomic } from '../files/atomic.js'
import type { Backbone } from '../nn/backbone.js'
import { allTensors } from '../nn/module.js'
import { fail } from '../tensor/errors.js'
import { toStored } from './layout.js'
import { encodePth, type Pickled } from './pth.js'
import { encodeSafetensors, type StoredTensor } from './safetensors.js'

export const exportTargets = ['torchvision', 'mmdet', 'detectron2'] as const
/** A framework that weights can be written for. */
export type ExportTarget = (typeof exportTargets)[number]

/** detectron2's name of a torchvision backbone tensor (docs/method.md, Names of tensors). */
export function detectron2Name(name: string): string {
  return (name.includes('layer') ? name : `stem.${name}`)
    .replace(/layer(\d)/, (_, stage: string) => `res${Number(stage) + 1}`)
    .replace(/bn(\d)/, 'conv$1.norm')
    .replace('downsample.0', 'shortcut')
    .replace('downsample.1', 'shortcut.norm')
}

/** A backbone's state as files hold it. */
export function storedBackbone(backbone: Backbone): Map<string, StoredTensor> {
  return new Map([...allTensors(backbone.state())].map(([name, tensor]) => [name, toStored(name, tensor)]))
}

/** The metadata of a file that says how to build its backbone again; none where torchvision's names and the shapes say it. */
export const backboneMetadata = ({ kind, options }: Backbone): Record<string, string> =>
  kind.torchvision === true && Object.keys(options).every((key) => key === 'depth' || key === 'baseChannels')
    ? {}
    : { backbone: JSON.stringify({ kind: kind.name, options } satisfies BackboneRecord) }

/** What such metadata holds. */
export interface BackboneRecord {
  kind: string
  options: Record<string, unknown>
}

/**
 * Writes a backbone for `target`: .safetensors, or .pth (a zip that torch.load reads, with weights_only too). mmdet and mmseg take
 * torchvision's names inside {state_dict, author}; detectron2 its own inside {model, __author__, matching_heuristics} and without
 * num_batches_tracked. A backbone without torchvision's names goes under its own names into the plain container, `torchvision`. `notes` are
 * said beside the tensors, where the container holds words.
 */
export function writeBackbone(path: string, backbone: Backbone, target: ExportTarget, notes: Record<string, string> = {}): void {
  if (target !== 'torchvision' && backbone.kind.torchvision !== true)
    fail(
      'ARGUMENT',
      `export: expected torchvision, the plain container, for ${backbone.name}, which ${target} has no names for, but received ${target}`,
    )
  const named = storedBackbone(backbone)
  const tensors =
    target === 'detectron2'
      ? new Map(
          [...named].filter(([name]) => !name.endsWith('num_batches_tracked')).map(([name, tensor]) => [detectron2Name(name), tensor]),
        )
      : named
  const metadata = { ...backboneMetadata(backbone), ...notes }
  writeTensors(path, tensors, metadata, () =>
    // torchvision's container holds tensors alone.
    target === 'torchvision'
      ? tensors
      : target === 'mmdet'
        ? { state_dict: tensors, author: 'densecl', ...metadata }
        : { model: tensors, __author__: 'densecl', matching_heuristics: true, ...metadata },
  )
}

/** Writes .safetensors with `metadata` beside the tensors, or .pth with `content`. Throws ARGUMENT for another ending. */
export function writeTensors(
  path: string,
  tensors: Map<string, StoredTensor>,
  metadata: Record<string, string>,
  content: () => Pickled,
): void {
  if (extname(path) === '.safetensors')
    writeAtomic(path, encodeSafetensors({ tensors, metadata: { format: 'pt', author: 'densecl', ...metadata } }))
  else if (extname(path) === '.pth') writeAtomic(path, [encodePth(content())])
  else fail('ARGUMENT', `export: expected a file ending in .safetensors or .pth but received ${path}`)
}
