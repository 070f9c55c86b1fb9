import { Option } from 'commander'

import { mocoV2Augmentation } from '../data/augment.js'
import { packSource } from '../data/pack.js'
import { skippedLines } from '../data/source.js'
import { openSource, type SourceFormat, sourceFormats } from '../data/sources.js'
import { countLine } from '../run/liveLine.js'
import { fail } from '../tensor/errors.js'
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

export const register: Register = (program, done) => {
  program
    .command('pack')
    .description('write the images as tar shards of JPEGs no larger than training needs: read in one sweep, decoded faster')
    .argument('<data>', 'anything that pretrain --data takes')
    .option('--out <folder>', 'where the shards go')
    .addOption(new Option('--format <format>', 'how to read it').choices(['auto', ...sourceFormats]).default('auto'))
    .option(
      '--image-size <pixels>',
      'of the training to come: larger images are reduced so far that a smallest crop still has as many pixels as a view',
      '224',
    )
    .option('--quality <1-100>', 'of JPEGs that are written anew', '92')
    .option('--shard-megabytes <size>', 'of a shard', '256')
    .option('--max-broken <share>', 'more than this share of broken images makes the exit code 1', '0.01')
    .option('--resume', 'go on behind the shards that are complete')
    .option(...quietFlag)
    .option('--json', 'print JSON')
    .addHelpText('after', examples([['densecl pack photos --out packed', 'then: densecl pretrain --data packed']]))
    .action(
      heedingSignals(
        done,
        async (
          data: string,
          flags: {
            out?: string
            format: SourceFormat | 'auto'
            imageSize: string
            quality: string
            shardMegabytes: string
            maxBroken: string
            resume?: boolean
          } & OutputFlags,
        ) => {
          const out = flags.out ?? fail('CONFIG', 'pack: --out is missing: expected a folder for the shards')
          const imageSize = numberFlag('image-size', flags.imageSize, { least: 32, whole: true })
          const quality = numberFlag('quality', flags.quality, { least: 1, most: 100, whole: true })
          const shardBytes = numberFlag('shard-megabytes', flags.shardMegabytes, { least: 1 }) * 2 ** 20
          const most = numberFlag('max-broken', flags.maxBroken, { least: 0, most: 1 })
          const source = await openSource(data, { format: flags.format })
          const live = countLine(process.stderr, isQuiet(flags))
          const mostPixels = Math.ceil((imageSize * imageSize) / mocoV2Augmentation.cropScale[0])
          const report = await packSource(
            source,
            out,
            { mostPixels, quality, shardBytes, resume: flags.resume === true },
            (count) => count % 50 === 0 && live.show([`${count} of ${source.items.length} images`]),
          )
          live.clear()
          const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`
          const text = [
            `${report.images} images in ${report.shards.length} shards: ${mebibytes(report.bytesBefore)} ` +
              `before, ${mebibytes(report.bytesAfter)} now`,
            `${report.encoded} were written anew (more than ${mostPixels} pixels, rotated, or no RGB JPEG), the others copied`,
            ...(report.broken.length === 0
              ? []
              : [`${report.broken.length} broken, left out`, ...report.broken.slice(0, 10).map(({ reason }) => `  ${reason}`)]),
            ...skippedLines(source),
            `train on them with: densecl pretrain --data ${out}`,
          ]
          if (report.interruptedAt !== undefined) {
            if (flags.json === true) print(true, report, '')
            console.error(
              `interrupted at image ${report.interruptedAt} of ${source.items.length}: ${report.shards.length} shards ` +
                `with ${report.images} images are complete; continue with --resume`,
            )
            done(interruptedCode())
            return
          }
          print(flags.json === true, report, text.join('\n'))
          done(report.broken.length > most * source.items.length ? 1 : 0)
        },
      ),
    )
}
