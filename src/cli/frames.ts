import { pixelsOfCrops } from '../data/ring.js'
import { mocoV2Augmentation } from '../data/augment.js'
import { extractFrames, videosAt } from '../data/videos.js'
import { makeFolder } from '../files/atomic.js'
import { countLine } from '../run/liveLine.js'
import { fail } from '../tensor/errors.js'
import { examples, heedingSignals, isQuiet, numberFlag, type OutputFlags, print, quietFlag, type Register } from './command.js'

interface Flags extends OutputFlags {
  out?: string
  framesPerSecond: string
  imageSize: string
  maxBroken: string
  resume?: boolean
}

export const register: Register = (program, done) => {
  program
    .command('frames')
    .description('write frames of videos as images to train on, by the program ffmpeg')
    .argument('<video...>', 'video files, and folders of them, whose subfolders become classes')
    .option('--out <folder>', 'where the images go')
    .option('--frames-per-second <count>', 'frames of a second that are kept; 0.2 is one in five seconds', '1')
    .option(
      '--image-size <pixels>',
      'of the training to come: larger frames are reduced so far that a smallest crop still has as many pixels as a view',
      '224',
    )
    .option('--max-broken <share>', 'more than this share of broken videos makes the exit code 1', '0')
    .option('--resume', 'keep the videos that are complete')
    .option(...quietFlag)
    .option('--json', 'print JSON')
    .addHelpText('after', examples([['densecl frames clips --out frames', 'then: densecl pretrain --data frames']]))
    .action(
      heedingSignals(done, async (paths: string[], flags: Flags) => {
        const out = flags.out ?? fail('CONFIG', 'frames: --out is missing: expected a folder for the images')
        const framesPerSecond = numberFlag('frames-per-second', flags.framesPerSecond, { least: 1e-4, most: 240 })
        const imageSize = numberFlag('image-size', flags.imageSize, { least: 32, most: 8192, whole: true })
        const most = numberFlag('max-broken', flags.maxBroken, { least: 0, most: 1 })
        const mostPixels = pixelsOfCrops(imageSize, mocoV2Augmentation)
        // Before folders are looked through, which takes long.
        makeFolder(out)
        const videos = videosAt(paths)
        const live = countLine(process.stderr, isQuiet(flags))
        const show = (count: number): void => live.show([`${count} of ${videos.length} videos`])
        show(0)
        const report = await extractFrames(videos, out, { framesPerSecond, mostPixels, resume: flags.resume === true }, show)
        live.clear()
        const { broken, damaged, kept } = report
        const sources = report.videos === 1 ? '1 video' : `${report.videos} videos`
        const listed = (what: string, some: { reason: string }[]): string[] =>
          some.length === 0 ? [] : [`${some.length} ${what}`, ...some.slice(0, 10).map(({ reason }) => `  ${reason}`)]
        const text = [
          `${report.frames} images of ${sources}${kept === 0 ? '' : `, ${kept} of them there before`}`,
          ...listed('broken, left out', broken),
          ...listed('damaged in part, of which there is what FFmpeg reads', damaged),
          ...(report.frames === 0 ? [] : [`train on them with: densecl pretrain --data ${out}`]),
        ]
        print(flags.json === true, report, text.join('\n'))
        done(broken.length > most * videos.length ? 1 : 0)
      }),
    )
}
