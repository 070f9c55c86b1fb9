/**
 * Tar files read in place: the name, offset and size of each member, whatever wrote the archive (V7, USTAR, PAX, GNU).
 * Format: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; the manual of GNU tar (facts only).
 */
import { closeSync, fstatSync, openSync } from 'node:fs'

import { fail, systemReason } from '../tensor/errors.js'
import { readAt } from '../files/readAt.js'

const block = 512

/** The longest extended header that is read: names and attributes need some hundred bytes. */
const mostExtendedBytes = 2 ** 20

/** A member of a tar file. */
export interface TarMember {
  name: string
  /** Where its bytes begin, and how many they are. */
  offset: number
  size: number
  /** What it is instead of a plain file; absent for a plain file. */
  other?: string
}

/** Bytes of the archive that its reader asks for: next() is given them. */
interface Wanted {
  position: number
  length: number
}

/** Types of members that are no plain file. Those of the first kind have no data, whatever their size field says. */
const withoutData: Record<string, string> = { 1: 'hard link', 2: 'symbolic link', 3: 'device', 4: 'device', 5: 'folder', 6: 'pipe' }
const withData: Record<string, string> = {
  S: 'sparse file',
  V: 'volume label',
  M: 'rest of a file of another volume',
  D: 'list of a folder',
}

/**
 * The members of an uncompressed tar file in their order. Throws DATA, naming the file and the byte, for what is no tar file, for
 * sizes that are negative, no number or larger than the file, and for extended headers that are damaged.
 */
export function* tarMembers(path: string): Generator<TarMember & { read: () => Buffer }> {
  let descriptor: number
  try {
    descriptor = openSync(path, 'r')
  } catch (error) {
    return fail('DATA', `data: ${path} cannot be read (${systemReason(error)})`)
  }
  const read = (position: number, length: number): Buffer => {
    try {
      return readAt(descriptor, position, length)
    } catch (error) {
      return fail('DATA', `data: ${path} cannot be read at byte ${position} (${systemReason(error)})`)
    }
  }
  try {
    const about = fstatSync(descriptor)
    // Windows opens folders too, as files of no bytes.
    if (about.isDirectory()) fail('DATA', `data: ${path} cannot be read (EISDIR: it is a folder)`)
    const reader = readTar(path, about.size)
    for (let { value, done } = reader.next(); done !== true;) {
      if ('length' in value!) ({ value, done } = reader.next(read(value.position, value.length)))
      else {
        const { offset, size } = value!
        // Its bytes; only until the next member is asked for.
        yield { ...value!, read: () => read(offset, size) }
        ;({ value, done } = reader.next())
      }
    }
  } finally {
    closeSync(descriptor)
  }
}

/** tarMembers() of an archive of `end` bytes that lie wherever they are: whoever goes through it gives the bytes that it asks for. */
export function* readTar(path: string, end: number): Generator<TarMember | Wanted, void, Buffer | undefined> {
  function* read(position: number, length: number): Generator<Wanted, Buffer, Buffer | undefined> {
    return (yield { position, length })!
  }
  const bad = (at: number, why: string): never => fail('DATA', `data: ${path} is damaged at byte ${at}: ${why}`)
  /** Attributes of every member that follows, of the next one, and its long name by GNU's older way. */
  const everywhere = new Map<string, string>()
  let next = new Map<string, string>()
  let longName: string | undefined
  const compressed = compression((yield* read(0, Math.min(8, end))).toString('latin1'))
  if (compressed !== undefined) fail('DATA', `data: ${path} is not read: ${compressed}`)
  for (let at = 0; at < end;) {
    if (at + block > end) bad(at, `the file is cut off inside of a header (${end - at} of ${block} bytes)`)
    const header = yield* read(at, block)
    if (header.every((byte) => byte === 0)) {
      const rest = yield* read(at, Math.min(end - at, 2 ** 16))
      const nonzero = rest.findIndex((byte) => byte !== 0)
      if (nonzero >= 0) yield { name: `byte ${at + nonzero}`, offset: at, size: end - at, other: 'part after the end of the archive' }
      return
    }
    if (!checksumHolds(header)) fail('DATA', `data: ${path} is not a tar file (bad header at byte ${at})`)
    const type = String.fromCharCode(header[156]!)
    const extended = 'LKxg'.includes(type)
    // One without a value takes back what was said of every member.
    const attribute = (key: string): string | undefined => {
      const value = next.get(key) ?? everywhere.get(key)
      return value === '' ? undefined : value
    }
    const stated = extended ? undefined : attribute('size')
    const size = stated === undefined ? sizeField(header) : wholeNumber(stated)
    const shortName = nameField(header)
    if (size === undefined) return bad(at, `${shortName} has no size that is a number of at least 0`)
    let offset = at + block
    // GNU's sparse files continue their map in blocks of their own.
    if (type === 'S')
      for (let more = header[482] !== 0; more; offset += block) {
        if (offset + block > end) bad(at, `${shortName} is cut off inside of its sparse map`)
        more = (yield* read(offset, block))[504] !== 0
      }
    const held = type in withoutData ? 0 : size
    if (offset + held > end)
      fail('DATA', `data: ${path} is cut off: ${shortName} at byte ${at} claims ${size} bytes, ${end - offset} follow`)
    if (extended) {
      if (size > mostExtendedBytes) bad(at, `an extended header of ${size} bytes: expected at most ${mostExtendedBytes}`)
      const data = yield* read(offset, size)
      if (type === 'L') longName = text(data)
      else if (type !== 'K') {
        const records = paxRecords(data) ?? bad(at, 'an extended header is no list of "length key=value"')
        for (const [key, value] of records) (type === 'x' ? next : everywhere).set(key, value)
      }
    } else {
      const sparse = [...next.keys(), ...everywhere.keys()].some((key) => key.startsWith('GNU.sparse.'))
      const name = attribute('GNU.sparse.name') ?? attribute('path') ?? longName ?? shortName
      const other = sparse
        ? 'sparse file'
        : (withoutData[type] ?? withData[type] ?? (/[0\0 7]/.test(type) ? undefined : `member of the type ${JSON.stringify(type)}`))
      // Before USTAR a folder was a plain file whose name ends with a slash.
      const what = other ?? (name.endsWith('/') ? 'folder' : undefined)
      yield { name, offset, size: held, ...(what === undefined ? {} : { other: what }) }
      next = new Map()
      longName = undefined
    }
    at = offset + Math.ceil(held / block) * block
  }
}

