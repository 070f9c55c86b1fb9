/** What a check found, kept in the user's cache folder by GPU, driver and build. */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { dirname } from 'node:path'

import { addonDigest, cacheFile, driverVersion, kernelSettings } from '../files/cache.js'
import { DenseclError } from '../tensor/errors.js'
import { packageVersion } from '../tensor/addon.js'
import { native } from '../tensor/native.js'
import { makeFolder, writeTextAtomic } from '../files/atomic.js'
import type { PartReport } from './check.js'
import { type Part, partsOf } from './parts.js'

/** What must agree for a verdict to hold, in words. */
type Key = Record<'device' | 'driver' | 'build' | 'version' | 'settings', string>

export interface Verdict {
  key: Key
  date: string
  reports: PartReport[]
}

const keyOf = (device: string): Key => ({
  device: native.describeDevice(device),
  driver: driverVersion(device),
  build: addonDigest(),
  version: packageVersion,
  settings: kernelSettings(device),
})

/** The file of a device's verdict: one for each GPU model, build and settings, so that they do not replace one another. */
function verdictPath(device: string): string {
  const { device: text, build, version, settings } = keyOf(device)
  const name = text
    .split(',')[0]!
    .replace(/[^A-Za-z0-9]+/g, '-')
    .slice(0, 40)
  return cacheFile(
    `${name}-${createHash('sha256')
      .update(JSON.stringify([build, version, settings]))
      .digest('hex')
      .slice(0, 12)}.json`,
  )
}

/** The verdict that is kept, or why there is none: undefined at the first use. */
export function readVerdict(device: string): Verdict | { why: string | undefined } {
  const path = verdictPath(device)
  let verdict: Partial<Verdict>
  try {
    verdict = JSON.parse(readFileSync(path, 'utf8')) as Partial<Verdict>
  } catch (error) {
    return { why: (error as NodeJS.ErrnoException).code === 'ENOENT' ? undefined : `${path} cannot be read` }
  }
  const key = keyOf(device)
  if (!isVerdict(verdict, partsOf(device))) return { why: `${path} holds no whole verdict` }
  const changed = (Object.keys(key) as (keyof Key)[]).find((name) => verdict.key[name] !== key[name])
  return changed === undefined ? verdict : { why: `the ${changed} was ${verdict.key[changed]} and is ${key[changed]}` }
}

const verdicts = new Set<unknown>(['agrees', 'disagrees', 'fails', 'hangs'])

function isVerdict(value: Partial<Verdict> | null, parts: readonly Part[]): value is Verdict {
  if (
    typeof value !== 'object' ||
    value === null ||
    typeof value.key !== 'object' ||
    value.key === null ||
    !Object.values(value.key).every((word) => typeof word === 'string') ||
    typeof value.date !== 'string' ||
    !Array.isArray(value.reports)
  )
    return false
  const found = value.reports as (Partial<PartReport> | null)[]
  const whole = found.every(
    (report) =>
      report !== null &&
      typeof report === 'object' &&
      verdicts.has(report.verdict) &&
      typeof report.seconds === 'number' &&
      (report.verdict === 'hangs' || typeof report.error === 'string' || typeof report.finding?.shape === 'string'),
  )
  return whole && parts.every((part) => found.some((report) => report!.part === part))
}

/** Keeps a whole verdict; returns why it cannot, or undefined. */
export function keepVerdict(device: string, reports: PartReport[]): string | undefined {
  const path = verdictPath(device)
  try {
    makeFolder(dirname(path))
    const verdict: Verdict = { key: keyOf(device), date: new Date().toISOString(), reports }
    // JSON has no Infinity.
    const finite = (_: string, value: unknown): unknown => (value === Infinity ? 1e308 : value)
    writeTextAtomic(path, `${JSON.stringify(verdict, finite, 2)}\n`)
    return undefined
  } catch (error) {
    if (error instanceof DenseclError) return error.message
    return `${dirname(path)}: cannot be made (${(error as NodeJS.ErrnoException).code ?? String(error)})`
  }
}
