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
