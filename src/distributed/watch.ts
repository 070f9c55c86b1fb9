/** Whether processes are there and get on, by what they say of themselves. */
import type { Beat } from './pace.js'

/** Seconds that are waited before a process counts as lost. */
export interface Patience {
  /** Without a word. */
  silence: number
  /** Without progress, while others wait. */
  stall: number
}

interface Watched {
  name: string
  beat: Beat
  /** When it last spoke, and when it had last got something done. */
  heard: number
  moved: number
}

/** Processes that are watched, by their ranks. Times are in seconds. */
export class Watch {
  readonly #watched = new Map<number, Watched>()
  #asked: number | undefined

  constructor(readonly patience: Patience) {}

  /** Begins to watch a process. */
  add(rank: number, name: string, now: number): void {
    this.#watched.set(rank, { name, beat: { step: 0, moves: 0, waiting: false }, heard: now, moved: now })
  }

  remove(rank: number): void {
    this.#watched.delete(rank)
  }

  hear(rank: number, beat: Beat, now: number): void {
    const peer = this.#watched.get(rank)
    if (peer === undefined) return
    if (beat.moves !== peer.beat.moves || beat.waiting !== peer.beat.waiting) peer.moved = now
    Object.assign(peer, { beat, heard: now })
  }

  /** Which process is lost, in a sentence; undefined where none is. To be asked often. */
  verdict(now: number): string | undefined {
    this.#forgive(now)
    const { silence, stall } = this.patience
    const all = [...this.#watched]
    const silent = all.find(([, { heard }]) => now - heard > silence)
    if (silent !== undefined) return `${silent[1].name} gave no sign of life for ${silence} s, at step ${silent[1].beat.step}`

    const still = all.filter(([, { moved }]) => now - moved > stall)
    const waiting = still.filter(([, { beat }]) => beat.waiting).map(([rank]) => rank)
    if (waiting.length === 0) return undefined
    const stuck = still.find(([, { beat }]) => !beat.waiting)
    if (stuck !== undefined)
      return `${stuck[1].name} got nothing done for ${stall} s at step ${stuck[1].beat.step}, while ${ranks(waiting)} waited`
    // Of the others than rank 0 each sees rank 0 alone, and not for whom it waits.
    if (waiting.length < all.length || all.length === 1) return undefined
    return `${ranks(waiting)} waited for each other for ${stall} s, at step ${all.map(([, { beat }]) => beat.step).join(', ')}`
  }

  /** Who slept, as when a whole job is suspended, does not know who was silent meanwhile. */
  #forgive(now: number): void {
    const slept = this.#asked === undefined ? 0 : now - this.#asked
    this.#asked = now
    if (slept < this.patience.silence / 4) return
    for (const peer of this.#watched.values()) {
      peer.heard = Math.min(now, peer.heard + slept)
      peer.moved = Math.min(now, peer.moved + slept)
    }
  }
}

const ranks = (list: readonly number[]): string => `rank${list.length === 1 ? '' : 's'} ${list.join(', ')}`
