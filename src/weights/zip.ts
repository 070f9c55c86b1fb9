/** Zip files whose members are stored, not compressed, as PyTorch writes them. Format: PKWARE APPNOTE (facts only). */
import { crc32 } from 'node:zlib'

import { fail } from '../tensor/errors.js'

interface ZipEntry {
  name: string
  data: Buffer
}

/** The stored (uncompressed) members of a zip, by its central directory. */
export function zipEntries(path: string, bytes: Buffer): ZipEntry[] {
  const bad = (why: string): never => fail('FORMAT', `${path}: not a whole zip file: ${why}`)
  const end = bytes.lastIndexOf(Buffer.from('PK\x05\x06', 'latin1'))
  if (end < 0 || end + 22 > bytes.length) return bad('it has no end record')
  let count = bytes.readUInt16LE(end + 10)
  let at = bytes.readUInt32LE(end + 16)
  if (at === 0xffffffff || count === 0xffff) {
    const end64 = bytes.lastIndexOf(Buffer.from('PK\x06\x06', 'latin1'))
    if (end64 < 0 || end64 + 56 > bytes.length) return bad('it has no zip64 end record')
    count = Number(bytes.readBigUInt64LE(end64 + 32))
    at = Number(bytes.readBigUInt64LE(end64 + 48))
  }
  const entries: ZipEntry[] = []
  for (let i = 0; i < count; ++i) {
    if (at + 46 > bytes.length || bytes.readUInt32LE(at) !== 0x02014b50) return bad(`entry ${i} of its directory is damaged`)
    const nameLength = bytes.readUInt16LE(at + 28)
    const extraLength = bytes.readUInt16LE(at + 30)
    const extraEnd = at + 46 + nameLength + extraLength
    if (extraEnd > bytes.length) return bad(`entry ${i} of its directory ends after the file`)
    const name = bytes.toString('utf8', at + 46, at + 46 + nameLength)
    let size = bytes.readUInt32LE(at + 24)
    let offset = bytes.readUInt32LE(at + 42)
    // zip64: sizes and offsets that do not fit stand in the extra field, in this order.
    for (let e = at + 46 + nameLength; e + 4 <= extraEnd; e += 4 + bytes.readUInt16LE(e + 2)) {
      if (bytes.readUInt16LE(e) !== 1) continue
      let field = e + 4
      const wide = (): number =>
        (field += 8) > extraEnd ? bad(`the sizes of ${name} end after its entry`) : Number(bytes.readBigUInt64LE(field - 8))
      if (size === 0xffffffff) size = wide()
      if (bytes.readUInt32LE(at + 20) === 0xffffffff) wide()
      if (offset === 0xffffffff) offset = wide()
    }
    if (bytes.readUInt16LE(at + 10) !== 0) return bad(`${name} is compressed, as PyTorch does not write it`)
    if (offset + 30 > bytes.length || bytes.readUInt32LE(offset) !== 0x04034b50) return bad(`${name} has no local header`)
    const start = offset + 30 + bytes.readUInt16LE(offset + 26) + bytes.readUInt16LE(offset + 28)
    if (start + size > bytes.length) return bad(`${name} ends after the file`)
    entries.push({ name, data: bytes.subarray(start, start + size) })
    at += 46 + nameLength + extraLength + bytes.readUInt16LE(at + 32)
  }
  return entries
}

/** A zip of stored members, each starting at a multiple of 64 bytes (files below 4 GiB). */
export function zip(entries: readonly ZipEntry[]): Uint8Array {
  const parts: Buffer[] = []
  const directory: Buffer[] = []
  let at = 0
  for (const { name, data } of entries) {
    if (at + data.length > 0xfffffff0) fail('WRITE', `a .pth file of more than 4 GiB cannot be written; export safetensors`)
    const encoded = Buffer.from(name)
    const padding = (64 - ((at + 30 + encoded.length + 4) % 64)) % 64
    const header = Buffer.alloc(30 + encoded.length + 4 + padding)
    header.writeUInt32LE(0x04034b50, 0)
    const fields = (out: Buffer, from: number): void => {
      out.writeUInt16LE(20, from)
      out.writeUInt16LE(0x21, from + 8) // 1 January 1980
      out.writeUInt32LE(crc32(data), from + 10)
      out.writeUInt32LE(data.length, from + 14)
      out.writeUInt32LE(data.length, from + 18)
      out.writeUInt16LE(encoded.length, from + 22)
    }
    fields(header, 4)
    header.writeUInt16LE(4 + padding, 28)
    encoded.copy(header, 30)
    header.writeUInt16LE(0x4246, 30 + encoded.length) // an extra field of its own, "FB", as PyTorch pads
    header.writeUInt16LE(padding, 32 + encoded.length)
    const central = Buffer.alloc(46 + encoded.length)
    central.writeUInt32LE(0x02014b50, 0)
    central.writeUInt16LE(20, 4)
    fields(central, 6)
    central.writeUInt32LE(at, 42)
    encoded.copy(central, 46)
    parts.push(header, data)
    directory.push(central)
    at += header.length + data.length
  }
  const size = directory.reduce((sum, record) => sum + record.length, 0)
  const end = Buffer.alloc(22)
  end.writeUInt32LE(0x06054b50, 0)
  end.writeUInt16LE(entries.length, 8)
  end.writeUInt16LE(entries.length, 10)
  end.writeUInt32LE(size, 12)
  end.writeUInt32LE(at, 16)
  return Buffer.concat([...parts, ...directory, end])
}
