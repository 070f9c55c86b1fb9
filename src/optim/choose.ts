import type { Tensor } from '../tensor/tensor.js'
import { AdamW } from './adam.js'
import { Lars } from './lars.js'
import type { Optimizer } from './optimizer.js'
import { Sgd } from './sgd.js'

/** The names of the optimisers. */
export const optimizerNames = ['sgd', 'adamw', 'lars'] as const
/** The name of an optimiser. */
export type OptimizerName = (typeof optimizerNames)[number]

/** What a run says of its optimiser. */
export interface OptimizerChoice {
  optimizer: OptimizerName
  /** The momentum of SGD and LARS, or beta1 of AdamW. */
  momentum: number
  weightDecay: number
}

/** The optimiser of a run, of parameters with their bf16 copies. */
export function optimizerOf(
  { optimizer, momentum, weightDecay }: OptimizerChoice,
  parameters: Map<string, Tensor>,
  copies?: Map<string, Tensor>,
): Optimizer {
  if (optimizer === 'adamw') return new AdamW(parameters, { beta1: momentum, weightDecay }, copies)
  if (optimizer === 'lars') return new Lars(parameters, { momentum, weightDecay }, copies)
  return new Sgd(parameters, { momentum, weightDecay }, copies)
}