/** Text up to the first NUL. */
function text(bytes: Buffer): string {
  const end = bytes.indexOf(0)
  return bytes.toString('utf8', 0, end < 0 ? bytes.length : end)
}

/** The name in a header: USTAR continues it before a slash, GNU has times in that place. */
function nameField(header: Buffer): string {
  const name = text(header.subarray(0, 100))
  const prefix = header.toString('latin1', 257, 263) === 'ustar\0' ? text(header.subarray(345, 500)) : ''
  return prefix === '' ? name : `${prefix}/${name}`
}

const wholeNumber = (digits: string): number | undefined =>
  /^\d+$/.test(digits) && Number.isSafeInteger(Number(digits)) ? Number(digits) : undefined

/** Octal digits, or from 8 GiB on the number itself, base 256, behind a set bit (all bits set: a negative one, which no size is). */
function sizeField(header: Buffer): number | undefined {
  const field = header.subarray(124, 136)
  if (field[0]! >= 0x80) {
    const value = field.subarray(1).reduce((sum, byte) => 256 * sum + byte, field[0]! & 0x7f)
    return Number.isSafeInteger(value) ? value : undefined
  }
  const digits = /^ *([0-7]*)[ \0]*$/.exec(field.toString('latin1'))?.[1]
  return digits === undefined ? undefined : parseInt(digits || '0', 8)
}

/** The sum of all bytes of a header with its own field as blanks; some old programs summed signed bytes. */
function checksumHolds(header: Buffer): boolean {
  const stated = /^[ \0]*([0-7]+)[ \0]/.exec(header.toString('latin1', 148, 156))?.[1]
  let [plain, signed] = [0, 0]
  for (let i = 0; i < block; ++i) {
    const value = i >= 148 && i < 156 ? 0x20 : header[i]!
    plain += value
    signed += value > 127 ? value - 256 : value
  }
  return stated !== undefined && (parseInt(stated, 8) === plain || parseInt(stated, 8) === signed)
}

/** Records "length key=value\n" whose lengths count themselves, in bytes; undefined where they are not such. */
function paxRecords(data: Buffer): [string, string][] | undefined {
  const records: [string, string][] = []
  for (let at = 0; at < data.length && data[at] !== 0;) {
    const blank = data.indexOf(0x20, at)
    const length = blank < 0 || blank - at > 7 ? undefined : wholeNumber(data.toString('latin1', at, blank))
    if (length === undefined || at + length > data.length || length < blank - at + 3 || data[at + length - 1] !== 0x0a) return undefined
    const record = data.subarray(blank + 1, at + length - 1)
    const equals = record.indexOf(0x3d)
    if (equals < 1) return undefined
    records.push([record.toString('utf8', 0, equals), record.toString('utf8', equals + 1)])
    at += length
  }
  return records
}

/** The endings of compressed archives, and the first bytes of what they hold. */
const compressors: readonly [RegExp, string, string][] = [
  [/\.(tar\.gz|tgz)$/i, '\x1f\x8b', 'gzip'],
  [/\.(tar\.xz|txz)$/i, '\xfd7zXZ', 'xz'],
  [/\.(tar\.zst|tzst)$/i, '\x28\xb5\x2f\xfd', 'zstd'],
  [/\.(tar\.bz2|tbz2?)$/i, 'BZh', 'bzip2'],
]

/** Whether the name is that of a compressed tar file. */
export const isCompressedTar = (name: string): boolean => compressors.some(([ending]) => ending.test(name))

/** What to do about a compressed archive. */
export const unpackFirst = 'images are read in place, which a compressed archive does not allow: unpack it to a .tar file'

/** A sentence where the first bytes are those of a compressed file. */
function compression(start: string): string | undefined {
  const kind = compressors.find(([, magic]) => start.startsWith(magic))?.[2]
  return kind === undefined ? undefined : `it is compressed (${kind}): ${unpackFirst}`
}
