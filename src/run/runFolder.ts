/** The files of a run, and the folder's first moments. */
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { join } from 'node:path'

import { fail } from '../tensor/errors.js'
import { native, packageVersion } from '../tensor/native.js'

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
})

/** Makes the folder; a run that it holds is an error, or with `overwrite` removed. */
export function claimFolder(out: string, overwrite: boolean): void {
  const { config, metrics, last } = files(out)
  if (existsSync(config) || existsSync(last) || existsSync(metrics)) {
    if (!overwrite)
      fail('RUN', `${out} holds a run already; continue it with --resume, replace it with --overwrite, or choose another --out`)
    rmSync(metrics, { force: true })
    for (const folder of [join(out, 'checkpoints'), files(out).pictures, files(out).evaluations])
      rmSync(folder, { recursive: true, force: true })
    for (const made of [files(out).report, files(out).backbone, files(out).tuning]) rmSync(made, { force: true })
    for (const name of readdirSync(out)) if (name.startsWith('events.out.tfevents.')) rmSync(join(out, name))
  }
  try {
    mkdirSync(join(out, 'checkpoints'), { recursive: true })
  } catch (error) {
    fail('RUN', `${out}: the run folder cannot be made (${(error as NodeJS.ErrnoException).code ?? String(error)})`)
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
