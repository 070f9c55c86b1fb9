/** A segmenting network in training: what is built on a backbone, and one update of it. */
import { Tape } from '../autograd/tape.js'
import type { Backbone } from '../nn/backbone.js'
import { Fcn } from '../nn/fcn.js'
import { allTensors } from '../nn/module.js'
import { Sgd } from '../optim/sgd.js'
import type { Random } from '../tensor/random.js'
import { type Tensor, withDevice } from '../tensor/tensor.js'
import { segmentationTraining } from './segmentationProtocols.js'

/** A network and its optimiser. The backbone is part of both, and belongs to the caller. */
export interface Segmenter {
  model: Fcn
  sgd: Sgd
}

/** A network for so many classes on a backbone, whose heads `random` draws, and its optimiser. */
export function buildSegmenter(
  backbone: Backbone,
  { classes, alignCorners, random }: { classes: number; alignCorners: boolean; random: Random },
): Segmenter {
  return withDevice(backbone.device, () => {
    const model = new Fcn({ random, dtype: 'f32' }, backbone, { classes, alignCorners })
    return { model, sgd: new Sgd(model.state().parameters, segmentationTraining) }
  })
}

/** Frees what a network has beside its backbone. */
export function disposeHeads(model: Fcn): void {
  for (const [name, tensor] of allTensors(model.state())) if (!name.startsWith('backbone.')) tensor.dispose()
}

/** Frees the heads and the optimiser. */
export function disposeSegmenter({ model, sgd }: Segmenter): void {
  disposeHeads(model)
  sgd.dispose()
}

/**
 * One update by images [N, H, W, 3] and labels i32 [N, H, W] within a scope, of which the share `labelled` has one; the losses of both
 * heads. `draw` names what dropout draws.
 */
export function updateSegmenter(
  { model, sgd }: Segmenter,
  { x, labels, labelled, draw, rate }: { x: Tensor; labels: Tensor; labelled: number; draw: number; rate: number },
): { main: number; auxiliary: number } {
  const parameters = [...model.state().parameters.values()]
  const tape = new Tape().watch(parameters)
  const { total, main, auxiliary } = tape.record(() => model.loss(model.backbone.input(x), labels, labelled, draw))
  sgd.step(tape.backward(total, parameters), rate)
  return { main: main.item(), auxiliary: auxiliary.item() }
}
