/**
 * Image bytes to pixels. JPEG goes to libjpeg-turbo, which is in the addon, .npy to npy.ts, everything else and CMYK to libvips (sharp).
 * EXIF orientation is applied. As RGB, alpha is dropped onto black, and 16-bit and grey become 8-bit RGB; as grey, colour becomes its
 * luma; images of another number of channels are taken as they are, or refused by name.
 */
import { isMainThread } from 'node:worker_threads'

import type { Sharp } from 'sharp'

import { DenseclError, fail, systemReason } from '../tensor/errors.js'
import { native } from '../tensor/native.js'
import { decodeNpy, isNpy } from './npy.js'
import { extraSamplesOf } from './tiff.js'

/** A decoded image. */
export interface Pixels {
  width: number
  height: number
  /** Bytes of a pixel; 3, RGB, where absent. */
  channels?: number
  /** Interleaved, row-major: height * width * channels bytes. */
  data: Uint8Array
}

/** A JPEG as it is stored, which a GPU is to decode, and the size that its frame states. */
export interface JpegFile {
  width: number
  height: number
  /** The bytes of the file. */
  data: Uint8Array
  encoded: true
}
/** Whether an image is yet to be decoded. */
export const isFile = (image: Pixels | JpegFile): image is JpegFile => 'encoded' in image

/** Bytes of a pixel. */
export const channelsOf = ({ channels = 3 }: Pick<Pixels, 'channels'>): number => channels

type SharpModule = (typeof import('sharp'))['default']

let loading: Promise<SharpModule | string> | undefined

/** The package sharp, which the product runs without as long as JPEGs are all it reads, or why it cannot be used. */
const sharpOrReason = (): Promise<SharpModule | string> =>
  (loading ??= import('sharp').then(
    ({ default: sharp }) => {
      // Data workers share the cores among themselves.
      if (!isMainThread) sharp.concurrency(1)
      return sharp
    },
    (error: unknown) =>
      systemReason(error) === 'ERR_MODULE_NOT_FOUND' && reason(error).includes("'sharp'")
        ? 'is not installed; run: npm install sharp'
        : // It is there, and its library for this system or another package that it needs is not.
          `cannot be loaded (${reason(error)}); run: npm install --include=optional sharp`,
  ))

/** The package sharp. Throws DECODE with `name` where it cannot be used. */
export async function libvips(name: string): Promise<SharpModule> {
  const sharp = await sharpOrReason()
  return typeof sharp === 'string' ? fail('DECODE', `${name}: this format needs the package sharp, which ${sharp}`) : sharp
}

const hasLibvips = async (): Promise<boolean> => typeof (await sharpOrReason()) !== 'string'

/** A grey PNG of one pixel. */
const smallPng = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB5Sfe/AAAAABJRU5ErkJggg=='

/** What decodes images that are no JPEG, tried on one, for `doctor`. */
export async function otherDecoder(): Promise<string> {
  try {
    await decode(Buffer.from(smallPng, 'base64'), 'none')
    return 'libvips (sharp)'
  } catch (error) {
    if (!(error instanceof DenseclError)) throw error
    return error.message
  }
}

/** The largest image or mask that is decoded. */
export const maxPixels = 400e6
/** The most channels of one. */
export const mostChannels = 1024

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
  if (isNpy(bytes)) return asColour(decodeNpy(bytes, name, maxPixels), name)
  if (!isJpeg(bytes)) return decodeAny(bytes, name, mostPixels)
  const frame = checkedFrame(bytes, name)
  const pixels = frame.width * frame.height
  const orientation = exifOrientation(bytes)
  // libvips reduces to any size and turns; without it the image is reduced by a power of two and turned here.
  if (frame.components === 4 || ((pixels > mostPixels || orientation !== 1) && (await hasLibvips())))
    return decodeAny(bytes, name, mostPixels)
  const reduce = ([8, 4, 2] as const).find((by) => pixels / (by * by) >= mostPixels) ?? 1
  return orient(decodeJpeg(bytes, name, frame, reduce), orientation)
}

/** Sampling factors, horizontal and vertical in a byte, of luma beside chroma of 1x1: 4:4:4, 4:2:2, 4:2:0 and 4:4:0. */
const plainSamplings: readonly (number | undefined)[] = [0x11, 0x21, 0x22, 0x12]

/**
 * Whether a JPEG is one of those that every decoder takes, the engines of a GPU too: baseline, one scan, grey or YCbCr of a usual
 * sampling.
 */
