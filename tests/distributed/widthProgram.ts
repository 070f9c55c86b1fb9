/**
 * Each rank of width.test.ts: some steps of DenseCL in f64 on images that all ranks can make, of which it takes its own. Rank 0 writes the
 * losses and the state to the first argument; the second is `feature` or `geometry`, as --dense-match, and the third a mistake to make, for
 * the test to notice.
 */
import { writeFileSync } from 'node:fs'

import type { Group } from '../../src/distributed/group.js'
import { leaveTogether, openGroup } from '../../src/distributed/open.js'
import { SharedGradients } from '../../src/distributed/buckets.js'
import { keyOrder, ownExchange, ownOrder } from '../../src/distributed/keyOrder.js'
import { DenseCL } from '../../src/methods/densecl/model.js'
import { preparedStep } from '../../src/methods/densecl/step.js'
import { allTensors } from '../../src/nn/module.js'
import { resnet } from '../../src/nn/resnet.js'
import { Sgd } from '../../src/optim/sgd.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { agreeOnState } from '../../src/train/share.js'

const [out, match, wrong] = process.argv.slice(2)
const group = openGroup()
leaveTogether(group)

if (wrong === 'ownCount') {
  const honest = group.startAllReduce.bind(group)
  group.startAllReduce = (tensors, reduction) => {
    const [first] = tensors
    if (reduction !== 'sum' || tensors.length > 1 || first?.size !== 1) return honest(tensors, reduction)
    first.write(Float64Array.of(first.item() * group.size))
    return { join: () => undefined }
  }
}

const [images, groups, size, steps] = [8, 4, 64, 6]
function view(step: number, which: number, { rank, size: processes }: Group): Tensor {
  const random = new Random(1, step, which)
  const values = Float64Array.from({ length: images * size * size * 3 }, () => random.normal())
  const own = values.length / processes
  return Tensor.from(values.subarray(rank * own, (rank + 1) * own), [images / processes, size, size, 3], 'f64')
}

/** Partners as crops might give them: of some images none, of others all, so that processes have unequal numbers. */
function partners(step: number, { rank, size: processes }: Group): { index: Int32Array; images: number } {
  const positions = (size / 32) ** 2
  const random = new Random(1, 7, step)
  const all = Array.from({ length: images }, (_, n) =>
    Array.from({ length: positions }, () => (random.below(images) < n ? -1 : random.below(positions))),
  )
  // None at all in one step, in another none of the first image's process when there are several.
  if (step === 1) for (const row of all) row.fill(-1)
  if (step === 2) for (const row of all.slice(0, images / 2)) row.fill(-1)
  const own = images / processes
  return { index: Int32Array.from(all.slice(rank * own, (rank + 1) * own).flat()), images: own }
}

const model = new DenseCL({
  backbone: resnet({ depth: 18, baseChannels: 4 }),
  neck: { hidden: 8, featDim: 8 },
  queueLength: 32,
  seed: wrong === 'ownSeed' ? 1 + group.rank : 1,
  dtype: 'f64',
  ...(wrong === 'ownQueue' ? {} : { group }),
})
const { rank, size: processes } = group
const batch = { images, groups }
const optimizer = new Sgd(model.parameters(), { momentum: 0.9, weightDecay: 1e-4 })
// Many small buckets, so that several are on their way.
const sharedGradients = new SharedGradients(group, 4096)
const losses: number[] = []
for (let step = 0; step < steps; ++step) {
  const draw = (of: number, count: number): Int32Array => new Random(1, 19, step, of).permutation(count)
  const shared = processes > 1 && wrong !== 'noExchange' && wrong !== 'ownQueue'
  model.prepare({
    denseWeight: 0.5,
    keyOrder: processes === 1 ? keyOrder(batch, draw) : ownOrder(batch, rank, processes, draw),
    ...(shared ? { keyExchange: ownExchange(batch, rank, processes) } : {}),
    ...(match === 'geometry' ? { inImage: 0.5, partners: partners(step, group) } : {}),
  })
  scope(() => {
    const constants = {
      temperature: 0.2,
      keyMomentum: 0.9,
      normGroups: groups / processes,
      ...(match === 'geometry' ? { denseInImage: 0.5 } : {}),
    }
    const result = sharedGradients.average(
      (ready) => preparedStep(model, [view(step, 0, group), view(step, 1, group)], constants, ready),
      (made) => ({ gradients: made.gradients, observed: [made.observed.loss] }),
    )
    if (wrong === 'sum') for (const gradient of result.gradients) gradient.write(gradient.data().map((value) => processes * value))
    losses.push(result.observed.loss.item())
    optimizer.step([...result.gradients], 0.1, { emaTarget: model.emaTarget(0.9) })
    result.dispose()
  })
}
if (wrong !== 'ownStatistics') agreeOnState(model.state(), group)
if (rank === 0) {
  const state = Object.fromEntries([...allTensors(model.state())].map(([name, tensor]) => [name, [...tensor.data()]]))
  writeFileSync(out!, JSON.stringify({ losses, state }))
}
optimizer.dispose()
model.dispose()
