/** Small pictures: SVG text, and PNG through sharp where it is installed. */
import { writeAtomic, writeTextAtomic } from '../weights/atomic.js'

export const escapeXml = (text: string): string => text.replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c]!)

/** Writes `path`.svg and, when sharp is there, `path`.png; returns the better of the two paths. */
export async function writePicture(path: string, svg: string): Promise<string> {
  writeTextAtomic(`${path}.svg`, svg)
  try {
    const { default: sharp } = await import('sharp')
    writeAtomic(`${path}.png`, [await sharp(Buffer.from(svg)).png().toBuffer()])
    return `${path}.png`
  } catch {
    return `${path}.svg`
  }
}

/** Pixels as a data URL for an SVG image; needs sharp. */
export async function pngUrl(rgb: Uint8Array, width: number, height: number): Promise<string> {
  const { default: sharp } = await import('sharp')
  const png = await sharp(rgb, { raw: { width, height, channels: 3 } }).png().toBuffer()
  return `data:image/png;base64,${png.toString('base64')}`
}