function isPlainJpeg(bytes: Buffer): boolean {
  let components: number | undefined
  for (const { marker, start, end } of jpegSegments(bytes)) {
    if (marker === 0xc0) {
      if (end - start < 6 + 3 * bytes[start + 5]! || bytes[start] !== 8) return false
      components = bytes[start + 5]!
      if (components !== 1 && components !== 3) return false
      const part = (i: number): number => start + 6 + 3 * i
      const [luma, ...chroma] = Array.from({ length: components }, (_, i) => bytes[part(i) + 1])
      if (components === 3 && (!plainSamplings.includes(luma) || chroma.some((sampling) => sampling !== 0x11))) return false
      // Without a marker that says so, components of these names are red, green and blue to libjpeg.
      if (components === 3 && bytes[part(0)] === 0x52) return false
    }
    // Adobe's marker ends with what three components are: 1 is YCbCr.
    if (marker === 0xee && bytes.toString('latin1', start, start + 5) === 'Adobe' && bytes[start + 11] !== 1) return false
    if (marker === 0xda) return components !== undefined && bytes[start] === components
  }
  return false
}

/**
 * A file that a GPU can decode as decode() would: a plain JPEG of at most `mostPixels`, in no more bytes than they take, that is not
 * turned. Undefined for any other image. Throws DECODE as decode() does for a JPEG whose header is broken.
 */
export function fileForGpu(bytes: Buffer, name: string, mostPixels: number): JpegFile | undefined {
  if (!isJpeg(bytes) || bytes.length > 3 * mostPixels) return undefined
  const { width, height } = checkedFrame(bytes, name)
  if (width * height > mostPixels || !isPlainJpeg(bytes) || exifOrientation(bytes) !== 1) return undefined
  return { width, height, data: bytes, encoded: true }
}

/** Grey and RGB as RGB. */
function asColour(pixels: Pixels, name: string): Pixels {
  const { width, height, data } = pixels
  const channels = channelsOf(pixels)
  if (channels === 3) return { width, height, data }
  if (channels !== 1) return wrongChannels(name, channels, 'a grey or colour image')
  const rgb = new Uint8Array(3 * data.length)
  for (let i = 0; i < rgb.length; ++i) rgb[i] = data[Math.floor(i / 3)]!
  return { width, height, data: rgb }
}

const wrongChannels = (name: string, channels: number, expected: string): never =>
  fail(
    'DECODE',
    `${name}: has ${channels} ${channels === 1 ? 'channel' : 'channels'}: expected ${expected} (--channels says how many the images have)`,
  )

/** Red, green and blue in the luma of a colour (ITU-R BT.601). */
const lumaWeights = [0.299, 0.587, 0.114] as const

/**
 * decode() for images of any number of channels: 3 is decode(); 1 gives grey, colours by their luma; of any other number every image must
 * have just as many, alpha being one.
 */
export async function decodeChannels(bytes: Buffer, name: string, channels: number, mostPixels = Infinity): Promise<Pixels> {
  if (channels === 3) return await decode(bytes, name, mostPixels)
  if (channels === 1) {
    if (isNpy(bytes)) {
      const pixels = decodeNpy(bytes, name, maxPixels)
      if (channelsOf(pixels) === 1) return pixels
    }
    const { width, height, data } = await decode(bytes, name, mostPixels)
    const [red, green, blue] = lumaWeights
    const luma = (at: number): number => red * data[at]! + green * data[at + 1]! + blue * data[at + 2]!
    return { width, height, channels, data: Uint8Array.from({ length: width * height }, (_, i) => luma(3 * i) + 0.5) }
  }
  const pixels = isNpy(bytes) ? decodeNpy(bytes, name, maxPixels) : await decodeBands(bytes, name, channels)
  return channelsOf(pixels) === channels ? pixels : wrongChannels(name, channelsOf(pixels), `${channels}`)
}

/** A byte of deflate stands for at most so many (RFC 1951: 258 for two bits). */
const mostInflated = 1032

/** Throws DECODE for a PNG of fewer bytes than its pixels can be packed into: libvips would make all of them, of nothing, for seconds. */
function checkPngSize(bytes: Buffer, name: string): void {
  if (bytes.length < 26 || bytes.readUInt32BE(0) !== 0x89504e47) return
  const [width, height, bits] = [bytes.readUInt32BE(16), bytes.readUInt32BE(20), bytes[24]!]
  const samples = ({ 2: 3, 4: 2, 6: 4 } as Record<number, number>)[bytes[25]!] ?? 1
  if ((width * height * samples * bits) / 8 > mostInflated * bytes.length)
    fail('DECODE', `${name}: its ${bytes.length} bytes cannot hold the ${width}x${height} pixels that it states`)
}

