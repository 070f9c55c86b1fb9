/**
 * `npm test [words...]`: runs every *.test.js below this folder whose path holds one of the words, each in a process of its
 * own so that a native crash fails one file, prints how long each took and how much processor time, and `N passed, N failed, N skipped`
 * last. DENSECL_TEST_SECONDS: after which a file is killed and has failed, 600 by default. DENSECL_TEST_JOBS: how many run at one time, by
 * default one more than there are cores, as now and then one waits. DENSECL_TEST_DEVICE: the only device to test, which must be here.
 * `--list` names the jobs and runs none; it fails where a word matches no file.
 */
import { spawn } from 'node:child_process'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { basename, dirname, join, resolve, sep } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

import { packageRoot } from '../src/tensor/addon.js'
import { variants } from './support/devices.js'

/** A whole number from the environment. */
function fromEnvironment(name: string, otherwise: number): number {
  const text = process.env[name]
  if (text === undefined) return otherwise
  if (/^[1-9]\d*$/.test(text)) return Number(text)
  console.error(`${name} is ${text}: expected a whole number of at least 1`)
  process.exit(2)
}
const seconds = fromEnvironment('DENSECL_TEST_SECONDS', 600)
const parallel = fromEnvironment('DENSECL_TEST_JOBS', availableParallelism() + 1)
const onlyDevice = process.env.DENSECL_TEST_DEVICE

const root = dirname(fileURLToPath(import.meta.url))
const list = process.argv.includes('--list')
const words = process.argv.slice(2).filter((word) => word !== '--list')
const files = readdirSync(root, { recursive: true, encoding: 'utf8' })
  .map((file) => file.replaceAll(sep, '/'))
  .filter((file) => file.endsWith('.test.js') && (words.length === 0 || words.some((word) => file.includes(word))))
  .sort()
const unmatched = words.filter((word) => !files.some((file) => file.includes(word)))
if (files.length === 0 || (list && unmatched.length > 0)) {
  console.error(`no test file matches ${unmatched.join(' ')}`)
  process.exit(1)
}

const total = { passed: 0, failed: 0, skipped: 0 }

// What was built from older sources fails in ways that say nothing of it. A bundle has no scripts.
const sources = join(packageRoot, 'scripts', 'nativeSources.mjs')
if (existsSync(sources)) {
  const { staleForms } = (await import(pathToFileURL(sources).href)) as { staleForms: () => { folder: string; command: string }[] }
  for (const { folder, command } of staleForms()) console.error(`STALE ${folder} was built from other sources than these: ${command}`)
}

interface Job {
  file: string
  name: string
  env: Record<string, string>
}

/** The addon that is asked for, of which tests in other folders must know too; else the CPU's as `npm install` builds it, if it has. */
const addon = resolve(process.env.DENSECL_ADDON ?? join(packageRoot, 'build', 'Release', 'densecl.node'))
const plain: Record<string, string> = process.env.DENSECL_ADDON !== undefined || existsSync(addon) ? { DENSECL_ADDON: addon } : {}

const forms = variants(packageRoot).filter(({ name }) => onlyDevice === undefined || name === onlyDevice)
if (onlyDevice !== undefined && forms[0]?.missing !== undefined) {
  console.error(`DENSECL_TEST_DEVICE is ${onlyDevice}, which cannot be tested: ${forms[0].missing}`)
  process.exit(1)
}
if (forms.length === 0) {
  console.error(
    `DENSECL_TEST_DEVICE is ${onlyDevice}: expected one of ${variants(packageRoot)
      .map(({ name }) => name)
      .join(', ')}`,
  )
  process.exit(2)
}
/** Files whose names end in devices.test.js run once for each device that is here (tests/support/devices.ts). */
const jobs = files.flatMap((file): Job[] => {
  const name = file.replace(/\.test\.js$/, '')
  if (!basename(file).endsWith('devices.test.js')) return [{ file, name, env: plain }]
  return forms.flatMap((variant): Job[] => {
    if (variant.missing === undefined) return [{ file, name: `${dirname(file)} on ${variant.name}`, env: variant.env }]
    total.skipped += 1
    console.log(`SKIP ${dirname(file)} on ${variant.name}: ${variant.missing}`)
    return []
  })
})

