/**
 * `scenes`: a built-in data set of textured objects on textured grounds, drawn from a seed and an index, so that everything
 * can be tried without a download. The class of an image is the texture of its object and that of its ground; shapes, colours,
 * sizes and places are random, so colour histograms tell nothing of it.
 */
import { Random } from '../tensor/random.js'
import type { Pixels } from './decode.js'

const sceneShapes = ['disc', 'square', 'triangle', 'ring', 'cross'] as const
const sceneTextures = ['stripes', 'dots', 'checks', 'rings', 'plain'] as const
const sceneGrounds = ['clouds', 'gravel'] as const
/** The names of the classes of generated images. */
export const sceneClasses = sceneTextures.flatMap((texture) => sceneGrounds.map((ground) => `${texture} on ${ground}`))
const sceneSize = 96

/** A generated image and what is in it. */
export interface Scene {
  pixels: Pixels
  /** 0 .. sceneClasses.length - 1 */
  label: number
  /** 1 on the object, 0 on the ground, height * width */
  mask: Uint8Array
  /** x and y of the first and after the last column and row of the mask */
  box: [number, number, number, number]
}

type Colour = readonly [number, number, number]
type Pattern = (x: number, y: number) => number

/** Whether a point of the unit disc's square (-1..1) lies in the shape. */
const inside: Record<(typeof sceneShapes)[number], (x: number, y: number) => boolean> = {
  disc: (x, y) => x * x + y * y < 0.9,
  square: (x, y) => Math.abs(x) < 0.8 && Math.abs(y) < 0.8,
  triangle: (x, y) => y > -0.75 && y < 0.8 && Math.abs(x) < (0.8 - y) * 0.62,
  ring: (x, y) => x * x + y * y < 1 && x * x + y * y > 0.3,
  cross: (x, y) => (Math.abs(x) < 0.3 && Math.abs(y) < 0.95) || (Math.abs(y) < 0.3 && Math.abs(x) < 0.95),
}

/** Smooth noise: random values on a lattice, interpolated. */
function noise(random: Random, cell: number): Pattern {
  const side = Math.ceil(sceneSize / cell) + 2
  const lattice = Float32Array.from({ length: side * side }, () => random.uniform())
  return (x, y) => {
    const u = x / cell
    const v = y / cell
    const i = Math.floor(u)
    const j = Math.floor(v)
    const fu = u - i
    const fv = v - j
    const at = j * side + i
    return (
      (lattice[at]! * (1 - fu) + lattice[at + 1]! * fu) * (1 - fv) + (lattice[at + side]! * (1 - fu) + lattice[at + side + 1]! * fu) * fv
    )
  }
}

const frac = (value: number): number => value - Math.floor(value)

/** Lattice cells of the grounds, in pixels. */
const groundCell = { clouds: [14, 22], gravel: [3, 4.5] } as const

function texture(random: Random, kind: (typeof sceneTextures)[number]): Pattern {
  const angle = random.uniform(0, Math.PI)
  const period = random.uniform(8, 11)
  const c = Math.cos(angle) / period
  const s = Math.sin(angle) / period
  switch (kind) {
    case 'stripes':
      return (x, y) => (frac(c * x + s * y) < 0.5 ? 1 : 0)
    case 'dots':
      return (x, y) => ((frac(c * x + s * y) - 0.5) ** 2 + (frac(c * y - s * x) - 0.5) ** 2 < 0.09 ? 1 : 0)
    case 'checks':
      return (x, y) => (frac(c * x + s * y) < 0.5 === frac(c * y - s * x) < 0.5 ? 1 : 0)
    case 'rings': {
      const [u, v] = [random.uniform(0.3, 0.7) * sceneSize, random.uniform(0.3, 0.7) * sceneSize]
      return (x, y) => (frac(Math.hypot(x - u, y - v) / period) < 0.5 ? 1 : 0)
    }
    case 'plain':
      return () => 0.5
  }
}

const colour = (random: Random): Colour => [random.uniform(0, 255), random.uniform(0, 255), random.uniform(0, 255)]

/** Image `index` of the data set of `seed`; the label is index modulo the classes. */
export function scene(seed: number, index: number): Scene {
  const random = new Random(seed, 71, index)
  const label = index % sceneClasses.length
  const shape = sceneShapes[random.below(sceneShapes.length)]!
  const ground = noise(random, random.uniform(...groundCell[sceneGrounds[label % sceneGrounds.length]!]))
  const grain = noise(random, 3)
  const pattern = texture(random, sceneTextures[Math.floor(label / sceneGrounds.length)]!)
  const [low, high, front, back] = [colour(random), colour(random), colour(random), colour(random)]
  const radius = random.uniform(0.34, 0.46) * sceneSize
  const cx = random.uniform(radius, sceneSize - radius)
  const cy = random.uniform(radius, sceneSize - radius)
  const turn = random.uniform(-0.5, 0.5)
  const c = Math.cos(turn) / radius
  const s = Math.sin(turn) / radius
  const contains = inside[shape]

  const data = new Uint8Array(sceneSize * sceneSize * 3)
  const mask = new Uint8Array(sceneSize * sceneSize)
  const box: [number, number, number, number] = [sceneSize, sceneSize, 0, 0]
  for (let y = 0; y < sceneSize; ++y) {
    for (let x = 0; x < sceneSize; ++x) {
      const dx = x + 0.5 - cx
      const dy = y + 0.5 - cy
      const onObject = contains(c * dx + s * dy, c * dy - s * dx)
      const light = 0.92 + 0.16 * grain(x, y)
      const t = onObject ? pattern(x, y) : ground(x, y)
      const from = onObject ? front : low
      const to = onObject ? back : high
      const at = y * sceneSize + x
      for (let k = 0; k < 3; ++k) data[3 * at + k] = Math.min(255, (from[k]! * (1 - t) + to[k]! * t) * light)
      if (!onObject) continue
      mask[at] = 1
      box[0] = Math.min(box[0], x)
      box[1] = Math.min(box[1], y)
      box[2] = Math.max(box[2], x + 1)
      box[3] = Math.max(box[3], y + 1)
    }
  }
  return { pixels: { width: sceneSize, height: sceneSize, data }, label, mask, box }
}
