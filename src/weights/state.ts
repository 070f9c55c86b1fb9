/** The state of something that continues later: named tensors and a JSON record, in one file that is replaced as a whole. */
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'

import { fail } from '../tensor/errors.js'
import type { Tensor } from '../tensor/tensor.js'
import { writeAtomic } from '../files/atomic.js'
import { loadStored, toStored } from './layout.js'
import { encodeSafetensors, readSafetensors, type StoredTensor, type TensorFile } from './safetensors.js'

/** The key of the metadata that holds the checksum, which every state of ours has. */
export const checksumKey = 'sha256'

/** SHA-256, in hexadecimal, of all that a file holds beside it: metadata, and names, dtypes, shapes and bytes of tensors. */
function checksum({ tensors, metadata }: TensorFile): string {
  const hash = createHash('sha256')
  for (const key of Object.keys(metadata).sort()) if (key !== checksumKey) hash.update(JSON.stringify([key, metadata[key]]))
  for (const name of [...tensors.keys()].sort()) {
    const { dtype, shape, bytes } = tensors.get(name)!
    hash.update(JSON.stringify([name, dtype, shape])).update(bytes)
  }
  return hash.digest('hex')
}

/** What tells the values of named tensors from others: the beginning of the SHA-256 of names, dtypes, shapes and bytes. */
export function digestOf(tensors: Iterable<[string, Tensor]>): string {
  const stored = new Map([...tensors].map(([name, tensor]) => [name, toStored(name, tensor)]))
  return checksum({ tensors: stored, metadata: {} }).slice(0, 16)
}

/**
 * Writes the tensors under their names, and `record` as JSON under `key` of the metadata, beside what else belongs there and a checksum.
 * The file takes the place of the one before when it has been read back as it was written. Throws WRITE.
 */
export function saveState(
  path: string,
  tensors: Iterable<[string, Tensor]>,
  key: string,
  record: unknown,
  metadata: Record<string, string> = {},
): void {
  const stored = new Map<string, StoredTensor>()
  for (const [name, tensor] of tensors) stored.set(name, toStored(name, tensor))
  const file = { tensors: stored, metadata: { [key]: JSON.stringify(record), ...metadata } }
  writeAtomic(path, encodeSafetensors({ ...file, metadata: { ...file.metadata, [checksumKey]: checksum(file) } }), { verify: true })
}

/** Throws FORMAT where the file has a checksum, and not that of what was written. */
export function checkWhole(path: string, file: TensorFile): void {
  const { [checksumKey]: written } = file.metadata
  if (written !== undefined && written !== checksum(file))
    fail(
      'FORMAT',
      `${path}: is damaged: its checksum is not that of what was written; go on from another checkpoint of the folder, if it has one`,
    )
}

/**
 * The file and its record; undefined when the file has none under `key`. Throws FORMAT where the file is not what was written; those of
 * before there were checksums have none, and are taken as they are.
 */
export function readState(path: string, key: string): { file: TensorFile; record: unknown } {
  if (!existsSync(path)) fail('CHECKPOINT', `${path}: there is no checkpoint to resume from`)
  const file = readSafetensors(path)
  checkWhole(path, file)
  const { [key]: text } = file.metadata
  try {
    return { file, record: text === undefined ? undefined : JSON.parse(text) }
  } catch (error) {
    return fail('CHECKPOINT', `${path}: its record "${key}" is not JSON (${error instanceof Error ? error.message : String(error)})`)
  }
}

/** Gives `tensors` the values that they have in `file`, which was read from `path`. Throws CHECKPOINT or SHAPE. */
export function restoreState(path: string, file: TensorFile, tensors: Iterable<[string, Tensor]>): void {
  for (const [name, tensor] of tensors)
    loadStored(path, name, tensor, file.tensors.get(name) ?? fail('CHECKPOINT', `${path}: lacks the tensor ${name}`))
}

/** The tensors of a state: those of what is trained, and what its optimiser keeps, in the layout of the parameters. */
export function* withOptimizer(
  tensors: Iterable<[string, Tensor]>,
  optimizer: { state(): Map<string, Tensor> },
): Generator<[string, Tensor]> {
  yield* tensors
  for (const [name, tensor] of optimizer.state()) yield [`optimizer.${name}`, tensor]
}
