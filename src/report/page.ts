/** The report of runs as one HTML page that needs nothing else: styles, curves, pictures and tables are in it. */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { extname } from 'node:path'

import { optionsOf } from '../methods/index.js'
import { commonOptions } from '../run/config.js'
import { defaultsOf } from '../run/options.js'
import { duration } from '../run/runLog.js'
import { constantCurves, runCharts } from './charts.js'
import { evaluationSections } from './evaluations.js'
import { cells, type EmbedPicture, factList, figure, fixed, grid, plain, row, tableCard, text, written } from './html.js'
import { few, picturesOf, type RunView } from './runView.js'
import { studySection } from './study.js'

const styles = `
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --muted: #667085; --line: #e4e7ec; --accent: #2563eb }
@media (prefers-color-scheme: dark) {
  :root { --page: #0f141b; --card: #171e27; --ink: #e6e9ee; --muted: #94a0b2; --line: #2a3441; --accent: #7aa7ff }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1520px; margin: 0 auto; padding: 24px; overflow-wrap: anywhere }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 18px; margin: 32px 0 12px } h3 { font-size: 15px; margin: 0 0 8px }
.muted { color: var(--muted) } .state { color: var(--accent); font-weight: 600 }
.facts + .grid, .muted + .grid { margin-top: 16px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 16px }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-x: auto }
.card svg { width: 100%; height: auto; display: block } .card img { max-width: 100%; height: auto; display: block }
.wide { grid-column: 1 / -1 }
hr { border: 0; border-top: 1px solid var(--line); margin: 20px 0 }
.note { position: fixed; right: 16px; bottom: 12px; font-size: 13px; color: var(--muted) }
figure { margin: 0 } figcaption { color: var(--muted); font-size: 13px; margin-bottom: 6px }
table { border-collapse: collapse; font-size: 14px }
table.columns { display: block } table.columns tbody { display: block; columns: 280px }
table.columns tr { display: flex; justify-content: space-between; break-inside: avoid; padding-right: 24px }
table.columns tr:first-child { display: none }
table.columns td:last-child { white-space: normal; min-width: 0; padding-right: 0 }
th, td { padding: 3px 12px 3px 0; text-align: right; white-space: nowrap } th:first-child, td:first-child { text-align: left }
th { color: var(--muted); font-weight: 500; border-bottom: 1px solid var(--line) } td.other { color: var(--accent) }
ul { margin: 8px 0 0; padding-left: 18px; color: var(--muted); font-size: 13px }
.facts { display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 12px 0 0 }
.facts b { display: block; font-size: 18px } .facts span { color: var(--muted); font-size: 13px }
`

/** The pictures of runs as data URLs: as WebP where sharp is installed, a tenth of the bytes, with what is transparent in them. */
export async function embedPictures(runs: readonly RunView[]): Promise<EmbedPicture> {
  const urls = new Map<string, string>()
  for (const path of runs.flatMap(picturesOf)) urls.set(path, await dataUrl(path))
  return (path) => urls.get(path)!
}

async function dataUrl(path: string): Promise<string> {
  const bytes = readFileSync(path)
  try {
    const { default: sharp } = await import('sharp')
    const webp = await sharp(bytes).webp({ quality: 82 }).toBuffer()
    return `data:image/webp;base64,${webp.toString('base64')}`
  } catch {
    return `data:image/${extname(path) === '.svg' ? 'svg+xml' : 'png'};base64,${bytes.toString('base64')}`
  }
}

function facts(run: RunView): string {
  const last = run.metrics.filter((row) => row.loss !== undefined).at(-1)
  const knn = run.metrics.filter((row) => row.knn !== undefined)
  const items: [string, string][] = [
    ['epoch', last === undefined ? '0' : `${fixed(last.epoch, last.epoch! % 1 === 0 ? 0 : 2)} of ${written(run.config.epochs)}`],
    ...(last === undefined
      ? []
      : ([
          ['loss', Number.isFinite(last.loss) ? fixed(last.loss, 3) : 'not a number'],
          ['images / s', fixed(last.imagesPerSecond, 0)],
          ...(run.finished ? [] : ([['left', leftOf(run)]] as [string, string][])),
        ] as [string, string][])),
    ...(knn.length === 0
      ? []
      : ([
          [
            'kNN',
            knn.length === 1
              ? `${fixed(100 * knn[0]!.knn!, 1)} %`
              : `${fixed(100 * knn[0]!.knn!, 1)} → ${fixed(100 * knn.at(-1)!.knn!, 1)} %`,
          ],
        ] as [string, string][])),
  ]
  return factList(items)
}

/** A number of a configuration; what else stands there is none, and Number() fails of some objects. */
const numberOf = (value: unknown): number => (typeof value === 'number' ? value : NaN)

function leftOf({ metrics, config }: RunView): string {
  const last = metrics.filter((row) => row.imagesPerSecond !== undefined).at(-1)
  const { globalStep = NaN, epoch = NaN, imagesPerSecond = NaN } = last ?? {}
  const perEpoch = (globalStep / epoch) * numberOf(config.batchSize)
  const seconds = ((numberOf(config.epochs) - epoch) * perEpoch) / imagesPerSecond
  return Number.isFinite(seconds) ? duration(seconds) : '-'
}

