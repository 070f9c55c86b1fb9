/**
 * Chooses, at the start of a run on a GPU, what its convolutions are computed with: the calls of a step of that very model are
 * timed with every kernel, tile and split that they may have, at every level of fusion that may be chosen (docs/cuda.md).
 */
import { z } from 'zod'

import type { BuiltMethod } from '../methods/method.js'
import type { FusionLevel, Kernels } from '../tensor/compute.js'
import { isProduct, type NativeCall, type Time } from '../ops/timing.js'
import { candidateSplits, candidateTiles, type Direction, shapeOfCall, tableTile, type TuningChoice, untuned } from '../ops/tuning.js'
import { cacheFile, type DeviceIdentity, readCache, writeCache } from '../files/cache.js'
import { DenseclError } from '../tensor/errors.js'
import { alternative, expectedCost, type ProductCall, productCall, type StepCall, stepCalls } from './stepCalls.js'

/** What is chosen for a product of the model: of a shape, and for operands that a prologue normalises or not. */
interface TunedProduct extends Kernels {
  shape: string
  prologue: boolean
  /** Times a step. */
  count: number
  /** Milliseconds of all of them by the table and as chosen; absent where they were not timed. */
  table?: number | undefined
  chosen?: number | undefined
}

export interface Tuning {
  level: FusionLevel
  products: TunedProduct[]
  /** Milliseconds a step by the tables and as chosen: of convolutions, and of what levels of fusion differ in where they were compared. */
  table: number
  chosen: number
  /** Milliseconds a step of the levels that were compared, of the same calls; empty where none were. */
  levels: { level: FusionLevel; milliseconds: number }[]
  /** Calls that were timed now, that the cache knew, and products of the choice that were left to the tables. */
  timed: number
  known: number
  left: number
  seconds: number
  /** What a person should know: candidates that failed, a cache that cannot be used. */
  remarks: string[]
}

export interface TunerOptions {
  method: BuiltMethod
  batch: number
  imageSize: number
  /** `auto` compares all and takes `epilogue` where it cannot. */
  level: FusionLevel | 'auto'
  identity: DeviceIdentity
  /** Whether the device runs Hopper's kernels in a direction. */
  hopper: (direction: Direction) => boolean
  /** The tiles of `untimedTiles` (src/ops/kernels.ts) that it runs. */
  untimed: readonly number[]
  multiprocessors: number
  time: Time
  /** Seconds after which what is left is left to the tables. */
  budget: number
  /** Milliseconds; the budget's clock. */
  now: () => number
}

export function choiceOf({ level, products }: Pick<Tuning, 'level' | 'products'>): TuningChoice {
  const byShape = new Map<string, { plain?: Kernels; prologue?: Kernels }>()
  for (const { shape, prologue, tile, splits } of products)
    byShape.set(shape, { ...byShape.get(shape), [prologue ? 'prologue' : 'plain']: { tile, splits } })
  return { fusion: level, kernels: (key) => byShape.get(key) }
}

const byRule: Kernels = { tile: 0, splits: 0 }
/** Every prologue that a kernel has. */
const everyPrologue: TuningChoice = { fusion: 'full', kernels: () => ({ plain: byRule, prologue: byRule }) }

