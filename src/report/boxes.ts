/** Pictures with the boxes, and masks, of what is there and of what was found. */
import type { Box } from '../data/boxes.js'
import type { Pixels } from '../data/decode.js'
import { type InstanceMask, maskRuns } from '../data/instanceMasks.js'
import { classColour } from '../data/masks.js'
import type { RunLengths } from '../data/runLengths.js'
import { largest } from '../tensor/numbers.js'
import { drawMasks } from './instanceMasks.js'
import { captionColour, escapeXml, pngUrl } from './svg.js'

/** An image, what was found in it and, where it is known, what is there. */
export interface BoxPicture {
  name: string
  pixels: Pixels
  found: readonly { label: number; box: Box; score: number; mask?: RunLengths }[]
  truth?: readonly { label: number; box: Box; mask?: InstanceMask }[]
}

const height = 240
const gap = 8
/** Pixels below an image for its name. */
const foot = 22
/** Rows are not wider, unless one image is. */
const mostAcross = 1480

/**
 * The images in rows, as many as there is room for: found boxes in the colours of their classes with name and probability, true ones
 * dashed and white; found masks filled with those colours, true ones as white outlines. `white` says below what those are.
 */
export function boxesPicture(pictures: readonly BoxPicture[], classes: readonly string[], white = 'what is there'): string {
  let [x, y, across] = [0, 0, 0]
  const drawn = pictures.map((picture) => {
    const scale = height / picture.pixels.height
    const width = Math.round(scale * picture.pixels.width)
    if (x > 0 && x + width > mostAcross) [x, y] = [0, y + height + foot]
    const place = `translate(${x} ${y})`
    x += width + gap
    across = Math.max(across, x - gap)
    return `<g transform="${place}">${drawImage(picture, classes, scale, width)}</g>`
  })
  const legend = pictures.some(({ truth }) => truth !== undefined)
    ? `<text x="0" y="${y + height + foot + 14}" fill="${captionColour}">white: ${white}</text>`
    : ''
  const [width, down] = [Math.max(across, 160), y + height + foot + (legend === '' ? 0 : foot)]
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${down}" font-family="sans-serif" ` +
    `font-size="12" fill="${captionColour}">${drawn.join('')}${legend}</svg>\n`
  )
}

function drawImage(picture: BoxPicture, classes: readonly string[], scale: number, width: number): string {
  const { name, truth = [], found } = picture
  const pixels = withMasks(picture)
  const rect = ([x1, y1, x2, y2]: Box, style: string): string =>
    `<rect x="${(x1 * scale).toFixed(1)}" y="${(y1 * scale).toFixed(1)}" width="${((x2 - x1) * scale).toFixed(1)}" ` +
    `height="${((y2 - y1) * scale).toFixed(1)}" fill="none" ${style}/>`
  // White on a dark line is seen on any image.
  const there = truth.map(
    ({ box }) =>
      rect(box, 'stroke="#000" stroke-width="3" stroke-opacity="0.5"') +
      rect(box, 'stroke="#fff" stroke-width="1.5" stroke-dasharray="5 4"'),
  )
  // The best last: its name is on top.
  const seen = [...found].reverse().map(({ label, box, score }) => {
    const colour = `rgb(${colourOf(label).join()})`
    const words = `${escapeXml(classes[label] ?? String(label))} ${(100 * score).toFixed(0)} %`
    const across = 7 * words.length + 4
    const [left, top] = [Math.max(0, Math.min(box[0] * scale, width - across)), Math.max(0, box[1] * scale - 15)]
    return (
      rect(box, `stroke="#000" stroke-width="3.5" stroke-opacity="0.5"`) +
      rect(box, `stroke="${colour}" stroke-width="2"`) +
      `<rect x="${left.toFixed(1)}" y="${top.toFixed(1)}" width="${across}" height="15" fill="${colour}" fill-opacity="0.8"/>` +
      `<text x="${(left + 2).toFixed(1)}" y="${(top + 12).toFixed(1)}" fill="#000">${words}</text>`
    )
  })
  const image = `<image width="${width}" height="${height}" href="${pngUrl(pixels.data, pixels.width, pixels.height)}"/>`
  const clip = `<svg width="${width}" height="${height}">${image}${there.join('')}${seen.join('')}</svg>`
  return `${clip}<text x="0" y="${height + 14}">${escapeXml(name)}</text>`
}

/** The pixels of a picture under its masks, the best of what was found on top of others and what is there on top of all. */
function withMasks({ pixels, found, truth = [] }: BoxPicture): Pixels {
  const masks = [
    ...[...found].reverse().flatMap(({ label, mask }) => (mask === undefined ? [] : [{ mask, colour: colourOf(label), filled: true }])),
    ...truth.flatMap(({ mask }) => (mask === undefined ? [] : [{ mask: maskRuns(mask, pixels), colour: [255, 255, 255], filled: false }])),
  ]
  // About a pixel of the picture.
  return masks.length === 0 ? pixels : drawMasks(pixels, masks, Math.max(1, Math.round(pixels.height / height)))
}

/** The colour of a class: VOC's, which may be a dark one, as bright as it gets. */
function colourOf(label: number): number[] {
  // Class 0 of masks is the background, and black.
  const colour = classColour(label + 1)
  const most = largest([1, ...colour])
  return colour.map((value) => Math.round(80 + (175 * value) / most))
}
