/** `densecl bench growth`: how time and memory grow with work, and by which powers of its size. */
import { type GrowthRow, growthAxes, growthOf } from '../bench/growth.js'
import { environmentRow, writeResult } from '../bench/result.js'
import { fail } from '../tensor/errors.js'
import { didYouMean } from '../tensor/hint.js'
import type { AddBench } from './benchShared.js'
import { examples, heedingSignals, numberFlag } from './command.js'

const names = Object.keys(growthAxes)

/** What --help says of the axes. */
const axesHelp = Object.entries(growthAxes)
  .map(([name, { what, sizes }]) => `\n  ${name.padEnd(8)} ${what}: ${sizes.map((size) => size.toLocaleString('en')).join(', ')}`)
  .join('')

function growthText({ what, points, exponents, error }: GrowthRow): string {
  const power = (value: number | undefined): string => value?.toFixed(2) ?? '-'
  return [
    `${what}: time by the power ${power(exponents.time)}, memory ${power(exponents.memory)}`,
    ...points.map(
      ({ size, milliseconds, mebibytes }) =>
        `  ${size.toLocaleString('en').padStart(10)}  ${milliseconds.toFixed(1).padStart(10)} ms  ${mebibytes.toFixed(0).padStart(7)} MiB`,
    ),
    ...(error === undefined ? [] : [`  no further: ${error}`]),
  ].join('\n')
}

interface Flags {
  most?: string
  json?: boolean
  save?: string
}

export const addGrowth: AddBench = (parent, done) => {
  parent
    .command('growth')
    .description('how time and memory grow with work on the CPU: measured at sizes up to the largest, and by which power of the size')
    .argument('[axes...]', 'some of those below; all when absent')
    .option('--most <size>', 'leaves larger sizes out')
    .option('--json', 'print JSON')
    .option('--save <file>', 'write the result as JSON, after each axis')
    .addHelpText('after', `\nAxes, and their sizes:${axesHelp}`)
    .addHelpText('after', examples([['densecl bench growth rows start --most 100000', 'opening a list and starting a run, by its images']]))
    .action(
      heedingSignals(done, (axes: string[], { most, json = false, save }: Flags) => {
        const limit = most === undefined ? Infinity : numberFlag('most', most, { least: 1, whole: true })
        done(benchGrowth(axes, { most: limit, json, save }))
      }),
    )
}

/** Measures the axes of `words`, all when there are none, one after the other; the exit code is 1 where one could not be measured. */
function benchGrowth(words: readonly string[], flags: { most: number; json: boolean; save: string | undefined }): number {
  for (const word of words)
    if (!names.includes(word)) fail('CONFIG', `bench growth: there is no axis ${word}${didYouMean(word, names)}; axes: ${names.join(', ')}`)
  const axes = words.length === 0 ? names : words
  for (const axis of axes) {
    const least = growthAxes[axis]!.sizes[0]!
    if (flags.most < least) fail('CONFIG', `--most is ${flags.most}: expected at least ${least}, the smallest size of ${axis}`)
  }
  const rows: GrowthRow[] = []
  const result = { ...environmentRow(), bench: 'growth', rows }
  for (const axis of axes) {
    const row = growthOf(axis, flags.most)
    rows.push(row)
    if (!flags.json) console.log(growthText(row))
    if (flags.save !== undefined) writeResult(flags.save, result, true)
  }
  if (flags.json) console.log(JSON.stringify(result, undefined, 2))
  else if (flags.save !== undefined) console.log(`written: ${flags.save}`)
  return rows.some(({ error }) => error !== undefined) ? 1 : 0
}
