/**
 * The VOC07 SVM benchmark at its full size - 5,011 training and 4,952 test images, 9,216 features, 20 classes, 19 costs, three folds -
 * on features made here: correlated, after a ReLU, with labels that depend on them and on chance. Usage: svm.js [--save FILE]
 */
import { protocolCosts } from '../../src/eval/svm.js'
import { evaluateSvm, vocFeatures } from '../../src/eval/voc07.js'
import { Random } from '../../src/tensor/random.js'
import { linear } from '../../src/ops/linear.js'
import { relu } from '../../src/ops/elementwise.js'
import { native } from '../../src/tensor/native.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { environmentRow, writeResult } from '../../src/bench/result.js'

const [examples, tests, dim, rank, classes] = [5011, 4952, 9216, 300, 20]
const random = new Random(1)
const normal = (count: number): Float32Array => Float32Array.from({ length: count }, () => random.normal())

const basis = Tensor.from(normal(dim * rank), [dim, rank]).keep()
const teachers = Array.from({ length: classes }, () => normal(rank))
const shares = teachers.map((_, c) => 0.03 + 0.02 * c)

/** Features of rank 300 after a ReLU; each class has its share of the images that its teacher scores highest, with noise. */
function made(count: number): { values: Float32Array; dim: number; presence: Map<string, Int8Array> } {
  const latent = normal(count * rank).map((value, i) => value / Math.sqrt(1 + (i % rank)))
  const values = scope(() => relu(linear(Tensor.from(latent, [count, rank]), basis)).data()) as Float32Array
  const presence = teachers.map((teacher, c) => {
    const scores = Float64Array.from(
      { length: count },
      (_, i) => teacher.reduce((sum, value, k) => sum + value * latent[i * rank + k]!, 0) + 0.7 * random.normal(),
    )
    const cut = scores.slice().sort()[Math.floor((1 - shares[c]!) * count)]!
    return [`class ${c}`, Int8Array.from(scores, (score) => Number(score > cut))] as const
  })
  return { values, dim, presence: new Map(presence) }
}

const [train, test] = [made(examples), made(tests)]
basis.dispose()
const resident = (): number => process.memoryUsage().rss / 2 ** 20
const before = resident()
const start = performance.now()
const features = vocFeatures(train, test)
const products = (performance.now() - start) / 1000
let most = resident()
const report = evaluateSvm(features, () => (most = Math.max(most, resident())))
const seconds = (performance.now() - start) / 1000
features.dispose()
const row = {
  bench: 'svm',
  examples,
  tests,
  dim,
  classes,
  costs: protocolCosts.length,
  threads: native.threads(),
  seconds,
  secondsOfProducts: products,
  mebibytesOfFeatures: before,
  mebibytesAtMost: most,
  unconverged: report.unconverged,
  map: report.map,
}
console.log(JSON.stringify(row))
const save = process.argv.indexOf('--save')
if (save >= 0) writeResult(process.argv[save + 1]!, { ...environmentRow(), ...row })
