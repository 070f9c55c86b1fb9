/** Where images come from: a table of the kinds of source, one line each. */
import { existsSync } from 'node:fs'
import { basename, dirname, isAbsolute, join } from 'node:path'

import { fail } from '../tensor/errors.js'
import { didYouMean } from '../tensor/hint.js'
import { called } from '../tensor/settingNames.js'
import { withoutSecrets } from './addresses.js'
import { cocoSource } from './cocoSource.js'
import { folderSource } from './folderSource.js'
import { listSource } from './listSource.js'
import { sceneSource } from './sceneSource.js'
import {
  type DataSource,
  imageExtensions,
  isFolder,
  isVideo,
  namesIn,
  type ShardCache,
  skippedLines,
  type Source,
  type Split,
} from './source.js'
import { tarSource } from './tarSource.js'
import { urlSource } from './urlSource.js'
import { vocSource } from './vocSource.js'

/** The first that recognises a path opens it, so a folder of something stands before the folder of anything. */
const dataSources = [
  urlSource,
  vocSource,
  tarSource,
  folderSource,
  cocoSource,
  listSource,
  sceneSource,
] as const satisfies readonly DataSource[]

/** The name of a kind of source. */
export type SourceFormat = (typeof dataSources)[number]['format']
export const sourceFormats: readonly SourceFormat[] = dataSources.map(({ format }) => format)

/**
 * Opens `path`: a folder (class folders give labels), a folder of tar shards or one shard, a VOC tree, a COCO annotation
 * file, a text list (a path a line, relative to the list, then optionally a label), `scenes[:count]`, or shards on other machines:
 * `https://host/shard-{000000..000146}.tar`, or a text list of such addresses. `setting` is what gave the path, for messages. Throws DATA
 * for what cannot be read as one of them, and FETCH for shards that another machine does not give.
 */
export async function openSource(
  given: string,
  options: { format?: SourceFormat | 'auto'; split?: Split; cache?: ShardCache; setting?: string } = {},
): Promise<Source> {
  const { format = 'auto', split = 'train', cache = {}, setting } = options
  const path = withoutSecrets(given)
  const kind = sourceKind(path, format, setting)
  const source = { format: kind.format, ...(await opened(kind, path, split, cache)) }
  if (source.items.length === 0) {
    const holds = `data: ${path} (read as ${kind.format}) holds no image (${[...imageExtensions].join(' ')})`
    fail('DATA', [holds, ...skippedLines(source)].join('; '))
  }
  return source
}

/** The kind of source that a path is read as. Throws DATA where nothing is there, or nothing that can be read. */
export function sourceKind(path: string, format: SourceFormat | 'auto' = 'auto', setting?: string): DataSource {
  const kind: DataSource =
    dataSources.find((source) => (format === 'auto' ? source.recognises(path) : source.format === format)) ?? unknown(path, setting)
  if (kind.virtual !== true && !existsSync(path)) missing(path, setting, format === 'auto' ? undefined : kind.describe)
  return kind
}

/** What the system refuses while a source is read is an error of the data: a folder without rights, too many open files. */
async function opened(kind: DataSource, path: string, split: Split, cache: ShardCache): Promise<Omit<Source, 'format'>> {
  try {
    return await kind.open(path, split, cache)
  } catch (error) {
    if (!(error instanceof Error && 'syscall' in error)) throw error
    return fail('DATA', `data: ${path} (read as ${kind.format}) cannot be read: ${error.message}`)
  }
}

/** A path that is not there: what else lies where the path ends to exist, and what does without one. */
function missing(path: string, setting?: string, expected = 'a folder of images, or scenes, the built-in pictures'): never {
  const [folder, name] = [dirname(path), basename(path)]
  const found = isFolder(folder) ? didYouMean(name, namesIn(folder), (other) => join(folder, other)) : ''
  const from = isAbsolute(path) ? '' : ` below ${process.cwd()}`
  const named = setting === undefined ? '' : `${called(setting)} to be `
  return fail('DATA', `data: ${path} does not exist${from}${found}; expected ${named}${expected}`)
}

function unknown(path: string, setting?: string): never {
  const scheme = /^([a-z][a-z0-9]*):\/\//i.exec(path)?.[1]
  if (scheme !== undefined)
    fail(
      'DATA',
      `data: ${scheme}://... is not read: expected https:// or http://; files of S3 and the like have such addresses, plain or signed`,
    )
  if (!existsSync(path)) missing(path, setting)
  if (isVideo(path)) fail('DATA', `data: ${path} is a video: densecl frames makes images of it`)
  return fail('DATA', `data: ${path} is none of: ${dataSources.map(({ describe }) => describe).join(', ')}`)
}
