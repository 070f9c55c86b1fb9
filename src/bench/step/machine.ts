/**
 * What a launch takes on a GPU that is not here: a product by src/bench/model.ts, and what only passes over memory by its bytes at the
 * bandwidth that such passes reach, the instructions it issues and the loads that wait for one another.
 */
import { indexed, nearestTile, type Product, readTable, tilePays, tuningFile } from '../../ops/tuning.js'
import { type ConstantName, type Constants, constantsOf, type KernelState } from '../constants.js'
import { type Architecture, type Around, type Bound, type Predicted, predict, tiles } from '../model.js'

/** A launch, or several of one kernel. */
export interface Cost {
  kernel: string
  /** Its operands, in words. */
  what: string
  launches: number
  microseconds: number
  bound: Bound
  bytes: number
  operations: number
  /** The larger of bytes and operations at what large copies and products reach, microseconds. */
  floor: number
}

/** The kernels of a state on an architecture. */
export class Machine {
  readonly constants: Constants
  readonly #table: ReturnType<typeof indexed> | undefined
  constructor(
    readonly architecture: Architecture,
    state: KernelState,
    overrides: Partial<Record<ConstantName, number>> = {},
    /** Tiles that products take where they are faster with them, as a tuned run does, instead of the table's. */
    readonly untimed: readonly number[] = [],
  ) {
    this.constants = { ...constantsOf(state), ...overrides }
    const table = readTable(tuningFile(architecture.name))
    this.#table = table && indexed(table)
  }

  /** A kernel that passes over `bytes`, for which it issues instructions of warps, or waits for a chain of loads. */
  passes(kernel: string, what: string, bytes: number, { launches = 1, warpInstructions = 0, chainCycles = 0, operations = 0 } = {}): Cost {
    const { multiprocessors, gigahertz, gigabytesPerSecond } = this.architecture
    const times: Record<Exclude<Bound, 'launch'>, number> = {
      bytes: bytes / (gigabytesPerSecond * this.constants.streamed) / 1e3,
      instructions: warpInstructions / (4 * this.constants.issue * multiprocessors) / gigahertz / 1e3,
      chain: chainCycles / gigahertz / 1e3,
      'tensor cores': 0,
      'shared memory': 0,
      producer: 0,
      epilogue: 0,
    }
    const [bound, longest] = (Object.entries(times) as [Bound, number][]).reduce((a, b) => (b[1] > a[1] ? b : a))
    const ramps = launches * this.constants.launch
    return this.#cost(kernel, what, launches, longest + ramps, ramps > longest ? 'launch' : bound, bytes, operations)
  }

  /** A product of a convolution. */
  product(
    kernel: string,
    what: string,
    product: Product,
    { tile, whole, ...around }: Around & { tile: number; whole: boolean },
    bytes: number,
  ): Cost {
    const { name, multiprocessors } = this.architecture
    const hopper = name === 'sm_90' && whole && !around.gathered
    // The kernels' own rule, where neither the caller nor the table has a tile that fits.
    const large = (n: number): boolean => Math.ceil(product.rows / 128) * Math.ceil(product.columns / n) >= multiprocessors
    const narrow = (product.direction === 'backward weight' ? product.rows : product.columns) <= 64
    const own =
      hopper && tile === 0
        ? narrow
          ? 5
          : 4
        : tile > 0 && (tile <= 3 || hopper)
          ? tile
          : product.columns > 64 && large(128)
            ? 1
            : large(64)
              ? 2
              : 3
    const predicted = (id: number): Predicted =>
      predict(
        this.architecture,
        product,
        tiles.find((one) => one.id === id)!,
        bytes,
        around,
        this.constants,
      )
    const others = hopper ? this.untimed.filter((id) => tilePays(id, product)) : []
    const best = [own, ...others].map((id) => ({ id, ...predicted(id) })).reduce((a, b) => (b.microseconds < a.microseconds ? b : a))
    const chosen = tiles.find(({ id }) => id === best.id)!
    const { microseconds, bound, splits } = best
    const operations = 2 * product.rows * product.columns * product.depth
    return this.#cost(
      `${kernel}${chosen.hopper ? ', wgmma' : around.gathered ? ', gathered' : ''}`,
      `${what}, tile ${chosen.id}${splits > 1 ? `, ${splits} splits` : ''}`,
      splits > 1 ? 2 : 1,
      microseconds,
      bound,
      bytes,
      operations,
    )
  }

  tile(product: Product): number {
    return this.#table === undefined ? 0 : nearestTile(this.#table, product)
  }

  #cost(kernel: string, what: string, launches: number, microseconds: number, bound: Bound, bytes: number, operations: number): Cost {
    const floor = Math.max(bytes / this.architecture.gigabytesPerSecond / 1e3, operations / this.architecture.teraflops / 1e6)
    return { kernel, what, launches, microseconds, bound, bytes, operations, floor }
  }
}
