/**
 * SimSiam (Chen & He, Exploring Simple Siamese Representation Learning, arXiv:2011.10566) as a method of one's own. The module exports
 * it by default, so the commands can be told of it:
 *
 *   densecl pretrain --method dist/examples/simsiam/method.js --preset simsiam-quick --out runs/simsiam
 *
 * Letters: N images, C backbone channels, D embedding dimension.
 */
import {
  type BuiltMethod,
  type ConfigOf,
  defineMethod,
  differentiate,
  embeddingSpread,
  type MethodParts,
  type Readings,
  type StepResult,
  type Views,
} from 'densecl'
import {
  adaptiveAvgPool2d,
  add,
  type Backbone,
  BatchNorm2d,
  type Build,
  disposeState,
  frameworkDefault,
  type GradientReady,
  l2Normalize,
  Linear,
  mean,
  mul,
  noGrad,
  type NormMode,
  Random,
  reshape,
  scale,
  scope,
  type State,
  stateOf,
  sum,
  type Tensor,
} from 'densecl/engine'
import { z } from 'zod'

const count = z.int().min(1)
const options = {
  projection: count.default(2048).describe('embedding dimension, the width of the projector'),
  predictorHidden: count.default(512).describe("width of the predictor's hidden layer"),
} as const

/** Linear layers, each with batch norm and ReLU, but for the last: that has no ReLU, and batch norm only where it is asked for. */
class Mlp {
  readonly #linears: Linear[]
  readonly #norms: BatchNorm2d[]

  constructor(build: Build, widths: readonly number[], lastNorm: boolean) {
    this.#linears = widths.slice(1).map((to, i) => new Linear(build, widths[i]!, to, frameworkDefault(), frameworkDefault(widths[i])))
    this.#norms = widths.slice(1, lastNorm ? undefined : -1).map((to) => new BatchNorm2d(build, to))
  }

  forward(x: Tensor, mode: NormMode): Tensor {
    const last = this.#linears.length - 1
    return this.#linears.reduce((input, linear, i) => {
      const y = linear.forward(input)
      const [n, channels] = y.shape as [number, number]
      const norm = this.#norms[i]
      return norm === undefined ? y : reshape(norm.forward(reshape(y, [n, 1, 1, channels]), mode, { relu: i < last }), [n, channels])
    }, x)
  }

  state(): State {
    return stateOf({ linears: this.#linears, norms: this.#norms })
  }
}

/** The mean over rows of cos(p, z), with z [N, D] as a constant: the stop-gradient. */
export function similarity(p: Tensor, z: Tensor): Tensor {
  const target = noGrad(() => l2Normalize(z))
  return mean(sum(mul(l2Normalize(p), target), { axes: -1, dtype: 'f32' }))
}

type Observed = Record<'loss' | 'z', Tensor>

class SimSiam implements BuiltMethod<Observed> {
  readonly backbone: Backbone
  readonly #projector: Mlp
  readonly #predictor: Mlp
  readonly #config: ConfigOf<typeof options>

  constructor(config: ConfigOf<typeof options>, { backbone, compute }: MethodParts) {
    const build = { random: new Random(config.seed, 1), dtype: 'f32', compute } as const
    const { projection: d, predictorHidden } = config
    this.#config = config
    this.backbone = backbone(build)
    this.#projector = new Mlp(build, [this.backbone.channels, d, d, d], true)
    this.#predictor = new Mlp(build, [d, predictorHidden, d], false)
  }

  introduce(): string[] {
    const { projection, predictorHidden } = this.#config
    return [
      `method  SimSiam, projector of ${projection}, predictor of ${predictorHidden}: a loss of -1 is agreement, spread near 0 is collapse`,
    ]
  }

  state(): State {
    return stateOf({ backbone: this.backbone, projector: this.#projector, predictor: this.#predictor })
  }

  trained(): State {
    return this.state()
  }

  /** L = -cos(p1, stop(z2)) / 2 - cos(p2, stop(z1)) / 2, of embeddings z = projector(backbone(x)) and p = predictor(z) [N, D] */
  step(views: Views, ready?: GradientReady): StepResult<Observed> {
    const mode = { train: true, groups: this.#config.normGroups ?? 1 } as const
    const embed = (view: Tensor) =>
      scope(() => {
        const pooled = adaptiveAvgPool2d(this.backbone.forward(view, mode), 1) // [N, 1, 1, C]
        const z = this.#projector.forward(reshape(pooled, [pooled.shape[0]!, this.backbone.channels]), mode)
        return { z, p: this.#predictor.forward(z, mode) }
      })
    const forward = (): Observed => {
      const [one, two] = [embed(views[0]), embed(views[1])]
      const both = add(similarity(one.p, two.z), similarity(two.p, one.z))
      return { loss: scale(both, -0.5), z: noGrad(() => l2Normalize(one.z)) }
    }
    return differentiate(this.trained(), forward, ready)
  }

  describe({ loss, z }: Readings<Observed>): Record<string, number> {
    return { loss: loss.values[0]!, spread: embeddingSpread(z.values, z.shape[1]!) }
  }

  dispose(): void {
    disposeState(this.state())
  }
}

export default defineMethod({
  name: 'simsiam',
  describe: 'SimSiam (arXiv:2011.10566): two views predict each other, without negatives',
  options,
  // A mean over images, none of which is compared with another.
  distributed: true,
  presets: {
    'simsiam-quick': {
      describe: 'two minutes on two cores on the built-in scenes',
      config: {
        data: 'scenes:2048',
        depth: 18,
        baseChannels: 16,
        imageSize: 48,
        batchSize: 128,
        projection: 256,
        predictorHidden: 64,
        lr: 0.05,
        warmupSteps: 50,
        scheduleBy: 'step',
        cropScale: [0.4, 1],
        blur: 0,
        grayscale: 0.5,
        hue: 0.5,
        epochs: 40,
        knnEvery: 10,
        knnImages: 2048,
      },
    },
  },
  build: (config, parts) => new SimSiam(config, parts),
  logLine: ({ spread }) => ({ health: `spread ${spread!.toFixed(2)}` }),
  collapse: {
    key: 'spread',
    least: 0.02,
    means: 'all embeddings have been the same vector',
    remedy: 'a lower --lr, or a larger --predictor-hidden',
  },
  charts: [
    { title: 'Loss', yLabel: 'negative cosine', curves: [{ name: 'loss', key: 'loss' }] },
    { title: 'Spread of embeddings', yLabel: '1 sphere, 0 collapse', curves: [{ name: 'spread', key: 'spread' }] },
  ],
})
