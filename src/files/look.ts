/** Looks at folders that others write in: what is gone or cannot be read in this moment is as if it were not there. */
import { readdirSync, type Stats, statSync } from 'node:fs'

/** The names in a folder, sorted; none where there is no folder that can be read. */
export function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).sort()
  } catch {
    return []
  }
}

/** What is at a path; undefined where nothing is or where that cannot be told: a link to itself, a folder without rights. */
export function statAt(path: string): Stats | undefined {
  try {
    return statSync(path)
  } catch {
    return undefined
  }
}

export const isFile = (path: string): boolean => statAt(path)?.isFile() ?? false
