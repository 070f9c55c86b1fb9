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
