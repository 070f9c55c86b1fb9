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

/** What the operating system says of a call that failed: its code, such as ENOENT. */
export const systemReason = (error: unknown): string => (error as NodeJS.ErrnoException | null)?.code ?? String(error)
