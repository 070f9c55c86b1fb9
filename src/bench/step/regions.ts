import { largest, smallest } from '../../tensor/numbers.js'

/** What the kernels of RoIAlign meet of a region along one axis of its map, in the mean over sides and places. */
export interface RegionCounts {
  /** Cells that any of its bins has. */
  cells: number
  /** Cells of each bin, added up. */
  taps: number
  /** Steps of 16 cells for each 16 bins. */
  depth: number
  /** Tiles of 8 cells, and groups of 4, that it reaches. */
  tiles: number
  groups: number
  /** Steps of 4 bins for each of these groups. */
  blocks: number
}

/** Of a region whose bins have as many samples as cells, rounded up, and sides within a third of `side` cells, evenly. */
export function regionCounts(side: number, bins: number): RegionCounts {
  const total: RegionCounts = { cells: 0, taps: 0, depth: 0, tiles: 0, groups: 0, blocks: 0 }
  const [sides, places] = [32, 16]
  for (let i = 0; i < sides; ++i)
    for (let j = 0; j < places; ++j) {
      const counts = countsAt(side * (2 / 3 + (2 * (i + 0.5)) / (3 * sides)), bins, 64 + (8 * (j + 0.3)) / places)
      for (const name of Object.keys(total) as (keyof RegionCounts)[]) total[name] += counts[name] / sides / places
    }
  return total
}

function countsAt(side: number, bins: number, start: number): RegionCounts {
  const bin = side / bins
  const samples = Math.ceil(bin)
  const cellsOf = Array.from({ length: bins }, (_, p) => {
    const below = Array.from({ length: samples }, (_, i) => Math.floor(start + p * bin + ((i + 0.5) * bin) / samples))
    return [...new Set(below.flatMap((cell) => [cell, cell + 1]))]
  })
  const distinct = (width: number): number[] => [...new Set(cellsOf.flat().map((cell) => Math.floor(cell / width)))]
  const rows = Array.from({ length: Math.ceil(bins / 16) }, (_, k) => cellsOf.slice(16 * k, 16 * k + 16).flat())
  return {
    cells: distinct(1).length,
    taps: cellsOf.flat().length,
    depth: rows.reduce((sum, cells) => sum + Math.ceil((largest(cells) - smallest(cells) + 1) / 16), 0),
    tiles: distinct(8).length,
    groups: distinct(4).length,
    blocks: distinct(4).reduce((sum, group) => {
      // Bins follow one another, four at a time from the first.
      const reached = cellsOf.filter((cells) => cells.some((cell) => Math.floor(cell / 4) === group)).length
      return sum + Math.ceil(reached / 4)
    }, 0),
  }
}
