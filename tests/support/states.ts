/** States of networks that nobody trained. */
import { allTensors, type State } from '../../src/nn/module.js'
import { Random } from '../../src/tensor/random.js'

/** Gives norms parameters and statistics as after training: they do something. */
export function unsettle(state: State): void {
  const random = new Random(8)
  for (const [name, tensor] of allTensors(state))
    if (tensor.shape.length === 1 && tensor.dtype === 'f32')
      tensor.write(
        Float32Array.from({ length: tensor.size }, () => (/var|weight/.test(name) ? random.uniform(0.5, 2) : random.uniform(-0.3, 0.3))),
      )
}
