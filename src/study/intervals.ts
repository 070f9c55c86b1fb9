/** Means with intervals, a group for each score and a mark for each method. */
import { escapeXml } from '../report/svg.js'
import { largest, smallest } from '../tensor/numbers.js'

interface IntervalGroup {
  name: string
  marks: { method: string; mean: number; half: number; values: number[] }[]
}

const colours = ['#888888', '#1f77b4', '#9467bd', '#17becf', '#ff7f0e', '#2ca02c', '#d62728']
const [left, height] = [20, 300]
/** The room of a name in the legend, and of a line of it. */
const [nameWidth, lineHeight] = [170, 20]

export function intervalPlot(title: string, groups: readonly IntervalGroup[]): string {
  const parts: string[] = []
  const methods = groups[0]?.marks.map(({ method }) => method) ?? []
  const width = Math.max(150, 26 * (methods.length + 1))
  const total = left + Math.max(2 * nameWidth, width * groups.length) + 20
  const aLine = Math.floor((total - left) / nameWidth)
  const top = 50 + lineHeight * Math.ceil(methods.length / aLine)
  methods.forEach((method, m) => {
    const [x, y] = [left + 10 + nameWidth * (m % aLine), 46 + lineHeight * Math.floor(m / aLine)]
    parts.push(
      `<circle cx="${x}" cy="${y}" r="5" fill="${colours[m % colours.length]}"/>` +
        `<text x="${x + 10}" y="${y + 4}">${escapeXml(method)}</text>`,
    )
  })
  groups.forEach(({ name, marks }, g) => {
    // Each score has a scale of its own: what matters is the distance of methods within it.
    const ends = marks.flatMap(({ mean, half, values }) => [
      ...values,
      mean - (Number.isNaN(half) ? 0 : half),
      mean + (Number.isNaN(half) ? 0 : half),
    ])
    const [low, high] = [smallest(ends), largest(ends)]
    const y = (value: number): number => top + height - 12 - ((value - low) / (high - low || 1)) * (height - 24)
    const x0 = left + width * g
    parts.push(`<rect x="${x0 + 4}" y="${top}" width="${width - 8}" height="${height}" fill="none" stroke="#ddd"/>`)
    parts.push(`<text x="${x0 + width / 2}" y="${top + height + 20}" text-anchor="middle">${escapeXml(name)}</text>`)
    for (const value of [low, high])
      parts.push(
        `<text x="${x0 + 8}" y="${(y(value) + (value === low ? 10 : -4)).toFixed(1)}" font-size="10" ` +
          `fill="#666">${value.toFixed(1)}</text>`,
      )
    marks.forEach(({ mean, half, values }, m) => {
      const x = x0 + ((m + 1) * width) / (marks.length + 1)
      const colour = colours[m % colours.length]!
      if (!Number.isNaN(half))
        parts.push(
          `<line x1="${x}" x2="${x}" y1="${y(mean - half).toFixed(1)}" y2="${y(mean + half).toFixed(1)}" ` +
            `stroke="${colour}" stroke-width="2"/>`,
        )
      for (const value of values)
        parts.push(`<circle cx="${x + 9}" cy="${y(value).toFixed(1)}" r="2" fill="${colour}" fill-opacity="0.6"/>`)
      parts.push(
        `<circle cx="${x}" cy="${y(mean).toFixed(1)}" r="5" ` +
          `fill="${colour}"><title>${escapeXml(marks[m]!.method)} ${mean.toFixed(2)}</title></circle>`,
      )
    })
  })
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${total}" height="${top + height + 40}" viewBox="0 ` +
    `0 ${total} ${top + height + 40}" font-family="sans-serif" font-size="12" fill="#222"><rect width="100%" ` +
    `height="100%" fill="#fff"/><text x="${left}" y="24" font-size="16" ` +
    `font-weight="bold">${escapeXml(title)}</text>${parts.join('')}</svg>\n`
  )
}
