/** The curves of one run, or of several beside each other. */
import { chanceLoss } from '../methods/densecl/health.js'
import type { Metrics } from '../run/runLog.js'
import { linePlot, type PlotColours, type Series } from './plot.js'
import type { RunView } from './runView.js'

/** The page decides what they are, by day and by night. */
const onPage: PlotColours = { paper: 'var(--card)', ink: 'var(--ink)', grid: 'var(--line)', muted: 'var(--muted)' }
const colours = ['#3b82f6', '#ef4444', '#10b981', '#f59e0b', '#8b5cf6', '#ec4899', '#14b8a6', '#a3a3a3']
const points = 500

interface Curve {
  name: string
  key: string
  scale?: number
}

interface Chart {
  title: string
  yLabel: string
  curves: Curve[]
  levels?: (run: RunView) => { y: number; name: string }[]
}

const charts: Chart[] = [
  {
    title: 'Loss',
    yLabel: 'weighted loss',
    curves: [
      { name: 'total', key: 'loss' },
      { name: 'global', key: 'lossGlobal' },
      { name: 'dense', key: 'lossDense' },
    ],
    levels: ({ config }) => (typeof config.queueLength === 'number' ? [{ y: chanceLoss(config.queueLength), name: 'guessing' }] : []),
  },
  { title: 'kNN accuracy', yLabel: '%', curves: [{ name: 'kNN', key: 'knn', scale: 100 }] },
  {
    title: 'The positive beats every negative',
    yLabel: '% of rows',
    curves: [
      { name: 'global', key: 'accuracyGlobal', scale: 100 },
      { name: 'dense', key: 'accuracyDense', scale: 100 },
    ],
  },
  {
    title: 'Similarity',
    yLabel: 'cosine of positives and negatives',
    curves: [
      { name: '+ global', key: 'positiveGlobal' },
      { name: '− global', key: 'negativeGlobal' },
      { name: '+ dense', key: 'positiveDense' },
      { name: '− dense', key: 'negativeDense' },
    ],
  },
  { title: 'Spread of embeddings', yLabel: '1 sphere, 0 collapse', curves: [{ name: 'spread', key: 'spread' }] },
  {
    title: 'Matching',
    yLabel: '% of positions',
    curves: [
      { name: 'same place', key: 'samePosition', scale: 100 },
      { name: 'distinct keys', key: 'distinctMatches', scale: 100 },
    ],
  },
  { title: 'Queue', yLabel: '% filled', curves: [{ name: 'queue', key: 'queueFill', scale: 100 }] },
  { title: 'Learning rate', yLabel: 'rate', curves: [{ name: 'learning rate', key: 'lr' }] },
  { title: 'Throughput', yLabel: 'images / s', curves: [{ name: 'images', key: 'imagesPerSecond' }] },
  { title: 'Waiting for data', yLabel: '% of the time', curves: [{ name: 'wait', key: 'waitShare', scale: 100 }] },
]

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

/** SVGs of all charts that have something to show. With several runs each has one colour and the first curve of a chart stands for it. */
export function runCharts(runs: readonly RunView[]): string[] {
  return charts.flatMap(({ title, yLabel, curves, levels }) => {
    const shown = runs.length === 1 ? curves : curves.slice(0, 1)
    const series = runs.flatMap((run, r) =>
      shown.map(({ name, key, scale }, c): Series => ({
        name: runs.length === 1 ? name : run.name,
        colour: colours[(runs.length === 1 ? c : r) % colours.length]!,
        points: curvePoints(run.metrics, key, scale),
      })),
    )
    if (series.every(({ points: line }) => line.length === 0)) return []
    return [
      linePlot(series, {
        title,
        xLabel: 'epoch',
        yLabel,
        width: 480,
        height: 280,
        colours: onPage,
        ...(levels === undefined || runs.length > 1 ? {} : { levels: levels(runs[0]!) }),
      }),
    ]
  })
}
