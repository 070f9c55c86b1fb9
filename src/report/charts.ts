/** The curves of one run, or of several beside each other. */
import type { Chart } from '../methods/method.js'
import type { Config } from '../run/config.js'
import type { Metrics } from '../run/runLog.js'
import { linePlot, type PlotColours, type Series, shortNumber } from './plot.js'
import type { RunView } from './runView.js'

/** The page decides what they are, by day and by night. */
const onPage: PlotColours = { paper: 'var(--card)', ink: 'var(--ink)', grid: 'var(--line)', muted: 'var(--muted)' }
const colours = ['#3b82f6', '#ef4444', '#10b981', '#f59e0b', '#8b5cf6', '#ec4899', '#14b8a6', '#a3a3a3']
const points = 500

const loss: Chart = { title: 'Loss', yLabel: 'loss', curves: [{ name: 'loss', key: 'loss' }] }
const dense: Chart = {
  title: 'Places found again',
  yLabel: '% of positions',
  curves: [
    { name: 'exact', key: 'correspondence', scale: 100 },
    { name: 'near', key: 'correspondenceNear', scale: 100 },
    { name: 'the same place', key: 'correspondenceSamePlace', scale: 100 },
  ],
}
const knn: Chart = { title: 'kNN accuracy', yLabel: '%', curves: [{ name: 'kNN', key: 'knn', scale: 100 }] }
const pace: readonly Chart[] = [
  { title: 'Learning rate', yLabel: 'rate', curves: [{ name: 'learning rate', key: 'lr' }] },
  { title: 'Throughput', yLabel: 'images / s', curves: [{ name: 'images', key: 'imagesPerSecond' }] },
  { title: 'Waiting for data', yLabel: '% of the time', curves: [{ name: 'wait', key: 'waitShare', scale: 100 }] },
]

const numbersOfRow = (rows: readonly Metrics[], end: string): string[] => [
  ...new Set(rows.flatMap((row) => Object.keys(row).filter((key) => key.endsWith(end)))),
]

/** The charts of an evaluation by its kind and the rows of its log. */
const evaluationKinds: Record<string, (rows: readonly Metrics[]) => Chart[]> = {
  detection: () => [
    {
      title: 'Loss',
      yLabel: 'loss',
      curves: [
        { name: 'all', key: 'loss' },
        { name: 'anchors', key: 'anchorClass' },
        { name: 'anchor boxes', key: 'anchorBox' },
        { name: 'regions', key: 'regionClass' },
        { name: 'region boxes', key: 'regionBox' },
        { name: 'masks', key: 'mask' },
      ],
    },
    {
      title: 'Average precision',
      yLabel: '%',
      curves: [
        { name: 'AP50', key: 'ap50', scale: 100 },
        { name: 'COCO AP', key: 'cocoAp', scale: 100 },
        { name: 'mask AP', key: 'maskAp', scale: 100 },
      ],
    },
  ],
  segmentation: () => [
    {
      title: 'Loss',
      yLabel: 'loss',
      curves: [
        { name: 'all', key: 'loss' },
        { name: 'head', key: 'lossMain' },
        { name: 'auxiliary', key: 'lossAuxiliary' },
      ],
    },
    { title: 'Mean IoU', yLabel: '%', curves: [{ name: 'mean IoU', key: 'meanIou', scale: 100 }] },
  ],
  finetune: () => [
    {
      title: 'Loss',
      yLabel: 'loss',
      curves: [
        { name: 'training', key: 'loss' },
        { name: 'settings that are tried', key: 'choiceLoss' },
      ],
    },
    {
      title: 'Accuracy',
      yLabel: '%',
      curves: [
        { name: 'top-1', key: 'top1', scale: 100 },
        { name: 'top-5', key: 'top5', scale: 100 },
        { name: 'top-1, held out', key: 'heldOutTop1', scale: 100 },
      ],
    },
  ],
  linear: (rows) => [
    loss,
    {
      title: 'Accuracy',
      yLabel: 'top-1, %',
      curves: numbersOfRow(rows, 'Top1').map((key) => ({ name: key.slice(0, -'Top1'.length), key, scale: 100 })),
    },
  ],
}

/** The charts of a run: those of its method, of which the first is the loss, and those that every run has. */
function chartsOf({ method }: RunView): Chart[] {
  const [first = loss, ...others] = method?.charts ?? []
  return [first, knn, dense, ...others, ...pace]
}

/** Rows of a curve by epoch, or by what `by` is; long ones as means of stretches. */
export function curvePoints(metrics: readonly Metrics[], key: string, scale = 1, by = 'epoch'): { x: number; y: number }[] {
  const rows = metrics
    .filter((row) => row[key] !== undefined)
    .map((row) => ({ x: row[by]!, y: row[key] === null ? NaN : row[key]! * scale }))
  if (rows.length <= points) return rows
  const each = rows.length / points
  return Array.from({ length: points }, (_, i) => {
    const part = rows.slice(Math.floor(i * each), Math.floor((i + 1) * each))
    const mean = (of: (row: { x: number; y: number }) => number): number => part.reduce((sum, row) => sum + of(row), 0) / part.length
    return { x: mean(({ x }) => x), y: mean(({ y }) => y) }
  })
}

/** Points from which on a curve may be drawn smoothed. */
const manyPoints = 40

/**
 * A long curve that goes up and down as a running mean of a twentieth of its points, exponential and without a bias at its start; undefined
 * where there is nothing to smooth.
 */
