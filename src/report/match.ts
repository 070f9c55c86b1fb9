/** Dense correspondences between two random views of an image: mutual nearest neighbours of backbone features, drawn. */
import { mocoV2Augmentation, pixelTensor, randomView, renderView } from '../data/augment.js'
import type { Pixels } from '../data/decode.js'
import { evaluation } from '../nn/layers.js'
import { Random } from '../nn/random.js'
import type { ResNet } from '../nn/resnet.js'
import { reshape } from '../ops/elementwise.js'
import { denseMatch } from '../ops/similarity.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { pngUrl } from './svg.js'

export interface Match {
  /** Positions in the grids of the two views, row-major. */
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

export interface MatchPicture {
  svg: string
  matches: Match[]
  grid: [number, number]
}

/**
 * Two views of `pixels`, `size` pixels square, and the strongest `most` of their mutual matches above `threshold`. The views
 * are drawn from `seed`: crops of at least half the area, and colours as in training.
 */
export async function matchPicture(backbone: ResNet, pixels: Pixels, options: { size: number; seed: number; most: number; threshold: number }): Promise<MatchPicture> {
  const { size, seed, most, threshold } = options
  const parameters = [0, 1].map((view) => randomView(new Random(seed, 31, view), pixels.width, pixels.height, { ...mocoV2Augmentation, cropScale: [0.5, 1], grayscale: 0, blur: 0 }))
  const { matches, grid, pictures } = scope(() => {
    const source = pixelTensor(pixels)
    const maps = parameters.map((view) => {
      const x = Tensor.empty([1, size, size, 3])
      renderView(x, 0, source, view)
      return backbone.forward(backbone.input(x), evaluation)
    }) as [Tensor, Tensor]
    const [, h, w, c] = maps[0].shape as [number, number, number, number]
    const flat = maps.map((map) => reshape(map, [1, h * w, c])) as [Tensor, Tensor]
    const shown = parameters.map((view) => {
      const x = Tensor.empty([1, size, size, 3])
      renderView(x, 0, source, view, false)
      return Uint8Array.from(x.data(), (value) => Math.round(255 * value))
    })
    return { matches: mutualMatches(...flat).filter(({ similarity }) => similarity >= threshold), grid: [h, w] as [number, number], pictures: shown }
  })
  const shown = matches.slice(0, most)
  return { svg: await draw(pictures, size, grid, shown), matches: shown, grid }
}

async function draw(pictures: Uint8Array[], size: number, [rows, columns]: [number, number], matches: Match[]): Promise<string> {
  const side = Math.max(320, size)
  const gap = 16
  const [left, right] = await Promise.all(pictures.map((rgb) => pngUrl(rgb, size, size)))
  const centre = (position: number): [number, number] => [((position % columns) + 0.5) * (side / columns), (Math.floor(position / columns) + 0.5) * (side / rows)]
  const lines = matches.map(({ query, key, similarity }, i) => {
    const [x1, y1] = centre(query)
    const [x2, y2] = centre(key)
    const colour = `hsl(${Math.round((360 * i) / Math.max(1, matches.length))} 90% 50%)`
    const ends = [`${x1.toFixed(1)} ${y1.toFixed(1)}`, `${(x2 + side + gap).toFixed(1)} ${y2.toFixed(1)}`].map((at) => {
      const [x, y] = at.split(' ')
      return `<circle cx="${x}" cy="${y}" r="4" fill="${colour}" stroke="#fff"/>`
    })
    return `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${(x2 + side + gap).toFixed(1)}" y2="${y2.toFixed(1)}" stroke="${colour}" stroke-width="2" stroke-opacity="0.85"><title>${similarity.toFixed(3)}</title></line>${ends.join('')}`
  })
  const width = 2 * side + gap
  const note = matches.length === 0 ? 'no mutual match above the threshold' : `${matches.length} mutual matches, similarity ${matches.at(-1)!.similarity.toFixed(2)} to ${matches[0]!.similarity.toFixed(2)}`
  const image = (url: string, x: number): string => `<image x="${x}" y="0" width="${side}" height="${side}" href="${url}"/>`
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${side + 28}" font-family="sans-serif" font-size="14"><rect width="100%" height="100%" fill="#fff"/>${image(left!, 0)}${image(right!, side + gap)}${lines.join('')}<text x="4" y="${side + 20}">${note}</text></svg>\n`
}
