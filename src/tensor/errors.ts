/** Every error that this package throws on purpose. `code` is stable; the message names the thing, the value and what was expected. */
export class DenseclError extends Error {
  override readonly name = 'DenseclError'
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message)
  }
}

export function fail(code: string, message: string): never {
  throw new DenseclError(code, message)
}

/**
 * Runs `body`, which does the work of `name`: an error in it that begins with the name of one of `parts` begins with `name` instead, which
 * is what the user called.
 */
export function calledAs<R>(name: string, parts: { has(word: string): boolean }, body: () => R): R {
  try {
    return body()
  } catch (error) {
    const word = error instanceof DenseclError ? /^(\w+): /.exec(error.message)?.[1] : undefined
    if (!(error instanceof DenseclError) || word === undefined || !parts.has(word)) throw error
    const message = name + error.message.slice(word.length)
    error.stack = error.stack?.replace(error.message, message) ?? message
    error.message = message
    throw error
  }
}

/** What the operating system says of a call that failed: its code, such as ENOENT. */
export const systemReason = (error: unknown): string => (error as NodeJS.ErrnoException | null)?.code ?? String(error)
