/** Each rank of run.test.ts: `OUT STEPS|all new|resume` trains into OUT, or continues there, and is told to stop before step STEPS + 1. */
import { leaveTogether, openGroup } from '../../src/distributed/open.js'
import { resolveConfig } from '../../src/methods/index.js'
import { settingsOf } from '../../src/run/options.js'
import { pretrain } from '../../src/train/pretrain.js'

const [out, steps, how, more = '{}'] = process.argv.slice(2)
const group = openGroup(process.env.NCCL_STANDIN_DEVICE)
leaveTogether(group)

// A small learning rate, groups of 16 images and a grid of one position. In f32 rounding alone tips a ReLU, or a match of positions nearly
// alike, within 20 larger steps, also in one process whose rate is changed by 1e-7. f64 has no such choice at 0.1 (width.test.ts).
const settings = {
  data: 'scenes:128',
  imageSize: 64,
  batchSize: 64,
  normGroups: 4,
  numGrid: 1,
  epochs: 5,
  depth: 18,
  baseChannels: 8,
  hidden: 32,
  featDim: 32,
  queueLength: 128,
  lr: 1e-6,
  logEvery: 1,
  knnEvery: 2,
  knnImages: 20,
  knnData: 'scenes:20',
  workers: 1,
  threads: 1,
  checkpointEvery: 1,
  ...(JSON.parse(more) as Record<string, unknown>),
}
let asked = 0
const result = await pretrain({
  config: resolveConfig(settingsOf(settings, 'test')),
  out: out!,
  resume: how === 'resume',
  group,
  pictures: false,
  // One rank is told: all stop.
  interrupted: () => group.rank === group.size - 1 && asked++ >= Number(steps === 'all' ? Infinity : steps),
})
console.log(`rank ${group.rank} ${result.interrupted ? 'interrupted' : 'done'} at ${result.globalStep}`)
