/** Segmented images, their masks and what was predicted, side by side. */
import { classColour, ignoredLabel } from '../data/masks.js'
import type { Segmented } from '../eval/segmentation.js'
import { captionColour, escapeXml, pngUrl } from './svg.js'
import { largest } from '../tensor/numbers.js'

const height = 180
const gap = 8

/** A row an image: the picture, the true classes, the predicted ones; and the colours of the classes. */
export function segmentationPicture(samples: readonly Segmented[], classes: readonly string[]): string {
  const rows = samples.map(({ pixels, truth, predicted }, r) => {
    const colour = (labels: Uint8Array): Uint8Array =>
      Uint8Array.from({ length: labels.length * 3 }, (_, i) => colourOf(labels[Math.floor(i / 3)]!)[i % 3]!)
    const urls = [pixels.data, colour(truth.labels), colour(predicted)].map((rgb) => pngUrl(rgb, pixels.width, pixels.height))
    const width = Math.round((height * pixels.width) / pixels.height)
    return {
      width,
      images: urls.map(
        (url, c) => `<image x="${c * (width + gap)}" y="${24 + r * (height + gap)}" width="${width}" height="${height}" href="${url}"/>`,
      ),
    }
  })
  const width = largest(rows.map((row) => row.width))
  const bottom = 24 + rows.length * (height + gap)
  const columns = Math.max(1, Math.floor((3 * (width + gap)) / 130))
  const legend = classes.map((name, c) => {
    const [x, y] = [(c % columns) * 130, bottom + 6 + 20 * Math.floor(c / columns)]
    return (
      `<rect x="${x}" y="${y}" width="14" height="14" fill="rgb(${classColour(c).join()})" stroke="#888"/>` +
      `<text x="${x + 20}" y="${y + 12}">${escapeXml(name)}</text>`
    )
  })
  const total = bottom + 12 + 20 * Math.ceil(classes.length / columns)
  const titles = ['image', 'mask', 'predicted'].map((title, c) => `<text x="${c * (width + gap) + 2}" y="16">${title}</text>`)
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${3 * (width + gap)}" height="${total}" ` +
    `font-family="sans-serif" font-size="13" fill="${captionColour}">` +
    `${titles.join('')}${rows.flatMap(({ images }) => images).join('')}${legend.join('')}</svg>\n`
  )
}

const colourOf = (label: number): [number, number, number] => (label === ignoredLabel ? [224, 224, 192] : classColour(label))
