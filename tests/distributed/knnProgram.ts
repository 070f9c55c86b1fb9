/** Each rank of knn.test.ts: what kNN says of a network that nothing was taught, printed by every rank. */
import { openSource } from '../../src/data/sources.js'
import { leaveTogether, openGroup } from '../../src/distributed/open.js'
import { knnAccuracy } from '../../src/eval/knn.js'
import { ResNet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'

const group = openGroup()
leaveTogether(group)
const backbone = new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 4 })
// Numbers that the ranks cannot share equally; of the second pair one rank has none.
for (const [bank, queries] of [
  [161, 71],
  [21, 1],
] as const) {
  const [known, unknown] = [await openSource(`scenes:${bank}`), await openSource(`scenes:${queries}`, { split: 'val' })]
  const share = await knnAccuracy(backbone, known.items, unknown.items, { imageSize: 32, k: 5, workers: 1 }, group)
  console.log(`rank ${group.rank}: ${share * queries} of ${queries}`)
}
