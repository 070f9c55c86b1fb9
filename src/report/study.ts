/** The part of a page that shows a study: how far its runs are, its plot, and the curves of its arms beside each other. */
import { studyCharts } from './charts.js'
import { type EmbedPicture, figure, grid, plain, row, text, written } from './html.js'
import type { RunView } from './runView.js'

/** Nothing for what is no study. Its tables are shown as those of every folder of results. */
export function studySection({ plan, plot, parts }: RunView, embed: EmbedPicture): string {
  if (plan === undefined) return ''
  const shown = ['begun', 'size', 'seeds', 'settings', 'primary', 'secondary', 'win', 'added'].filter((key) => plan[key] !== undefined)
  const rows = shown.map((key) => `<li>${text(key)}: ${text(plain(plan[key]))}</li>`)
  const cards = [
    `<div class="card"><h3>Plan</h3><ul>${rows.join('')}</ul></div>`,
    ...(parts.length === 0 ? [] : [`<div class="card"><h3>Runs</h3><table>${states(parts)}</table></div>`]),
    ...(plot === undefined ? [] : [figure('means, 95 % intervals and single seeds', plot, embed, 'card wide')]),
  ]
  const charts = studyCharts(parts).map((svg) => `<div class="card">${svg}</div>`)
  return `${grid(...cards)}${charts.length === 0 ? '' : `<h2>Curves of the arms</h2>${grid(...charts)}`}`
}

function states(parts: RunView['parts']): string {
  const lines = parts.map(({ run: { name, metrics, config, finished } }) => {
    const epoch = Math.floor(metrics.at(-1)?.epoch ?? 0)
    return row([name, `${epoch} of ${written(config.epochs)}`, finished ? 'finished' : 'not finished'])
  })
  return `${row(['run', 'epoch', ''], 'th')}${lines.join('')}`
}
