/** Which training images keep their label: a share of each class, the images of a list, and those that are held out to choose by. */
import { basename, sep } from 'node:path'

import type { Item } from '../data/source.js'
import { openSource } from '../data/sources.js'
import { fail } from '../tensor/errors.js'
import { Random } from '../tensor/random.js'
import { labelsOf } from './features.js'

/** Indices of items by their label. */
function byLabel(items: readonly Item[], classes: number): number[][] {
  const all = Array.from({ length: classes }, (): number[] => [])
  labelsOf(items, 'eval').forEach((label, i) => all[label]!.push(i))
  return all
}

/**
 * `percent` % of the labelled items, as many of each class as of any other where it has so many, drawn by `seed`, in their order. Throws
 * CONFIG where that is not one of each class.
 */
export function balancedShare(items: readonly Item[], classes: number, percent: number, seed: number): Item[] {
  if (percent === 100) return [...items]
  const count = Math.round((items.length * percent) / 100)
  const there = byLabel(items, classes)
    .map((own, c) => ({ own, random: new Random(seed, 71, c) }))
    .filter(({ own }) => own.length > 0)
    .map(({ own, random }) => [...random.permutation(own.length)].map((i) => own[i]!))
  if (count < there.length)
    fail(
      'CONFIG',
      `--percent is ${percent}: expected at least ${((100 * there.length) / items.length).toPrecision(3)}, one image of each of ` +
        `${there.length} classes, but that share of ${items.length} images is ${count}`,
    )
  const chosen: number[] = []
  const order = new Random(seed, 73).permutation(there.length)
  for (let round = 0; chosen.length < count; ++round)
    for (const c of order) if (chosen.length < count && round < there[c]!.length) chosen.push(there[c]![round]!)
  return chosen.sort((a, b) => a - b).map((i) => items[i]!)
}

/** A path with a / before each of its names, on any system. */
const slashed = (path: string): string => `/${path.replaceAll(sep, '/')}`

/** The items that a list names, by their paths or the ends of these. Throws DATA for a name that is none of them, or of several. */
export async function listedItems(path: string, items: readonly Item[]): Promise<Item[]> {
  const byName = new Map<string, number[]>()
  items.forEach(({ name }, i) => {
    const own = byName.get(basename(name))
    if (own === undefined) byName.set(basename(name), [i])
    else own.push(i)
  })
  const { items: listed } = await openSource(path, { format: 'list', setting: 'labelled' })
  const chosen = new Set<number>()
  for (const { name } of listed) {
    const found = (byName.get(basename(name)) ?? []).filter((i) => slashed(items[i]!.name).endsWith(slashed(name)))
    if (found.length !== 1)
      fail(
        'DATA',
        `${path}: ${name}: expected a name of one training image but ${found.length === 0 ? 'none' : found.length} of them has it`,
      )
    chosen.add(found[0]!)
  }
  return [...chosen].sort((a, b) => a - b).map((i) => items[i]!)
}

/** Share of each class that is held out to choose settings by. */
const heldOutShare = 0.2

/** Whether any class has two images, so that one can be held out. */
export const canHoldOut = (items: readonly Item[], classes: number): boolean => byLabel(items, classes).some((own) => own.length > 1)

/**
 * Items apart from those of each class that are held out: a fifth, at least one where there are two, drawn by `seed`. Throws DATA where
 * there is none.
 */
export function holdOut(items: readonly Item[], classes: number, seed: number): { rest: Item[]; heldOut: Item[] } {
  const held = new Set<number>()
  byLabel(items, classes).forEach((own, c) => {
    if (own.length < 2) return
    const order = new Random(seed, 79, c).permutation(own.length)
    for (const i of order.subarray(0, Math.max(1, Math.round(heldOutShare * own.length)))) held.add(own[i]!)
  })
  if (held.size === 0)
    fail(
      'DATA',
      `no class has two labelled images, so that none can be held out to choose among learning rates: expected more, one --lr and one ` +
        '--head-multiplier, or --choose-by val, as published',
    )
  return { rest: items.filter((_, i) => !held.has(i)), heldOut: items.filter((_, i) => held.has(i)) }
}
