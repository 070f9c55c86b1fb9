// Finds the nearest neighbours of the places of one image among those of another, by the maps of a backbone:
//   node dist/examples/matches.js [IMAGE OTHER [WEIGHTS]]   without images a built-in scene and a part of it, without weights random
import { readFile } from 'node:fs/promises'

import { importBackbone } from 'densecl'
import { decode, imageTensor, type Pixels, scene } from 'densecl/data'
import { type Backbone, denseMatch, disposeState, evaluation, Random, ResNet, reshape, scope, type Tensor } from 'densecl/engine'

const [first, second, weights] = process.argv.slice(2)
const read = async (path: string): Promise<Pixels> => decode(await readFile(path), path)

/** The part of an image from (left, top) on. */
function part({ width, height, data }: Pixels, left: number, top: number): Pixels {
  const rows = Array.from({ length: height - top }, (_, y) => [...data.subarray(3 * ((top + y) * width + left), 3 * (top + y + 1) * width)])
  return { width: width - left, height: height - top, data: Uint8Array.from(rows.flat()) }
}

/** The map of the stage whose places are eight pixels apart, [1, places, channels], and how many places a row has. */
function places(backbone: Backbone, pixels: Pixels): { features: Tensor; columns: number } {
  const map = backbone.stages(backbone.input(imageTensor(pixels)), evaluation)[2]!
  const [, rows, columns, channels] = map.shape as [number, number, number, number]
  return { features: reshape(map, [1, rows * columns, channels]), columns }
}

const backbone =
  weights === undefined
    ? new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 16 })
    : importBackbone(weights).backbone
const image = first === undefined ? scene(1, 4).pixels : await read(first)
const other = second === undefined ? part(image, 16, 8) : await read(second)

scope(() => {
  const [a, b] = [places(backbone, image), places(backbone, other)]
  const there = denseMatch(a.features, b.features)
  const back = denseMatch(b.features, a.features).index.data()
  const similarity = there.similarity.data()
  const pixel = (place: number, columns: number): string => `(${8 * (place % columns)}, ${8 * Math.floor(place / columns)})`
  // Pairs that are each other's nearest, the most similar ones first.
  const mutual = [...there.index.data()]
    .map((to, from) => ({ from, to, similarity: similarity[from]! }))
    .filter(({ from, to }) => back[to] === from)
    .sort((p, q) => q.similarity - p.similarity)
  console.log(`${mutual.length} of ${similarity.length} places are each other's nearest neighbours`)
  for (const { from, to, similarity } of mutual.slice(0, 10))
    console.log(`${pixel(from, a.columns)} -> ${pixel(to, b.columns)}  cosine similarity ${similarity.toFixed(3)}`)
})
disposeState(backbone.state())
