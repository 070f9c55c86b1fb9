/**
 * Each rank of normAcross.test.ts: batch norms of maps that all ranks can make, of which it has some images, and the same of all of them by
 * itself. Says how far the two are apart; the argument is a mistake to make, for the test to notice.
 */
import { Tape } from '../../src/autograd/tape.js'
import { Group } from '../../src/distributed/group.js'
import { leaveTogether, openGroup } from '../../src/distributed/open.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import { type FloatDType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { Random } from '../../src/tensor/random.js'
import { mul } from '../../src/ops/arithmetic.js'
import { sum } from '../../src/ops/reduce.js'

const wrong = process.argv[2]
const group = openGroup(process.env.NCCL_STANDIN_DEVICE)
leaveTogether(group)
const { rank, size } = group
const dtype: FloatDType = group.device === 'cpu' ? 'f64' : 'f32'

/** Of so many channels and pixels, the images of each rank, and what is asked of the norm. */
const cases = [
  { channels: 5, side: 4, images: [2, 2, 2, 2], momentum: 0.1, relu: false, residual: false },
  { channels: 8, side: 3, images: [4, 1, 2, 3], momentum: 0.1, relu: true, residual: true },
  ...(wrong === 'alone' ? [] : [{ channels: 3, side: 1, images: [1, 3, 1, 2], momentum: 1, relu: true, residual: false }]),
  { channels: 4, side: 5, images: [1, 2, 5, 1], momentum: 0.3, relu: false, residual: true },
]

type Result = Record<string, Tensor>

function normed({ channels, side, images, momentum, relu, residual }: (typeof cases)[number], at: number, across: Group): Result {
  const counts = images.slice(0, size)
  const all = counts.reduce((a, b) => a + b)
  const first = across.size === 1 ? 0 : counts.slice(0, rank).reduce((a, b) => a + b, 0)
  const own = across.size === 1 ? all : counts[rank]!
  const random = new Random(7, at)
  /** Far from 0, where sums of squares would cancel. */
  const maps = (mean: number): Tensor => {
    const values = Float64Array.from({ length: all * side * side * channels }, () => mean + random.normal())
    const image = side * side * channels
    return Tensor.from(values.subarray(first * image, (first + own) * image), [own, side, side, channels], dtype)
  }
  const vector = (mean: number): Tensor =>
    Tensor.from(
      Float64Array.from({ length: channels }, () => mean + random.uniform(0, 1)),
      dtype,
    )
  const [x, shortcut, dy] = [maps(dtype === 'f64' ? 1000 : 3), maps(0), maps(0)]
  const [weight, bias, mean, variance] = [vector(1), vector(0), vector(0), vector(1)]
  const options = { train: true, momentum, relu, across: wrong === 'alone' && size > 1 ? Group.single : across }
  const watched = residual ? [x, weight, bias, shortcut] : [x, weight, bias]
  const tape = new Tape().watch(watched)
  const { y, loss } = tape.record(() => {
    const made = batchNorm(x, weight, bias, mean, variance, { ...options, ...(residual ? { residual: shortcut } : {}) })
    return { y: made, loss: sum(mul(made, dy)) }
  })
  const [dx, dweight, dbias, dresidual] = tape.backward(loss, watched) as [Tensor, Tensor, Tensor, Tensor?]
  // What each process has of its own rows.
  if (across.size > 1 && wrong !== 'ownSums') group.allReduce([dweight, dbias], 'sum')
  return { y, dx, dweight, dbias, mean, variance, ...(dresidual === undefined ? {} : { dresidual }) }
}

/** The largest difference over the largest value; of maps a rank has its images alone. */
function apart(mine: Result, whole: Result, images: readonly number[]): number {
  const share = images.slice(0, size)
  const before = share.slice(0, rank).reduce((a, b) => a + b, 0) / share.reduce((a, b) => a + b)
  return Math.max(
    ...Object.entries(mine).map(([name, tensor]) => {
      const [own, all] = [Float64Array.from(tensor.data()), Float64Array.from(whole[name]!.data())]
      const first = own.length === all.length ? 0 : Math.round(before * all.length)
      const largest = all.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
      return own.reduce((most, value, i) => Math.max(most, Math.abs(value - all[first + i]!)), 0) / largest
    }),
  )
}

withDevice(group.device, () =>
  scope(() => {
    const worst = cases.map((each, at) => apart(normed(each, at, group), normed(each, at, Group.single), each.images))
    console.log(`rank ${rank}: ${Math.max(...worst)}`)
  }),
)
