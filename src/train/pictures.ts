/** The pictures that a run leaves on its way: what the augmentation does, and what the network sees, epoch by epoch. */
import { statfsSync } from 'node:fs'
import { join } from 'node:path'

import { makeFolder } from '../files/atomic.js'
import type { Pixels } from '../data/decode.js'
import { loadPixels, type Source } from '../data/source.js'
import type { Backbone } from '../nn/backbone.js'
import { augmentationPicture } from '../report/augmentation.js'
import { drawMatches, matchesOf } from '../report/match.js'
import { seeImage, seeViews } from '../report/pairs.js'
import { drawPrincipal } from '../report/principal.js'
import { writePicture } from '../report/svg.js'
import type { Config } from '../run/config.js'
import { computeSettings } from '../run/placement.js'
import { files } from '../run/runFolder.js'
import { withCompute } from '../tensor/compute.js'

const count = 4

/** Bytes that must be free on the disk: checkpoints and metrics come first. */
const leastFree = 64 * 2 ** 20

export class RunPictures {
  #failed = false
  /** The matches that were drawn last, and after which epoch. */
  #drawn: { epoch: number; svg: string } | undefined

  private constructor(
    readonly out: string,
    readonly images: Pixels[],
    readonly config: Config,
    readonly onFailure: (reason: string) => void,
  ) {
    makeFolder(files(out).pictures)
  }

  /** Pictures of a few images that are spread over the source; undefined, with the reason to `onFailure`, where they cannot be read. */
  static async of(out: string, { items }: Source, config: Config, onFailure: (reason: string) => void): Promise<RunPictures | undefined> {
    if (config.channels !== 3) {
      onFailure(`they are drawn of colour images, and these have ${config.channels} ${config.channels === 1 ? 'channel' : 'channels'}`)
      return undefined
    }
    try {
      const chosen = Array.from({ length: Math.min(count, items.length) }, (_, i) => items[Math.floor((i * items.length) / count)]!)
      return new RunPictures(out, await Promise.all(chosen.map((item) => loadPixels(item))), config, onFailure)
    } catch (error) {
      onFailure(error instanceof Error ? error.message : String(error))
      return undefined
    }
  }

  async augmentation(): Promise<void> {
    const { imageSize, seed } = this.config
    await this.#write(join(files(this.out).pictures, 'augmentation'), () => augmentationPicture(this.images, this.config, seed, imageSize))
  }

  /** A size at which the network has positions to tell apart, near to the one that it was trained on. */
  #size({ stride }: Backbone): number {
    const { imageSize } = this.config
    return Math.max(imageSize, Math.min(224, Math.max(2 * imageSize, 7 * stride)))
  }

  /** Matches between two views of the first image, and the features of all as colours. */
  async epoch(backbone: Backbone, epoch: number): Promise<void> {
    const name = `epoch_${String(epoch).padStart(5, '0')}`
    await this.#write(join(files(this.out).pictures, `${name}-matches`), () => this.#drawMatches(backbone, epoch))
    await this.#write(join(files(this.out).pictures, `${name}-colours`), () =>
      drawPrincipal(this.images.map((pixels) => seeImage(backbone, pixels, this.#size(backbone)))),
    )
  }

  /** The matches after the last epoch, once more as `matches` of the run folder; its path. */
  matches(backbone: Backbone, epoch: number): Promise<string | undefined> {
    return this.#write(join(this.out, 'matches'), () => this.#drawMatches(backbone, epoch))
  }

  /** A picture that cannot be made costs a run nothing but the pictures after it. */
  async #write(path: string, draw: () => string): Promise<string | undefined> {
    if (this.#failed) return undefined
    try {
      const { bavail, bsize } = statfsSync(this.out)
      if (bavail * bsize < leastFree) throw new Error(`less than ${leastFree / 2 ** 20} MiB are free at ${this.out}`)
      return await writePicture(path, withCompute(computeSettings(this.config), draw))
    } catch (error) {
      this.#failed = true
      this.onFailure(error instanceof Error ? error.message : String(error))
      return undefined
    }
  }

  #drawMatches(backbone: Backbone, epoch: number): string {
    if (this.#drawn?.epoch !== epoch) {
      const pair = seeViews(backbone, this.images[0]!, { size: this.#size(backbone), seed: 0 })
      this.#drawn = { epoch, svg: drawMatches(pair, matchesOf(pair, { most: 20, threshold: 0, apart: 0.1 })) }
    }
    return this.#drawn.svg
  }
}