/** Times what is not in the cache, most expensive first and first of all the products of the level that is usual, and chooses. */
export function tune(options: TunerOptions): Tuning {
  const start = options.now()
  const remarks: string[] = []
  const usual = options.level === 'auto' ? 'epilogue' : options.level
  const calls = (choice: TuningChoice): StepCall[] => stepCalls(options.method, options.batch, options.imageSize, choice)
  const base = calls(untuned(usual))
  const plans = new Map<FusionLevel, StepCall[]>(usual === 'full' ? [] : [[usual, base]])
  for (const level of options.level === 'auto' ? (['pointwise', 'full'] as const) : usual === 'full' ? [usual] : []) {
    try {
      plans.set(level, calls(level === 'full' ? everyPrologue : untuned(level)))
    } catch (error) {
      // A level may keep more for the backward pass than the device has.
      if (!(error instanceof DenseclError) || error.code !== 'OUT_OF_MEMORY') throw error
      remarks.push(`level ${level} is not compared: ${error.message}`)
    }
  }
  if (!plans.has(usual)) plans.set(usual, base)
  const differing = differences([base, ...plans.values()])
  const parts = new Map([...plans].map(([level, all]) => [level, partsOf(all, base, differing)]))
  const table = partsOf(base, base, differing).map(({ ways }) => ways[0]!)

  const bench = new Bench(options, remarks)
  const wanted = [
    base.filter(isProductCall),
    [...table.flat(), ...[...parts.values()].flatMap((all) => all.flatMap(({ ways }) => ways.flat()))],
  ]
  bench.measure(wanted, start + 1000 * options.budget)

  const settled = new Map([...parts].map(([level, all]) => [level, all.map((part) => bestWay(part, bench))]))
  const sum = (all: Settled[], of: 'table' | 'chosen'): number => all.reduce((total, part) => total + part[of], 0)
  const comparable = [...settled].filter(
    ([level, all]) =>
      all.every(({ complete }) => complete) &&
      (level !== 'full' || usual === 'full' || all.some(({ products }) => products.some(({ prologue }) => prologue))),
  )
  const compared = comparable.some(([level]) => level === usual) ? comparable : []
  const [level, chosen] = compared.reduce<[FusionLevel, Settled[]]>(
    (best, other) => (sum(other[1], 'chosen') < sum(best[1], 'chosen') ? other : best),
    [usual, settled.get(usual)!],
  )
  const products = chosen.flatMap((part) => part.products)
  if (options.level === 'auto' && compared.length === 0)
    remarks.push(`the levels of fusion are not compared: not all of their calls were timed in ${options.budget} s; ${usual} is taken`)
  return {
    level,
    products,
    table: sum(
      table.map((way) => bench.settle(way)),
      'table',
    ),
    chosen: sum(chosen, 'chosen'),
    levels: compared.map(([name, all]) => ({ level: name, milliseconds: sum(all, 'chosen') })),
    timed: bench.timed,
    known: bench.known,
    left: products.filter((product) => product.chosen === undefined).length,
    seconds: (options.now() - start) / 1000,
    remarks,
  }
}

const isProductCall = (made: StepCall): boolean => isProduct(made.call.op)

/** Signatures of calls, beside products, that not every level makes as often as the others. */
function differences(levels: readonly StepCall[][]): Set<string> {
  const counts = levels.map((all) => new Map(all.map(({ signature, count }) => [signature, count])))
  const signatures = levels.flatMap((all) => all.filter((made) => !isProductCall(made)).map(({ signature }) => signature))
  return new Set(signatures.filter((signature) => counts.some((count) => count.get(signature) !== counts[0]!.get(signature))))
}

/** Something to be decided by itself: the calls of one convolution, or another call of one way only. */
interface Part {
  ways: StepCall[][]
  /** The way that is taken where not all were timed. */
  usual: number
}

/**
 * A convolution may normalise what it reads, or its gradient, on the way in, or have both written by passes: four ways where its
 * calls have the prologues. `base` has them where they are usual.
 */
function partsOf(all: readonly StepCall[], base: readonly StepCall[], differing: ReadonlySet<string>): Part[] {
  const convolutions = new Map<string, ProductCall[]>()
  for (const made of all) {
    const product = productCall(made)
    if (product !== undefined) convolutions.set(product.convolution, [...(convolutions.get(product.convolution) ?? []), product])
  }
  const usually = new Set(
    base
      .map(productCall)
      .filter((made) => made?.prologue)
      .map((made) => made!.key),
  )
  const parts = [...convolutions.values()].map((calls): Part => {
    const forward = calls.filter(({ call, prologue }) => prologue && call.op === 'conv2d')
    const backward = calls.filter(({ call, prologue }) => prologue && call.op === 'conv2dBackwardWeight')
    const choices = [true, false]
      .flatMap((f) => [true, false].map((b) => [f, b] as const))
      .filter(([f, b]) => (f || forward.length > 0) && (b || backward.length > 0))
    const ways = choices.map(([f, b]) => calls.flatMap((made) => (made.prologue ? alternative(made, f, b) : [made])))
    const usual = choices.findIndex(
      ([f, b]) =>
        f === (forward.length === 0 || forward.some(({ key }) => usually.has(key))) &&
        b === (backward.length === 0 || backward.some(({ key }) => usually.has(key))),
    )
    return { ways, usual }
  })
  return [...parts, ...all.filter(({ signature }) => differing.has(signature)).map((made) => ({ ways: [[made]], usual: 0 }))]
}

