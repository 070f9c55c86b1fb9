/** Fuzzes readers, each in processes of its own: one that ends or hangs is a find, and the run goes on. */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import type { Line } from './child.js'
import { minimise } from './minimise.js'
import { readerOf } from './readers.js'

export interface Found {
  reader: string
  shape: string
  why: string
  bytes: Buffer
}
export interface Fuzzed {
  inputs: number
  read: number
  refused: number
  shapes: number
  parts: number
  seconds: number
  found: Found[]
}

/** Without a sign of life for so many milliseconds a process hangs: inputs take two seconds at most. */
const usualPatience = 10_000
const program = fileURLToPath(new URL('./child.js', import.meta.url))

/** A folder in memory where there is one: a file for each of thousands of inputs a second. */
export const fuzzFolder = (): string => mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'densecl-fuzz-'))

/** Runs the child; `end` says how it ended where that is not as it should. */
function child(args: readonly string[], patience: number, onLine: (line: Line) => void): Promise<{ end?: string }> {
  return new Promise((resolve) => {
    const { DENSECL_CHECK: _, ...env } = process.env
    const running = spawn(process.execPath, ['--max-old-space-size=1024', program, ...args], { env, stdio: ['ignore', 'pipe', 'pipe'] })
    let [rest, errors, hung] = ['', '', false]
    const kill = (): void => {
      hung = true
      running.kill('SIGKILL')
    }
    let timer = setTimeout(kill, 3 * patience)
    running.stdout.setEncoding('utf8').on('data', (data: string) => {
      clearTimeout(timer)
      timer = setTimeout(kill, patience)
      const lines = (rest + data).split('\n')
      rest = lines.pop()!
      for (const line of lines) onLine(JSON.parse(line) as Line)
    })
    running.stderr.setEncoding('utf8').on('data', (data: string) => (errors = (errors + data).slice(-2000)))
    running.on('close', (code, signal) => {
      clearTimeout(timer)
      if (hung) resolve({ end: `no answer for ${patience / 1000} s` })
      else resolve(code === 0 ? {} : { end: `the process ended with ${signal ?? code}\n${errors}` })
    })
  })
}

/** What becomes of single inputs, in a process of their own. */
export async function replay(reader: string, files: readonly string[], patience = usualPatience): Promise<Found[]> {
  const folder = fuzzFolder()
  const found: Found[] = []
  let at = 0
  const input = (): Buffer => readFileSync(files[at]!)
  try {
    const { end } = await child(['replay', reader, folder, ...files], patience, (line) => {
      if (!('outcome' in line)) return
      if (line.outcome.kind === 'failed') found.push({ reader, ...line.outcome, bytes: input() })
      at += 1
    })
    if (end !== undefined)
      found.push({ reader, shape: 'end', why: `${files[at] ?? reader}: ${end}`, bytes: at < files.length ? input() : Buffer.alloc(0) })
  } finally {
    rmSync(folder, { recursive: true })
  }
  return found
}

interface FuzzOptions {
  seed: number
  seconds: number
  inputs?: number
  patience?: number
  /** Ends of processes and finds after which no other process begins. */
  finds?: number
}

/** Seeds of one process after the other, as each find that ends one begins another, and of those beside it. */
const seedsOfJob = 1000

/** Fuzzes one reader for so many seconds or inputs, whichever ends first, in so many processes at one time. */
export async function fuzzReader(reader: string, { jobs = 1, ...options }: FuzzOptions & { jobs?: number }): Promise<Fuzzed> {
  const { seed, inputs = Infinity } = options
  const all = await Promise.all(
    Array.from({ length: jobs }, (_, job) =>
      fuzzAlone(reader, { ...options, seed: seed + seedsOfJob * job, inputs: Math.ceil(inputs / jobs) }),
    ),
  )
  const most = (of: 'shapes' | 'parts' | 'seconds'): number => Math.max(...all.map((each) => each[of]))
  const sum = (of: 'inputs' | 'read' | 'refused'): number => all.reduce((total, each) => total + each[of], 0)
  const found = new Map(all.flatMap((each) => each.found).map((each) => [each.shape, each]))
  return {
    inputs: sum('inputs'),
    read: sum('read'),
    refused: sum('refused'),
    shapes: most('shapes'),
    parts: most('parts'),
    seconds: most('seconds'),
    found: [...found.values()],
  }
}

async function fuzzAlone(
  reader: string,
  { seed, seconds, inputs = Infinity, patience = usualPatience, finds = 20 }: FuzzOptions,
): Promise<Fuzzed> {
  const start = performance.now()
  const total: Fuzzed = { inputs: 0, read: 0, refused: 0, shapes: 0, parts: 0, seconds: 0, found: [] }
  const spent = (): number => (performance.now() - start) / 1000
  for (let round = 0; round === 0 || (spent() < seconds && total.inputs < inputs && total.found.length < finds); ++round) {
    const folder = fuzzFolder()
    let done = false
    let ticks = 0
    try {
      const limits = [seconds - spent(), inputs - total.inputs].map(String)
      const { end } = await child(['fuzz', reader, String(seed + round), ...limits, folder], patience, (line) => {
        if ('tick' in line) ticks = line.tick
        if ('failed' in line) total.found.push({ reader, ...line.failed, bytes: Buffer.from(line.failed.bytes, 'base64') })
        if ('done' in line) {
          done = true
          total.inputs += line.done.inputs
          total.read += line.done.read
          total.refused += line.done.refused
          total.shapes = Math.max(total.shapes, line.done.shapes)
          total.parts = Math.max(total.parts, line.done.parts)
        }
      })
      if (end !== undefined) {
        total.inputs += ticks
        total.found.push(await ended(reader, folder, end, patience))
      } else if (!done) total.found.push({ reader, shape: 'end', why: 'the process ended without a word', bytes: Buffer.alloc(0) })
      if (done) break
    } finally {
      rmSync(folder, { recursive: true })
    }
  }
  return { ...total, seconds: spent() }
}

/** What a process read last, as small as a few tries make it. */
async function ended(reader: string, folder: string, end: string, patience: number): Promise<Found> {
  const path = join(folder, (await readerOf(reader)).file)
  const bytes = existsSync(path) ? readFileSync(path) : Buffer.alloc(0)
  const again = join(folder, 'again')
  const small = await minimise(
    bytes,
    async (smaller) => {
      writeFileSync(again, smaller)
      return (await replay(reader, [again], patience)).some(({ shape }) => shape === 'end')
    },
    (2 * patience) / 1000,
  )
  return { reader, shape: 'end', why: end, bytes: Buffer.from(small) }
}
