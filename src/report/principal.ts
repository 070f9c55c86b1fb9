/** Dense features as colours: the first three principal components of all positions of some pictures. */
import { Random } from '../tensor/random.js'
import { type Seen, spread } from './pairs.js'
import { pngUrl } from './svg.js'

/**
 * The three directions of largest variance of rows [n, dim], by orthogonal iteration; each sign is such that the longer tail of the
 * projections is positive, so that colours stay where they are from one epoch to the next.
 */
export function principalDirections(rows: readonly Float32Array[], dim: number): { mean: Float64Array; directions: Float64Array[] } {
  const mean = new Float64Array(dim)
  for (const row of rows) row.forEach((value, c) => (mean[c]! += value / rows.length))
  const centred = rows.map((row) => Float64Array.from(row, (value, c) => value - mean[c]!))
  const project = (direction: Float64Array): Float64Array =>
    Float64Array.from(centred, (row) => row.reduce((sum, value, c) => sum + value * direction[c]!, 0))
  const random = new Random(59)
  let directions: Float64Array[] = [0, 1, 2].map(() => Float64Array.from({ length: dim }, () => random.normal()))
  for (let round = 0; round < 60; ++round) {
    const next: Float64Array[] = []
    for (const direction of directions) {
      const weights = project(direction)
      const sum = new Float64Array(dim)
      centred.forEach((row, i) => row.forEach((value, c) => (sum[c]! += weights[i]! * value)))
      for (const other of next) {
        const shared = sum.reduce((total, value, c) => total + value * other[c]!, 0)
        sum.forEach((_, c) => (sum[c]! -= shared * other[c]!))
      }
      // eslint-disable-next-line local/spread -- a number a channel
      const length = Math.hypot(...sum)
      next.push(sum.map((value) => (length > 0 ? value / length : 0)))
    }
    directions = next
  }
  return {
    mean,
    directions: directions.map((direction) =>
      project(direction).reduce((sum, value) => sum + value ** 3, 0) < 0 ? direction.map((value) => -value) : direction,
    ),
  }
}

/** Each picture above its colours; directions and range are shared, so that one colour means one thing. */
export function drawPrincipal(seen: readonly Seen[]): string {
  const { channels } = seen[0]!
  const rows = seen.flatMap(({ features }) =>
    Array.from({ length: features.length / channels }, (_, i) => features.subarray(i * channels, (i + 1) * channels)),
  )
  const { mean, directions } = principalDirections(rows, channels)
  const values = rows.map((row) =>
    directions.map((direction) => row.reduce((sum, value, c) => sum + (value - mean[c]!) * direction[c]!, 0)),
  )
  const range = [0, 1, 2].map((d) => {
    const sorted = values.map((value) => value[d]!).sort((a, b) => a - b)
    return [sorted[Math.floor(0.02 * sorted.length)]!, sorted[Math.ceil(0.98 * sorted.length) - 1]!] as const
  })
  let first = 0
  const height = 200
  let x = 0
  const parts: string[] = []
  for (const { picture, grid } of seen) {
    const count = grid[0] * grid[1]
    const colours = values
      .slice(first, first + count)
      .flatMap((value) => value.map((v, d) => 255 * Math.min(1, Math.max(0, (v - range[d]![0]) / (range[d]![1] - range[d]![0] || 1)))))
    first += count
    const urls = [
      pngUrl(picture.rgb, picture.width, picture.height),
      pngUrl(Uint8Array.from(spread(colours, grid, picture, 3)), picture.width, picture.height),
    ]
    const width = Math.round((height * picture.width) / picture.height)
    urls.forEach((url, i) =>
      parts.push(`<image x="${x}" y="${i * (height + 6)}" width="${width}" height="${height}" href="${url}" preserveAspectRatio="none"/>`),
    )
    x += width + 6
  }
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${x - 6}" height="${2 * height + 6}" viewBox="0 ` +
    `0 ${x - 6} ${2 * height + 6}">${parts.join('')}</svg>\n`
  )
}
