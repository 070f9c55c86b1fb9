/** Backbones for other frameworks: names, containers, and the folders they go to. */
import { extname } from 'node:path'

import { fail } from '../tensor/errors.js'
import { writeAtomic } from '../files/atomic.js'
import { encodePth } from './pth.js'
import { encodeSafetensors, type StoredTensor } from './safetensors.js'

export const exportTargets = ['torchvision', 'mmdet', 'detectron2'] as const
export type ExportTarget = (typeof exportTargets)[number]

/** detectron2's name of a torchvision backbone tensor (densecl-spec 3.5). */
export function detectron2Name(name: string): string {
  return (name.includes('layer') ? name : `stem.${name}`)
    .replace(/layer(\d)/, (_, stage: string) => `res${Number(stage) + 1}`)
    .replace(/bn(\d)/, 'conv$1.norm')
    .replace('downsample.0', 'shortcut')
    .replace('downsample.1', 'shortcut.norm')
}

/**
 * Writes backbone tensors, named as in torchvision, for `target`: .safetensors, or .pth (a zip that torch.load reads, with
 * weights_only too). mmdet and mmseg take torchvision's names inside {state_dict, author}; detectron2 its own inside {model,
 * __author__, matching_heuristics} and without num_batches_tracked.
 */
export function writeBackbone(path: string, backbone: Map<string, StoredTensor>, target: ExportTarget): void {
  const tensors =
    target === 'detectron2'
      ? new Map(
          [...backbone].filter(([name]) => !name.endsWith('num_batches_tracked')).map(([name, tensor]) => [detectron2Name(name), tensor]),
        )
      : backbone
  if (extname(path) === '.safetensors') writeAtomic(path, encodeSafetensors({ tensors, metadata: { format: 'pt', author: 'densecl' } }))
  else if (extname(path) === '.pth') {
    const content =
      target === 'torchvision'
        ? tensors
        : target === 'mmdet'
          ? { state_dict: tensors, author: 'densecl' }
          : { model: tensors, __author__: 'densecl', matching_heuristics: true }
    writeAtomic(path, [encodePth(content)])
  } else fail('ARGUMENT', `export: expected a file ending in .safetensors or .pth but received ${path}`)
}
