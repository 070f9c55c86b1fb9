/**
 * The order in which the key batch passes the key encoder (shuffle-BN: images that are normalised together as queries are not as keys),
 * with the same number of images between every two groups at every step. A uniform permutation has other numbers each time; with fixed
 * ones the exchange between processes is the same messages at every step, and every process computes its own share of the order.
 *
 * Letters: T groups of M images each, N = T * M. A group's images, in an order that it draws, are S parts of M / S images, S the largest
 * divisor of M that is at most T. Part j of group g goes to group (g + shift(j)) mod T, where it becomes part j.
 */
import { fail } from '../tensor/errors.js'

/** A key batch in its groups of equal size. */
export interface KeyGroups {
  images: number
  groups: number
}

/** Draws the order of a group's images, a permutation of 0 to M - 1. */
export type DrawOrder = (group: number, images: number) => ArrayLike<number>

/** Rows of a tensor that go to a process, or come from it. */
export interface Message {
  peer: number
  row: number
  rows: number
}

/** What a process sends and receives; between two of them in the same order. */
export interface Exchange {
  sends: readonly Message[]
  receives: readonly Message[]
}

/** S: into how many parts a group is cut. */
export function keyParts({ images, groups }: KeyGroups): number {
  const each = images / groups
  let parts = Math.min(groups, each)
  while (each % parts !== 0) --parts
  return parts
}

/** The group that part `part` of `group` goes to. */
const destination = (group: number, part: number, parts: number, groups: number): number =>
  (group + Math.floor(((2 * part + 1) * groups) / (2 * parts))) % groups

function* moves({ images, groups }: KeyGroups): Generator<{ group: number; to: number; part: number; rows: number }> {
  const parts = keyParts({ images, groups })
  for (let group = 0; group < groups; ++group)
    for (let part = 0; part < parts; ++part)
      yield { group, to: destination(group, part, parts, groups), part, rows: images / groups / parts }
}

/** The order of the whole batch: place i of the key batch has image order[i]. */
export function keyOrder(batch: KeyGroups, draw: DrawOrder): Int32Array {
  const each = batch.images / batch.groups
  const drawn = Array.from({ length: batch.groups }, (_, group) => draw(group, each))
  const order = new Int32Array(batch.images)
  for (const { group, to, part, rows } of moves(batch))
    for (let i = 0; i < rows; ++i) order[to * each + part * rows + i] = group * each + drawn[group]![part * rows + i]!
  return order
}

/** The groups of a rank of `size` processes, each of which has as many. */
const groupsOf = ({ groups }: KeyGroups, rank: number, size: number): { first: number; count: number } =>
  groups % size === 0
    ? { first: (rank * groups) / size, count: groups / size }
    : fail('ARGUMENT', `keyOrder: expected groups that ${size} processes share evenly but received ${groups}`)

/** The order in which a rank lines up its own images, 0 to N / size - 1, before it sends them as ownExchange() says. */
export function ownOrder(batch: KeyGroups, rank: number, size: number, draw: DrawOrder): Int32Array {
  const each = batch.images / batch.groups
  const { first, count } = groupsOf(batch, rank, size)
  const order = new Int32Array(count * each)
  for (let own = 0; own < count; ++own) {
    const drawn = draw(first + own, each)
    for (let i = 0; i < each; ++i) order[own * each + i] = own * each + drawn[i]!
  }
  return order
}

/** The messages of a rank, of rows in the order of ownOrder(): together they make keyOrder() of the batch. */
export function ownExchange(batch: KeyGroups, rank: number, size: number): Exchange {
  const each = batch.images / batch.groups
  const { first, count } = groupsOf(batch, rank, size)
  const [sends, receives]: [Message[], Message[]] = [[], []]
  const owner = (group: number): number => Math.floor(group / count)
  for (const { group, to, part, rows } of moves(batch)) {
    if (owner(group) === rank) sends.push({ peer: owner(to), row: (group - first) * each + part * rows, rows })
    if (owner(to) === rank) receives.push({ peer: owner(group), row: (to - first) * each + part * rows, rows })
  }
  return { sends, receives }
}

/** The messages that bring everything back to where it came from. */
export const returning = ({ sends, receives }: Exchange): Exchange => ({ sends: receives, receives: sends })
