/** The part of a page that shows evaluations which take long: what they are at, their curves, results and pictures. */
import { duration } from '../run/runLog.js'
import { evaluationCharts } from './charts.js'
import { type EmbedPicture, factList, figure, fixed, grid, plain, row, tableCard, text } from './html.js'
import { type EvaluationView, few, type RunView } from './runView.js'

/** A section for each kind of evaluation; those of one kind are compared, whichever runs they are of. */
export function evaluationSections(runs: readonly RunView[], embed: EmbedPicture): string {
  const all = runs.flatMap((run) =>
    run.evaluations.map((evaluation) => ({
      ...evaluation,
      name: runs.length > 1 && run.name !== evaluation.name ? `${run.name}: ${evaluation.name}` : evaluation.name,
    })),
  )
  const kinds = [...new Set(all.map(kindOf))]
  return kinds
    .map((kind) => {
      const own = all.filter((evaluation) => kindOf(evaluation) === kind)
      const charts = evaluationCharts(kind, own[0]!.record?.unit ?? 'step', own).map((svg) => `<div class="card">${svg}</div>`)
      const tables = own.flatMap(({ result }) => (result === undefined ? [] : [tableCard(result)]))
      const title = `${kind[0]!.toUpperCase()}${kind.slice(1)}`
      const shown = grid(...charts, ...tables, ...own.flatMap((each) => pictures(each, embed)), ...own.flatMap(settings))
      return `<h2>${text(title)}</h2>${own.map(stateOf).join('')}${shown}`
    })
    .join('')
}

/** The kind that the folder says, or else the first word of its name. */
const kindOf = ({ record, name }: EvaluationView): string => record?.kind ?? /^[a-z]+/i.exec(name.split(': ').at(-1)!)?.[0] ?? 'evaluation'

/** How far an evaluation is, in numbers. */
function stateOf({ name, record, metrics, result }: EvaluationView): string {
  const trained = metrics.filter(({ loss, choiceLoss }) => loss !== undefined || choiceLoss !== undefined).at(-1)
  const value = (key: string): number | undefined => metrics.filter((each) => each[key] !== undefined).at(-1)?.[key]
  const unit = record?.unit ?? 'step'
  const end = record?.began[`${unit}s`]
  const tested = Object.entries(scores).flatMap(([key, label]): [string, string][] =>
    value(key) === undefined ? [] : [[label, `${fixed(100 * value(key)!, 2)} %`]],
  )
  const left = leftOf(record, trained)
  const items: [string, string][] = [
    [unit, `${trained?.globalStep ?? 0}${typeof end === 'number' ? ` of ${end}` : ''}`],
    ...(trained === undefined ? [] : ([['loss', fixed(trained.loss ?? trained.choiceLoss, 3)]] as [string, string][])),
    ...tested,
    ...(trained?.imagesPerSecond === undefined ? [] : ([['images / s', fixed(trained.imagesPerSecond, 2)]] as [string, string][])),
    ...(result !== undefined || left === undefined ? [] : ([['left', left]] as [string, string][])),
  ]
  const state = result === undefined ? '<span class="state">not finished</span>' : 'finished'
  return `<div class="muted">${text(name)} · ${state}</div>${metrics.length === 0 ? '' : factList(items)}`
}

/** What tests on the way write to the log, and how it is called. */
const scores = {
  ap50: 'AP50',
  cocoAp: 'COCO AP',
  maskAp: 'mask AP',
  meanIou: 'mean IoU',
  top1: 'top-1',
  top5: 'top-5',
  heldOutTop1: 'top-1, held out',
}

function leftOf(record: EvaluationView['record'], trained: EvaluationView['metrics'][number] | undefined): string | undefined {
  const { globalStep = NaN, imagesPerSecond = NaN } = trained ?? {}
  const { batchSize, iterations } = record?.began ?? {}
  const seconds = ((Number(iterations) - globalStep) * Number(batchSize)) / imagesPerSecond
  return Number.isFinite(seconds) ? duration(seconds) : undefined
}

/** What was found on the way, and at the end. */
function pictures({ name, record, samples, pictures: all }: EvaluationView, embed: EmbedPicture): string[] {
  return [
    ...few(all).map(({ at, path }) => figure(`${name}, ${record?.unit ?? 'step'} ${at}`, path, embed, 'card wide')),
    ...(samples === undefined ? [] : [figure(`${name}, at the end`, samples, embed, 'card wide')]),
  ]
}

function settings({ name, record }: EvaluationView): string[] {
  if (record === undefined) return []
  const rows = [row(['setting', 'value'], 'th'), ...Object.entries(record.began).map(([key, value]) => row([key, plain(value)]))]
  return [`<div class="card wide"><h3>Settings of ${text(name)}</h3><table class="columns">${rows.join('')}</table></div>`]
}