/** An image that libvips reads, within the limits, as its orientation says. */
async function opened(bytes: Buffer, name: string): Promise<Sharp> {
  checkPngSize(bytes, name)
  const sharp = await libvips(name)
  return sharp(bytes, { failOn: 'truncated', limitInputPixels: maxPixels, limitInputChannels: mostChannels }).rotate()
}

/** All channels of an image as they are stored; numbers of 16 bits become bytes. */
async function decodeBands(bytes: Buffer, name: string, wanted: number): Promise<Pixels> {
  const unreadable = (error: unknown): never => fail('DECODE', `${name}: not an image that can be read (${reason(error)})`)
  const image = await opened(bytes, name)
  const { depth, channels: stored } = await image.metadata().catch(unreadable)
  if (stored !== wanted) return wrongChannels(name, stored, `${wanted}`)
  if (depth !== 'uchar' && depth !== 'ushort')
    return fail('DECODE', `${name}: expected an image of 8 or 16 bits a channel but it is of ${depth}: write it as .npy of uint8`)
  const raw = image.toColourspace(depth === 'uchar' ? 'srgb' : 'rgb16').raw({ depth })
  const { data, info } = await raw.toBuffer({ resolveWithObject: true }).catch(unreadable)
  const { width, height, channels } = info
  const values = depth === 'uchar' ? data : Uint8Array.from(new Uint16Array(Uint8Array.from(data).buffer), (value) => (value + 128) / 257)
  if (channels === stored) return { width, height, channels, data: values }
  // Where the first channel is grey, libvips gives it as red, green and blue, and the others behind these.
  if (channels !== stored + 2) return unreadable(new Error(`libvips makes ${channels} channels of ${stored}`))
  return { width, height, channels: stored, data: values.filter((_, i) => i % channels === 0 || i % channels > 2) }
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

/** Memory of the last JPEG of this thread, and whether the next one may have it: fresh pages cost a twentieth of what decoding does. */
let memory: ArrayBufferLike | undefined
let spare = false

/** Lets the next JPEG of this thread have the memory of the last one, where these pixels are in it. Nobody may read them any more. */
export function recycle({ data }: Pixels): void {
  spare = data.buffer === memory
}

function roomFor(bytes: number): Uint8Array {
  // What holds a small image for long should not hold the memory of a large one.
  const fits = spare && memory !== undefined && memory.byteLength >= bytes && memory.byteLength <= 2 * bytes
  if (!fits) memory = Buffer.allocUnsafeSlow(bytes).buffer
  spare = false
  return new Uint8Array(memory!, 0, bytes)
}

function decodeJpeg(bytes: Buffer, name: string, frame: Frame, reduce: number, part?: Part): Pixels {
  const reduced = (length: number): number => Math.ceil(length / reduce)
  const { x, y, width, height } = part ?? { x: 0, y: 0, width: reduced(frame.width), height: reduced(frame.height) }
  const data = roomFor(3 * width * height)
  try {
    native.decodeJpeg(bytes, [frame.width, frame.height], reduce, [x, y, width, height], data)
    return { width, height, data }
  } catch (error) {
    if (!(error instanceof DenseclError && error.code === 'DECODE')) throw error
    return fail('DECODE', `${name}: not a whole JPEG (${reason(error)})`)
  }
}

async function decodeAny(bytes: Buffer, name: string, mostPixels = Infinity): Promise<Pixels> {
  try {
    const whole = await opened(bytes, name)
    // libvips would make a colour image of some of the channels, or take one that is none for alpha.
    const { channels, format } = await whole.metadata()
    const extra = format === 'tiff' ? extraSamplesOf(bytes) : []
    if (channels > 4 || extra.length > 1 || extra.some((kind) => kind !== 1 && kind !== 2))
      return wrongChannels(name, channels, 'a grey or colour image, perhaps with alpha')
    const image = (mostPixels === Infinity ? whole : await reduced(whole, mostPixels)).toColourspace('srgb').flatten({ background: '#000' })
    const { data, info } = await image.raw({ depth: 'uchar' }).toBuffer({ resolveWithObject: true })
    if (info.channels === 3) return { width: info.width, height: info.height, data }
    const rgb = new Uint8Array(info.width * info.height * 3)
    for (let i = 0; i < rgb.length; ++i) rgb[i] = data[Math.floor(i / 3) * info.channels]!
    return { width: info.width, height: info.height, data: rgb }
  } catch (error) {
    if (error instanceof DenseclError) throw error
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
