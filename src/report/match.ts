/** Dense correspondences between two pictures: positions that are each other's most similar, and heat maps of one position. */
import { denseMatch } from '../ops/similarity.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { type Picture, type Seen, similarities, spread } from './pairs.js'
import { captionColour, pngUrl } from './svg.js'
import { largest, smallest } from '../tensor/numbers.js'

/** A pair of positions of two images, and how similar they are. */
export interface Match {
  /** Positions in the grids of the two pictures, row-major. */
  query: number
  key: number
  similarity: number
}

/** Matches that are each other's most similar position, the most similar first. */
export function mutualMatches(query: Tensor, key: Tensor): Match[] {
  return scope(() => {
    const there = denseMatch(query, key)
    const back = denseMatch(key, query).index.data()
    const similarity = there.similarity.data()
    const found: Match[] = []
    there.index.data().forEach((k, q) => {
      if (back[k] === q) found.push({ query: q, key: k, similarity: similarity[q]! })
    })
    return found.sort((a, b) => b.similarity - a.similarity)
  })
}

/**
 * The strongest `most` mutual matches of two pictures with a similarity of at least `threshold`, and no two of them closer to each other in
 * the first picture than the share `apart` of its side: the strongest of all lie in one place.
 */
export function matchesOf(
  [query, key]: readonly [Seen, Seen],
  { most, threshold, apart = 0 }: { most: number; threshold: number; apart?: number },
): Match[] {
  const tensor = ({ features, channels }: Seen): Tensor => Tensor.from(features, [1, features.length / channels, channels])
  const [rows, columns] = query.grid
  const taken: Match[] = []
  for (const match of scope(() => mutualMatches(tensor(query), tensor(key)))) {
    if (taken.length === most || match.similarity < threshold) break
    const far = (other: Match): boolean =>
      Math.hypot(
        (Math.floor(match.query / columns) - Math.floor(other.query / columns)) / rows,
        ((match.query % columns) - (other.query % columns)) / columns,
      ) >= apart
    if (taken.every(far)) taken.push(match)
  }
  return taken
}

const gap = 16

/** Both pictures side by side, at least 320 pixels high, with what `marks` draws on them in their own coordinates. */
function sideBySide(
  pair: readonly [Seen, Seen],
  urls: readonly string[],
  note: string,
  marks: (place: (side: 0 | 1, position: number) => [number, number]) => string,
): string {
  const height = Math.max(320, pair[0].picture.height)
  const widths = pair.map(({ picture }) => Math.round((picture.width * height) / picture.height)) as [number, number]
  const offsets = [0, widths[0] + gap]
  const place = (side: 0 | 1, position: number): [number, number] => {
    const [rows, columns] = pair[side].grid
    return [
      offsets[side]! + ((position % columns) + 0.5) * (widths[side] / columns),
      (Math.floor(position / columns) + 0.5) * (height / rows),
    ]
  }
  const images = urls.map(
    (url, side) =>
      `<image x="${offsets[side]}" y="0" width="${widths[side]}" height="${height}" href="${url}" preserveAspectRatio="none"/>`,
  )
  const width = widths[0] + gap + widths[1]
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height + 28}" viewBox="0 ` +
    `0 ${width} ${height + 28}" font-family="sans-serif" font-size="14" fill="${captionColour}">` +
    `${images.join('')}${marks(place)}<text x="4" y="${height + 20}">${note}</text></svg>\n`
  )
}

const urlOf = ({ rgb, width, height }: Picture): string => pngUrl(rgb, width, height)

/** Lines between matching positions. */
export function drawMatches(pair: readonly [Seen, Seen], matches: readonly Match[]): string {
  const note =
    matches.length === 0
      ? 'no mutual match above the threshold'
      : `${matches.length} mutual matches, similarity ${matches.at(-1)!.similarity.toFixed(2)} to ${matches[0]!.similarity.toFixed(2)}`
  const urls = pair.map(({ picture }) => urlOf(picture))
  return sideBySide(pair, urls, note, (place) =>
    matches
      .map(({ query, key, similarity }, i) => {
        const ends = [place(0, query), place(1, key)].map(([x, y]) => [x.toFixed(1), y.toFixed(1)] as const)
        const [[x1, y1], [x2, y2]] = ends as [readonly [string, string], readonly [string, string]]
        const colour = `hsl(${Math.round((360 * i) / Math.max(1, matches.length))} 90% 50%)`
        const circles = ends.map(([x, y]) => `<circle cx="${x}" cy="${y}" r="4" fill="${colour}" stroke="#fff"/>`)
        return (
          `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" stroke="${colour}" stroke-width="2" ` +
          `stroke-opacity="0.85"><title>${similarity.toFixed(3)}</title></line>${circles.join('')}`
        )
      })
      .join(''),
  )
}

/** The grid position of a point, given as shares of width and height. */
export function positionAt({ grid: [rows, columns] }: Seen, [x, y]: readonly [number, number]): number {
  return Math.min(rows - 1, Math.floor(y * rows)) * columns + Math.min(columns - 1, Math.floor(x * columns))
}

/** The colour of a value, from dark blue over green to yellow: lightness grows with the value, so that it reads in grey too. */
function heatColour(share: number): [number, number, number] {
  const t = Math.min(1, Math.max(0, share))
  return [255 * Math.min(1, Math.max(0, 1.6 * t - 0.5)), 255 * (0.05 + 0.9 * t), 255 * (0.35 + 0.35 * Math.sin(Math.PI * t) - 0.3 * t)]
}

/** How similar every position of both pictures is to `position` of the first, as colours over the picture in grey. */
export function drawHeat(pair: readonly [Seen, Seen], position: number): { svg: string; best: Match } {
  const { features, channels } = pair[0]
  const feature = features.subarray(position * channels, (position + 1) * channels)
  const maps = pair.map((seen) => similarities(feature, seen))
  const key = maps[1]!.indexOf(largest(maps[1]!))
  const best = { query: position, key, similarity: maps[1]![key]! }
  // One scale for both pictures; the position itself has similarity 1.
  const all = maps.flatMap((map) => [...map])
  const [low, high] = [smallest(all), Math.max(largest(maps[1]!), largest(maps[0]!.filter((_, i) => i !== position)))]
  const urls = pair.map(({ picture, grid }, side) => {
    const values = spread(maps[side]!, grid, picture)
    const rgb = new Uint8Array(picture.rgb.length)
    values.forEach((value, i) => {
      const grey = 0.3 * picture.rgb[3 * i]! + 0.59 * picture.rgb[3 * i + 1]! + 0.11 * picture.rgb[3 * i + 2]!
      heatColour((value - low) / (high - low || 1)).forEach((colour, c) => (rgb[3 * i + c] = 0.45 * grey + 0.55 * colour))
    })
    return urlOf({ ...picture, rgb })
  })
  const svg = sideBySide(
    pair,
    urls,
    `similarity to the circled point: ${low.toFixed(2)} (dark) to ${high.toFixed(2)} (bright); best match ${best.similarity.toFixed(3)}`,
    (place) => {
      const circle = ([x, y]: [number, number], extra: string): string =>
        `<circle cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="9" fill="none" stroke="#fff" stroke-width="4"/><circle ` +
        `cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="9" fill="none" stroke="#d00" stroke-width="2" ${extra}/>`
      return circle(place(0, position), '') + circle(place(1, key), 'stroke-dasharray="4 3"')
    },
  )
  return { svg, best }
}
