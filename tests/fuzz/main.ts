/**
 * `npm run fuzz -- [reader...] [--seconds N] [--inputs N] [--jobs N] [--seed S] [--out FOLDER]`: changed and made-up files through the
 * readers of readers.ts, all of them by default, for N seconds each (60), in N processes at one time (as many as there are cores). What
 * fails is printed and written to FOLDER (runs/fuzz); the exit code is 1. `npm run fuzz -- READER FILE...` reads the files instead.
 */
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

import { readers } from './readers.js'
import { type Found, fuzzReader, replay } from './run.js'

const text = { type: 'string' } as const
const { values, positionals } = parseArgs({
  options: { seconds: text, inputs: text, jobs: text, seed: text, out: text },
  allowPositionals: true,
})

function number(name: 'seconds' | 'inputs' | 'jobs' | 'seed', otherwise: number): number {
  const value = Number(values[name] ?? otherwise)
  if (value >= 0) return value
  console.error(`--${name} is ${values[name]}: expected a number of at least 0`)
  process.exit(2)
}

const files = positionals.slice(1).filter((each) => !(each in readers) && existsSync(each))
const wanted = positionals.filter((each) => !files.includes(each))
const unknown = wanted.find((name) => !(name in readers))
if (unknown !== undefined || (files.length > 0 && wanted.length > 1)) {
  console.error(`fuzz: ${unknown ?? 'several readers'}: expected one of ${Object.keys(readers).join(', ')}, or one of them and files`)
  process.exit(2)
}
const out = values.out ?? join('runs', 'fuzz')
const seed = number('seed', Date.now() % 1_000_000_000)

function tell({ reader, shape, why, bytes }: Found): void {
  const folder = join(out, reader)
  mkdirSync(folder, { recursive: true })
  const path = join(folder, createHash('sha256').update(bytes).digest('hex').slice(0, 12))
  writeFileSync(path, bytes)
  console.log(`FAIL ${reader}: ${shape}\n${why}\n     ${bytes.length} bytes in ${path}: npm run fuzz -- ${reader} ${path}`)
}

let failed = false
if (files.length > 0) {
  const found = await replay(wanted[0]!, files)
  for (const { why } of found) console.log(`FAIL ${why}`)
  if (found.length === 0) console.log(`ok   ${files.length} read or refused`)
  failed = found.length > 0
} else {
  console.log(`seed ${seed}: --seed ${seed} tries the same`)
  for (const reader of wanted.length > 0 ? wanted : Object.keys(readers)) {
    const { found, inputs, read, refused, shapes, parts, seconds } = await fuzzReader(reader, {
      seed,
      seconds: number('seconds', values.inputs === undefined ? 60 : Infinity),
      inputs: number('inputs', Infinity),
      jobs: number('jobs', availableParallelism()),
    })
    for (const each of found) tell(each)
    const pace = `${(inputs / seconds).toFixed(0)}/s`
    console.log(
      `${found.length === 0 ? 'ok  ' : 'FAIL'} ${reader.padEnd(12)} ${inputs} inputs in ${seconds.toFixed(0)} s (${pace}): ${read} read, ` +
        `${refused} refused in ${shapes} ways, ${parts} parts of the code, ${found.length} failures`,
    )
    failed ||= found.length > 0
  }
}
process.exitCode = failed ? 1 : 0
