/** Bytes of images on other machines, fetched before they are wanted. */
import { type Item, readItemBytes } from './source.js'

/** What is fetched ahead: images at a time, and bytes that wait to be taken. */
interface Limits {
  images: number
  bytes: number
}
const usualLimits: Limits = { images: 32, bytes: 64 * 2 ** 20 }

interface Coming {
  item: Item & { kind: 'remote' }
  bytes?: Promise<Buffer>
}

export class ReadAhead {
  readonly #controller = new AbortController()
  readonly #coming = new Map<number, Coming>()
  #running = 0
  #held = 0

  constructor(readonly limits = usualLimits) {}

  /** Says which item is wanted under a number, after those before. Items that lie here need no word. */
  expect(number: number, item: Item): void {
    if (item.kind !== 'remote' || this.#coming.has(number)) return
    this.#coming.set(number, { item })
    this.#fill()
  }

  /** The bytes of what was expected under a number; undefined where nothing was. */
  take(number: number): Promise<Buffer> | undefined {
    const entry = this.#coming.get(number)
    if (entry === undefined) return undefined
    const bytes = entry.bytes ?? this.#start(entry)
    this.#coming.delete(number)
    this.#held -= entry.item.size
    void bytes.finally(() => this.#fill()).catch(() => undefined)
    return bytes
  }

  /** Ends what is on its way: whoever waits for it gets an error. */
  stop(): void {
    this.#controller.abort()
    this.#coming.clear()
  }

  #start(entry: Coming): Promise<Buffer> {
    this.#running += 1
    this.#held += entry.item.size
    entry.bytes = readItemBytes(entry.item, this.#controller.signal).finally(() => {
      this.#running -= 1
    })
    entry.bytes.then(
      () => this.#fill(),
      () => undefined, // reported where it is taken
    )
    return entry.bytes
  }

  #fill(): void {
    for (const entry of this.#coming.values()) {
      if (this.#running >= this.limits.images || this.#held >= this.limits.bytes || this.#controller.signal.aborted) return
      if (entry.bytes === undefined) void this.#start(entry)
    }
  }
}
