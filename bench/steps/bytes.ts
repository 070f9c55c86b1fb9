/**
 * The bytes that a step's ops pass through device memory at each level of fusion, counted on the calls of a step that is not
 * computed: every tensor of a call once for each pass over it. From two small batches to one of 256, in which
 * all but the weights grows with the batch. Needs the addon of build:simt, whose tensors are those of a GPU. Usage: bytes.js [file]
 */
import { DenseCL } from '../../src/densecl/model.js'
import { fusion, type FusionLevel } from '../../src/ops/fusion.js'
import { Sgd } from '../../src/optim/sgd.js'
import { native, observe, type OpTensors } from '../../src/tensor/native.js'
import { Tensor, withDevice } from '../../src/tensor/tensor.js'
import { Trainer } from '../../src/train/trainer.js'
import { environmentRow, writeResult } from '../result.js'

const device = 'simt'
const [image, queue, hidden, wanted] = [224, 65536, 2048, 256]

/** The tensors of a call that no pass reads: a norm that has its sums and leaves the rest to others. */
function unread(name: string, tensors: OpTensors): number[] {
  if (name === 'batchNormTrain' && tensors[0] === undefined && tensors[9] !== undefined) return [5]
  return name === 'batchNormBackward' && tensors[0] === undefined && tensors[12] !== undefined ? [4, 5] : []
}

/** The tensors of a call that a second pass of the op reads (or writes). */
function again(name: string, tensors: OpTensors): number[] {
  if (name === 'batchNormTrain') return tensors[9] === undefined ? [5] : [] // without statistics of the convolution x is read for them
  // Without sums a pass makes them; the pass that combines then reads dz where it was written.
  if (name === 'batchNormBackward') return tensors[12] !== undefined || tensors[0] === undefined ? [] : tensors[3] === undefined ? [4, 5, 6] : [3, 5]
  if (name !== 'sgd') return []
  return tensors.flatMap((_, i) => ([0, 2, 4].includes((i - 2) % 6) && i >= 2 ? [i] : [])) // parameters, momenta and averages are read and written
}

/** Gigabytes of each native op in the second step, when the key encoder is moved by the optimiser. */
function counted(level: FusionLevel, batch: number): Map<string, number> {
  fusion.level = level
  const model = withDevice(device, () => new DenseCL({ backbone: { depth: 50 }, neck: { hidden, featDim: 128 }, queueLength: queue, seed: 0, compute: 'bf16' }))
  const sgd = withDevice(device, () => new Sgd(model.parameters(), { momentum: 0.9, weightDecay: 1e-4 }, model.query.state().copies))
  const view = (): Tensor => Tensor.empty([batch, image, image, 3], 'bf16', device)
  const trainer = new Trainer(model, sgd, { temperature: 0.2, keyMomentum: 0.999, normGroups: 1, graph: false, views: () => ({ query: view(), key: view() }) })
  const bytes = new Map<string, number>()
  observe.op = (name, _, tensors) => {
    const of = (indices: number[]): number => indices.reduce((total, i) => total + (tensors[i]?.bytes ?? 0), 0)
    const once = of([...tensors.keys()].filter((i) => !unread(name, tensors).includes(i)))
    bytes.set(name, (bytes.get(name) ?? 0) + (once + of(again(name, tensors))) / 1e9)
  }
  const inputs = { lr: 0.03, denseWeight: 0.5 }
  trainer.step(inputs)
  bytes.clear()
  trainer.step(inputs)
  delete observe.op
  trainer.dispose()
  sgd.dispose()
  model.dispose()
  native.trimMemory(device)
  return bytes
}

const levels: FusionLevel[] = ['pointwise', 'epilogue', 'full']
const columns = levels.map((level) => {
  const [small, large] = [counted(level, 1), counted(level, 2)]
  return new Map([...large].map(([name, bytes]) => [name, bytes + (wanted - 2) * (bytes - (small.get(name) ?? 0))]))
})
const names = [...new Set(columns.flatMap((column) => [...column.keys()]))]
const row = (name: string, values: number[]): string => `${name.padEnd(24)}${values.map((value) => value.toFixed(2).padStart(11)).join('')}`
console.log(`${`GB, batch ${wanted}`.padEnd(24)}${levels.map((level) => level.padStart(11)).join('')}`)
for (const name of names.sort((a, b) => (columns[0]!.get(b) ?? 0) - (columns[0]!.get(a) ?? 0))) console.log(row(name, columns.map((column) => column.get(name) ?? 0)))
const [file] = process.argv.slice(2)
if (file !== undefined) {
  const gigabytes = Object.fromEntries(levels.map((level, i) => [level, Object.fromEntries([...columns[i]!].map(([name, value]) => [name, Number(value.toFixed(3))]))]))
  writeResult(file, { ...environmentRow(), bench: 'bytes', how: 'counted on the calls of a step, not measured', step: `ResNet-50, ${image} px, batch ${wanted}, queue ${queue}, bf16`, gigabytes })
}
console.log(row('all', columns.map((column) => [...column.values()].reduce((sum, bytes) => sum + bytes, 0))))
