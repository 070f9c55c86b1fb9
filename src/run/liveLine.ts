/** One line of a terminal that is rewritten in place. */

/** What is asked of a terminal: that of process.stdout and process.stderr where they are one. */
export interface Terminal {
  readonly columns?: number
  /** Asks the system for the size now, and tells listeners of a change: a signal of it is heard between steps alone. */
  _refreshSize?(): void
  write(text: string): unknown
  hasColors?(): boolean
  on(event: 'resize', listener: () => void): unknown
  off(event: 'resize', listener: () => void): unknown
}

/** Where a terminal does not say how wide it is. */
const usualColumns = 80

/** The first of `fields`, which are worth most, that fit into `width` columns, two blanks apart; the very first is cut if need be. */
export function fittingFields(fields: readonly string[], width: number): string[] {
  let used = -2
  const rest = fields.findIndex((field) => (used += 2 + field.length) > width)
  if (rest === 0) return [fields[0]!.slice(0, Math.max(0, width))]
  return rest < 0 ? [...fields] : fields.slice(0, rest)
}

const styles = { bold: ['\x1b[1m', '\x1b[22m'], yellow: ['\x1b[33m', '\x1b[39m'] } as const

/** Text in a style where a stream shows colours: it is a terminal, and NO_COLOR is not set. */
export const styled = (stream: Pick<Terminal, 'hasColors'>, style: keyof typeof styles, text: string): string =>
  stream.hasColors?.() === true ? styles[style].join(text) : text

export class LiveLine {
  readonly #stream: Terminal
  #fields: readonly string[] = []
  /** Columns that the line on the screen took when it was written; 0 where there is none. */
  #length = 0
  readonly #redraw = (): void => this.#write(this.#fields)

  constructor(stream: Terminal) {
    this.#stream = stream
  }

  /** Shows as many of the fields as there is room for, the first in bold, and again when the terminal's size changes. */
  show(fields: readonly string[]): void {
    if (this.#length === 0) this.#stream.on('resize', this.#redraw)
    // Before the fields change: what is on the screen is erased by the width that it has now.
    this.#stream._refreshSize?.()
    this.#fields = fields
    this.#write(fields)
  }

  /** Leaves the cursor at the start of an empty line. */
  clear(): void {
    if (this.#length === 0) return
    this.#stream.off('resize', this.#redraw)
    this.#stream.write(this.#erasure())
    this.#length = 0
  }

  #columns(): number {
    // Some say 0.
    const { columns = 0 } = this.#stream
    return columns > 0 ? columns : usualColumns
  }

  #write(fields: readonly string[]): void {
    const [first = '', ...others] = fittingFields(fields, this.#columns() - 1)
    this.#stream.write(this.#erasure() + [styled(this.#stream, 'bold', first), ...others].join('  '))
    this.#length = Math.max(1, [first, ...others].join('  ').length)
  }

  /** A terminal that became narrower has broken the line into several. */
  #erasure(): string {
    const above = Math.ceil(this.#length / this.#columns()) - 1
    return above > 0 ? `\r\x1b[${above}A\x1b[J` : '\r\x1b[K'
  }
}

/** Whether a line that is written there can be written anew: on a terminal, but for those of kind "dumb". */
export const isTerminal = (stream: { isTTY?: boolean }): boolean => stream.isTTY === true && process.env.TERM !== 'dumb'

/** A line of a count on a terminal; nothing elsewhere. */
export function countLine(stream: Terminal & { isTTY?: boolean }, quiet: boolean): Pick<LiveLine, 'show' | 'clear'> {
  return quiet || !isTerminal(stream) ? { show: () => undefined, clear: () => undefined } : new LiveLine(stream)
}
