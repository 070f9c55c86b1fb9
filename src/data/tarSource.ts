/** Tar files whose members are images, read in place. */
import { closeSync, existsSync, openSync, readFileSync, readSync, statSync } from 'node:fs'
import { basename, dirname, extname, join } from 'node:path'

import { fail } from '../tensor/errors.js'
import { type DataSource, isFileOf, isFolder, isImage, type Item, namesIn, readItemBytes, type Source } from './source.js'

export const tarSource = {
  format: 'tar',
  describe: 'a tar shard',
  recognises(path) {
    if (!isFolder(path)) return isFileOf(path, '.tar')
    const names = namesIn(path)
    return names.some((name) => name.endsWith('.tar')) && !names.some(isImage)
  },
  open: readTar,
} as const satisfies DataSource

/** WebDataset shards: the members of a key are one sample; `.cls` is its label. Images are read in place later. */
async function readTar(path: string): Promise<Omit<Source, 'format'>> {
  const shards = isFolder(path)
    ? namesIn(path)
        .filter((name) => name.endsWith('.tar'))
        .map((name) => join(path, name))
    : [path]
  const items: Item[] = []
  for (const shard of shards) {
    const labels = new Map<string, number>()
    const found: (Item & { key: string })[] = []
    for (const { name, offset, size } of tarMembers(shard)) {
      const key = name.slice(0, name.length - extname(name).length)
      if (isImage(name)) found.push({ name: `${basename(shard)}:${name}`, kind: 'tar', path: shard, offset, size, key })
      else if (extname(name) === '.cls') {
        const label = Number((await readItemBytes({ name, kind: 'tar', path: shard, offset, size })).toString('utf8').trim())
        if (Number.isSafeInteger(label) && label >= 0) labels.set(key, label)
      }
    }
    for (const { key, ...item } of found) items.push(labels.has(key) ? { ...item, label: labels.get(key)! } : item)
  }
  if (items.length === 0 || !items.every((item) => item.label !== undefined)) return { items: items.map(({ label: _, ...item }) => item) }
  // `pack` leaves the names of the classes beside its shards.
  const names = join(dirname(shards[0]!), 'classes.txt')
  const named = existsSync(names) ? readFileSync(names, 'utf8').split('\n') : []
  const count = items.reduce((most, item) => Math.max(most, item.label! + 1), 0)
  return { items, classes: Array.from({ length: count }, (_, i) => named[i] ?? String(i)) }
}

/** Name, place and size of the regular files of an uncompressed tar (USTAR, with GNU long names). */
function* tarMembers(path: string): Generator<{ name: string; offset: number; size: number }> {
  const descriptor = openSync(path, 'r')
  try {
    const end = statSync(path).size
    const header = Buffer.alloc(512)
    let longName: string | undefined
    for (let at = 0; at + 512 <= end;) {
      readSync(descriptor, header, 0, 512, at)
      if (header[0] === 0) return
      const text = (from: number, length: number): string => header.toString('utf8', from, from + length).replace(/\0.*$/s, '')
      const size = parseInt(text(124, 12).trim() || '0', 8)
      if (text(257, 5) !== 'ustar' || !Number.isSafeInteger(size))
        fail('DATA', `data: ${path} is not a tar file (bad header at byte ${at})`)
      if (at + 512 + size > end) fail('DATA', `data: ${path} is cut off: ${text(0, 100)} at byte ${at} claims ${size} bytes`)
      const type = String.fromCharCode(header[156]!)
      if (type === 'L') {
        const name = Buffer.alloc(size)
        readSync(descriptor, name, 0, size, at + 512)
        longName = name.toString('utf8').replace(/\0.*$/s, '')
      } else {
        const prefix = text(345, 155)
        if (type === '0' || type === '\0')
          yield { name: longName ?? (prefix === '' ? text(0, 100) : `${prefix}/${text(0, 100)}`), offset: at + 512, size }
        longName = undefined
      }
      at += 512 + Math.ceil(size / 512) * 512
    }
  } finally {
    closeSync(descriptor)
  }
}
