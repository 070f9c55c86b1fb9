/** Features that do not change - the network is frozen and the views are fixed - kept on the disk and read by rows. */
import { createHash } from 'node:crypto'
import { closeSync, existsSync, openSync, readSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'

import { Group } from '../distributed/group.js'
import type { Item } from '../data/source.js'
import { writeAll, writeProblem } from '../files/atomic.js'
import type { Backbone } from '../nn/backbone.js'
import { allTensors } from '../nn/module.js'
import { fail } from '../tensor/errors.js'
import { evaluationCompute } from './compute.js'
import { partOf } from './shares.js'
import { type ExtractOptions, type FeatureName, overImages, poolFeature } from './features.js'

export interface FeatureShape {
  name: FeatureName
  /** [grid, grid, channels] of an image */
  shape: readonly number[]
  size: number
}

/** What decides the features of a file's rows: hashed into its name, so that no other is ever taken for it. */
function keyOf(
  backbone: Backbone,
  items: readonly Item[],
  shapes: readonly FeatureShape[],
  { imageSize, pipeline, compute: settings }: ExtractOptions,
): string {
  const { precision } = evaluationCompute(backbone.device, settings)
  const hash = createHash('sha256')
  hash.update(backbone.description)
  for (const [name, tensor] of allTensors(backbone.state())) hash.update(name).update(new Uint8Array(tensor.data().buffer))
  const images = items.map(({ mask: _, label: __, ...item }) => item)
  hash.update(JSON.stringify({ imageSize, pipeline, precision, compute: backbone.compute, shapes, items: images }))
  return hash.digest('hex').slice(0, 16)
}

/** Rows of features of `items`, f32, one feature after the other. */
export class FeatureFile {
  readonly #descriptor: number
  readonly #rowBytes: number

  private constructor(
    readonly path: string,
    readonly shapes: readonly FeatureShape[],
    /** Whether others may read the file later. */
    readonly kept: boolean,
  ) {
    this.#descriptor = openSync(path, 'r')
    this.#rowBytes = rowBytes(shapes)
  }

  static bytes(images: number, shapes: readonly FeatureShape[]): number {
    return images * rowBytes(shapes)
  }

  /** Whether the features of so many images are to be kept; 4 GiB unless told otherwise. */
  static fits(images: number, shapes: readonly FeatureShape[], most = 4 * 2 ** 30): boolean {
    return FeatureFile.bytes(images, shapes) <= most
  }

  /**
   * The file of `items` in `folder`, computed when it is not there: by several processes, which share the folder, each its part of it.
   * With images that could not be read it is not kept: they may be repaired, and whoever takes the file would not hear of them.
   */
  static async open(
    folder: string,
    backbone: Backbone,
    items: Item[],
    shapes: readonly FeatureShape[],
    { group = Group.single, ...options }: ExtractOptions & { group?: Group },
  ): Promise<FeatureFile> {
    const path = join(folder, `features-${keyOf(backbone, items, shapes, options)}.f32`)
    const isThere = existsSync(path) && statSync(path).size === FeatureFile.bytes(items.length, shapes)
    const written = group.any(!isThere) ? await write(path, backbone, items, shapes, options, group) : path
    return new FeatureFile(written, shapes, written === path)
  }

  /** The features of some images, each [indices.length, ...shape] row-major. */
  rows(indices: ArrayLike<number>): Float32Array[] {
    const parts = this.shapes.map(({ size }) => new Float32Array(indices.length * size))
    const row = new Float32Array(this.#rowBytes / 4)
    for (let i = 0; i < indices.length; ++i) {
      readSync(this.#descriptor, row, 0, this.#rowBytes, indices[i]! * this.#rowBytes)
      let from = 0
      this.shapes.forEach(({ size }, part) => {
        parts[part]!.set(row.subarray(from, from + size), i * size)
        from += size
      })
    }
    return parts
  }

  /** Closes the file, and removes one that is not kept. */
  close(): void {
    closeSync(this.#descriptor)
    if (!this.kept) rmSync(this.path, { force: true })
  }
}

const rowBytes = (shapes: readonly FeatureShape[]): number => 4 * shapes.reduce((sum, { size }) => sum + size, 0)

/** Throws WRITE where features cannot be written. */
function writing<R>(path: string, body: () => R): R {
  try {
    return body()
  } catch (error) {
    return fail('WRITE', `${path}: features cannot be written (${writeProblem(error)})`)
  }
}

/** Writes the file of `path`, and gives where it is: at another place with images that could not be read. */
async function write(
  path: string,
  backbone: Backbone,
  items: Item[],
  shapes: readonly FeatureShape[],
  options: ExtractOptions,
  group: Group,
): Promise<string> {
  const partial = `${path}.partial`
  const broken = new Map<string, string>()
  if (group.rank === 0) writing(path, () => closeSync(openSync(partial, 'w')))
  group.barrier()
  const descriptor = writing(path, () => openSync(partial, 'r+'))
  const bytes = rowBytes(shapes)
  const own = partOf(items, group)
  const before = group.rank * partOf(items, { rank: 0, size: group.size }).length
  try {
    await overImages(backbone, own, { ...options, broken }, (stages, first, count) => {
      let offset = 0
      for (const { name, size } of shapes) {
        const values = poolFeature(stages, name).data() as Float32Array
        const row = (i: number): Uint8Array => new Uint8Array(values.buffer, 4 * i * size, 4 * size)
        writing(path, () => {
          for (let i = 0; i < count; ++i) writeAll(descriptor, row(i), (before + first + i) * bytes + offset)
        })
        offset += 4 * size
      }
    })
    closeSync(descriptor)
    if (group.any(broken.size > 0)) return partial
    if (group.rank === 0) renameSync(partial, path)
    group.barrier()
    return path
  } catch (error) {
    rmSync(partial, { force: true })
    throw error
  } finally {
    for (const [name, reason] of broken) options.broken?.set(name, reason)
  }
}
