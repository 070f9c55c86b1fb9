/**
 * The seeded random stream of everything that is not on the device: initialisation, augmentation, shuffling. SplitMix64-like
 * mixing on two 32-bit halves would need BigInt; sfc32 (C. Doty-Humphrey, PractRand) has a 128-bit state, passes PractRand
 * and runs on integers.
 */
export class Random {
  #a: number
  #b: number
  #c: number
  #counter = 1
  #spare: number | undefined

  /** A stream is a function of all words of its seed: Random(seed, epoch, image) is independent of Random(seed, epoch, image + 1). */
  constructor(...seed: number[]) {
    let hash = 0x9e3779b9
    const mix = (word: number): number => {
      hash = Math.imul(hash ^ (word >>> 0), 0x85ebca6b)
      hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
      return (hash ^= hash >>> 16)
    }
    for (const word of seed) {
      mix(word)
      mix(Math.floor(word / 2 ** 32))
    }
    this.#a = mix(1)
    this.#b = mix(2)
    this.#c = mix(3)
    for (let i = 0; i < 12; ++i) this.uint32()
  }

  /** A whole number of 0 to 2^32 - 1. */
  uint32(): number {
    const t = (this.#a + this.#b + this.#counter++) | 0
    this.#a = this.#b ^ (this.#b >>> 9)
    this.#b = (this.#c + (this.#c << 3)) | 0
    this.#c = (this.#c << 21) | (this.#c >>> 11)
    this.#c = (this.#c + t) | 0
    return t >>> 0
  }

  /** A number of [0, 1), of 53 bits. */
  uniform(low = 0, high = 1): number {
    const value = ((this.uint32() >>> 5) * 2 ** 26 + (this.uint32() >>> 6)) / 2 ** 53
    return low + (high - low) * value
  }

  /** An integer in [0, n). */
  below(n: number): number {
    return Math.floor(this.uniform() * n)
  }

  /** Standard normal (Box and Muller). */
  normal(): number {
    if (this.#spare !== undefined) {
      const value = this.#spare
      this.#spare = undefined
      return value
    }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()))
    const angle = 2 * Math.PI * this.uniform()
    this.#spare = radius * Math.sin(angle)
    return radius * Math.cos(angle)
  }

  /** 0 .. n-1 in random order (Fisher and Yates). */
  permutation(n: number): Int32Array {
    const order = Int32Array.from({ length: n }, (_, i) => i)
    for (let i = n - 1; i > 0; --i) {
      const j = this.below(i + 1)
      const held = order[i]!
      order[i] = order[j]!
      order[j] = held
    }
    return order
  }
}
