/** A segmenting network in training: what is built on a backbone, and one update of it. */
import { Tape } from '../autograd/tape.js'
import { SharedGradients } from '../distributed/buckets.js'
import { Group } from '../distributed/group.js'
import { type Backbone, disposeHeads } from '../nn/backbone.js'
import { Fcn } from '../nn/fcn.js'
import { trainingAcross } from '../nn/layers.js'
import { trainable } from '../nn/module.js'
import { Sgd } from '../optim/sgd.js'
import type { Random } from '../tensor/random.js'
import { Tensor, withDevice } from '../tensor/tensor.js'
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
    const model = new Fcn({ random, dtype: 'f32', compute: backbone.compute }, backbone, { classes, alignCorners })
    const { parameters, copies } = model.state()
    return { model, sgd: new Sgd(parameters, segmentationTraining, copies) }
  })
}

/** Frees the heads and the optimiser. */
export function disposeSegmenter({ model, sgd }: Segmenter): void {
  disposeHeads(model)
  sgd.dispose()
}

/**
 * One update by images [N, H, W, 3] and labels i32 [N, H, W] within a scope, of which the share `labelled` has one; the losses of both
 * heads. `draw` names what dropout draws. Processes that share the batch have equal parts of it, and losses are of all of it.
 */
export function updateSegmenter(
  { model, sgd }: Segmenter,
  { x, labels, labelled, draw, rate }: { x: Tensor; labels: Tensor; labelled: number; draw: number; rate: number },
  shared = new SharedGradients(Group.single),
): { main: number; auxiliary: number } {
  const watched = trainable(model.state())
  // Without a labelled pixel there is no mean: any labels do, since they weigh nothing.
  const taught = labelled === 0 ? Tensor.zeros(labels.shape, 'i32', labels.device) : labels
  const { gradients, main, auxiliary } = shared.average(
    (ready) => {
      const tape = new Tape().watch(watched)
      const losses = tape.record(() => model.loss(model.backbone.input(x), taught, labelled, draw, trainingAcross(shared.group)))
      return { gradients: tape.backward(losses.total, watched, undefined, ready), ...losses }
    },
    (made) => ({ gradients: made.gradients, observed: [made.main, made.auxiliary] }),
  )
  sgd.step(gradients, rate)
  return { main: main.item(), auxiliary: auxiliary.item() }
}
