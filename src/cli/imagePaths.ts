/** Images that a command is given by their files and by folders, and what is said of those that cannot be read. */
import { type Item, isFolder } from '../data/source.js'
import { openSource } from '../data/sources.js'

/** Images and the images of folders, in the order of the paths; a file that is not there is found out when it is read. */
export async function itemsAt(paths: readonly string[]): Promise<Item[]> {
  const parts = await Promise.all(
    paths.map(async (path): Promise<Item[]> =>
      isFolder(path) ? (await openSource(path, { format: 'folder' })).items : [{ name: path, kind: 'file', path }],
    ),
  )
  return parts.flat()
}

/** A line about an image that cannot be read; most reasons begin with its name. */
export const refusalOf = (image: string, reason: string): string =>
  reason.startsWith(`${image}: `) ? reason : `${image}: cannot be read (${reason})`
