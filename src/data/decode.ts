/**
 * Image bytes to RGB pixels. JPEG goes to libjpeg-turbo, which is in the addon, everything else and CMYK to libvips (sharp).
 * EXIF orientation is applied; alpha is dropped onto black; 16-bit and grey become 8-bit RGB.
 */
import { createRequire } from 'node:module'
import { isMainThread } from 'node:worker_threads'

import type { Sharp } from 'sharp'

import { DenseclError, fail } from '../tensor/errors.js'
import { native } from '../tensor/native.js'

/** A decoded image. */
export interface Pixels {
  width: number
  height: number
  /** Interleaved RGB, row-major: height * width * 3 bytes. */
  data: Uint8Array
}

const require = createRequire(import.meta.url)

/** The package sharp, which the product runs without as long as JPEGs are all it reads; throws DECODE with `name`. */
export async function libvips(name: string): Promise<(typeof import('sharp'))['default']> {
  if (!installed('sharp')) fail('DECODE', `${name}: this format needs the package sharp; run: npm install sharp`)
  const sharp = (await import('sharp')).default
  // Data workers share the cores among themselves.
  if (!isMainThread) sharp.concurrency(1)
  return sharp
}

function installed(name: string): boolean {
  try {
    require.resolve(name)
    return true
  } catch {
    return false
  }
}

/** What decodes here, for `doctor`. */
export const decoders = (): { jpeg: string; others: string } => ({
  jpeg: 'libjpeg-turbo 2.1.5, in the addon',
  others: installed('sharp') ? 'libvips (sharp)' : 'none: the optional package sharp is not installed',
})

/** The largest image or mask that is decoded. */
export const maxPixels = 400e6

/**
 * Every block of 8x8 pixels has a code of at least one bit, so that no byte of a JPEG stands for more than this: a header that
 * claims more is refused before memory is taken for it.
 */
const mostJpegPixelsPerByte = 8 * 64

/**
 * Throws DECODE with `name` and the reason when the bytes are not a whole image. An image of more than `mostPixels` is reduced to
 * about that many, which is several times faster where it is four times as many: most coefficients of its blocks are left out then.
 */
export async function decode(bytes: Buffer, name: string, mostPixels = Infinity): Promise<Pixels> {
  if (bytes.length === 0) fail('DECODE', `${name}: the file is empty`)
  if (!isJpeg(bytes)) return decodeAny(bytes, name, mostPixels)
  const frame = checkedFrame(bytes, name)
  const pixels = frame.width * frame.height
  const orientation = exifOrientation(bytes)
  // libvips reduces to any size and turns; without it the image is reduced by a power of two and turned here.
  if (frame.components === 4 || ((pixels > mostPixels || orientation !== 1) && installed('sharp')))
    return decodeAny(bytes, name, mostPixels)
  const reduce = ([8, 4, 2] as const).find((by) => pixels / (by * by) >= mostPixels) ?? 1
  return orient(decodeJpeg(bytes, name, frame, reduce), orientation)
}

/** A part of an image, in its pixels. */
export interface Part {
  x: number
  y: number
  width: number
  height: number
}

/**
 * A part of a JPEG that is reduced by `reduce`, in each direction: what decoding all of it would give there, but what lies beside the part
 * is skipped. The part is one of the reduced image, as it is stored: its EXIF orientation is not applied. Throws ARGUMENT where it is
 * outside of the image, and DECODE with `name` for what is no JPEG of 1 or 3 components.
 */
export function decodePart(bytes: Buffer, name: string, part: Part, reduce: 1 | 2 | 4 | 8 = 1): Pixels {
  if (!isJpeg(bytes)) fail('DECODE', `${name}: expected a JPEG`)
  const frame = checkedFrame(bytes, name)
  const [width, height] = [Math.ceil(frame.width / reduce), Math.ceil(frame.height / reduce)]
  const inside = part.x >= 0 && part.y >= 0 && part.width >= 1 && part.height >= 1
  if (!Object.values(part).every(Number.isInteger) || !inside || part.x + part.width > width || part.y + part.height > height)
    fail('ARGUMENT', `decodePart: expected a part of the ${width}x${height} pixels of ${name} but received ${JSON.stringify(part)}`)
  return decodeJpeg(bytes, name, frame, reduce, part)
}

export const isJpeg = (bytes: Buffer): boolean => bytes[0] === 0xff && bytes[1] === 0xd8

/** The frame of a JPEG that may be decoded: memory is taken for no more pixels than are allowed, and than its bytes can hold. */
function checkedFrame(bytes: Buffer, name: string): Frame {
  const frame = jpegFrame(bytes, name)
  const pixels = frame.width * frame.height
  if (pixels > maxPixels) fail('DECODE', `${name}: ${frame.width}x${frame.height} pixels are more than the ${maxPixels} allowed`)
  if (pixels > mostJpegPixelsPerByte * bytes.length)
    fail('DECODE', `${name}: the JPEG claims ${frame.width}x${frame.height} pixels, which its ${bytes.length} bytes cannot hold`)
  if (pixels === 0) fail('DECODE', `${name}: not a whole JPEG (its frame is ${frame.width}x${frame.height} pixels)`)
  return frame
}

