/**
 * A step on many GPUs that are not here: the calls of one process by the model of kernels, its collectives where the code starts and joins
 * them, each for as long as bytes, bandwidth and latency say. Collectives pass one after the other on a stream of their own, beside the
 * calls, until a call waits for one.
 */
import type { CollectiveCall } from './processes.js'

/** What connects GPUs, and what it costs them; all of it is assumed, docs/scaling.md says from what. */
export interface Network {
  name: string
  /** GPUs and network cards of a node. */
  gpus: number
  cards: number
  /** GB/s in one direction: what a GPU reaches within its node, and the most that a card moves. */
  nvlink: number
  card: number
  /** Shares of a card's most that rings, and messages between two GPUs, reach. */
  ring: number
  messages: number
  /** Microseconds of a collective without bytes: within a node, and for each doubling of the nodes. */
  latency: number
  latencyDoubling: number
  /** Share of the time beside a collective by which calls become longer. */
  slowdown: number
  /** Share of its calls' time by which a step waits for the slowest GPU: of a node, and for each eightfold number of nodes. */
  straggling: number
  stragglingEightfold: number
}

const assumed = {
  gpus: 8,
  nvlink: 330,
  card: 50,
  ring: 0.75,
  messages: 0.7,
  latency: 25,
  latencyDoubling: 20,
  slowdown: 0.05,
  straggling: 0.01,
  stragglingEightfold: 0.02,
} as const

/** NVLink within nodes of eight, cards of 400 Gb/s between them. */
export const networks = {
  cardPerGpu: { ...assumed, name: 'a card a GPU', cards: 8 },
  cardPerNode: { ...assumed, name: 'a card a node', cards: 1 },
} as const satisfies Record<string, Network>

/** Microseconds of a collective of rank 0 among `processes`, each on a GPU, by which nodes are filled one after the other. */
export function collectiveTime(
  { kind, bytes, sends }: Pick<CollectiveCall, 'kind' | 'bytes' | 'sends'>,
  processes: number,
  { gpus, cards, nvlink, card, ring, messages, latency, latencyDoubling }: Network,
): number {
  if (processes === 1) return 0
  const here = Math.min(gpus, processes)
  const nodes = Math.ceil(processes / gpus)
  /** Bytes that a GPU moves within its node, and all GPUs of a node to others, at most at the same time. */
  const moved = (inside: number, outside: number, share: number): number =>
    Math.max(inside / nvlink, nodes === 1 ? 0 : outside / (card * cards * share)) / 1e3
  const sent = (to: (peer: number) => boolean): number => sends.reduce((sum, { peer, bytes: part }) => sum + (to(peer) ? part : 0), 0)
  const times = {
    // Ring: every part passes twice; those of a node's GPUs are added up before they leave it.
    allReduce: () => moved((2 * bytes * (here - 1)) / here, (2 * bytes * (nodes - 1)) / nodes, ring),
    // What other nodes give comes once into a node, where it is passed on.
    allGather: () => moved(bytes * (processes - 1), bytes * (processes - here), ring),
    // Rank 0 stands for all.
    exchange: () =>
      moved(
        sent((peer) => peer > 0 && peer < here),
        here * sent((peer) => peer >= here),
        messages,
      ),
  }
  return times[kind]() + latency + latencyDoubling * Math.log2(nodes)
}

/** What collectives carry in a DenseCL step. */
export type Cargo = 'gradients' | 'images' | 'outputs' | 'keys'

const cargoOf = (call: CollectiveCall, all: readonly CollectiveCall[]): Cargo => {
  if (call.kind === 'allReduce') return 'gradients'
  if (call.kind === 'allGather') return 'keys'
  return call === all.find(({ kind }) => kind === 'exchange') ? 'images' : 'outputs'
}

/** The collectives of a step that carry the same. */
export interface CollectiveSum {
  cargo: Cargo
  count: number
  /** Of one process. */
  megabytes: number
  milliseconds: number
  /** How long calls wait for them. */
  exposed: number
}

export interface ScaledStep {
  /** Milliseconds of the calls by themselves, and of all. */
  compute: number
  milliseconds: number
  collectives: CollectiveSum[]
}

/** The step of one process among `processes`; `times` are the microseconds of its calls. */
export function scaledStep(
  collectives: readonly CollectiveCall[],
  times: readonly number[],
  processes: number,
  network: Network,
): ScaledStep {
  const sums = new Map<Cargo, CollectiveSum>()
  const placed = collectives.map((call) => {
    const cargo = cargoOf(call, collectives)
    const sum = sums.get(cargo) ?? { cargo, count: 0, megabytes: 0, milliseconds: 0, exposed: 0 }
    sums.set(cargo, sum)
    const microseconds = collectiveTime(call, processes, network)
    sum.count += 1
    sum.megabytes += call.bytes / 1e6
    sum.milliseconds += microseconds / 1e3
    return { sum, microseconds, start: call.start, join: call.join, end: 0 }
  })
  /** When the next call begins, and when the stream of the collectives is free. */
  let [now, free] = [0, 0]
  for (let position = 0; position <= times.length; ++position) {
    for (const each of placed) {
      if (each.start === position) each.end = free = Math.max(free, now) + each.microseconds
      if (each.join !== position) continue
      const waited = Math.max(0, each.end - now)
      each.sum.exposed += waited / 1e3
      now += waited
    }
    const time = times[position] ?? 0
    now += time + network.slowdown * Math.min(time, Math.max(0, free - now))
  }
  const compute = times.reduce((sum, time) => sum + time, 0) / 1e3
  const eightfolds = Math.max(0, Math.log(processes / network.gpus) / Math.log(8))
  const late = processes === 1 ? 0 : network.straggling + network.stragglingEightfold * eightfolds
  return { compute, milliseconds: now / 1e3 + late * compute, collectives: [...sums.values()] }
}
