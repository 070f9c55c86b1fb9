/** Tar files whose members are images, read in place. */
import { existsSync, readFileSync } from 'node:fs'
import { basename, dirname, extname, join } from 'node:path'

import { fail } from '../tensor/errors.js'
import { untilInterrupted } from '../tensor/interruption.js'
import { classNames, type DataSource, isFolder, isImage, type Item, namesIn, Skips, type Source } from './source.js'
import { isCompressedTar, tarMembers, unpackFirst } from './tarReader.js'

const isTar = (name: string): boolean => extname(name).toLowerCase() === '.tar'

export const tarSource = {
  format: 'tar',
  describe: 'a tar shard',
  recognises(path) {
    if (!isFolder(path)) return existsSync(path) && (isTar(path) || isCompressedTar(path))
    const names = namesIn(path)
    return names.some((name) => isTar(name) || isCompressedTar(name)) && !names.some(isImage)
  },
  open: readTar,
} as const satisfies DataSource

/** The longest file with a label that is read. */
const mostLabelBytes = 64

/**
 * WebDataset shards: the members of a key, which is a name up to its first dot, are one sample; `.cls` is its label. Of names that
 * are equal up to their last dot only, the label is that of the same stem. Images are read in place later.
 */
function readTar(path: string): Omit<Source, 'format'> {
  const skips = new Skips()
  const items: Item[] = []
  const shards = shardsOf(path, skips)
  for (const shard of shards) readShard(shard, items, skips)
  if (items.length === 0 || !items.every((item) => item.label !== undefined))
    return { items: items.map(({ label: _, ...item }) => item), skipped: skips.list() }
  // `pack` leaves the names of the classes beside its shards.
  const names = join(dirname(shards[0]!), 'classes.txt')
  const named = existsSync(names) ? readFileSync(names, 'utf8').split(/\r?\n/) : []
  return { items, classes: classNames(path, items, named), skipped: skips.list() }
}

function shardsOf(path: string, skips: Skips): string[] {
  if (!isFolder(path)) return isCompressedTar(path) ? fail('DATA', `data: ${path} is compressed: ${unpackFirst}`) : [path]
  const names = namesIn(path)
  const compressed = names.filter(isCompressedTar)
  const shards = names.filter(isTar)
  if (shards.length === 0 && compressed.length > 0)
    fail('DATA', `data: ${path} holds compressed shards, such as ${compressed[0]}: ${unpackFirst}`)
  for (const name of compressed) skips.add('compressed shard', name)
  return shards.map((name) => join(path, name))
}

/** A name up to the first dot of its last part, and up to the last. */
function stems(name: string): { key: string; stem: string } {
  const from = name.lastIndexOf('/') + 1
  const dot = name.indexOf('.', from)
  return { key: dot < 0 ? name : name.slice(0, dot), stem: name.slice(0, name.length - extname(name).length) }
}

function readShard(shard: string, items: Item[], skips: Skips): void {
  const labels = new Map<string, number>()
  const first = items.length
  const nameOf = (name: string): string => `${basename(shard)}:${name}`
  for (const { name, offset, size, other, read } of untilInterrupted(tarMembers(shard))) {
    if (other !== undefined) skips.add(other, nameOf(name))
    // The attributes of a file that macOS packs beside it, under its name.
    else if (basename(name).startsWith('._')) skips.add('file of attributes of macOS', nameOf(name))
    else if (isImage(name)) items.push({ name: nameOf(name), kind: 'tar', path: shard, offset, size })
    else if (extname(name) === '.cls') {
      const text = size > mostLabelBytes ? '' : read().toString('utf8').trim()
      if (/^\d+$/.test(text) && Number.isSafeInteger(Number(text))) labels.set(stems(name).stem, Number(text))
      else skips.add('label that is no whole number', nameOf(name))
    } else skips.add(extname(name) === '' ? 'file without an extension' : `${extname(name)} file`, nameOf(name))
  }
  for (let i = first; i < items.length; ++i) {
    const { key, stem } = stems(items[i]!.name.slice(basename(shard).length + 1))
    const label = labels.get(stem) ?? labels.get(key)
    if (label !== undefined) items[i]!.label = label
  }
}
