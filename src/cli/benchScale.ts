/** `densecl bench scale`: what a training step takes on many GPUs that are not here, with each of its collectives. */
import { gpus } from '../bench/model.js'
import { environmentRow, writeResult } from '../bench/result.js'
import { simulatedDevice } from '../bench/step/calls.js'
import { Machine } from '../bench/step/machine.js'
import { costsOf } from '../bench/step/predict.js'
import { type CollectiveCall, sharedStep } from '../bench/step/processes.js'
import { type Cargo, type Network, networks, scaledStep, type ScaledStep } from '../bench/step/scale.js'
import { type AddBench, batchOf } from './benchShared.js'
import { withSimulation } from './benchStep.js'
import { examples, heedingSignals } from './command.js'

const counts = [1, 8, 64, 512] as const
const queue = 65536
/** Of a batch whose keys the queue has room for. */
const mostImages = queue
/** Images a GPU where --batch says nothing. */
const usualBatches = [32, 256] as const

interface Way {
  network: Network
  gradients: 'f32' | 'bf16'
}

interface ScaleRow extends ScaledStep, Omit<Way, 'network'> {
  gpu: string
  gpus: number
  network: string
  /** Images of a GPU. */
  batch: number
  /** The time of a step on one GPU over that of one among all. */
  efficiency: number
  pairsPerSecond: number
}

/** The code as it is on both networks, and gradients of half the bytes, which it does not send. */
const ways: readonly Way[] = [
  { network: networks.cardPerGpu, gradients: 'f32' },
  { network: networks.cardPerNode, gradients: 'f32' },
  { network: networks.cardPerNode, gradients: 'bf16' },
]

const waysOf = (count: number): readonly Way[] =>
  count === 1 ? ways.slice(0, 1) : count <= networks.cardPerGpu.gpus ? ways.filter(({ network }) => network === networks.cardPerGpu) : ways

function carried(collectives: readonly CollectiveCall[], { gradients }: Way): readonly CollectiveCall[] {
  if (gradients === 'f32') return collectives
  return collectives.map((call) => (call.kind === 'allReduce' ? { ...call, bytes: call.bytes / 2 } : call))
}

/** The rows of a batch of so many images a GPU; none where keys of one step would not fit into the queue. */
function rowsOf(batch: number): ScaleRow[] {
  const fitting = counts.filter((count) => count * batch <= queue)
  const steps = fitting.map((count) => ({ count, ...sharedStep({ level: 'epilogue', queue }, batch, count) }))
  return ['H100', 'H200'].flatMap((gpu) => {
    const machine = new Machine(gpus[gpu]!, 'now')
    const timed = steps.map(({ calls, ...step }) => ({
      ...step,
      times: calls.map((call) => costsOf(machine, call).reduce((sum, { microseconds }) => sum + microseconds, 0)),
    }))
    const alone = timed[0]!.times.reduce((sum, time) => sum + time, 0) / 1e3
    return timed.flatMap(({ count, collectives, times }) =>
      waysOf(count).map((way): ScaleRow => {
        const { network, gradients } = way
        const step = scaledStep(carried(collectives, way), times, count, network)
        const [efficiency, pairsPerSecond] = [alone / step.milliseconds, (1e3 * batch * count) / step.milliseconds]
        return { gpu, gpus: count, network: network.name, batch, gradients, ...step, efficiency, pairsPerSecond }
      }),
    )
  })
}

interface Flags {
  batch?: string
  json?: boolean
  save?: string
}

export const addScale: AddBench = (parent, done) => {
  parent
    .command('scale')
    .description(`what a training step takes on ${counts.join(', ')} GPUs, with each of its collectives, predicted by the model`)
    .option('--batch <images>', `of a GPU; default: ${usualBatches.join(' and ')}`)
    .option('--json', 'print JSON')
    .option('--save <file>', 'write the result as JSON')
    .addHelpText('after', examples([['densecl bench scale --batch 64', 'a step of 64 images a GPU on 1, 8, 64 and 512 GPUs']]))
    .action(heedingSignals(done, (flags: Flags) => done(benchScale(flags))))
}

/** Prints the prediction for a batch of so many images a GPU, or for the usual ones; the exit code. */
function benchScale({ json = false, save, ...flags }: Flags): number {
  const batch = batchOf(flags.batch, mostImages)
  if (simulatedDevice() === undefined) return withSimulation('scale')
  const rows = (batch === undefined ? usualBatches : [batch]).flatMap(rowsOf)
  const result = {
    ...environmentRow(),
    bench: 'scale',
    how: 'model, not measured',
    step: `ResNet-50, 224 px, queue ${queue}, bf16`,
    networks,
    rows,
  }
  console.log(json ? JSON.stringify(result, undefined, 2) : table(rows, result.step))
  if (save !== undefined) writeResult(save, result)
  return 0
}

const cargos: readonly Cargo[] = ['images', 'outputs', 'keys', 'gradients']

const table = (rows: readonly ScaleRow[], step: string): string =>
  [
    `${step}, by the model; milliseconds, in brackets those that nothing hides`,
    [
      'GPUs'.padEnd(9),
      'batch'.padStart(6),
      'network, gradients'.padEnd(24),
      ...cargos.map((cargo) => `${cargo}, MB`.padStart(24)),
      'compute'.padStart(8),
      'step'.padStart(7),
      'efficiency'.padStart(11),
      'pairs/s'.padStart(9),
    ].join(' '),
    ...rows.map(line),
  ].join('\n')

function line({ gpu, gpus: count, batch, network, gradients, collectives, compute, milliseconds, ...row }: ScaleRow): string {
  const carries = cargos.map((cargo) => {
    const sum = collectives.find((found) => found.cargo === cargo)
    if (sum === undefined || count === 1) return ''.padStart(24)
    return `${sum.milliseconds.toFixed(2)} (${sum.exposed.toFixed(2)}) ${sum.megabytes.toFixed(1).padStart(6)}`.padStart(24)
  })
  return [
    `${count} ${gpu}`.padStart(9),
    String(batch).padStart(6),
    (count === 1 ? '' : `${network}, ${gradients}`).padEnd(24),
    ...carries,
    compute.toFixed(2).padStart(8),
    milliseconds.toFixed(2).padStart(7),
    `${(100 * row.efficiency).toFixed(1)} %`.padStart(11),
    row.pairsPerSecond.toFixed(0).padStart(9),
  ].join(' ')
}
