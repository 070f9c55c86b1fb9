/** A folder of images, whose subfolders are classes. */
import { realpathSync } from 'node:fs'
import { extname, join } from 'node:path'

import { stopIfInterrupted, untilInterrupted } from '../tensor/interruption.js'
import { type DataSource, isFolder, isImage, isVideo, type Item, namesIn, Skips, type Source } from './source.js'

export const folderSource = { format: 'folder', describe: 'a folder', recognises: isFolder, open: readFolder } as const satisfies DataSource

/** What a file that is no image is counted as. */
const notRead = (name: string): string => {
  const extension = extname(name).toLowerCase()
  if (isVideo(name)) return 'video, of which densecl frames makes images'
  return extension === '' || name.startsWith('.') ? 'no image' : `no image that is read, ${extension}`
}

/** Names that folders of parts of a data set have. */
const splitNames = new Set(['train', 'training', 'val', 'valid', 'validation', 'test', 'testing', 'trainval', 'unlabeled', 'unlabelled'])

/** That the parts of a data set were read as its classes: a sentence with a remedy, or nothing. */
export function splitsAsClasses({ format, classes = [], items }: Source): string[] {
  const splits = classes.filter((name) => splitNames.has(name.toLowerCase()))
  if (format !== folderSource.format || splits.length < 2) return []
  const training = splits.find((name) => name.toLowerCase().startsWith('train'))
  const counts = splits.map((name) => `${items.filter(({ label }) => label === classes.indexOf(name)).length} in ${name}`)
  return [
    `its folders ${splits.join(' and ')} are parts of a data set, not classes: all ${items.length} images would be trained on ` +
      `(${counts.join(', ')}), those of the test too; give the folder of one part, such as ${training ?? splits[0]}`,
  ]
}

/** Subfolders that hold images, at any depth below, are the classes; where images lie directly in the folder there are none. */
function readFolder(root: string): Omit<Source, 'format'> {
  const skips = new Skips()
  /** The images below a folder, whose own folders by their real paths are `above`. */
  const walk = (folder: string, above: readonly string[], into: string[]): string[] => {
    const real = realpathSync(folder)
    if (above.includes(real)) {
      skips.add('link to a folder that it lies in', folder)
      return into
    }
    stopIfInterrupted()
    for (const name of untilInterrupted(namesIn(folder))) {
      const path = join(folder, name)
      if (isImage(name)) into.push(path)
      else if (isFolder(path)) walk(path, [...above, real], into)
      else skips.add(notRead(name), path)
    }
    return into
  }
  let paths: string[] = []
  let labels: number[] = []
  const classes: string[] = []
  let flat = false
  const real = realpathSync(root)
  for (const name of namesIn(root)) {
    const path = join(root, name)
    const before = paths.length
    if (isImage(name)) {
      paths.push(path)
      flat = true
    } else if (isFolder(path)) walk(path, [real], paths)
    else skips.add(notRead(name), path)
    if (paths.length > before) classes.push(name)
    for (let i = before; i < paths.length; ++i) labels.push(classes.length - 1)
  }
  // Beside images an array is something else, such as their features.
  const isArray = (path: string): boolean => extname(path).toLowerCase() === '.npy'
  if (paths.some(isArray) && !paths.every(isArray)) {
    for (const path of paths.filter(isArray)) skips.add('array among images', path)
    labels = labels.filter((_, i) => !isArray(paths[i]!))
    paths = paths.filter((path) => !isArray(path))
  }
  const labelled = !flat && classes.length > 1
  const items = paths.map((path, i): Item => ({ name: path, kind: 'file', path, ...(labelled ? { label: labels[i]! } : {}) }))
  return { items, ...(labelled ? { classes } : {}), skipped: skips.list() }
}
