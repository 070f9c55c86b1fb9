/** What the steps of a run compute their convolutions with: the choice that the run began with, one that is timed now, or the tables. */
import { type DeviceIdentity, deviceIdentity } from '../files/cache.js'
import { untimedTiles } from '../ops/kernels.js'
import { DeviceClock } from '../ops/timing.js'
import { familyOf, type TuningChoice, untuned } from '../ops/tuning.js'
import { fusionLevel } from '../run/placement.js'
import { files } from '../run/runFolder.js'
import { usesFamily } from '../tensor/families.js'
import { native } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'
import { tuningLines } from './progress.js'
import type { Run } from './run.js'
import { choiceOf, tune, type TunerOptions, type Tuning } from './tuner.js'
import { type KeptTuning, readTuning, saveTuning } from './tuningFile.js'

/** @internal For tests: another clock and device for the tuning, which then happens on `simt` too. */
export type TunerOverrides = Partial<Pick<TunerOptions, 'time' | 'now' | 'budget' | 'identity' | 'hopper' | 'untimed' | 'multiprocessors'>>

/** The choice of a run; of several processes rank 0 makes it for all. */
export function chooseTuning(run: Run, overrides: TunerOverrides | undefined): TuningChoice {
  const { group, config } = run
  if (!deviceTraits(run.built.backbone.device).tunable) return untuned(fusionLevel(config))
  const chosen = group.rank === 0 ? chosenTuning(run, overrides) : undefined
  const shared = group.size === 1 ? chosen : (JSON.parse(group.said(JSON.stringify(chosen ?? null))) as ChosenTuning | null)
  return shared == undefined ? untuned(fusionLevel(config)) : choiceOf(shared)
}

type ChosenTuning = Pick<Tuning, 'level' | 'products'>

/** Undefined where the tables are to be used. */
function chosenTuning(run: Run, overrides: TunerOverrides | undefined): ChosenTuning | undefined {
  const { config, resumed, log } = run
  const { device } = run.built.backbone
  const path = files(run.out).tuning
  const clocked = !deviceTraits(device).simulated || overrides !== undefined || process.env.DENSECL_TUNE_SIMT === '1'
  if (!clocked) return undefined
  const identity = overrides?.identity ?? deviceIdentity(device)
  const kept = resumed ? readTuning(path) : undefined
  if (kept !== undefined) {
    log.line(keptLine(kept, identity, path))
    return kept
  }
  if (!config.tune) return undefined
  if (resumed)
    log.line(`tuning  the run has no ${path}: its convolutions are timed now, and from here on their sums may differ in the last bits`)
  return timedNow(run, identity, path, overrides)
}

function timedNow({ built, share, log }: Run, identity: DeviceIdentity, path: string, overrides: TunerOverrides = {}): ChosenTuning {
  const { batchSize: batch, imageSize, fusion: level } = share
  const found = timeStep({ method: built, batch, imageSize, level, identity, ...overrides })
  saveTuning(path, found, identity)
  for (const line of tuningLines(found)) log.line(line)
  return found
}

/** Times the calls of a step on the device of the method, at most 20 seconds long. */
export function timeStep(options: Pick<TunerOptions, 'method' | 'batch' | 'imageSize' | 'level'> & Partial<TunerOptions>): Tuning {
  const { device } = options.method.backbone
  const clock = new DeviceClock(device)
  try {
    return tune({
      identity: deviceIdentity(device),
      time: clock.time,
      budget: 20,
      now: () => performance.now(),
      hopper: (direction) => usesFamily(device, familyOf('wgmma', direction)),
      untimed: [...untimedTiles].filter(([, family]) => usesFamily(device, family)).map(([tile]) => tile),
      multiprocessors: deviceTraits(device).multiprocessors,
      ...options,
    })
  } finally {
    clock.dispose()
    native.resetPeakMemory(device)
  }
}

function keptLine(kept: KeptTuning, identity: DeviceIdentity, path: string): string {
  const same = (Object.keys(identity) as (keyof DeviceIdentity)[]).every((key) => kept[key] === identity[key])
  const elsewhere =
    `; made on ${machine(kept)}, while this is ${machine(identity)}: used all the same, so that the run ` + 'is continued bit for bit'
  return `tuning  as this run began: level ${kept.level}, ${kept.products.length} products of ${path}${same ? '' : elsewhere}`
}

const machine = ({ device, driver, build }: DeviceIdentity): string =>
  `${device}${driver === '' ? '' : `, driver ${driver}`} (build ${build})`
