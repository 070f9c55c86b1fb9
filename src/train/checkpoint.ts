/**
 * Full checkpoints: the state of the method under its own names, what the optimiser keeps as `optimizer.<name>`, and the position
 * as JSON in the metadata, all in one safetensors file. Everything random is a function of seed and position, so this is all that a
 * run needs to continue bit for bit.
 */
import { z } from 'zod'

import { resolveConfig } from '../methods/index.js'
import type { BuiltMethod, Method } from '../methods/method.js'
import { allTensors, refreshCopies } from '../nn/module.js'
import type { Optimizer } from '../optim/optimizer.js'
import { DenseclError, fail } from '../tensor/errors.js'
import type { Tensor } from '../tensor/tensor.js'
import type { TensorFile } from '../weights/safetensors.js'
import { backboneMetadata } from '../weights/export.js'
import { readState, restoreState, saveState, withOptimizer } from '../weights/state.js'
import type { Config } from '../run/config.js'
import { settingsOf } from '../run/options.js'
import { firstIssue } from '../tensor/issues.js'

/** The position of a run: the next step to do. */
export interface Position {
  epoch: number
  step: number
  globalStep: number
  /** Images of the data set the run was started with. */
  images: number
}

const version = 1

const namedTensors = (method: BuiltMethod, optimizer: Optimizer): Iterable<[string, Tensor]> =>
  withOptimizer(allTensors(method.state()), optimizer)

/** What a checkpoint says of itself beside its tensors. Those without a method's name are of DenseCL, once the only one. */
const checkpointRecord = z.looseObject({
  version: z.literal(version),
  method: z.string().default('densecl'),
  config: z.record(z.string(), z.unknown()),
  position: z.object({ epoch: z.int().min(0), step: z.int().min(0), globalStep: z.int().min(0), images: z.int().min(0) }),
})

export function saveCheckpoint(
  path: string,
  { name }: Method,
  built: BuiltMethod,
  optimizer: Optimizer,
  config: Config,
  position: Position,
): void {
  const record: z.input<typeof checkpointRecord> = { version, method: name, config, position }
  saveState(path, namedTensors(built, optimizer), 'densecl', { ...built.record?.(), ...record }, backboneMetadata(built.backbone))
}

export interface Checkpoint {
  path: string
  file: TensorFile
  config: Config
  position: Position
  /** All that was recorded, what BuiltMethod.record() gave included. */
  record: Record<string, unknown>
}

/** Reads and checks a checkpoint of a method's run; a file of another kind is named as such. */
export function readCheckpoint(path: string, method: Method): Checkpoint {
  const { file, record } = readState(path, 'densecl')
  if (record === undefined)
    return fail('CHECKPOINT', `${path}: holds weights but no training state; start a new run, or use densecl import`)
  const found: unknown = z.looseObject({ version: z.unknown() }).safeParse(record).data?.version
  if (typeof found === 'number' && found !== version)
    fail('CHECKPOINT', `${path}: has version ${found} but this densecl reads version ${version}`)
  const { data, error } = checkpointRecord.safeParse(record)
  if (error !== undefined) return fail('CHECKPOINT', `${path}: its record "densecl" is damaged: ${firstIssue(error)}`)
  const { method: name, config, position } = data
  if (name !== method.name) fail('CONFIG', `resume: the method of ${path} is ${name} and is now ${method.name}; start a new run for that`)
  return { path, file, config: recordedConfig(path, config, method), position, record: data }
}

/** The configuration of a record; what contradicts itself there is named with the file. */
function recordedConfig(path: string, config: Record<string, unknown>, method: Method): Config {
  try {
    return resolveConfig(settingsOf(config, path), method)
  } catch (error) {
    if (!(error instanceof DenseclError) || error.message.includes(path)) throw error
    return fail(error.code, `${path}: ${error.message}`)
  }
}

export function restoreCheckpoint({ path, file, record }: Checkpoint, built: BuiltMethod, optimizer: Optimizer): void {
  restoreState(path, file, namedTensors(built, optimizer))
  refreshCopies(built.state())
  built.restore?.(record)
}
