/** The files of the program, loaded when they are asked for. */

/** That files of the program itself could not be loaded; its message has a remedy. */
export class LoadError extends Error {
  override readonly name = 'LoadError'
}

/** What `load` imports. Throws LoadError where a file is not there or cannot be opened, and what the files themselves throw. */
export async function loaded<M>(load: () => Promise<M>): Promise<M> {
  try {
    return await load()
  } catch (error) {
    if (!(error instanceof Error) || error.name === 'DenseclError') throw error
    // Node opens many files of a program at a time.
    throw new LoadError(`${error.message}\n  is it installed whole, and may a process open 256 files (ulimit -n)?`)
  }
}
