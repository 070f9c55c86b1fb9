// The loss of BYOL and SimSiam, negative cosine similarity with a gradient on one side only, and a predictor that learns by it:
//   node dist/examples/negativeCosine.js
import {
  Adam,
  disposeState,
  l2Normalize,
  Linear,
  mean,
  mul,
  neg,
  noGrad,
  Random,
  relu,
  scope,
  stateOf,
  sum,
  Tensor,
  valueAndGradients,
} from 'densecl/engine'

/** Of p [N, D] and z [N, D], -1 at best; z is a constant to the gradient. */
function negativeCosine(p: Tensor, z: Tensor): Tensor {
  const target = noGrad(() => l2Normalize(z))
  return neg(mean(sum(mul(l2Normalize(p), target), { axes: -1 })))
}

// Targets are a rotation of the inputs: what a predictor of two layers can learn.
const random = new Random(1)
const points = Array.from({ length: 256 }, () => [random.normal(), random.normal(), random.normal()] as const)
const inputs = Tensor.from(points)
const targets = Tensor.from(points.map(([x, y, z]) => [y, z, x]))

const build = { random, dtype: 'f32' } as const
const [hidden, output] = [new Linear(build, 3, 32), new Linear(build, 32, 3)]
const state = stateOf({ hidden, output })
const optimizer = new Adam(state.parameters)
for (let step = 0; step <= 200; ++step) {
  scope(() => {
    const loss = (): Tensor => negativeCosine(output.forward(relu(hidden.forward(inputs))), targets)
    const { value, gradients } = valueAndGradients(loss, state.parameters.values())
    optimizer.step(gradients, 0.01)
    if (step % 50 === 0) console.log(`step ${step}  loss ${value.item().toFixed(4)}`)
  })
}
optimizer.dispose()
disposeState(state)
for (const tensor of [inputs, targets]) tensor.dispose()
