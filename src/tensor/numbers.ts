import { fail } from './errors.js'

/** Memory of the host that `make` allocates for `what`. Throws OUT_OF_MEMORY where there is none, or an array cannot be so long. */
export function hostMemory<M>(what: string, bytes: number, make: () => M): M {
  try {
    return make()
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    return fail('OUT_OF_MEMORY', `${what} needs ${(bytes / 2 ** 30).toPrecision(3)} GiB in one piece, which this process cannot have`)
  }
}

/** `of` of each of 0 to length - 1. Throws OUT_OF_MEMORY, naming `what` they are. */
export function numbersOf(what: string, length: number, of: (i: number) => number): Float64Array {
  const values = hostMemory(what, 8 * length, () => new Float64Array(length))
  for (let i = 0; i < length; ++i) values[i] = of(i)
  return values
}

// Extremes of arrays of any length: Math.max(...values) puts every value on the stack, which ends at some 100,000 of them.

/** The largest of the numbers; -Infinity of none, NaN where one is. */
export function largest(values: Iterable<number>): number {
  let most = -Infinity
  for (const value of values) most = Math.max(most, value)
  return most
}

/** The smallest of the numbers; Infinity of none, NaN where one is. */
export function smallest(values: Iterable<number>): number {
  let least = Infinity
  for (const value of values) least = Math.min(least, value)
  return least
}
