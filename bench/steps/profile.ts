/**
 * Where a step's time goes, by native op: profile.js takes the flags of densecl.js, or the word detection or segmentation and those of
 * detection.js or segmentation.js, runs the steps op by op and prints a table for each size of --batch: calls and milliseconds of one
 * step, without preparing and warming up. Its last line is all that passed on the device, with what lies between two ops.
 */
import { parseArgs } from 'node:util'

import { native, observe } from '../../src/tensor/native.js'
import { runDetectionSteps } from './detectionSteps.js'
import { runSegmentationSteps } from './segmentationSteps.js'
import { runSteps } from './steps.js'

const others: Record<string, typeof runSteps> = { detection: runDetectionSteps, segmentation: runSegmentationSteps }
const other = others[process.argv[2] ?? '']
const argv = process.argv.slice(other === undefined ? 2 : 3)
const { values } = parseArgs({ args: argv, options: { device: { type: 'string', default: 'cpu' } }, strict: false })
const device = String(values.device)
let marks: { name: string; from: number; to: number }[] = []
let table: string[] = []

function summarise(steps: number): void {
  delete observe.op
  const spent = new Map<string, { milliseconds: number; calls: number }>()
  for (const { name, from, to } of marks) {
    const row = spent.get(name) ?? { milliseconds: 0, calls: 0 }
    row.milliseconds += native.elapsed(device, from, to) / steps
    row.calls += 1 / steps
    spent.set(name, row)
  }
  const total = [...spent.values()].reduce((sum, { milliseconds }) => sum + milliseconds, 0)
  const line = (name: string, calls: number, milliseconds: number): string =>
    `${name.padEnd(26)} ${calls.toFixed(0).padStart(6)} calls ${milliseconds.toFixed(3).padStart(10)} ` +
    `ms ${((100 * milliseconds) / total).toFixed(1).padStart(5)} %`
  table = [
    ...[...spent]
      .sort((a, b) => b[1].milliseconds - a[1].milliseconds)
      .map(([name, { milliseconds, calls }]) => line(name, calls, milliseconds)),
    line(
      'all',
      [...spent.values()].reduce((sum, { calls }) => sum + calls, 0),
      total,
    ),
    line('from first to last', 0, native.elapsed(device, marks[0]!.from, marks.at(-1)!.to) / steps),
  ]
}

const run = other ?? runSteps
run(
  other === undefined ? [...argv, '--graph', 'false'] : argv, // a replayed step has no ops to mark
  ({ batch, run_seconds: seconds }) => {
    console.log(`a step of batch ${batch}: ${(1000 * seconds).toFixed(3)} ms without marks; by native op:`)
    for (const line of table) console.log(line)
  },
  {
    onMeasured() {
      marks = []
      // Marks lie in the device's own work: an op is timed where it runs, not where it is called.
      observe.op = (name, run) => {
        const from = native.recordEvent(device)
        run()
        marks.push({ name, from, to: native.recordEvent(device) })
      }
    },
    onDone: summarise,
  },
)
