import { Option } from 'commander'

import { tableText } from '../run/results.js'
import { entryOf, parseValue, type Setting } from '../run/options.js'
import { armNames, armOf, chosenArms } from '../study/arms.js'
import { optionalMeasures } from '../study/measures.js'
import { winRule } from '../study/plan.js'
import { writeStudy } from '../study/results.js'
import { type StudySize, studySizes } from '../study/sizes.js'
import { runStudy, type StudyResult } from '../study/study.js'
import { fail } from '../tensor/errors.js'
import { resolveDevice } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'
import {
  examples,
  expectOneProcess,
  heedingSignals,
  interruptedCode,
  isQuiet,
  numberFlag,
  type OutputFlags,
  quietFlag,
  type Register,
} from './command.js'

interface Flags extends OutputFlags {
  images: string
  arms: string
  voc?: string
  vocSplits: string
  segmentation: string[]
  also: string
  size?: string
  seeds?: string
  equalTime?: string
  segmentationIterations?: string
  linearEpochs?: string
  out: string
}

const table = (entries: [name: string, words: string][]): string =>
  entries.map(([name, words]) => `\n  ${name.padEnd(14)} ${words}`).join('')

export const register: Register = (program, done) => {
  const sizes = Object.entries(studySizes).map(([name, { describe }]): [string, string] => [name, describe])
  program
    .command('study')
    .description('pre-train MoCo v2, DenseCL and its variants with equal budgets and compare their dense features, several seeds each')
    .argument('[settings...]', 'key=value of all pre-training runs')
    .requiredOption('--images <folder>', 'train and val, each with class folders')
    .option('--arms <name,...>', 'what is compared, see below; all when absent', armNames.join(','))
    .addOption(
      new Option('--segmentation <folder>', 'a VOC tree with masks; may be given several times')
        .default([], 'none')
        .argParser((path: string, before: string[]) => [...before, path]),
    )
    .option('--also <name,...>', `measures that take long: ${optionalMeasures.join(', ')}`, '')
    .option('--voc <folder>', 'a VOC tree for --also svm')
    .option('--voc-splits <train,test>', 'its lists', 'trainval,test')
    .option('--size <name>', 'see below; default: by the device')
    .option('--seeds <count>', "of each arm; default: the size's")
    .option('--equal-time <ratio>', "epochs of mocov2-time for one of the others; default: the size's")
    .option('--segmentation-iterations <count>', 'another length of the fine-tuning of --also segmentation')
    .option('--linear-epochs <count>', 'another length of --also linear')
    .option('--out <folder>', 'where plan, runs and results go; a study that was cut off continues there', 'runs/study')
    .option(...quietFlag)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      `\nArms:${table(armNames.map((name) => [name, `${armOf(name).name}: ${armOf(name).describe}`]))}\n\nSizes:${table(sizes)}\n\n` +
        `What counts: ${winRule}.\n${examples([
          [
            'npm run study -- --images imagenette --segmentation coco_voc20 --segmentation camvid',
            'plan, tables and plot in runs/study; densecl watch runs/study shows it while it runs',
          ],
          ['npm run study -- --images imagenette --arms mocov2-scaled,geometry-image --seeds 5', 'two arms'],
        ])}`,
    )
    .action(heedingSignals(done, (settings: string[], flags: Flags) => compare(settings, flags, done)))
}

async function compare(given: string[], flags: Flags, done: Parameters<Register>[1]): Promise<void> {
  expectOneProcess('study')
  const { images, segmentation, out, json } = flags
  const sizeName = flags.size ?? (deviceTraits(resolveDevice('auto')).model === '' ? 'cpu' : 'gpu')
  const size = sizeOf(entryOf('--size', sizeName, studySizes), flags)
  const also = listOf(flags.also).map((word) => entryOf('--also', word, Object.fromEntries(optionalMeasures.map((name) => [name, name]))))
  const [train, test, ...more] = flags.vocSplits.split(',')
  if (train === undefined || test === undefined || more.length > 0)
    fail('CONFIG', `--voc-splits is ${flags.vocSplits}: expected two lists, train,test`)
  if (flags.voc !== undefined && !also.includes('svm')) fail('CONFIG', '--voc is read for --also svm: expected both or none')
  if (also.includes('segmentation') && segmentation.length === 0)
    fail('CONFIG', '--also names segmentation: expected a tree with masks with --segmentation')
  let written: Awaited<ReturnType<typeof writeStudy>> | undefined
  const write = async (result: StudyResult): Promise<void> => {
    written = await writeStudy(out, result)
  }
  const result = await runStudy({
    size,
    sizeName,
    arms: chosenArms(listOf(flags.arms)),
    seeds: size.seeds,
    images,
    segmentation,
    ...(flags.voc === undefined ? {} : { voc: { path: flags.voc, splits: [train, test] as const } }),
    also,
    out,
    settings: given.map(settingOf),
    line: (text) => (isQuiet(flags) ? undefined : console.log(text)),
    done: write,
  })
  if (result === 'interrupted') {
    console.error('interrupted; the same command continues')
    done(interruptedCode())
    return
  }
  const { tables, files } = written!
  console.log(
    json === true
      ? JSON.stringify({ tables, rows: result.rows, files }, undefined, 2)
      : [...tables.map((each) => `${tableText(each)}\n`), ...Object.values(files)].join('\n'),
  )
  done(0)
}

const listOf = (text: string): string[] => text.split(',').filter((word) => word !== '')

function settingOf(text: string): Setting {
  const at = text.indexOf('=')
  if (at < 1) fail('CONFIG', `${text}: expected key=value`)
  return { key: text.slice(0, at), value: parseValue(text.slice(at + 1)), from: text }
}

/** A size with what the flags say otherwise. */
function sizeOf(size: StudySize, { seeds, equalTime, linearEpochs, segmentationIterations }: Flags): StudySize {
  const count = (name: string, text: string | undefined, otherwise: number): number =>
    text === undefined ? otherwise : numberFlag(name, text, { least: 1, whole: true })
  const { segmentation } = size
  return {
    ...size,
    seeds: count('seeds', seeds, size.seeds),
    equalTime: equalTime === undefined ? size.equalTime : numberFlag('equal-time', equalTime, { least: 1, most: 10 }),
    linearEpochs: count('linear-epochs', linearEpochs, size.linearEpochs),
    segmentation: { ...segmentation, iterations: count('segmentation-iterations', segmentationIterations, segmentation.iterations) },
  }
}