function heading(run: RunView): string {
  const { config, environment } = run
  const state = run.finished ? 'finished' : '<span class="state">not finished</span>'
  const backbone = environment.backbone ?? config.backbone ?? 'backbone'
  const what = [
    ...(run.method === undefined ? [] : [text(run.method.name)]),
    text(backbone),
    `${text(config.imageSize)} px`,
    `batch ${text(config.batchSize)}`,
    text(config.data),
  ]
  const where = environment.device === undefined ? '' : ` · ${text(environment.device)}`
  const problem = run.problems.map((words) => `<div class="muted">${text(words)}</div>`).join('')
  return `<h1>${text(run.name)}</h1><div class="muted">${state} · ${what.join(', ')}${where}</div>${problem}${facts(run)}`
}

function pictures(run: RunView, embed: EmbedPicture): string {
  const shown = few(run.epochs)
  const section = (title: string, figures: string[]): string => (figures.length === 0 ? '' : `<h2>${title}</h2>${grid(...figures)}`)
  const at = (epoch: number): string => (epoch === 0 ? 'before training' : `epoch ${epoch}`)
  return [
    section(
      'Augmentation',
      run.augmentation === undefined ? [] : [figure('each image, and three pairs of views of it', run.augmentation, embed, 'card wide')],
    ),
    section(
      'Matches over the epochs',
      shown.flatMap(({ epoch, matches }) => (matches === undefined ? [] : [figure(at(epoch), matches, embed)])),
    ),
    section(
      'Dense features as colours (first three principal components)',
      shown.flatMap(({ epoch, colours }) => (colours === undefined ? [] : [figure(at(epoch), colours, embed)])),
    ),
  ].join('')
}

/** Tables of evaluations that have nothing else to show. */
function tables(run: RunView): string {
  const own = run.tables.filter(({ name }) => !run.evaluations.some((evaluation) => evaluation.name === name))
  return own.length === 0 ? '' : `<h2>Evaluation</h2>${grid(...own.map(tableCard))}`
}

/** Options of all runs; those that are not the default, or differ between runs, stand out. */
function configuration(runs: readonly RunView[]): string {
  if (runs.length === 0) return ''
  const keys = [...new Set(runs.flatMap(({ config }) => Object.keys(config)))]
  const tables = runs.map(({ method }) => Object.entries(defaultsOf(method === undefined ? commonOptions : optionsOf(method))))
  const defaults: Record<string, unknown> = Object.fromEntries(tables.flat())
  const rows = keys.map((key) => {
    const values = runs.map(({ config }) => config[key])
    const usual = JSON.stringify(defaults[key])
    const marked = values.map((value) => `<td${JSON.stringify(value) === usual ? '' : ' class="other"'}>${text(plain(value))}</td>`)
    return `<tr>${cells([key], 'td')}${marked.join('')}</tr>`
  })
  const options = [row(['option', ...runs.map(({ name }) => name)], 'th'), ...rows]
  const table = `<div class="card wide"><table class="${runs.length > 1 ? '' : 'columns'}">${options.join('')}</table></div>`
  const environments = runs.map((run) => {
    const values = Object.entries(run.environment).map((entry) => row(entry))
    const title = `Environment${runs.length > 1 ? ` of ${text(run.name)}` : ''}`
    return `<div class="card"><h3>${title}</h3><table>${values.join('')}</table></div>`
  })
  return `<h2>Configuration</h2>${grid(table, ...environments)}`
}

/** What changes while a run goes on: everything inside of the page's frame. */
export function pageBody(runs: readonly RunView[], waiting: readonly string[], embed: EmbedPicture): string {
  const waits = waiting.map((path) => `<p class="muted">waiting for a run in ${text(path)}</p>`).join('')
  if (runs.length === 0) return waits
  const trained = runs.filter(({ pretrained }) => pretrained)
  const charts = runCharts(trained).map((svg) => `<div class="card">${svg}</div>`)
  const same = constantCurves(trained)
  const constant = same.length === 0 ? '' : `<p class="muted">The same all along: ${text(same.join(', '))}.</p>`
  const curves = charts.length === 0 ? '' : `<h2>Curves</h2>${grid(...charts)}${constant}`
  const details = runs.map((run) => {
    const own = `${studySection(run, embed)}${pictures(run, embed)}${tables(run)}`
    return runs.length > 1 && own !== '' ? `<h2>${text(run.name)}</h2>${own}` : own
  })
  return [
    waits,
    runs.map((run) => (run.pretrained ? heading(run) : `<h1>${text(run.name)}</h1>`)).join('<hr>'),
    curves,
    ...details,
    evaluationSections(runs, embed),
    configuration(trained),
  ].join('')
}

const sha256 = (content: string): string => `'sha256-${createHash('sha256').update(content).digest('base64')}'`

/**
 * What a page may load and run, as a Content-Security-Policy: its own style, pictures that are in it, and with a `script` that script
 * alone, which may ask the page's server and show its pictures. Text of a run that were taken for markup could not run or send anything.
 */
export function contentPolicy(script = ''): string {
  const live = [`script-src ${sha256(script)}`, "connect-src 'self'", "img-src 'self' data:"]
  return [
    "default-src 'none'",
    `style-src ${sha256(styles)}`,
    ...(script === '' ? ['img-src data:'] : live),
    "base-uri 'none'",
    "form-action 'none'",
  ].join('; ')
}

/** The whole page; `script` is what a live one adds. */
export function page(title: string, body: string, script = ''): string {
  const policy = `<meta http-equiv="Content-Security-Policy" content="${text(contentPolicy(script))}">`
  const meta = `<meta charset="utf-8">${policy}<meta name="referrer" content="no-referrer">`
  const view = '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
  const head = `<head>${meta}${view}<title>${text(title)}</title><style>${styles}</style></head>`
  const code = script === '' ? '' : `<script>${script}</script>`
  return `<!doctype html><html lang="en">${head}<body><main>${body}</main>${code}</body></html>\n`
}
