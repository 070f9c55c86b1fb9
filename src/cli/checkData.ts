import { Option } from 'commander'

import { checkSource } from '../data/check.js'
import { skippedLines } from '../data/source.js'
import { openSource, type SourceFormat, sourceFormats } from '../data/sources.js'
import { examples, heedingSignals, interruptedCode, numberFlag, print, type Register } from './command.js'

export const register: Register = (program, done) => {
  program
    .command('check-data')
    .description('read every image as training would, and report what is broken, odd or missing')
    .argument('<data>', 'anything that pretrain --data takes')
    .addOption(new Option('--format <format>', 'how to read it').choices(['auto', ...sourceFormats]).default('auto'))
    .option('--max-broken <share>', 'more than this share of broken images makes the exit code 1', '0.01')
    .option('--json', 'print JSON')
    .addHelpText('after', examples([['densecl check-data photos', 'before a long run']]))
    .action(
      heedingSignals(done, async (data: string, flags: { format: SourceFormat | 'auto'; maxBroken: string; json?: boolean }) => {
        const most = numberFlag('max-broken', flags.maxBroken, { least: 0, most: 1 })
        const source = await openSource(data, { format: flags.format })
        const live = process.stderr.isTTY && flags.json !== true
        const report = await checkSource(
          source,
          (count) => live && count % 50 === 0 && process.stderr.write(`\r${count} of ${source.items.length}`),
        )
        if (live) process.stderr.write('\r\x1b[K')
        const list = (names: string[]): string[] => [
          ...names.slice(0, 10).map((name) => `  ${name}`),
          ...(names.length > 10 ? [`  and ${names.length - 10} more (--json names all)`] : []),
        ]
        const text = [
          `${data} (${report.format}): ${report.images} ` +
            `images${report.classes === undefined ? ', no labels' : `, ${Object.keys(report.classes).length} classes`}`,
          ...Object.entries(report.classes ?? {}).map(([name, count]) => `  ${name}: ${count}`),
          ...(report.width === undefined
            ? []
            : [`width ${report.width.join(' / ')}, height ${report.height!.join(' / ')} (smallest / median / largest)`]),
          `${report.broken.length} broken`,
          ...list(report.broken.map(({ reason }) => reason)),
          ...(report.odd.length === 0 ? [] : [`${report.odd.length} very small or very long`, ...list(report.odd)]),
          ...skippedLines(report),
        ]
        print(flags.json === true, report, text.join('\n'))
        if (report.interruptedOf !== undefined) {
          console.error(`interrupted after ${report.images} of ${report.interruptedOf} images: the report is of those`)
          done(interruptedCode())
          return
        }
        done(report.broken.length > most * report.images ? 1 : 0)
      }),
    )
}
