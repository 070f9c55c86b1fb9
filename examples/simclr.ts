// SimCLR (Chen et al., arXiv:2002.05709): its loss NT-Xent written with ops, and a small network trained by it without labels:
//   node dist/examples/simclr.js [IMAGES]
import { epochBatches, Loader, openSource } from 'densecl/data'
import {
  adaptiveAvgPool2d,
  concat,
  crossEntropy,
  disposeState,
  div,
  equal,
  l2Normalize,
  Lars,
  Linear,
  matmul,
  Random,
  relu,
  reshape,
  ResNet,
  scope,
  stateOf,
  Tensor,
  training,
  valueAndGradients,
  where,
} from 'densecl/engine'

const [path = 'scenes:640'] = process.argv.slice(2)
const [imageSize, batchSize, epochs] = [32, 64, 4]

/** Each of the 2N embeddings must find the other view of its image among all others: a softmax of cosine similarities. */
function ntXent(a: Tensor, b: Tensor, temperature: number): Tensor {
  const z = l2Normalize(concat([a, b], 0)) // [2N, D]
  const similarities = div(matmul(z, z, { transposeB: true }), temperature) // [2N, 2N]
  const rows = Array.from({ length: z.shape[0]! }, (_, i) => i)
  const itself = equal(Tensor.from(rows.map((i) => [i])), Tensor.from(rows))
  const partners = rows.map((i) => (i + a.shape[0]!) % rows.length)
  return crossEntropy(where(itself, -1e9, similarities), Tensor.from(partners, 'i32'))
}

const build = { random: new Random(1), dtype: 'f32' } as const
const backbone = new ResNet(build, { depth: 18, baseChannels: 8 })
const [hidden, projection] = [new Linear(build, backbone.channels, 64), new Linear(build, 64, 32)]
const embed = (images: Tensor): Tensor => {
  const map = adaptiveAvgPool2d(backbone.forward(backbone.input(images), training), 1)
  return projection.forward(relu(hidden.forward(reshape(map, [images.shape[0]!, backbone.channels]))))
}

const state = stateOf({ backbone, hidden, projection })
const optimizer = new Lars(state.parameters)
const { items } = await openSource(path)
const loader = new Loader({ items, imageSize, batchSize, views: 'augmented' })
console.log(`guessing costs ln(2N - 1) = ${Math.log(2 * batchSize - 1).toFixed(3)}`)
for await (const batch of loader.batches(epochBatches({ count: items.length, batchSize, until: epochs }))) {
  scope(() => {
    const [a, b] = batch.views() as [Tensor, Tensor]
    const { value, gradients } = valueAndGradients(() => ntXent(embed(a), embed(b), 0.2), state.parameters.values())
    optimizer.step(gradients, 1)
    console.log(`epoch ${batch.epoch + 1}/${epochs}  loss ${value.item().toFixed(3)}`)
  })
}
await loader.close()
optimizer.dispose()
disposeState(state)