/** A way with its kernels, and milliseconds a step by the table and as chosen. */
interface Settled {
  products: TunedProduct[]
  table: number
  chosen: number
  /** All of it was timed. */
  complete: boolean
}

function bestWay({ ways, usual }: Part, bench: Bench): Settled {
  const settled = ways.map((way) => bench.settle(way))
  const first = settled[usual]!
  return settled.every(({ complete }) => complete)
    ? settled.reduce((best, other) => (other.chosen < best.chosen ? other : best), first)
    : first
}

const labelOf = ({ tile, splits }: Kernels): string => (splits === 0 ? `${tile}` : `${tile}/${splits}`)
function kernelsOf(label: string): Kernels {
  const [tile, splits = 0] = label.split('/').map(Number) as [number, number?]
  return { tile, splits }
}

/** Milliseconds of a call by the label of kernels. */
type Times = Record<string, number>
const cacheSchema = z.object({
  device: z.string(),
  driver: z.string(),
  build: z.string(),
  times: z.record(z.string(), z.record(z.string(), z.number().min(0))),
})

/** The file of the cache that a device's times are kept in. */
export const timesFile = (device: string): string =>
  `tuning-${device
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .slice(0, 100)}.json`

/** The times of the cache by the call, none with the problem where its file cannot be used. */
export function keptTimes({ device, driver, build }: DeviceIdentity): { times: Map<string, Times>; problem?: string } {
  const unusable = (problem: string): { times: Map<string, Times>; problem: string } => ({ times: new Map(), problem })
  const found = readCache(timesFile(device))
  if ('problem' in found) return unusable(found.problem)
  if (found.value === undefined) return { times: new Map() }
  const path = cacheFile(timesFile(device))
  const { success, data } = cacheSchema.safeParse(found.value)
  if (!success) return unusable(`${path}: holds no times of convolutions`)
  if (data.device !== device) return unusable(`${path}: is of another device`)
  if (data.driver !== driver) return unusable(`${path}: is of another driver, ${data.driver}`)
  if (data.build !== build) return unusable(`${path}: is of another build, ${data.build}`)
  return { times: new Map(Object.entries(data.times)) }
}

/** Times of calls, of the cache and measured. */
class Bench {
  timed = 0
  known = 0
  readonly #times: Map<string, Times>

  constructor(
    readonly options: TunerOptions,
    readonly remarks: string[],
  ) {
    const { times, problem } = keptTimes(options.identity)
    this.#times = times
    if (problem !== undefined) remarks.push(`${problem}; timed anew`)
  }

