/**
 * Full checkpoints: both encoders, both queues and pointers under the original names, the optimiser's momenta as
 * `optimizer.<parameter>`, and the position as JSON in the metadata, all in one safetensors file. Everything random is a
 * function of seed and position, so this is all a run needs to continue bit for bit.
 */
import type { DenseCL } from '../methods/densecl/model.js'
import { allTensors } from '../nn/module.js'
import type { Sgd } from '../optim/sgd.js'
import { fail } from '../tensor/errors.js'
import type { Tensor } from '../tensor/tensor.js'
import type { TensorFile } from '../weights/safetensors.js'
import { backboneMetadata } from '../weights/export.js'
import { readState, restoreState, saveState } from '../weights/state.js'
import { type Config, resolveConfig } from '../run/config.js'

/** Where a run stands: the next step to do. */
export interface Position {
  epoch: number
  step: number
  globalStep: number
  /** Images of the data set the run was started with. */
  images: number
}

const version = 1

function* namedTensors(model: DenseCL, sgd: Sgd): Generator<[string, Tensor]> {
  yield* allTensors(model.state())
  for (const [name, momentum] of sgd.momenta) yield [`optimizer.${name}`, momentum]
}

/** Momenta have the layout of their parameters. */
export function saveCheckpoint(path: string, model: DenseCL, sgd: Sgd, config: Config, position: Position): void {
  saveState(
    path,
    namedTensors(model, sgd),
    'densecl',
    { version, config, position, keyAhead: model.keyAhead },
    backboneMetadata(model.query.backbone),
  )
}

export interface Checkpoint {
  file: TensorFile
  config: Config
  position: Position
  /** The key encoder has been moved for the next step already. */
  keyAhead: boolean
}

/** Reads and checks a checkpoint of ours; a file of another kind is named as such. */
export function readCheckpoint(path: string): Checkpoint {
  const { file, record } = readState(path, 'densecl')
  if (record === undefined)
    return fail('CHECKPOINT', `${path}: holds weights but no training state; start a new run, or use densecl import`)
  const {
    version: found,
    config,
    position,
    keyAhead = false,
  } = record as { version: number; config: Record<string, unknown>; position: Position; keyAhead?: boolean }
  if (found !== version) fail('CHECKPOINT', `${path}: has version ${found} but this densecl reads version ${version}`)
  return { file, config: resolveConfig(Object.entries(config).map(([key, value]) => ({ key, value, from: path }))), position, keyAhead }
}

export function restoreCheckpoint({ file, keyAhead }: Checkpoint, model: DenseCL, sgd: Sgd): void {
  restoreState(file, namedTensors(model, sgd))
  model.refresh()
  model.keyAhead = keyAhead
}
