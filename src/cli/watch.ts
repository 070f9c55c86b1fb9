import { watchRuns } from '../report/watch.js'
import { examples, numberFlag, type Register } from './command.js'

export const register: Register = (program, done) => {
  program
    .command('watch')
    .description('serve the report of runs as a live page on this machine')
    .argument('<runs...>', 'folders of runs, results or evaluations, which need not be there yet; several are compared')
    .option('--port <number>', '0 takes a free one', '6360')
    .addHelpText('after', examples([['densecl watch runs/photos runs/photos-moco', 'open the address that is printed; Ctrl-C ends it']]))
    .action(async (runs: string[], flags: { port: string }) => {
      const watch = await watchRuns(runs, numberFlag('port', flags.port, { least: 0, most: 65_535, whole: true }))
      console.log(watch.url)
      await new Promise<void>((resolve) => {
        for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve())
      })
      await watch.close()
      done(0)
    })
}
