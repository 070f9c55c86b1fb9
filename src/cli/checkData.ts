import { Option } from 'commander'

import { BoxFaults, distinctClasses } from '../data/boxes.js'
import { defaultBoxSplits, mayHaveMasks, openBoxes } from '../data/boxSources.js'
import { type BoxReport, checkBoxes, checkSource, type DataReport } from '../data/check.js'
import { type Skipped, skippedLines } from '../data/source.js'
import { openSource, type SourceFormat, sourceFormats } from '../data/sources.js'
import { countLine } from '../run/liveLine.js'
import { fail } from '../tensor/errors.js'
import { classCount } from '../tensor/hint.js'
import {
  examples,
  heedingSignals,
  interruptedCode,
  isQuiet,
  numberFlag,
  type OutputFlags,
  print,
  quietFlag,
  type Register,
} from './command.js'

interface Flags extends OutputFlags {
  format: SourceFormat | 'auto'
  boxes?: boolean
  splits?: string
  classes?: string
  maxBroken?: string
  channels: string
}

const isOfBoxes = (report: DataReport | BoxReport): report is BoxReport => 'objects' in report

/** The objects of a report in lines. */
function boxLines({ objects, withoutObjects, errors, notes }: BoxReport): string[] {
  const sorts = (of: Skipped[]): string[] =>
    of.flatMap(({ what, count, names }) => [
      `${count} x ${what}`,
      ...names.map((name) => `  ${name}`),
      ...(count > names.length ? [`  and ${count - names.length} more`] : []),
    ])
  return [
    ...Object.entries(objects).map(([name, { objects: count, difficult, crowd }]) => {
      const of = [...(difficult > 0 ? [`${difficult} difficult`] : []), ...(crowd > 0 ? [`${crowd} crowd`] : [])]
      return `  ${name}: ${count} boxes${of.length > 0 ? ` (${of.join(', ')})` : ''}`
    }),
    ...(withoutObjects > 0 ? [`${withoutObjects} images without boxes`] : []),
    ...sorts(errors),
    ...sorts(notes),
  ]
}

const rounded = (value: number): string => value.toFixed(4)

const imageKinds = (report: DataReport | BoxReport): string =>
  isOfBoxes(report)
    ? `, ${classCount(Object.keys(report.objects).length)} with boxes`
    : report.classes === undefined
      ? ', no labels'
      : `, ${classCount(Object.keys(report.classes).length)}`

async function reportOfBoxes(
  data: string,
  splits: string[] | undefined,
  classes: string[] | undefined,
  onImage: (done: number) => void,
): Promise<BoxReport> {
  if (classes !== undefined) distinctClasses(classes, '--classes')
  const own = defaultBoxSplits(data)
  const faults = new BoxFaults()
  return checkBoxes(
    openBoxes(data, splits ?? [...new Set([...own.train, ...own.val])], { classes, faults, masks: mayHaveMasks(data) }),
    faults,
    onImage,
  )
}

export const register: Register = (program, done) => {
  program
    .command('check-data')
    .description('read every image as training would, and report what is broken, odd or missing')
    .argument('<data>', 'anything that pretrain --data takes')
    .addOption(new Option('--format <format>', 'how to read it').choices(['auto', ...sourceFormats]).default('auto'))
    .option('--channels <count>', 'of the images: 3 for colour, 1 for grey, or as many as TIFF and .npy files have', '3')
    .option('--boxes', 'a data set with boxes, as eval detection takes it: its annotations too')
    .option('--splits <lists>', 'with --boxes: the lists, such as train,val; default: those that eval detection trains and tests on')
    .option('--classes <names>', 'with --boxes: the classes that there are, such as cat,dog; default: those of the data set')
    .option(
      '--max-broken <share>',
      'more than this share of broken images makes the exit code 1 (default: 0.01; with --boxes 0, as eval detection takes none)',
    )
    .option(...quietFlag)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      examples([
        ['densecl check-data photos', 'before a long run'],
        ['densecl check-data VOCdevkit --boxes', 'boxes, classes and sizes before eval detection'],
      ]),
    )
    .action(
      heedingSignals(done, async (data: string, flags: Flags) => {
        const { boxes = false, splits, classes } = flags
        if (!boxes && (splits ?? classes) !== undefined)
          fail('CONFIG', `--${splits === undefined ? 'classes' : 'splits'} goes with --boxes`)
        const channels = numberFlag('channels', flags.channels, { least: 1, most: 1024, whole: true })
        if (boxes && channels !== 3) fail('CONFIG', '--channels is of images without boxes: a detector takes colour images')
        const most = numberFlag('max-broken', flags.maxBroken ?? (boxes ? '0' : '0.01'), { least: 0, most: 1 })
        const live = countLine(process.stderr, isQuiet(flags))
        const onImage = (count: number): void => {
          if (count % 50 === 0) live.show([`${count} images`])
        }
        const report = boxes
          ? await reportOfBoxes(data, splits?.split(','), classes?.split(','), onImage)
          : await checkSource(await openSource(data, { format: flags.format }), onImage, undefined, channels)
        live.clear()
        const list = (names: string[]): string[] => [
          ...names.slice(0, 10).map((name) => `  ${name}`),
          ...(names.length > 10 ? [`  and ${names.length - 10} more (--json names all)`] : []),
        ]
        const text = [
          `${data} (${report.format}): ${report.images} ` + `images${imageKinds(report)}`,
          ...Object.entries(report.classes ?? {}).map(([name, count]) => `  ${name}: ${count}`),
          ...(report.width === undefined
            ? []
            : [`width ${report.width.join(' / ')}, height ${report.height!.join(' / ')} (smallest / median / largest)`]),
          ...(report.mean === undefined
            ? []
            : [`mean [${report.mean.map(rounded).join()}] deviation [${report.deviation!.map(rounded).join()}] of values in 0..1`]),
          ...(isOfBoxes(report) ? boxLines(report) : []),
          `${report.broken.length} broken`,
          ...list(report.broken.map(({ reason }) => reason)),
          ...(report.odd.length === 0 ? [] : [`${report.odd.length} very small or very long`, ...list(report.odd)]),
          ...report.forms.map(({ what, count, names }) => {
            const [form, becomes] = what.split(': ')
            return `${count} ${form} (${becomes}): ${names.join(', ')}${count > names.length ? ', ...' : ''}`
          }),
          ...skippedLines(report),
          ...report.warnings.map((warning) => `warning ${warning}`),
        ]
        print(flags.json === true, report, text.join('\n'))
        if (report.interruptedOf !== undefined) {
          console.error(`interrupted after ${report.images} of ${report.interruptedOf} images: the report is of those`)
          done(interruptedCode())
          return
        }
        const refused = isOfBoxes(report) ? report.errors.reduce((sum, { count }) => sum + count, 0) : 0
        done(report.broken.length + refused > most * report.images ? 1 : 0)
      }),
    )
}
