/** Small pictures: SVG text, and PNG through sharp where it is installed. */
import { join } from 'node:path'

import { encode } from 'fast-png'

import { writeAtomic, writeTextAtomic } from '../files/atomic.js'
import { packageRoot } from '../tensor/addon.js'

export const escapeXml = (text: string): string =>
  text.replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c]!)

/** Of text on pictures without a ground of their own: it can be read on white and on the dark page. */
export const captionColour = '#7c8696'

/** Fontconfig's file with the fonts of a Linux system and behind them ours: a bare container has none, and would show boxes for words. */
export const fontsFile = join(packageRoot, 'src', 'report', 'fonts', 'fonts.conf')

/** Writes `path`.svg and, when sharp is there, `path`.png; returns the better of the two paths. */
export async function writePicture(path: string, svg: string): Promise<string> {
  writeTextAtomic(`${path}.svg`, svg)
  try {
    const { default: sharp } = await import('sharp')
    // Read at the first words that are drawn.
    if (process.platform === 'linux' && process.env.FONTCONFIG_PATH === undefined) process.env.FONTCONFIG_FILE ??= fontsFile
    writeAtomic(`${path}.png`, [await sharp(Buffer.from(svg)).png().toBuffer()])
    return `${path}.png`
  } catch {
    return `${path}.svg`
  }
}

/** Interleaved RGB as a data URL for an SVG image. */
export function pngUrl(rgb: Uint8Array, width: number, height: number): string {
  return `data:image/png;base64,${Buffer.from(encode({ width, height, data: rgb, channels: 3 })).toString('base64')}`
}
