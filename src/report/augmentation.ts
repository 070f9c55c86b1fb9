/** Samples of the augmentation of a run: each image, and pairs of views of it as they are trained on. */
import { type AugmentOptions, pixelTensor, randomView, renderView, wholeImage } from '../data/augment.js'
import type { Pixels } from '../data/decode.js'
import { Random } from '../tensor/random.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { pngUrl } from './svg.js'

const side = 112
const pairs = 3

export function augmentationPicture(images: readonly Pixels[], augment: AugmentOptions, seed: number, imageSize: number): string {
  const parts: string[] = []
  for (const [row, pixels] of images.entries()) {
    const views = [
      wholeImage(pixels),
      ...Array.from({ length: 2 * pairs }, (_, view) => randomView(new Random(seed, 61, row, view), pixels.width, pixels.height, augment)),
    ]
    for (const [column, view] of views.entries()) {
      const rgb = scope(() => {
        const x = Tensor.empty([1, imageSize, imageSize, 3], 'f32', 'cpu')
        renderView(x, 0, pixelTensor(pixels), view, false)
        return Uint8Array.from(x.data(), (value) => Math.round(255 * value))
      })
      // A gap after the image, and a smaller one after each pair.
      const x = column * (side + 4) + (column > 0 ? 12 : 0) + Math.floor(Math.max(0, column - 1) / 2) * 8
      parts.push(`<image x="${x}" y="${row * (side + 4)}" width="${side}" height="${side}" href="${pngUrl(rgb, imageSize, imageSize)}"/>`)
    }
  }
  const width = (2 * pairs + 1) * (side + 4) + 12 + (pairs - 1) * 8
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${images.length * (side + 4)}" viewBox="0 ` +
    `0 ${width} ${images.length * (side + 4)}">${parts.join('')}</svg>\n`
  )
}
