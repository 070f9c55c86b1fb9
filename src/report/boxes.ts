/** Pictures with the boxes of what is there and of what was found. */
import type { Box } from '../data/boxes.js'
import type { Pixels } from '../data/decode.js'
import { classColour } from '../data/masks.js'
import { largest } from '../tensor/numbers.js'
import { escapeXml, pngUrl } from './svg.js'

/** An image, what was found in it and, where it is known, what is there. */
export interface BoxPicture {
  name: string
  pixels: Pixels
  found: readonly { label: number; box: Box; score: number }[]
  truth?: readonly { label: number; box: Box }[]
}

const height = 240
const gap = 8

/** The images in rows of `columns`: found boxes in the colours of their classes with name and probability, true ones dashed and white. */
export function boxesPicture(pictures: readonly BoxPicture[], classes: readonly string[], columns = 4): string {
  const widths = pictures.map(({ pixels }) => Math.round((height * pixels.width) / pixels.height))
  const cell = largest([80, ...widths])
  const drawn = pictures.map((picture, i) => {
    const scale = height / picture.pixels.height
    const [x, y] = [(i % columns) * (cell + gap), Math.floor(i / columns) * (height + gap + 18)]
    const rect = ([x1, y1, x2, y2]: Box, style: string): string =>
      `<rect x="${(x1 * scale).toFixed(1)}" y="${(y1 * scale).toFixed(1)}" width="${((x2 - x1) * scale).toFixed(1)}" ` +
      `height="${((y2 - y1) * scale).toFixed(1)}" fill="none" ${style}/>`
    const truth = (picture.truth ?? []).map(({ box }) => rect(box, 'stroke="#fff" stroke-width="2" stroke-dasharray="5 4"'))
    const found = picture.found.map(({ label, box, score }) => {
      // Class 0 of masks is the background, and black.
      const colour = `rgb(${classColour(label + 1).join()})`
      const [left, top] = [box[0] * scale, Math.max(11, box[1] * scale - 3)]
      const text = `${escapeXml(classes[label] ?? String(label))} ${(100 * score).toFixed(0)} %`
      return (
        rect(box, `stroke="${colour}" stroke-width="2"`) +
        `<text x="${left.toFixed(1)}" y="${top.toFixed(1)}" fill="${colour}" stroke="#000" stroke-width="2.5" paint-order="stroke">` +
        `${text}</text>`
      )
    })
    const { data, width, height: rows } = picture.pixels
    const image = `<image width="${widths[i]!}" height="${height}" href="${pngUrl(data, width, rows)}"/>`
    const name = `<text x="0" y="${height + 14}">${escapeXml(picture.name)}</text>`
    return `<g transform="translate(${x} ${y})">${image}${truth.join('')}${found.join('')}${name}</g>`
  })
  const across = Math.min(columns, Math.max(1, pictures.length)) * (cell + gap)
  const down = Math.ceil(pictures.length / columns) * (height + gap + 18)
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${across}" height="${down}" font-family="sans-serif" font-size="12">` +
    `<rect width="100%" height="100%" fill="#fff"/>${drawn.join('')}</svg>\n`
  )
}
