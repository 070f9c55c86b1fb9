/** The rule of fuzzing: what may come of an input. */
import { existsSync, writeFileSync } from 'node:fs'

import { DenseclError } from '../../src/tensor/errors.js'
import type { FuzzedReader } from './reader.js'

/**
 * What one input may take: seconds of a core, so that a busy machine accuses nobody (who waits for ever is ended by run.ts), and
 * memory of a file below 1 MB which holds no pixels.
 */
export const mostSeconds = 2
export const mostMemory = 256 * 2 ** 20
const smallFile = 1e6

/** `shape`: what tells kinds of errors apart, without what differs from input to input. */
export type Outcome = { kind: 'read' } | { kind: 'refused' | 'failed'; shape: string; why: string }

/** The first words of a message; of a mistake also where it happened. */
function shapeOf(error: unknown, file: string): string {
  if (!(error instanceof Error)) return String(error).slice(0, 80)
  const words = error.message.replaceAll(file, '').match(/[A-Za-z]{2,}/g) ?? []
  const place = error instanceof DenseclError ? '' : ` ${/\w+\.js:\d+/.exec(error.stack ?? '')?.[0] ?? ''}`
  return `${(error as { code?: string }).code ?? error.name}: ${words.slice(0, 12).join(' ')}${place}`
}

const natives = [Object.prototype, Array.prototype, Function.prototype] as const
const namesOfNatives = (): string => natives.map((each) => Reflect.ownKeys(each).length).join()
const soundNatives = namesOfNatives()

function failure(error: unknown, { file, names }: FuzzedReader): string | undefined {
  if (!(error instanceof DenseclError)) return error instanceof Error ? (error.stack ?? error.message) : String(error)
  if (error.code === 'INTERNAL') return `INTERNAL: ${error.message}`
  if (error.message.includes(file) || names?.test(error.message) === true) return undefined
  return `the error does not name ${file}: ${error.code}: ${error.message}`
}

/** Lets a reader read `bytes`, which are written to `path` first, and says what came of it. */
export async function judge(reader: FuzzedReader, path: string, bytes: Uint8Array): Promise<Outcome> {
  writeFileSync(path, bytes)
  let outcome: Outcome = { kind: 'read' }
  const start = process.cpuUsage()
  try {
    await reader.read(path, bytes)
  } catch (error) {
    const why = failure(error, reader)
    outcome = { kind: why === undefined ? 'refused' : 'failed', shape: shapeOf(error, reader.file), why: why ?? String(error) }
  }
  const { user, system } = process.cpuUsage(start)
  const seconds = (user + system) / 1e6
  const now = peak()
  const taken = now - before
  if (taken > 2 ** 25) resetPeak()
  else before = now
  if (outcome.kind === 'failed') return outcome
  if (namesOfNatives() !== soundNatives) return { kind: 'failed', shape: 'prototype', why: 'a prototype of JavaScript itself was changed' }
  if (seconds > mostSeconds) return { kind: 'failed', shape: 'slow', why: `took ${seconds.toFixed(1)} s of a core` }
  if (taken > mostMemory && bytes.length < smallFile && reader.pixels !== true)
    return { kind: 'failed', shape: 'memory', why: `took ${(taken / 2 ** 20).toFixed(0)} MiB for ${bytes.length} bytes` }
  return outcome
}

/** The most memory of this process since the last reset. */
function peak(): number {
  return process.resourceUsage().maxRSS * 1024
}

let before = peak()

/** Linux forgets the peak when it is asked to; elsewhere only inputs that take more than all before are seen. */
export function resetPeak(): void {
  if (existsSync('/proc/self/clear_refs')) writeFileSync('/proc/self/clear_refs', '5')
  before = peak()
}
