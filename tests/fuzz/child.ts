/**
 * `node child.js fuzz READER SEED SECONDS INPUTS FOLDER` and `node child.js replay READER FOLDER FILE...`: one reader in a process of its
 * own, which may crash or hang. It says what it finds in lines of JSON (Line); what it reads last lies in FOLDER.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import { Coverage } from './coverage.js'
import type { Outcome } from './judge.js'

/** A line of the output. A tick says that the process is alive. */
export type Line =
  | { tick: number }
  | { failed: { shape: string; why: string; bytes: string } }
  | { outcome: Outcome; file: string }
  | { done: { inputs: number; read: number; refused: number; shapes: number; parts: number } }

/** Inputs that reached something new are changed further; of these at most so many, the latest, are kept beside the sound ones. */
const mostKept = 4000
const batchSize = 128
/** Reading the counters takes about this share of the time. */
const shareOfCounters = 0.1
const mostFailures = 20

const [mode, name, ...rest] = process.argv.slice(2) as [string, string, ...string[]]
const coverage = mode === 'fuzz' ? new Coverage() : undefined

// Only now: coverage counts what is loaded after it was begun.
const { default: fc } = await import('fast-check')
const { Random } = await import('../../src/tensor/random.js')
const { native } = await import('../../src/tensor/native.js')
const { judge, resetPeak } = await import('./judge.js')
const { minimise } = await import('./minimise.js')
const { mutate } = await import('./mutate.js')
const { readerOf } = await import('./readers.js')

const reader = await readerOf(name)
native.setMemoryLimit(2 ** 30)
const write = process.stdout.write.bind(process.stdout)
const say = (line: Line): void => void write(`${JSON.stringify(line)}\n`)
// Commands speak to people.
process.stdout.write = () => true
process.stderr.write = () => true

if (mode === 'fuzz') await fuzz(Number(rest[0]), Number(rest[1]), Number(rest[2]), rest[3]!)
else await replay(rest[0]!, rest.slice(1))
process.exit(0)

async function replay(folder: string, files: string[]): Promise<void> {
  // What is made once is not charged to the first input.
  for (const seed of (await reader.seeds()).slice(0, 1)) await judge(reader, join(folder, reader.file), seed)
  resetPeak()
  for (const file of files) say({ outcome: await judge(reader, join(folder, reader.file), readFileSync(file)), file })
}

async function fuzz(seed: number, seconds: number, inputs: number, folder: string): Promise<void> {
  const random = new Random(seed, 1)
  const path = join(folder, reader.file)
  const sound = [...(await reader.seeds())]
  const structured = reader.structured?.(sound)
  const corpus: Uint8Array[] = []
  const shapes = new Set<string>()
  const failures = new Set<string>()
  const count = { inputs: 0, read: 0, refused: 0 }
  let ticked = 0
  // From the start of the process on.
  const inTime = (): boolean => performance.now() < 1000 * seconds
  const goesOn = (): boolean => count.inputs < inputs && inTime() && failures.size < mostFailures
  const tick = (): void => {
    if (performance.now() - ticked < 200) return
    ticked = performance.now()
    say({ tick: count.inputs })
  }

  /** Whether the input's outcome has a new shape. */
  const attempt = async (bytes: Uint8Array): Promise<boolean> => {
    tick()
    let outcome = await judge(reader, path, bytes)
    // A machine that does other things is slow now and then: it must be so each of three times.
    for (let again = 0; again < 2 && outcome.kind === 'failed' && ['slow', 'memory'].includes(outcome.shape); ++again) {
      tick()
      outcome = await judge(reader, path, bytes)
    }
    count.inputs += 1
    if (outcome.kind === 'read') {
      count.read += 1
      return false
    }
    if (outcome.kind === 'refused') count.refused += 1
    else if (!failures.has(outcome.shape)) {
      const { shape } = outcome
      failures.add(shape)
      const same = async (smaller: Uint8Array): Promise<boolean> => {
        tick()
        const again = await judge(reader, path, smaller)
        return again.kind === 'failed' && again.shape === shape
      }
      const small = await minimise(bytes, same, 3)
      say({ failed: { shape, why: outcome.why, bytes: Buffer.from(small).toString('base64') } })
    }
    if (shapes.has(outcome.shape)) return false
    shapes.add(outcome.shape)
    return true
  }
  const pick = (): Uint8Array => {
    // Late ones are deep: half of the time one of the last few.
    const all = corpus.length === 0 || random.below(4) === 0 ? sound : corpus
    return all[random.below(2) === 0 ? random.below(all.length) : Math.max(0, all.length - 1 - random.below(16))]!
  }
  const keep = (bytes: Uint8Array): void => {
    corpus.push(bytes)
    if (corpus.length > mostKept) corpus.splice(0, mostKept / 2)
  }

  /** Of each part of `wanted`, the first of `list` that reaches it. */
  const locate = async (list: readonly Uint8Array[], wanted: ReadonlySet<string>, into: Set<Uint8Array>): Promise<void> => {
    if (list.length === 1) {
      into.add(list[0]!)
      return
    }
    const [left, right] = [list.slice(0, list.length >> 1), list.slice(list.length >> 1)]
    coverage!.taken()
    for (const bytes of left) {
      tick()
      await judge(reader, path, bytes)
    }
    const reached = new Set(coverage!.taken().filter((part) => wanted.has(part)))
    if (reached.size > 0) await locate(left, reached, into)
    const rest = new Set([...wanted].filter((part) => !reached.has(part)))
    if (rest.size > 0 && inTime()) await locate(right, rest, into)
  }

  /** Counters are dear to read: once for so many inputs, and again only where something in them was new. */
  let stretch = 1
  for (const bytes of sound) await attempt(bytes)
  coverage!.fresh()
  while (goesOn()) {
    const made =
      structured === undefined
        ? []
        : fc.sample(structured, { seed: random.uint32() | 0, numRuns: random.below(2) === 0 ? batchSize : batchSize / 8 })
    const batch = Array.from({ length: batchSize }, (_, i) => made[i] ?? mutate(random, pick(), reader.words ?? [], pick()))
    const found = new Set<Uint8Array>()
    for (let first = 0; first < batch.length && goesOn();) {
      const some = batch.slice(first, first + stretch)
      first += stretch
      const start = performance.now()
      for (const bytes of some) {
        if (!goesOn()) break
        if (await attempt(bytes)) found.add(bytes)
      }
      const read = performance.now()
      const fresh = coverage!.fresh()
      const [ofInput, ofCounters] = [(read - start) / some.length, performance.now() - read]
      stretch = Math.min(batchSize, Math.max(1, Math.round(ofCounters / shareOfCounters / ofInput)))
      if (fresh.size > 0) await locate(some, fresh, found)
    }
    // In their order, however long the stretches were: a seed gives the same inputs on any machine.
    for (const bytes of batch) if (found.has(bytes)) keep(bytes)
  }
  say({ done: { ...count, shapes: shapes.size, parts: coverage!.size } })
}
