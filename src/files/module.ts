/** JavaScript modules of a user's own: a backbone or a method that the program does not come with. */
import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

import { fail } from '../tensor/errors.js'

/** A path rather than a name of something that the program has. */
export const isModulePath = (text: string): boolean => /[\\/]|\.[cm]?js$/.test(text)

/** The absolute path of a module that is given by a path relative to the working folder, or by a file URL. Throws CONFIG. */
export function modulePath(text: string): string {
  if (!text.startsWith('file:')) return resolve(text)
  try {
    return fileURLToPath(text)
  } catch (error) {
    return fail(
      'CONFIG',
      `${text}: expected the file URL of a JavaScript module (${error instanceof Error ? error.message : String(error)})`,
    )
  }
}

/**
 * The default export of the module at `path` (modulePath). `option` names what the path was given as. Throws
 * CONFIG where there is no such module, where it cannot be loaded, and where it exports nothing by default.
 */
export async function defaultExport(option: string, path: string): Promise<unknown> {
  const file = modulePath(path)
  if (!existsSync(file)) fail('CONFIG', `${option} is ${path}: expected the path of a JavaScript module but there is no such file`)
  let module: { default?: unknown }
  try {
    module = (await import(pathToFileURL(file).href)) as typeof module
  } catch (error) {
    return fail('CONFIG', `${option} is ${path}: the module cannot be loaded (${error instanceof Error ? error.message : String(error)})`)
  }
  return module.default ?? fail('CONFIG', `${option} is ${path}: expected a module with a default export but it has none`)
}
