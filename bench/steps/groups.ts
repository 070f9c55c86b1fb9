/** The processes that a timed step is shared by: this one alone, those that mpirun started, or others that are not there. */
import { noGrad } from '../../src/autograd/tape.js'
import { Group, type Pending } from '../../src/distributed/group.js'
import type { Exchange, Message } from '../../src/distributed/keyOrder.js'
import { endTogether, leaveTogether, openGroup } from '../../src/distributed/open.js'
import { concat } from '../../src/ops/concat.js'
import { fail } from '../../src/tensor/errors.js'
import { native } from '../../src/tensor/native.js'
import type { Tensor } from '../../src/tensor/tensor.js'

/**
 * Rank 0 of two processes of which the other one says and sends what this one does, at once: MPI's world is this process alone. What is
 * left of a collective is what our code does for it: orders, packing, copies, the thread that calls MPI.
 */
class EchoGroup extends Group {
  override startAllGather(tensors: readonly Tensor[]): Pending<readonly Tensor[]> {
    const all = noGrad(() => tensors.map((x) => concat([x, x], 0)))
    return { join: () => all }
  }

  override startExchange(tensors: readonly Tensor[], { sends, receives }: Exchange): Pending<readonly Tensor[]> {
    const toItself = (messages: readonly Message[]): Message[] => messages.map((message) => ({ ...message, peer: this.rank }))
    return super.startExchange(tensors, { sends: toItself(sends), receives: toItself(receives) })
  }
}

/** The same processes, whose gradients pass beside the backward pass, or behind it. */
const overlapping = ({ rank, size, device }: Group, overlaps: boolean): Group => new Group(rank, size, device, overlaps)

/** By the word of --group. All but `alone` are MPI's, as many as it was started with, `echo` with one. */
const groups = {
  alone: () => Group.single,
  shared: openGroup,
  beside: () => overlapping(openGroup(), true),
  behind: () => overlapping(openGroup(), false),
  echo() {
    native.openMpi()
    return new EchoGroup(0, 2, 'cpu')
  },
} as const

/** Runs `body` in the group of a name, which it ends behind it. Throws CONFIG for another name. */
export function inGroup(name: string, body: (group: Group) => void): void {
  if (!(name in groups)) fail('CONFIG', `--group is ${name}: expected one of ${Object.keys(groups).join(', ')}`)
  const group = groups[name as keyof typeof groups]()
  if (name === 'echo') {
    body(group)
    return native.closeComm()
  }
  leaveTogether(group)
  body(group)
  endTogether(group)
}
