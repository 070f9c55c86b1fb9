/** Anchors: the boxes that a region proposal network scores and moves, the same ones at every cell of a map. */
import type { Tensor } from '../tensor/tensor.js'

/** Which anchors a map has. */
export interface AnchorOptions {
  /** Square roots of the areas, in pixels of the image. */
  sizes: readonly number[]
  /** Heights over widths. */
  ratios: readonly number[]
  /** Pixels of the image between two cells. */
  stride: number
  /** What changes slowest within a cell: detectron2's order, or mmdetection's and torchvision's. */
  order: 'size' | 'ratio'
  /**
   * Corners are rounded to whole pixels, halves to even ones, and the stride is what fits whole into a padded image, as torchvision has
   * them; false where absent.
   */
  rounded?: boolean | undefined
}

/** Square roots of the areas of the anchors, in pixels of the resized image, and their heights over widths. */
export const publishedAnchors = { sizes: [32, 64, 128, 256, 512], ratios: [0.5, 1, 2] } as const

const toEven = (value: number): number => (Math.abs(value % 1) === 0.5 ? 2 * Math.round(value / 2) : Math.round(value))

/** The anchors of a cell at the origin, x1 y1 x2 y2 of each. */
export function cellAnchors({ sizes, ratios, order, rounded = false }: AnchorOptions): Float64Array {
  const anchor = (size: number, ratio: number): number[] => {
    const width = Math.sqrt((size * size) / ratio)
    const height = ratio * width
    const corners = [-width / 2, -height / 2, width / 2, height / 2]
    return rounded ? corners.map(toEven) : corners
  }
  return Float64Array.from(
    order === 'size'
      ? sizes.flatMap((size) => ratios.flatMap((ratio) => anchor(size, ratio)))
      : ratios.flatMap((ratio) => sizes.flatMap((size) => anchor(size, ratio))),
  )
}

/**
 * The anchors [height * width * A, 4] of a map, rows of cells outside, columns inside, those of a cell together. A cell's origin is the
 * upper left corner of what it stands for, not its centre.
 */
export function gridAnchors(
  options: AnchorOptions,
  height: number,
  width: number,
  [down, across]: readonly [number, number] = [options.stride, options.stride],
): Float64Array {
  const cell = cellAnchors(options)
  const out = new Float64Array(height * width * cell.length)
  let at = 0
  for (let y = 0; y < height; ++y)
    for (let x = 0; x < width; ++x) for (let i = 0; i < cell.length; ++i) out[at++] = cell[i]! + (i % 2 === 0 ? across * x : down * y)
  return out
}

/** The anchors of a map [N, h, w, C] of images [N, H, W, 3]. */
export function anchorsOfMap(options: AnchorOptions, map: Tensor, images: Tensor): Float64Array {
  const [height, width] = [map.shape[1]!, map.shape[2]!]
  const fitting = [Math.floor(images.shape[1]! / height), Math.floor(images.shape[2]! / width)] as const
  return gridAnchors(options, height, width, options.rounded === true ? fitting : undefined)
}
