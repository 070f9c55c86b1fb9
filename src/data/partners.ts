/** Which positions of two views show the same place of their image, by the crops that the views are. */
import { cropColumns, type ViewCrops } from './augment.js'

/**
 * For each position of the query view's grid of side S the position of the key view whose cell holds the same point of the image, the
 * centre of the query's cell: i32 [N, P], P = S * S, -1 where the key view does not show it.
 */
export function partnersByCrops({ values, images }: ViewCrops, side: number): Int32Array {
  const partners = new Int32Array(images * side * side)
  for (let n = 0; n < images; ++n) {
    const query = values.subarray(n * cropColumns, (n + 1) * cropColumns)
    const key = values.subarray((images + n) * cropColumns, (images + n + 1) * cropColumns)
    const columns = Array.from({ length: side }, (_, j) => cellOf(along(query, 0, j, side), key, 0, side))
    for (let i = 0; i < side; ++i) {
      const row = cellOf(along(query, 1, i, side), key, 1, side)
      for (let j = 0; j < side; ++j) partners[(n * side + i) * side + j] = row < 0 || columns[j]! < 0 ? -1 : row * side + columns[j]!
    }
  }
  return partners
}

/** The place of a cell's centre along an axis of the image (0 across, 1 down), as a share of the image's side. */
function along(crop: Float64Array, axis: 0 | 1, cell: number, side: number): number {
  const share = (cell + 0.5) / side
  return crop[axis]! + crop[2 + axis]! * (isMirrored(crop, axis) ? 1 - share : share)
}

/** The cell of a view that holds a place of the image; -1 for one beyond it. */
function cellOf(place: number, crop: Float64Array, axis: 0 | 1, side: number): number {
  const share = (place - crop[axis]!) / crop[2 + axis]!
  const cell = Math.floor(side * (isMirrored(crop, axis) ? 1 - share : share))
  return cell >= 0 && cell < side ? cell : -1
}

const isMirrored = (crop: Float64Array, axis: 0 | 1): boolean => axis === 0 && crop[4] === 1

/** Crops of views that both are their whole image: what steps are prepared with where nobody looks at an image. */
export function wholeViews(images: number): ViewCrops {
  const values = new Float64Array(2 * images * cropColumns)
  for (let row = 0; row < 2 * images; ++row) values.set([0, 0, 1, 1, 0], row * cropColumns)
  return { values, images }
}
