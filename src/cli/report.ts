import { join } from 'node:path'

import { embedPictures, page, pageBody } from '../report/page.js'
import { viewRun } from '../report/runView.js'
import { fail } from '../tensor/errors.js'
import { writeTextAtomic } from '../files/atomic.js'
import { examples, print, type Register } from './command.js'

export const register: Register = (program, done) => {
  program
    .command('report')
    .description('write the report of a run, or of several beside each other, as one self-contained HTML page')
    .argument('<runs...>', 'folders of runs, of results (eval --out) or of one evaluation')
    .option('--out <file>', 'default: report.html in the first folder')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      examples([['densecl report runs/photos', 'curves, pictures, evaluations and configuration in runs/photos/report.html']]),
    )
    .action(async (paths: string[], flags: { out?: string; json?: boolean }) => {
      const runs = await Promise.all(
        paths.map(
          async (path) =>
            (await viewRun(path)) ??
            fail('RUN', `report: ${path} holds no run: expected config.yaml or metrics.jsonl, as pretrain writes them, or results of eval`),
        ),
      )
      const out = flags.out ?? join(paths[0]!, 'report.html')
      const html = page(runs.map(({ name }) => name).join(', '), pageBody(runs, [], await embedPictures(runs)))
      writeTextAtomic(out, html)
      print(flags.json === true, { file: out, runs: paths, bytes: html.length }, out)
      done(0)
    })
}
