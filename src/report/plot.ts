import { escapeXml } from './svg.js'
import { largest, smallest } from '../tensor/numbers.js'

export interface Series {
  name: string
  colour: string
  points: { x: number; y: number }[]
  /** What the points were smoothed from: drawn faintly, and what the last value is of. */
  behind?: { x: number; y: number }[]
}

/** A number with three digits, as a person reads it. */
export function shortNumber(value: number): string {
  if (value === 0 || !Number.isFinite(value)) return String(value)
  const size = Math.abs(value)
  if (size < 0.001) return value.toExponential(1)
  return value.toFixed(Math.max(0, Math.min(4, 2 - Math.floor(Math.log10(size)))))
}

interface PlotOptions {
  title: string
  xLabel: string
  yLabel: string
  /** Dashed horizontal lines with a name. */
  levels?: { y: number; name: string }[]
  /** Size of the plot in pixels; a legend of several lines adds to the height. */
  width?: number
  height?: number
  colours?: PlotColours
}

export interface PlotColours {
  paper: string
  ink: string
  grid: string
  muted: string
}

/** The colours of a file: black on white wherever it is shown. */
const onPaper: PlotColours = { paper: '#fff', ink: '#222', grid: '#e4e4e4', muted: '#666' }

const sides = { left: 64, right: 20, top: 56, bottom: 52 }

/** Round values that divide low..high into about five steps. */
function ticks(low: number, high: number): number[] {
  const rough = (high - low) / 5 || 1
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough)!
  const first = Math.ceil(low / step)
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)))
}

/** A line plot as SVG, with the last value of every curve behind its name; points that are not finite break the line. */
export function linePlot(
  series: Series[],
  { title, xLabel, yLabel, levels = [], width = 760, height: plotHeight = 420, colours = onPaper }: PlotOptions,
): string {
  // Lines of one name are of one colour, and stand there once.
  const named = series.filter(({ name }, i) => series.findIndex((other) => other.name === name) === i)
  const words = named.map(({ name, points: line, behind = line }) => {
    const last = behind.findLast(({ y }) => Number.isFinite(y))
    return last === undefined || series.filter((other) => other.name === name).length > 1 ? name : `${name} ${shortNumber(last.y)}`
  })
  const legend = legendPlaces(words, width - sides.left - sides.right)
  const below = legendLine * (legend.at(-1)?.row ?? 0)
  const height = plotHeight + below
  const margin = { ...sides, top: sides.top + below }
  const points = series.flatMap((s) => s.behind ?? s.points).filter(({ y }) => Number.isFinite(y))
  const xs = points.map(({ x }) => x)
  const ys = [...points.map(({ y }) => y), ...levels.map(({ y }) => y)]
  const extent = (values: number[]): [number, number] => {
    if (values.length === 0) return [0, 1]
    const [low, high] = [smallest(values), largest(values)]
    // A constant in the middle of its axis.
    const around = low === high ? Math.abs(low) / 10 || 1 : 0
    return [low - around, high + around]
  }
  const [x0, x1] = xs.length > 0 && smallest(xs) === largest(xs) ? [xs[0]!, xs[0]! + 1] : extent(xs)
  let [y0, y1] = extent(ys)
  y0 -= (y1 - y0) * 0.05
  y1 += (y1 - y0) * 0.05
  const px = (x: number): number => margin.left + ((x - x0) / (x1 - x0)) * (width - margin.left - margin.right)
  const py = (y: number): number => height - margin.bottom - ((y - y0) / (y1 - y0)) * (height - margin.top - margin.bottom)
  const at = (x: number, y: number): string => `${px(x).toFixed(1)},${py(y).toFixed(1)}`
  const text = (x: number, y: number, content: string, more = ''): string =>
    `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${escapeXml(content)}</text>`
  const parts = [
    `<rect width="${width}" height="${height}" fill="${colours.paper}"/>`,
    text(margin.left, 20, title, 'font-size="16" font-weight="bold"'),
  ]
  for (const y of ticks(y0, y1)) {
    parts.push(
      `<line x1="${margin.left}" x2="${width - margin.right}" y1="${py(y).toFixed(1)}" y2="${py(y).toFixed(1)}" stroke="${colours.grid}"/>`,
    )
    parts.push(text(margin.left - 8, py(y) + 4, String(y), 'text-anchor="end"'))
  }
  for (const x of ticks(x0, x1)) parts.push(text(px(x), height - margin.bottom + 18, String(x), 'text-anchor="middle"'))
  parts.push(text((width + margin.left) / 2, height - 14, xLabel, 'text-anchor="middle"'))
  parts.push(text(0, 0, yLabel, `text-anchor="middle" transform="translate(18 ${height / 2}) rotate(-90)"`))
  for (const { y, name } of levels) {
    parts.push(
      `<line x1="${margin.left}" x2="${width - margin.right}" y1="${py(y).toFixed(1)}" y2="${py(y).toFixed(1)}" ` +
        `stroke="${colours.muted}" stroke-dasharray="5 4"/>`,
    )
    parts.push(text(width - margin.right - 4, py(y) - 5, name, `text-anchor="end" fill="${colours.muted}"`))
  }
  const pathOf = (line: Series['points']): string => {
    let path = ''
    let drawing = false
    for (const { x, y } of line) {
      if (Number.isFinite(y)) path += `${drawing ? 'L' : 'M'}${at(x, y)}`
      drawing = Number.isFinite(y)
    }
    return path
  }
  const drawn = new Set<string>()
  for (const { colour, behind = [] } of series)
    if (behind.length > 0)
      parts.push(
        `<polyline points="${behind
          .filter(({ y }) => Number.isFinite(y))
          .map(({ x, y }) => at(x, y))
          .join(' ')}" fill="none" stroke="${colour}" stroke-opacity="0.25"/>`,
      )
  series.forEach(({ colour, points: line }) => {
    const path = pathOf(line)
    // One that lies on another shows it between its dashes.
    const dashes = drawn.has(path) ? ' stroke-dasharray="7 7"' : ''
    drawn.add(path)
    parts.push(`<path d="${path}" fill="none" stroke="${colour}" stroke-width="2"${dashes}/>`)
    for (const { x, y } of line.length <= 40 ? line : [])
      if (Number.isFinite(y)) parts.push(`<circle cx="${px(x).toFixed(1)}" cy="${py(y).toFixed(1)}" r="2.5" fill="${colour}"/>`)
  })
  named.forEach(({ colour }, i) => {
    const { left, row, word } = legend[i]!
    const y = 34 + legendLine * row
    parts.push(
      `<line x1="${left.toFixed(1)}" x2="${(left + 16).toFixed(1)}" y1="${y}" y2="${y}" stroke="${colour}" stroke-width="3"/>`,
      text(left + 20, y + 4, word, 'font-size="11"'),
    )
  })
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" ` +
    `font-family="sans-serif" font-size="12" fill="${colours.ink}">${parts.join('')}</svg>\n`
  )
}

/** Pixels between two lines of a legend. */
const legendLine = 16

/** Where each word stands below the title: beside each other while there is room, then on the next line; none is longer than a line. */
function legendPlaces(words: readonly string[], room: number): { left: number; row: number; word: string }[] {
  const [letter, line] = [6.2, 32]
  const most = Math.floor((room - line) / letter)
  let [left, row] = [0, 0]
  return words.map((whole) => {
    const word = whole.length > most ? `${whole.slice(0, most - 1)}…` : whole
    const width = letter * word.length + line
    if (left > 0 && left + width > room) [left, row] = [0, row + 1]
    const place = { left: sides.left + left, row, word }
    left += width
    return place
  })
}
