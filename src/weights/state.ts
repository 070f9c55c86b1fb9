/** The state of something that continues later: named tensors and a JSON record, in one file that is replaced as a whole. */
import { existsSync } from 'node:fs'

import { fail } from '../tensor/errors.js'
import type { Tensor } from '../tensor/tensor.js'
import { writeAtomic } from '../files/atomic.js'
import { loadStored, toStored } from './layout.js'
import { encodeSafetensors, readSafetensors, type StoredTensor, type TensorFile } from './safetensors.js'

/** Writes the tensors under their names, and `record` as JSON under `key` of the metadata, beside what else belongs there. */
export function saveState(
  path: string,
  tensors: Iterable<[string, Tensor]>,
  key: string,
  record: unknown,
  metadata: Record<string, string> = {},
): void {
  const stored = new Map<string, StoredTensor>()
  for (const [name, tensor] of tensors) stored.set(name, toStored(name, tensor))
  writeAtomic(path, encodeSafetensors({ tensors: stored, metadata: { [key]: JSON.stringify(record), ...metadata } }))
}

/** The file and its record; undefined when the file has none under `key`. */
export function readState(path: string, key: string): { file: TensorFile; record: unknown } {
  if (!existsSync(path)) fail('CHECKPOINT', `${path}: there is no checkpoint to resume from`)
  const file = readSafetensors(path)
  const text = file.metadata[key]
  try {
    return { file, record: text === undefined ? undefined : JSON.parse(text) }
  } catch (error) {
    return fail('CHECKPOINT', `${path}: its record "${key}" is not JSON (${error instanceof Error ? error.message : String(error)})`)
  }
}

export function restoreState(file: TensorFile, tensors: Iterable<[string, Tensor]>): void {
  for (const [name, tensor] of tensors)
    loadStored(name, tensor, file.tensors.get(name) ?? fail('CHECKPOINT', `the checkpoint lacks the tensor ${name}`))
}

/** The tensors of a state: those of what is trained, and what its optimiser keeps, in the layout of the parameters. */
export function* withOptimizer(
  tensors: Iterable<[string, Tensor]>,
  optimizer: { state(): Map<string, Tensor> },
): Generator<[string, Tensor]> {
  yield* tensors
  for (const [name, tensor] of optimizer.state()) yield [`optimizer.${name}`, tensor]
}
