/** Means with their intervals, and paired differences. */

/** A mean and half the width of its 95 % interval, which is NaN for one value. */
export interface Interval {
  mean: number
  half: number
}

/** Student's t for 95 %, by degrees of freedom: a table, and after it the expansion about the normal quantile. */
function studentT(freedom: number): number {
  const z = 1.959964
  return (
    [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262][freedom - 1] ??
    z + (z ** 3 + z) / (4 * freedom) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * freedom ** 2)
  )
}

/** The mean of values and the 95 % interval of it by Student's t. */
export function interval(values: readonly number[]): Interval {
  const n = values.length
  const mean = values.reduce((a, b) => a + b, 0) / n
  if (n < 2) return { mean, half: NaN }
  const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1))
  return { mean, half: (studentT(n - 1) * deviation) / Math.sqrt(n) }
}

/** `8.20 ± 1.00`, or the mean alone where there is no interval. */
export const intervalText = ({ mean, half }: Interval, sign = ''): string =>
  Number.isNaN(mean) ? '-' : `${mean >= 0 ? sign : ''}${mean.toFixed(2)}${Number.isNaN(half) ? '' : ` ± ${half.toFixed(2)}`}`
