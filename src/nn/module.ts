import { runNative } from '../tensor/native.js'
import type { Tensor } from '../tensor/tensor.js'

/**
 * What a module holds, by its original (PyTorch) name: `parameters` are trained, `buffers` are not but belong to the state
 * (running statistics); `copies` are the bf16 forms of parameters that a network of mixed precision computes with, and belong to
 * nobody's state. Names decide the order everywhere: in the optimiser, in checkpoints and in exports.
 */
export interface State {
  parameters: Map<string, Tensor>
  buffers: Map<string, Tensor>
  copies: Map<string, Tensor>
}

/** A state without tensors, for include() to fill. */
export const emptyState = (): State => ({ parameters: new Map(), buffers: new Map(), copies: new Map() })

/** Adds the state of a part under `prefix`. */
export function include(state: State, prefix: string, part: State): void {
  for (const [name, tensor] of part.parameters) state.parameters.set(`${prefix}.${name}`, tensor)
  for (const [name, tensor] of part.buffers) state.buffers.set(`${prefix}.${name}`, tensor)
  for (const [name, tensor] of part.copies) state.copies.set(`${prefix}.${name}`, tensor)
}

/** What has parameters: a layer, or a network of layers. */
export interface Module {
  /** Parameters and buffers by name. */
  state(): State
}

/** The state of a network whose parts have these names; those of a list are numbered, as in `blocks.0.weight`. */
export function stateOf(parts: Readonly<Record<string, Module | readonly Module[]>>): State {
  const state = emptyState()
  for (const [name, part] of Object.entries(parts)) {
    if ('state' in part) include(state, name, part.state())
    else part.forEach((each, i) => include(state, `${name}.${i}`, each.state()))
  }
  return state
}

/** The parameters and buffers of a state, by name. */
export function* allTensors({ parameters, buffers }: State): Generator<[string, Tensor]> {
  yield* parameters
  yield* buffers
}

/** Whether a parameter is the scale or shift of a batch norm, which some leave out of weight decay. */
export const isNorm = ({ buffers }: State, name: string): boolean => buffers.has(name.replace(/[^.]+$/, 'running_mean'))

/** The tensors that the parameters enter a forward pass as, in their order: bf16 copies where there are some. */
export const trainable = ({ parameters, copies }: Pick<State, 'parameters' | 'copies'>): Tensor[] =>
  [...parameters].map(([name, parameter]) => copies.get(name) ?? parameter)

/** Makes the copies equal to their parameters again, after these were written from outside of the optimiser. */
export function refreshCopies({ parameters, copies }: State): void {
  for (const [name, copy] of copies) runNative('convert', { y: copy, x: parameters.get(name)! })
}

/** Frees every tensor of a state. */
export function disposeState(state: State): void {
  for (const [, tensor] of allTensors(state)) tensor.dispose()
  for (const tensor of state.copies.values()) tensor.dispose()
}