  /** Times the calls of each list, most expensive first, until the deadline; keeps what was timed. */
  measure(lists: readonly (readonly StepCall[])[], deadline: number): void {
    const done = new Set<string>()
    for (const list of lists) {
      for (const made of [...list].sort((a, b) => expectedCost(b) - expectedCost(a))) {
        if (done.has(made.signature)) continue
        done.add(made.signature)
        if (this.#times.get(made.signature)?.[labelOf(this.#table(made.call))] !== undefined) this.known += 1
        else this.#measureCall(made, deadline)
      }
    }
    if (this.timed === 0) return
    const problem = writeCache(timesFile(this.options.identity.device), {
      ...this.options.identity,
      times: Object.fromEntries(this.#times),
    })
    if (problem !== undefined) this.remarks.push(`the times are not kept: ${problem}`)
  }

  /** Every tile, then splits of the fastest. A call that the deadline cuts off has no times. */
  #measureCall({ call, signature }: StepCall, deadline: number): void {
    const { hopper, untimed, multiprocessors, now, time } = this.options
    const times: Times = {}
    const timeAll = (all: readonly Kernels[]): boolean =>
      all.every((kernels) => {
        if (times[labelOf(kernels)] !== undefined) return true
        if (now() >= deadline) return false
        try {
          times[labelOf(kernels)] = time(call, kernels)
        } catch (error) {
          const tile = isProduct(call.op) ? ` with tile ${labelOf(kernels)}` : ''
          this.remarks.push(`left out: ${signature}${tile}: ${error instanceof Error ? error.message : String(error)}`)
        }
        return true
      })
    const usual = this.#table(call)
    if (!timeAll([usual])) return
    const product = productCall({ call, signature, count: 1 })
    if (product !== undefined) {
      const shape = shapeOfCall(product.op, call.tensors, call.numbers)
      const tiles = candidateTiles(shape, product.prologue, hopper(shape.direction), untimed)
      if (!timeAll(tiles.map((tile) => ({ tile, splits: 0 })))) return
      const best = fastest(times, labelOf(usual))
      if (
        best !== undefined &&
        !timeAll(candidateSplits(shape, kernelsOf(best).tile, multiprocessors).map((splits) => ({ tile: kernelsOf(best).tile, splits })))
      )
        return
    }
    this.timed += 1
    this.#times.set(signature, times)
  }

  /** What the call gets without a choice. */
  #table({ op, tensors, numbers }: NativeCall): Kernels {
    return isProduct(op) ? { tile: tableTile(this.options.method.backbone.device, shapeOfCall(op, tensors, numbers)), splits: 0 } : byRule
  }

  /** The fastest kernels of each product, over all calls that share a choice: other epilogues, other operands. */
  settle(way: readonly StepCall[]): Settled {
    const groups = new Map<string, StepCall[]>()
    for (const made of way) {
      const product = productCall(made)
      const name = product === undefined ? made.signature : `${product.key} ${product.prologue}`
      groups.set(name, [...(groups.get(name) ?? []), made])
    }
    const result: Settled = { products: [], table: 0, chosen: 0, complete: true }
    for (const calls of groups.values()) {
      const usual = labelOf(this.#table(calls[0]!.call))
      const times = together(calls.map(({ signature, count }) => [this.#times.get(signature) ?? {}, count]))
      const best = fastest(times, usual)
      const [table, chosen] = best === undefined ? [undefined, undefined] : [times[usual] ?? times[best]!, times[best]!]
      result.table += table ?? 0
      result.chosen += chosen ?? 0
      result.complete &&= best !== undefined
      const product = productCall(calls[0]!)
      if (product === undefined) continue
      const count = calls.reduce((sum, made) => sum + made.count, 0)
      result.products.push({
        shape: product.key,
        prologue: product.prologue,
        ...kernelsOf(best ?? usual),
        count,
        ...(best === undefined ? {} : { table, chosen }),
      })
    }
    return result
  }
}

/** The label of the least time, the usual one of equals; undefined without times. */
export function fastest(times: Times, usual: string): string | undefined {
  const [first, ...others] = Object.keys(times).sort((a, b) => Number(b === usual) - Number(a === usual))
  return first === undefined ? undefined : others.reduce((best, label) => (times[label]! < times[best]! ? label : best), first)
}

/** Times of several calls with one choice: sums over those kernels that all were timed with. */
function together(all: readonly (readonly [Times, number])[]): Times {
  const labels = Object.keys(all[0]![0]).filter((label) => all.every(([times]) => times[label] !== undefined))
  return Object.fromEntries(labels.map((label) => [label, all.reduce((sum, [times, count]) => sum + count * times[label]!, 0)]))
}
