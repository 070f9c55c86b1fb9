import { escapeXml } from './svg.js'
import { largest, smallest } from '../tensor/numbers.js'

export interface Series {
  name: string
  colour: string
  points: { x: number; y: number }[]
}

interface PlotOptions {
  title: string
  xLabel: string
  yLabel: string
  /** Dashed horizontal lines with a name. */
  levels?: { y: number; name: string }[]
  /** Size of the plot in pixels. */
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

const margin = { left: 64, right: 20, top: 44, bottom: 52 }

/** Round values that divide low..high into about five steps. */
function ticks(low: number, high: number): number[] {
  const rough = (high - low) / 5 || 1
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough)!
  const first = Math.ceil(low / step)
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)))
}

/** A line plot as SVG; points that are not finite break the line. */
export function linePlot(
  series: Series[],
  { title, xLabel, yLabel, levels = [], width = 760, height = 420, colours = onPaper }: PlotOptions,
): string {
  const points = series.flatMap((s) => s.points).filter(({ y }) => Number.isFinite(y))
  const xs = points.map(({ x }) => x)
  const ys = [...points.map(({ y }) => y), ...levels.map(({ y }) => y)]
  const extent = (values: number[]): [number, number] => {
    if (values.length === 0) return [0, 1]
    const [low, high] = [smallest(values), largest(values)]
    return [low, low === high ? low + 1 : high]
  }
  const [x0, x1] = extent(xs)
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
  series.forEach(({ colour, points: line }) => {
    let path = ''
    let drawing = false
    for (const { x, y } of line) {
      if (Number.isFinite(y)) path += `${drawing ? 'L' : 'M'}${at(x, y)}`
      drawing = Number.isFinite(y)
    }
    parts.push(`<path d="${path}" fill="none" stroke="${colour}" stroke-width="2"/>`)
    for (const { x, y } of line.length <= 40 ? line : [])
      if (Number.isFinite(y)) parts.push(`<circle cx="${px(x).toFixed(1)}" cy="${py(y).toFixed(1)}" r="2.5" fill="${colour}"/>`)
  })
  // Lines of one name are of one colour, and stand there once.
  const named = series.filter(({ name }, i) => series.findIndex((other) => other.name === name) === i)
  const legend = legendPlaces(
    named.map(({ name }) => name),
    width - margin.left - margin.right,
  )
  named.forEach(({ name, colour }, i) => {
    const [left, most] = legend[i]!
    parts.push(
      `<line x1="${left.toFixed(1)}" x2="${(left + 16).toFixed(1)}" y1="34" y2="34" stroke="${colour}" stroke-width="3"/>`,
      text(left + 20, 38, name.length > most ? `${name.slice(0, most - 1)}…` : name, 'font-size="11"'),
    )
  })
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" ` +
    `font-family="sans-serif" font-size="12" fill="${colours.ink}">${parts.join('')}</svg>\n`
  )
}

/**
 * Where each name stands below the title, and of how many letters: beside each other as they are, or, where there is no room for that, none
 * longer than all of them can be.
 */
function legendPlaces(names: readonly string[], room: number): [left: number, most: number][] {
  const [letter, line] = [6, 28]
  const widthOf = (name: string, most: number): number => letter * Math.min(name.length, most) + line
  const widthOfAll = (most: number): number => names.reduce((sum, name) => sum + widthOf(name, most), 0)
  let most = Math.max(4, largest(names.map((name) => name.length)))
  while (most > 4 && widthOfAll(most) > room) most -= 1
  let left = margin.left
  return names.map((name) => {
    const place: [number, number] = [left, most]
    left += widthOf(name, most)
    return place
  })
}
