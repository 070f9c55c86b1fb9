/** What evaluations that several processes share have in common: whose images are whose, and what all of them found. */
import type { Group } from '../distributed/group.js'
import { concat } from '../ops/concat.js'
import { gather } from '../ops/gather.js'
import { fail } from '../tensor/errors.js'
import { scope, Tensor } from '../tensor/tensor.js'

/** What one of several processes has of a list: equally much, but for the last ones. */
export function partOf<T>(all: readonly T[], { rank, size }: Pick<Group, 'rank' | 'size'>): T[] {
  const rows = Math.ceil(all.length / size)
  return all.slice(rank * rows, (rank + 1) * rows)
}

/** Where the share of process `rank` in a batch of `count` images begins, or that of the one before ends: shares differ by one at most. */
export const shareBegins = (count: number, rank: number, size: number): number => Math.floor((rank * count) / size)

/** The share of a process in the images of a batch. */
export const shareOf = (indices: Int32Array, { rank, size }: Group): Int32Array =>
  indices.slice(shareBegins(indices.length, rank, size), shareBegins(indices.length, rank + 1, size))

/**
 * The places in a batch of `count` images of those that a process has: its share of each of the parts, of `atOnce` images, that are
 * computed one after the other.
 */
export function placesOf(count: number, atOnce: number, { rank, size }: Pick<Group, 'rank' | 'size'>): number[] {
  const places: number[] = []
  for (let first = 0; first < count; first += atOnce) {
    const images = Math.min(atOnce, count - first)
    const [from, until] = [shareBegins(images, rank, size), shareBegins(images, rank + 1, size)]
    for (let place = from; place < until; ++place) places.push(first + place)
  }
  return places
}

/** Of batches that all processes draw alike what one of them has of each, and the images of all. */
export function* sharesOf<Request extends { indices: Int32Array }>(
  requests: Iterable<Request>,
  group: Group,
): Generator<Request & { images: number }> {
  for (const request of requests) yield { ...request, indices: shareOf(request.indices, group), images: request.indices.length }
}

/** Of tensors [n, ...] that each process has for its share of a batch of `count` images, those of the whole batch [count, ...]. */
export function gatheredRows(own: readonly Tensor[], count: number, group: Group): Tensor[] {
  const { size } = group
  if (size === 1) return [...own]
  const most = Math.ceil(count / size)
  const padded = own.map((x) => {
    const [rows, ...rest] = x.shape as [number, ...number[]]
    if (rows === most) return x
    const missing = Tensor.zeros([most - rows, ...rest], x.dtype, x.device)
    return rows === 0 ? missing : concat([x, missing], 0)
  })
  const all = group.startAllGather(padded).join()
  if (count === size * most) return [...all]
  const places = Array.from({ length: size }, (_, rank) => {
    const rows = shareBegins(count, rank + 1, size) - shareBegins(count, rank, size)
    return Array.from({ length: rows }, (_row, i) => rank * most + i)
  })
  return all.map((x) => gather(x, Tensor.from(places.flat(), [count], 'i32', x.device)))
}

/** The same of numbers. */
export const gatheredValues = (own: Int32Array, count: number, group: Group): Int32Array =>
  scope(() => gatheredRows([Tensor.from(own, [own.length], 'i32', 'cpu')], count, group)[0]!.data() as Int32Array)

/** Throws CONFIG for a batch, or a part of it that `flag` tells, that processes do not share evenly, `each` images at a time. */
export function checkEvenBatch(
  images: number,
  { size }: Group,
  each = 1,
  flag: '--batch-size' | '--images-at-once' = '--batch-size',
): void {
  if (size > 1 && images % (size * each) !== 0)
    fail(
      'CONFIG',
      `${flag === '--batch-size' ? 'the batch is' : 'parts of the batch are'} of ${images} images but there are ${size} processes: ` +
        `expected a multiple of ${size * each} (${flag})${each > 1 ? `, as ${each} images stay together` : ''}`,
    )
}

/** Adds what each process knows of images that could not be read, by name with the reason, to what all know. */
export function shareBroken(broken: Map<string, string> | undefined, group: Group): void {
  if (group.size === 1 || broken === undefined) return
  const all = group.texts(JSON.stringify([...broken])).flatMap((text) => JSON.parse(text) as [string, string][])
  for (const [name, reason] of all) broken.set(name, reason)
}
