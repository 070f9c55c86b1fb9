/** The line that a terminal rewrites: it never takes more than one row, whatever the terminal's width was and becomes. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { countLine, fittingFields, LiveLine, type Terminal } from '../../src/run/liveLine.js'
import { suite } from '../support/suite.js'

const test = suite('liveLine')

const escape = '\x1b'
const codes = new RegExp(`\\r|${escape}\\[\\d*[A-Za-z]|[^\\r${escape}]+`, 'g')

/** A terminal that breaks and joins lines when its width changes, as most do; it knows the few codes that are written. */
class Screen implements Terminal {
  /** Logical lines, of which the last is written to. */
  lines: string[] = ['said before', '']
  column = 0
  readonly listeners = new Set<() => void>()
  /** The width of its window, of which a program hears later. */
  window: number

  constructor(
    public columns: number,
    readonly colours = false,
  ) {
    this.window = columns
  }

  on = (_: 'resize', listener: () => void): unknown => this.listeners.add(listener)
  off = (_: 'resize', listener: () => void): unknown => this.listeners.delete(listener)
  hasColors = (): boolean => this.colours

  resize(columns: number): void {
    this.window = columns
  }

  _refreshSize(): void {
    if (this.window === this.columns) return
    this.columns = this.window
    for (const listener of this.listeners) listener()
  }

  write(text: string): void {
    for (const [part] of text.matchAll(codes)) {
      if (part === '\r') this.column = 0
      else if (part.startsWith(escape) && part.endsWith('m')) continue
      else if (part === '\x1b[K') this.#cutRow(0)
      else if (part.endsWith('A')) this.column = -Number(part.slice(2, -1))
      else if (part === '\x1b[J') this.#cutRow(-this.column)
      else this.lines[this.lines.length - 1] = this.lines.at(-1)! + part
    }
  }

  /** Cuts the last logical line at the start of its last row, or of one that is `above` it. */
  #cutRow(above: number): void {
    const line = this.lines.at(-1)!
    const rows = Math.max(1, Math.ceil(line.length / this.window))
    this.lines[this.lines.length - 1] = line.slice(0, Math.max(0, rows - 1 - above) * this.window)
    this.column = 0
  }
}

const fields = ['eta 2m27s', 'epoch 7/14 step 32/32', 'loss 4.295', '155 images/s', 'wait 0%', 'global 2.595 dense 1.700', 'lr 0.0604']

test('fields are left out from the end, and what fits is never longer than the width', () => {
  fc.assert(
    fc.property(
      fc.array(fc.stringMatching(/^[a-z]{1,30}$/), { minLength: 1, maxLength: 8 }),
      fc.integer({ min: 1, max: 120 }),
      (all, width) => {
        const shown = fittingFields(all, width)
        assert.ok(shown.join('  ').length <= width)
        if (all[0]!.length <= width) assert.equal(shown, all.slice(0, shown.length))
        if (shown.length < all.length && all[0]!.length <= width) assert.ok([...shown, all[shown.length]].join('  ').length > width)
      },
    ),
  )
})

test('a terminal that is resized at any time shows one row of it, and what was there before', () => {
  const width = fc.integer({ min: 8, max: 200 })
  fc.assert(
    fc.property(width, fc.array(fc.tuple(width, fc.boolean()), { maxLength: 8 }), (first, changes) => {
      const screen = new Screen(first)
      const line = new LiveLine(screen)
      line.show(fields)
      for (const [columns, again] of changes) {
        screen.resize(columns)
        if (again) line.show(fields)
        else screen._refreshSize()
        assert.equal(screen.lines, ['said before', fittingFields(fields, columns - 1).join('  ')])
      }
      line.clear()
      assert.equal(screen.lines, ['said before', ''])
      assert.is(screen.listeners.size, 0)
    }),
  )
})

test('colours are written to a terminal that shows them alone, and none is there for quiet', () => {
  const written = (colours: boolean): string => {
    let all = ''
    const line = new LiveLine(Object.assign(new Screen(80, colours), { write: (text: string) => (all += text) }))
    line.show(fields)
    return all
  }
  assert.match(written(true), '\x1b[1meta 2m27s\x1b[22m')
  assert.not.match(written(false), escape + '[1m')
  for (const [isTTY, quiet] of [
    [true, true],
    [false, false],
  ] as const) {
    const screen = Object.assign(new Screen(80), { isTTY })
    countLine(screen, quiet).show(['5 images'])
    assert.equal(screen.lines, ['said before', ''])
  }
})

test.run()