function decodeJpeg(bytes: Buffer, name: string, frame: Frame, reduce: number, part?: Part): Pixels {
  const reduced = (length: number): number => Math.ceil(length / reduce)
  const { x, y, width, height } = part ?? { x: 0, y: 0, width: reduced(frame.width), height: reduced(frame.height) }
  const data = Buffer.allocUnsafeSlow(3 * width * height)
  try {
    native.decodeJpeg(bytes, [frame.width, frame.height], reduce, [x, y, width, height], data)
    return { width, height, data }
  } catch (error) {
    if (!(error instanceof DenseclError && error.code === 'DECODE')) throw error
    return fail('DECODE', `${name}: not a whole JPEG (${reason(error)})`)
  }
}

async function decodeAny(bytes: Buffer, name: string, mostPixels = Infinity): Promise<Pixels> {
  const sharp = await libvips(name)
  try {
    const whole = sharp(bytes, { failOn: 'truncated', limitInputPixels: maxPixels }).rotate()
    const image = (mostPixels === Infinity ? whole : await reduced(whole, mostPixels)).toColourspace('srgb').flatten({ background: '#000' })
    const { data, info } = await image.raw({ depth: 'uchar' }).toBuffer({ resolveWithObject: true })
    if (info.channels === 3) return { width: info.width, height: info.height, data }
    const rgb = new Uint8Array(info.width * info.height * 3)
    for (let i = 0; i < rgb.length; ++i) rgb[i] = data[Math.floor(i / 3) * info.channels]!
    return { width: info.width, height: info.height, data: rgb }
  } catch (error) {
    return fail('DECODE', `${name}: not an image that can be read (${reason(error)})`)
  }
}

/** Decodes an image to at most `mostPixels`: libvips skips coefficients by a power of two and averages over the rest. */
async function reduced(image: Sharp, mostPixels: number): Promise<Sharp> {
  const { width, height } = (await image.metadata()).autoOrient
  const scale = Math.sqrt(mostPixels / (width * height))
  if (scale >= 1) return image
  return image.resize({ width: Math.max(1, Math.floor(width * scale)), height: Math.max(1, Math.floor(height * scale)), fit: 'fill' })
}

const reason = (error: unknown): string => (error instanceof Error ? error.message : String(error)).split('\n')[0]!.trim()

interface Frame {
  width: number
  height: number
  components: number
}

/** Size and channels from the frame header, before any rotation, and a check that the stream reaches its end marker. */
export function jpegFrame(bytes: Buffer, name: string): Frame {
  for (const { marker, start } of jpegSegments(bytes)) {
    const isFrame = marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc
    if (!isFrame || start + 6 > bytes.length) continue
    // Some encoders pad after the end marker: look for it in the last stretch.
    if (bytes.lastIndexOf(Buffer.from([0xff, 0xd9])) < start) fail('DECODE', `${name}: the JPEG is cut off (no end marker)`)
    return { height: bytes.readUInt16BE(start + 1), width: bytes.readUInt16BE(start + 3), components: bytes[start + 5]! }
  }
  return fail('DECODE', `${name}: not a whole JPEG (no frame header)`)
}

/** The segments before the first scan. */
function* jpegSegments(bytes: Buffer): Generator<{ marker: number; start: number; end: number }> {
  let at = 2
  while (at + 4 <= bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1]!
    if (marker === 0xff) {
      at += 1
      continue
    }
    const length = bytes.readUInt16BE(at + 2)
    yield { marker, start: at + 4, end: Math.min(bytes.length, at + 2 + length) }
    if (marker === 0xda) return
    at += 2 + length
  }
}

/** EXIF tag 0x0112, 1..8; 1 when absent or invalid. */
export function exifOrientation(bytes: Buffer): number {
  for (const { marker, start, end } of jpegSegments(bytes)) {
    if (marker !== 0xe1 || end - start < 14 || bytes.toString('latin1', start, start + 6) !== 'Exif\0\0') continue
    const tiff = bytes.subarray(start + 6, end)
    const little = tiff.toString('latin1', 0, 2) === 'II'
    const u16 = (at: number): number => (at + 2 <= tiff.length ? (little ? tiff.readUInt16LE(at) : tiff.readUInt16BE(at)) : 0)
    const u32 = (at: number): number => (at + 4 <= tiff.length ? (little ? tiff.readUInt32LE(at) : tiff.readUInt32BE(at)) : 0)
    const directory = u32(4)
    for (let i = 0; i < u16(directory); ++i) {
      const entry = directory + 2 + 12 * i
      if (u16(entry) !== 0x0112) continue
      const value = u16(entry + 8)
      return value >= 1 && value <= 8 ? value : 1
    }
  }
  return 1
}

/** Turns pixels as an EXIF orientation asks. */
export function orient({ width, height, data }: Pixels, orientation: number): Pixels {
  if (orientation === 1) return { width, height, data }
  const swap = orientation >= 5
  const [w, h] = swap ? [height, width] : [width, height]
  const out = new Uint8Array(data.length)
  for (let y = 0; y < h; ++y) {
    for (let x = 0; x < w; ++x) {
      const [u, v] = swap ? [y, x] : [x, y]
      // 2, 3, 7, 8 come from the mirrored column; 3, 4, 6, 7 from the mirrored row.
      const sx = [2, 3, 7, 8].includes(orientation) ? width - 1 - u : u
      const sy = [3, 4, 6, 7].includes(orientation) ? height - 1 - v : v
      for (let c = 0; c < 3; ++c) out[3 * (y * w + x) + c] = data[3 * (sy * width + sx) + c]!
    }
  }
  return { width: w, height: h, data: out }
}
