// Trains a small convolutional network to tell the classes of labelled images apart, and says how many of others it gets right:
//   node dist/examples/classifier.js [TRAIN] [VAL]      folders of class folders, or any other source; scenes are built in
import { epochBatches, Loader, openSource, orderedBatches } from 'densecl/data'
import {
  adaptiveAvgPool2d,
  AdamW,
  argmax,
  BatchNorm2d,
  type Build,
  Conv2d,
  convNorm,
  crossEntropy,
  disposeState,
  evaluation,
  Linear,
  maxPool2d,
  type NormMode,
  Random,
  reshape,
  scope,
  type State,
  stateOf,
  Tensor,
  training,
  valueAndGradients,
} from 'densecl/engine'

const [trainPath = 'scenes:1500', valPath = 'scenes:300'] = process.argv.slice(2)
const [imageSize, batchSize, epochs] = [48, 50, 6]

class Classifier {
  readonly convs: Conv2d[]
  readonly norms: BatchNorm2d[]
  readonly head: Linear

  constructor(build: Build, classes: number, widths = [16, 32, 64]) {
    this.convs = widths.map((width, i) => new Conv2d(build, widths[i - 1] ?? 3, width, 3, { padding: 1 }))
    this.norms = widths.map((width) => new BatchNorm2d(build, width))
    this.head = new Linear(build, widths.at(-1)!, classes)
  }

  /** Logits [N, classes] of images [N, H, W, 3]. */
  forward(x: Tensor, mode: NormMode): Tensor {
    for (const [i, conv] of this.convs.entries()) x = maxPool2d(convNorm(conv, this.norms[i]!, x, mode, { relu: true }), { kernel: 2 })
    const pooled = adaptiveAvgPool2d(x, 1)
    return this.head.forward(reshape(pooled, [pooled.shape[0]!, pooled.shape[3]!]))
  }

  state(): State {
    return stateOf({ convs: this.convs, norms: this.norms, head: this.head })
  }
}

const { items, classes = [] } = await openSource(trainPath)
const val = await openSource(valPath, { split: 'val' })
const network = new Classifier({ random: new Random(1), dtype: 'f32' }, classes.length)
const { parameters } = network.state()
const optimizer = new AdamW(parameters, { weightDecay: 0.05 })

const loader = new Loader({ items, imageSize, batchSize, views: 'shifted' })
let losses: number[] = []
for await (const batch of loader.batches(epochBatches({ count: items.length, batchSize, until: epochs }))) {
  scope(() => {
    const [images] = batch.views()
    const target = Tensor.from(batch.labels, 'i32')
    const { value, gradients } = valueAndGradients(() => crossEntropy(network.forward(images!, training), target), parameters.values())
    optimizer.step(gradients, 0.003)
    losses.push(value.item())
  })
  if (losses.length === Math.floor(items.length / batchSize)) {
    console.log(`epoch ${batch.epoch + 1}/${epochs}  loss ${(losses.reduce((sum, loss) => sum + loss) / losses.length).toFixed(3)}`)
    losses = []
  }
}
await loader.close()

let right = 0
const valLoader = new Loader({ items: val.items, imageSize, batchSize, views: 'centre' })
for await (const batch of valLoader.batches(orderedBatches(val.items.length, batchSize))) {
  scope(() => {
    const predicted = argmax(network.forward(batch.views()[0]!, evaluation)).data()
    right += batch.labels.filter((label, i) => label === predicted[i]).length
  })
}
await valLoader.close()
const [accuracy, chance] = [(100 * right) / val.items.length, 100 / classes.length]
console.log(`${accuracy.toFixed(1)} % of ${val.items.length} other images; chance is ${chance.toFixed(1)} %`)

optimizer.dispose()
disposeState(network.state())
