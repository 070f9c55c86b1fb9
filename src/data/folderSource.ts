/** A folder of images, whose subfolders are classes. */
import { dirname, join, resolve } from 'node:path'

import { type DataSource, isFolder, isImage, type Item, namesIn, type Source } from './source.js'

export const folderSource = { format: 'folder', describe: 'a folder', recognises: isFolder, open: readFolder } as const satisfies DataSource

/** Subfolders that hold images, at any depth below, are the classes; images directly in the folder have none. */
function readFolder(root: string): Omit<Source, 'format'> {
  const walk = (folder: string): string[] =>
    namesIn(folder).flatMap((name) => {
      const path = join(folder, name)
      if (isImage(name)) return [path]
      return isFolder(path) ? walk(path) : []
    })
  const paths = walk(root)
  const classOf = (path: string): string => path.slice(root.length).split(/[\\/]/).find(Boolean)!
  const flat = paths.some((path) => dirname(path) === resolve(root) || dirname(path) === root.replace(/[\\/]$/, ''))
  const classes = flat ? [] : [...new Set(paths.map(classOf))]
  const items = paths.map((path): Item => ({
    name: path,
    kind: 'file',
    path,
    ...(classes.length > 1 ? { label: classes.indexOf(classOf(path)) } : {}),
  }))
  return { items, ...(classes.length > 1 ? { classes } : {}) }
}
