import { join } from 'node:path'

import { saveResult, tableText } from '../run/results.js'
import { armName, arms, runStudy, studySizes, summarise } from '../study/study.js'
import { intervalPlot } from '../study/intervals.js'
import { writePicture } from '../report/svg.js'
import { fail } from '../tensor/errors.js'
import { resolveDevice } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'
import { entryOf, parseValue } from '../run/options.js'
import { examples, heedingSignals, interruptedCode, numberFlag, type Register } from './command.js'
import { publishedLine } from './evalPublished.js'

interface Flags {
  images: string
  voc?: string
  vocSplits: string
  segmentation?: string
  size?: string
  seeds: string
  segmentationIterations?: string
  linearEpochs?: string
  out: string
  json?: boolean
}

export const register: Register = (program, done) => {
  const sizes = Object.entries(studySizes)
    .map(([name, { describe }]) => `\n  ${name.padEnd(4)} ${describe}`)
    .join('')
  program
    .command('study')
    .description('pre-train MoCo v2 and DenseCL with equal budgets and compare both, several seeds each')
    .argument('[settings...]', 'key=value of the pre-training runs')
    .requiredOption('--images <folder>', 'train and val, each with class folders')
    .option('--voc <folder>', 'a VOC tree for SVM classification')
    .option('--voc-splits <train,test>', 'its lists', 'trainval,test')
    .option('--segmentation <folder>', 'a VOC tree with masks')
    .option('--size <name>', 'see below; default: by the device')
    .option('--seeds <count>', 'of each method', '3')
    .option('--segmentation-iterations <count>', 'another length of the fine-tuning')
    .option('--linear-epochs <count>', 'another length of the linear classifiers')
    .option('--out <folder>', 'where runs and results go; a study that was cut off continues there', 'runs/study')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      `\nSizes:${sizes}\n${examples([
        ['npm run study -- --images imagenette --voc VOCdevkit/VOC2007 --segmentation camvid', 'one table and one plot in runs/study'],
      ])}`,
    )
    .action(
      heedingSignals(done, async (settings: string[], flags: Flags) => {
        const sizeName = flags.size ?? (deviceTraits(resolveDevice('auto')).model === '' ? 'cpu' : 'gpu')
        const size = entryOf('--size', sizeName, studySizes)
        const [train, test, ...more] = flags.vocSplits.split(',')
        if (train === undefined || test === undefined || more.length > 0)
          fail('CONFIG', `--voc-splits is ${flags.vocSplits}: expected two lists, train,test`)
        const given = settings.map((text) => {
          const at = text.indexOf('=')
          if (at < 1) fail('CONFIG', `${text}: expected key=value`)
          return { key: text.slice(0, at), value: parseValue(text.slice(at + 1)), from: text }
        })
        const iterations =
          flags.segmentationIterations === undefined
            ? {}
            : { iterations: numberFlag('segmentation-iterations', flags.segmentationIterations, { least: 1, whole: true }) }
        const rows = await runStudy({
          size: {
            ...size,
            linearEpochs:
              flags.linearEpochs === undefined
                ? size.linearEpochs
                : numberFlag('linear-epochs', flags.linearEpochs, { least: 1, whole: true }),
            segmentation: { ...size.segmentation, ...iterations },
          },
          images: flags.images,
          voc: flags.voc,
          vocSplits: [train, test],
          segmentation: flags.segmentation,
          seeds: numberFlag('seeds', flags.seeds, { least: 1, whole: true }),
          out: flags.out,
          settings: given,
          line: (text) => (flags.json === true ? undefined : console.log(text)),
        })
        if (rows === 'interrupted') {
          console.error('interrupted; the same command continues')
          done(interruptedCode())
          return
        }
        const { scores, verdicts } = summarise(rows)
        const shown = ({ mean, half }: { mean: number; half: number }): string =>
          `${mean.toFixed(2)}${Number.isNaN(half) ? '' : ` ± ${half.toFixed(2)}`}`
        const table = {
          title: `MoCo v2 and DenseCL with equal budgets, in %: mean and 95 % interval over ${flags.seeds} seeds`,
          columns: ['', ...arms.map(armName), 'DenseCL - MoCo v2'],
          rows: scores.map(({ name, methods: found, difference }) => [name, ...arms.map((arm) => shown(found[arm])), shown(difference)]),
          notes: [
            ...verdicts,
            ...publishedLine('knn', 'kNN on ImageNet', ['20']),
            ...publishedLine('imagenet-features', 'linear classifiers on ImageNet', ['feature4', 'feature5']),
            ...publishedLine('svm', 'the SVM on VOC07'),
            ...publishedLine('voc12aug', 'segmentation on VOC12 with additional masks'),
            'what is published is of other data and lengths: no measure of this study',
            `size ${sizeName}${settings.length === 0 ? '' : `, ${settings.join(' ')}`}; intervals by Student's t; differences seed by seed`,
          ],
        }
        const plot = intervalPlot(
          'MoCo v2 and DenseCL with equal budgets',
          scores.map(({ name, methods: found }) => ({
            name,
            marks: arms.map((arm) => ({
              method: armName(arm),
              ...found[arm],
              values: rows.filter((row) => row.method === arm).map((row) => row.scores[name]!),
            })),
          })),
        )
        const picture = await writePicture(join(flags.out, 'study'), plot)
        const path = saveResult(flags.out, 'study', table, { rows, scores, verdicts, settings, size: sizeName })
        console.log(
          flags.json === true
            ? JSON.stringify({ table, rows, file: path, picture }, undefined, 2)
            : `${tableText(table)}\n${path}\n${picture}`,
        )
        done(0)
      }),
    )
}
