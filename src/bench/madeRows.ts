/** Large files of made-up rows. */
import { closeSync, openSync, writeSync } from 'node:fs'

/** Writes lines or rows in pieces: a whole file would be a string of its own. */
export function writeRows(path: string, rows: number, row: (i: number) => string, [head, between, tail] = ['', '\n', '\n']): void {
  const descriptor = openSync(path, 'w')
  writeSync(descriptor, head)
  for (let first = 0; first < rows; first += 10_000) {
    const part = Array.from({ length: Math.min(10_000, rows - first) }, (_, i) => row(first + i)).join(between)
    writeSync(descriptor, `${first === 0 ? '' : between}${part}`)
  }
  writeSync(descriptor, tail)
  closeSync(descriptor)
}
