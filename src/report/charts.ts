/** The curves of one run, or of several beside each other. */
import type { Chart } from '../methods/method.js'
import type { Config } from '../run/config.js'
import type { Metrics } from '../run/runLog.js'
import { linePlot, type PlotColours, type Series } from './plot.js'
import type { RunView } from './runView.js'

/** The page decides what they are, by day and by night. */
const onPage: PlotColours = { paper: 'var(--card)', ink: 'var(--ink)', grid: 'var(--line)', muted: 'var(--muted)' }
const colours = ['#3b82f6', '#ef4444', '#10b981', '#f59e0b', '#8b5cf6', '#ec4899', '#14b8a6', '#a3a3a3']
const points = 500

const loss: Chart = { title: 'Loss', yLabel: 'loss', curves: [{ name: 'loss', key: 'loss' }] }
const knn: Chart = { title: 'kNN accuracy', yLabel: '%', curves: [{ name: 'kNN', key: 'knn', scale: 100 }] }
const pace: readonly Chart[] = [
  { title: 'Learning rate', yLabel: 'rate', curves: [{ name: 'learning rate', key: 'lr' }] },
  { title: 'Throughput', yLabel: 'images / s', curves: [{ name: 'images', key: 'imagesPerSecond' }] },
  { title: 'Waiting for data', yLabel: '% of the time', curves: [{ name: 'wait', key: 'waitShare', scale: 100 }] },
]

/** The charts of a run: those of its method, of which the first is the loss, and those that every run has. */
function chartsOf({ method }: RunView): Chart[] {
  const [first = loss, ...others] = method?.charts ?? []
  return [first, knn, ...others, ...pace]
}

/** Rows of a curve by epoch; long ones as means of stretches. */
export function curvePoints(metrics: readonly Metrics[], key: string, scale = 1): { x: number; y: number }[] {
  const rows = metrics
    .filter((row) => row[key] !== undefined)
    .map((row) => ({ x: row.epoch!, y: row[key] === null ? NaN : row[key]! * scale }))
  if (rows.length <= points) return rows
  const each = rows.length / points
  return Array.from({ length: points }, (_, i) => {
    const part = rows.slice(Math.floor(i * each), Math.floor((i + 1) * each))
    const mean = (of: (row: { x: number; y: number }) => number): number => part.reduce((sum, row) => sum + of(row), 0) / part.length
    return { x: mean(({ x }) => x), y: mean(({ y }) => y) }
  })
}

/**
 * SVGs of all charts that have something to show. With several runs each has one colour, charts of one title are one, and the first
 * curve of a chart stands for it.
 */
export function runCharts(runs: readonly RunView[]): string[] {
  const all = runs.map((run) => ({ run, charts: chartsOf(run) }))
  const titles = [...new Set(all.flatMap(({ charts }) => charts.map(({ title }) => title)))]
  return titles.flatMap((title) => {
    const parts = all.map(({ run, charts }) => ({ run, chart: charts.find((chart) => chart.title === title) }))
    const series = parts.flatMap(({ run, chart }, r) =>
      (chart?.curves ?? [])
        .slice(0, runs.length === 1 ? undefined : 1)
        .map(({ name, key, scale }, c): Series => ({
          name: runs.length === 1 ? name : run.name,
          colour: colours[(runs.length === 1 ? c : r) % colours.length]!,
          points: curvePoints(run.metrics, key, scale),
        })),
    )
    if (series.every(({ points: line }) => line.length === 0)) return []
    const { yLabel, levels } = parts.find(({ chart }) => chart !== undefined)!.chart!
    return [
      linePlot(series, {
        title,
        xLabel: 'epoch',
        yLabel,
        width: 480,
        height: 280,
        colours: onPage,
        ...(levels === undefined || runs.length > 1 ? {} : { levels: levels(runs[0]!.config) }),
      }),
    ]
  })
}

/** The picture that a run leaves at its end: the curves of the method's first chart. */
export function lossPlot(rows: readonly Metrics[], { yLabel, curves, levels }: Chart = loss, config: Config): string {
  const series = curves.map(({ name, key, scale }, c): Series => ({
    name,
    colour: ['#222', '#1f77b4', '#d62728', ...colours][c % (colours.length + 3)]!,
    points: curvePoints(rows, key, scale),
  }))
  return linePlot(series, {
    title: 'Pre-training loss',
    xLabel: 'epoch',
    yLabel,
    ...(levels === undefined ? {} : { levels: levels(config) }),
  })
}
