/** The files of a run, and the folder's first moments. */
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { dirname, join } from 'node:path'

import { makeFolder, removeLeftovers } from '../files/atomic.js'
import { FileLock } from '../files/lock.js'
import { fail } from '../tensor/errors.js'
import { packageVersion } from '../tensor/addon.js'
import { native } from '../tensor/native.js'

export const files = (out: string) => ({
  config: join(out, 'config.yaml'),
  environment: join(out, 'environment.json'),
  tuning: join(out, 'tuning.json'),
  metrics: join(out, 'metrics.jsonl'),
  last: join(out, 'checkpoints', 'last.safetensors'),
  backbone: join(out, 'backbone.safetensors'),
  report: join(out, 'report.json'),
  pictures: join(out, 'pictures'),
  evaluations: join(out, 'eval'),
  lock: join(out, 'run.lock'),
})

/**
 * The right to write a run into `out`, for one run at a time, until release(). `out` must be there. Throws RUN where a run that is alive
 * has it. What a killed one has left half written is removed.
 */
export function lockRun(out: string): FileLock {
  const lock = new FileLock(files(out).lock)
  const holder = lock.take()
  if (holder !== undefined)
    fail(
      'RUN',
      `${out}: process ${holder.pid} on ${holder.host} writes its run there since ${holder.since}; wait for its end, stop it, or ` +
        'choose another --out',
    )
  const { last, pictures, evaluations } = files(out)
  for (const folder of [out, dirname(last), pictures, evaluations]) if (existsSync(folder)) removeLeftovers(folder)
  return lock
}

/**
 * Makes the folder and locks it, for a run of this configuration, as it is written; a run that it holds is an error, or with `overwrite`
 * removed.
 */
export function claimFolder(out: string, config: string, overwrite: boolean): FileLock {
  makeFolder(out)
  const lock = lockRun(out)
  try {
    clearFolder(out, config, overwrite)
    makeFolder(dirname(files(out).last))
  } catch (error) {
    lock.release()
    throw error
  }
  return lock
}

function clearFolder(out: string, wanted: string, overwrite: boolean): void {
  const { config, metrics, last } = files(out)
  // One that was killed before its first checkpoint has left its configuration alone: the same command is to begin it again.
  const isOther = existsSync(config) && readFileSync(config, 'utf8') !== wanted
  if (isOther || existsSync(last) || existsSync(metrics)) {
    if (!overwrite)
      fail('RUN', `${out} holds a run already; continue it with --resume, replace it with --overwrite, or choose another --out`)
    rmSync(metrics, { force: true })
    for (const folder of [join(out, 'checkpoints'), files(out).pictures, files(out).evaluations])
      rmSync(folder, { recursive: true, force: true })
    for (const made of [files(out).report, files(out).backbone, files(out).tuning]) rmSync(made, { force: true })
    for (const name of readdirSync(out)) if (name.startsWith('events.out.tfevents.')) rmSync(join(out, name))
  }
}

/** What a run ran on. */
export function environment(device: string): Record<string, unknown> {
  return {
    densecl: packageVersion,
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: availableParallelism(),
    threads: native.threads(),
    instructionSet: native.instructionSet(),
    device: `${device}, ${native.describeDevice(device)}`,
    started: new Date().toISOString(),
  }
}
