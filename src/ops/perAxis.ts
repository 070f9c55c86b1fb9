/** One number for both axes, or [vertical, horizontal]. */
export type PerAxis = number | readonly [number, number]
export const perAxis = (value: PerAxis): readonly [number, number] => (typeof value === 'number' ? [value, value] : value)