export function smoothed(line: readonly { x: number; y: number }[]): { x: number; y: number }[] | undefined {
  if (line.length < manyPoints) return undefined
  const steps = line.slice(1).map(({ y }, i) => y - line[i]!.y)
  const turns = steps.slice(1).filter((step, i) => step * steps[i]! < 0).length
  if (turns < steps.length / 4) return undefined
  const keep = 1 - 20 / line.length
  let [sum, weight] = [0, 0]
  return line.map(({ x, y }) => {
    if (!Number.isFinite(y)) return { x, y }
    sum = keep * sum + (1 - keep) * y
    weight = keep * weight + (1 - keep)
    return { x, y: sum / weight }
  })
}

/** Curves that have the same value in every row say it in a sentence, not in a chart. */
const fewestOfConstant = 3
const isConstant = (line: readonly { y: number }[]): boolean =>
  line.length >= fewestOfConstant && line.every(({ y }) => Object.is(y, line[0]!.y))

/** What a single run's charts leave out since it never changed, such as `Queue 100 % filled`. */
export function constantCurves(runs: readonly RunView[]): string[] {
  const [run, ...others] = runs
  if (run === undefined || others.length > 0) return []
  return chartsOf(run).flatMap(({ title, yLabel, curves }) => {
    const lines = curves
      .map(({ name, key, scale }) => ({ name, line: curvePoints(run.metrics, key, scale) }))
      .filter(({ line }) => line.length > 0)
    if (lines.length === 0 || !lines.every(({ line }) => isConstant(line))) return []
    return lines.map(({ name, line }) => `${title}${lines.length === 1 ? '' : ` ${name}`} ${shortNumber(line[0]!.y)} ${yLabel}`)
  })
}

/** What curves are drawn of. */
interface Drawn {
  name: string
  charts: readonly Chart[]
  metrics: readonly Metrics[]
  config: Readonly<Record<string, unknown>>
}

/** SVGs of all charts of runs that have something to show, by epoch. */
export const runCharts = (runs: readonly RunView[]): string[] =>
  drawn(
    runs.map((run) => ({ ...run, charts: chartsOf(run) })),
    // constantCurves() has the others.
    { key: 'epoch', label: 'epoch', changing: runs.length === 1 },
  )

/** The same of the runs of a study, those of an arm in one colour. */
export const studyCharts = (parts: RunView['parts']): string[] =>
  drawn(
    parts.map(({ arm, run }) => ({ ...run, name: arm, charts: chartsOf(run) })),
    // Room for the names of all arms.
    { key: 'epoch', label: 'epoch', width: 640 },
  )

/** SVGs of all charts of evaluations of a kind that have something to show, by what they count. */
export function evaluationCharts(
  kind: string,
  unit: string,
  evaluations: readonly { name: string; metrics: readonly Metrics[] }[],
): string[] {
  const charts = evaluationKinds[kind] ?? ((): Chart[] => [loss])
  return drawn(
    evaluations.map(({ name, metrics }) => ({ name, metrics, config: {}, charts: [...charts(metrics), ...pace] })),
    { key: 'globalStep', label: unit },
  )
}

/**
 * SVGs of all charts that have something to show, with `changing` something that changes. With several of `all` each name has one colour,
 * charts of one title are one, and the first curve of a chart stands for it.
 */
function drawn(all: readonly Drawn[], x: { key: string; label: string; width?: number; changing?: boolean }): string[] {
  const names = [...new Set(all.map(({ name }) => name))]
  const titles = [...new Set(all.flatMap(({ charts }) => charts.map(({ title }) => title)))]
  return titles.flatMap((title) => {
    const parts = all.map((own) => ({ own, chart: own.charts.find((chart) => chart.title === title) }))
    const series = parts
      .flatMap(({ own, chart }) =>
        (chart?.curves ?? []).slice(0, all.length === 1 ? undefined : 1).map(({ name, key, scale }, c): Series => {
          const line = curvePoints(own.metrics, key, scale, x.key)
          const smooth = smoothed(line)
          return {
            name: all.length === 1 ? name : own.name,
            colour: colours[(all.length === 1 ? c : names.indexOf(own.name)) % colours.length]!,
            ...(smooth === undefined ? { points: line } : { points: smooth, behind: line }),
          }
        }),
      )
      // What some runs have and this one has not is no line of its legend.
      .filter(({ points: line }) => line.length > 0)
    if (series.length === 0 || (x.changing === true && series.every(({ points: line }) => isConstant(line)))) return []
    const { yLabel, levels } = parts.find(({ chart }) => chart !== undefined)!.chart!
    return [
      linePlot(series, {
        title,
        xLabel: x.label,
        yLabel,
        width: x.width ?? 480,
        height: 280,
        colours: onPage,
        ...(levels === undefined || all.length > 1 ? {} : { levels: levels(all[0]!.config) }),
      }),
    ]
  })
}

/** The picture that a run leaves at its end: the curves of the method's first chart. */
export function lossPlot(rows: readonly Metrics[], { yLabel, curves, levels }: Chart = loss, config: Config): string {
  const series = curves.map(({ name, key, scale }, c): Series => {
    const line = curvePoints(rows, key, scale)
    const smooth = smoothed(line)
    return {
      name,
      colour: ['#222', '#1f77b4', '#d62728', ...colours][c % (colours.length + 3)]!,
      ...(smooth === undefined ? { points: line } : { points: smooth, behind: line }),
    }
  })
  return linePlot(series, {
    title: 'Pre-training loss',
    xLabel: 'epoch',
    yLabel,
    ...(levels === undefined ? {} : { levels: levels(config) }),
  })
}
