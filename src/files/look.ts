/** Looks at folders that others write in: what is gone or cannot be read in this moment is as if it were not there. */
import { constants } from 'node:buffer'
import { readdirSync, readFileSync, type Stats, statSync } from 'node:fs'

import { DenseclError, fail, systemReason } from '../tensor/errors.js'

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

/**
 * A file as text. Throws `code` with `name` where it cannot be read, and before it is read where it is longer than any text can be.
 */
export function readText(path: string, code: 'CONFIG' | 'DATA' | 'FILE', name = `${path}:`): string {
  try {
    const { size } = statSync(path)
    const most = constants.MAX_STRING_LENGTH
    if (size > most) fail(code, `${name} has ${size} bytes: expected at most ${most}, the longest text that this version of Node holds`)
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (error instanceof DenseclError) throw error
    return fail(code, `${name} cannot be read (${systemReason(error)})`)
  }
}
