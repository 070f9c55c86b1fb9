/** DenseCL steps on random input: what densecl.js times and profile.js takes apart. */
import type { Group } from '../../src/distributed/group.js'
import { densecl } from '../../src/methods/densecl/method.js'
import { resolveConfig } from '../../src/methods/index.js'
import { settingsOf } from '../../src/run/options.js'
import { Random } from '../../src/tensor/random.js'
import { resnet, type ResNetDepth } from '../../src/nn/resnet.js'
import { type FusionLevel, fusionLevels } from '../../src/tensor/compute.js'
import { slice } from '../../src/ops/slice.js'
import { Sgd } from '../../src/optim/sgd.js'
import { fail } from '../../src/tensor/errors.js'
import { native, resolveDevice } from '../../src/tensor/native.js'
import { type FloatDType, type Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { timeStep } from '../../src/train/chooseTuning.js'
import { begunConfig, shareOf } from '../../src/train/share.js'
import { Trainer } from '../../src/train/trainer.js'
import { choiceOf } from '../../src/train/tuner.js'
import { appendRow, median } from '../../src/bench/result.js'
import { emptyPools, normal } from '../../src/bench/pool.js'
import { flagsOf, wholeNumber } from './flags.js'
import { inGroup } from './groups.js'

const numbers = { depth: 18, base: 64, image: 64, queue: 4096, hidden: 512, steps: 10, groups: 1, threads: 2 }
const words = ['batch', 'group', 'device', 'precision', 'graph', 'fusion', 'tune', 'rows', 'key-precision'] as const

/** What a step took. */
export interface StepTimes {
  /** Median of steps that are each waited for, and a step's share of as many with one wait at their end. */
  seconds: number
  run_seconds: number
  fastest: number
  slowest: number
  /** Until the host had given a step to the device. */
  host_seconds: number
  /** Since the warm-up: of tensors in use, and of what was taken from the device. */
  peak_bytes: number
  reserved_bytes: number
  tensor_peak_bytes: number
}

export interface StepRow extends StepTimes {
  [key: string]: unknown
  batch: number
  /** The loss of the last step. */
  loss: number
}

/** Called when the warm-up is over, and after the first measured steps. */
export interface Watch {
  onMeasured?: () => void
  onDone?: (steps: number) => void
}

/** Warms up and runs `steps` steps twice: each waited for, then as many with one wait at their end. */
export function timeSteps(device: string, steps: number, step: () => void, { onMeasured = () => {}, onDone = () => {} }: Watch): StepTimes {
  const { asynchronous, hostMemory, recordable } = deviceTraits(device)
  // A step is recorded as the third.
  const warmUp = asynchronous ? 5 : recordable ? 3 : 2
  for (let i = 0; i < warmUp; ++i) step()
  native.synchronize(device)
  native.resetPeakMemory(device)
  onMeasured()
  const times: number[] = []
  let host = 0
  for (let i = 0; i < steps; ++i) {
    const start = performance.now()
    step()
    host += (performance.now() - start) / 1000
    native.synchronize(device)
    times.push((performance.now() - start) / 1000)
  }
  onDone(steps)
  const begun = performance.now()
  for (let i = 0; i < steps; ++i) step()
  native.synchronize(device)
  const run = (performance.now() - begun) / 1000
  const { peak, live, cached } = native.memory(device)
  return {
    seconds: median(times),
    run_seconds: run / steps,
    fastest: Math.min(...times),
    slowest: Math.max(...times),
    host_seconds: host / steps,
    peak_bytes: hostMemory ? process.resourceUsage().maxRSS * 1024 : peak,
    reserved_bytes: live + cached,
    tensor_peak_bytes: peak,
  }
}

/**
 * Runs the steps that the flags ask for, one batch size of `--batch 256,32` after the other, each on a model of its own, and gives a
 * row for each, which also goes to the file of `--rows`, one JSON object a line. `--batch` and `--groups`, the groups of batch norms, are
 * those of all processes of `--group`, of which rank 0 gives the rows.
 */
export function runSteps(argv: readonly string[], onRow: (row: StepRow) => void, watch: Watch = {}): void {
  const { number, values } = flagsOf(argv, numbers, words)
  const batches = (values.batch ?? '32').split(',').map((text) => wholeNumber('batch', text))
  const [image, steps, groups] = [number('image'), number('steps'), number('groups')]
  native.setThreads(number('threads'))
  const device = resolveDevice(values.device ?? 'cpu')
  const compute = (values.precision ?? deviceTraits(device).usualDType) as FloatDType
  if (values.fusion !== undefined && !fusionLevels.includes(values.fusion as FusionLevel))
    fail('CONFIG', `--fusion is ${values.fusion}: expected one of ${fusionLevels.join(', ')}`)
  const run = (group: Group): void => {
    const random = new Random(1)
    for (const batch of batches) {
      const backbone = resnet({ depth: number('depth') as ResNetDepth, baseChannels: number('base') })
      const sizes = { imageSize: image, batchSize: batch, normGroups: groups }
      const heads = { hidden: number('hidden'), queueLength: number('queue') }
      const keyPrecision = values['key-precision'] ?? null
      const config = resolveConfig(settingsOf({ ...sizes, ...heads, keyPrecision }, 'flags'))
      const share = { ...config, ...shareOf(begunConfig(config, group.size), group, group.size) }
      const method = densecl.build(share, { backbone, compute, group })
      const { parameters, copies } = method.trained()
      const sgd = new Sgd(parameters, share, copies)
      const own = [group.rank * share.batchSize, (group.rank + 1) * share.batchSize] as const
      const views = [0, 1].map(() => {
        const all = normal(random, [batch, image, image, 3], compute)
        return group.size === 1 ? all : slice(all, [own])
      }) as [Tensor, Tensor]
      emptyPools()
      // As a run on a GPU begins; without it the tables say which kernels.
      const tuned =
        values.tune === 'true'
          ? choiceOf(timeStep({ method, batch, imageSize: image, level: (values.fusion as FusionLevel | undefined) ?? 'auto' }))
          : undefined
      const trainer = new Trainer(method, sgd, {
        graph: values.graph !== 'false',
        compute: tuned ?? { fusion: values.fusion as FusionLevel | undefined },
        views: () => [views[0].alias(), views[1].alias()],
        group,
      })
      let taken = 0
      // What a step observes is read once, at the end: reading waits for the device.
      let last: ReturnType<typeof trainer.step> | undefined
      const times = timeSteps(device, steps, () => void (last = trainer.step(taken++, 0.03)), watch)
      const loss = method.describe(last!.readings, taken).loss!
      if (!Number.isFinite(loss)) fail('NUMERIC', `the loss of batch ${batch} is ${loss} after ${taken} steps on ${device}`)
      const row: StepRow = { batch, ...times, loss, launches: trainer.graph.plan?.launches, level: tuned?.fusion }
      if (values.rows !== undefined && group.rank === 0)
        appendRow(values.rows, { flags: argv.join(' '), capability: process.env.DENSECL_CAPABILITY, ...row })
      if (group.rank === 0) onRow(row)
      trainer.dispose()
      for (const part of [sgd, method, ...views]) part.dispose()
      native.trimMemory(device)
    }
  }
  inGroup(values.group ?? 'alone', (group) => withDevice(device, () => run(group)))
}