/**
 * Seconds of processor time of all processes that this one has started and that have ended, with what those waited for. Linux says it, in
 * hundredths; undefined elsewhere.
 */
function ofChildren(): number | undefined {
  if (process.platform !== 'linux') return undefined
  const fields = readFileSync('/proc/self/stat', 'utf8')
    .replace(/^.*\) /, '')
    .split(' ')
  return (Number(fields[13]) + Number(fields[14])) / 100
}
let counted = ofChildren()

function runJob({ file, name, env }: Job): Promise<void> {
  return new Promise((resolve) => {
    const started = performance.now()
    const child = spawn(process.execPath, [join(root, file)], { env: { ...process.env, NO_COLOR: '1', FORCE_COLOR: '0', ...env } })
    let output = ''
    child.stdout.on('data', (data: Buffer) => (output += data.toString()))
    child.stderr.on('data', (data: Buffer) => (output += data.toString()))
    let late = false
    const timer = setTimeout(() => {
      late = true
      child.kill('SIGKILL')
      // A process that it started may hold the other ends: what they say is not waited for.
      for (const stream of [child.stdout, child.stderr]) stream.destroy()
    }, 1000 * seconds)
    let spent = ''
    child.on('exit', () => {
      const now = ofChildren()
      if (now === undefined || counted === undefined) return
      spent = ` (cpu ${(now - counted).toFixed(1)}s)`
      counted = now
    })
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      const sum = (label: string): number =>
        [...output.matchAll(new RegExp(`^\\s+${label}:\\s+(\\d+)(?: / \\d+)?$`, 'gm'))].reduce((n, [, count]) => n + Number(count), 0)
      const tests = sum('Total')
      const passed = sum('Passed')
      const skips = [...output.matchAll(/^SKIP .*$/gm)].map(([line]) => line)
      const failed = tests - passed + (code !== 0 && tests === passed ? 1 : 0) + (tests === 0 && skips.length === 0 && code === 0 ? 1 : 0)
      total.passed += passed
      total.failed += failed
      total.skipped += skips.length
      const took = `${((performance.now() - started) / 1000).toFixed(1)}s${spent}`
      console.log(`${failed === 0 ? 'ok  ' : 'FAIL'} ${name.padEnd(34)} ${String(passed).padStart(4)} passed  ${took}`)
      for (const line of skips) console.log(`     ${line}`)
      const end = signal === null ? `exit code ${code}` : `killed by ${signal}`
      if (failed > 0) console.log(`${output}\n${late ? `killed after ${seconds} s (DENSECL_TEST_SECONDS)` : end}`)
      resolve()
    })
  })
}

if (list) {
  for (const { name } of jobs) console.log(name)
  process.exit(jobs.length > 0 ? 0 : 1)
}

/**
 * What takes longest begins first, so that no core waits for the other at the end: these by their names, then the sanitized ones, then
 * folders of which some take long. What takes a second or two is left for the end.
 */
const longest = [
  'cli/gpu',
  'selftest/check',
  'distributed/evaluations',
  'train/devices',
  'examples/tutorials',
  'torture/torture',
  'train/train',
  'train/tunedRuns',
  'distributed/',
  'cli/cli',
  'cli/eval',
  'fuzz/',
  'examples/programs',
  'data/large',
]
const long = /^(cli|detection|eval|examples|methods|onnx|report|study|train|weights)\//
const order = ({ file, env }: Job): number => {
  const known = longest.findIndex((word) => file.includes(word))
  if (known >= 0 && env.DENSECL_SIMT_SHUFFLE === undefined) return known
  return longest.length + (env.LD_PRELOAD !== undefined ? 0 : long.test(file) ? 1 : 2)
}
const queue = [...jobs].sort((a, b) => order(a) - order(b))
await Promise.all(
  Array.from({ length: parallel }, async () => {
    for (let job = queue.shift(); job !== undefined; job = queue.shift()) await runJob(job)
  }),
)
console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`)
process.exitCode = total.failed === 0 ? 0 : 1
