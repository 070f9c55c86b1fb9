/**
 * The check of a device before it is trusted: each family of kernels, and each kernel that nothing can stand in for, is compared with
 * an independent path. It runs in a process of its own, which is killed when a kernel does not end.
 */
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

import { DenseclError } from '../tensor/errors.js'
import { type KernelFamily } from '../tensor/families.js'
import { interrupted as toEnd } from '../tensor/interruption.js'
import { agrees, type Finding } from './compare.js'
import { isFamily, type Part, partsOf } from './parts.js'
import type { Line } from './program.js'

/** What was found of a part. */
export interface PartReport {
  part: Part
  verdict: 'agrees' | 'disagrees' | 'fails' | 'hangs'
  /** The worst comparison where there are any. */
  finding?: Finding
  /** Why it fails. */
  error?: string
  seconds: number
}

interface CheckOptions {
  /** A part that takes longer counts as one that never ends. */
  secondsPerPart: number
  parts?: readonly Part[]
  /** Asked several times a second; true ends the check, which then has no result, as an interruption of all work does. */
  interrupted?: () => boolean
  /** A function that is called with each report as it comes. */
  onReport?: (report: PartReport) => void
}

const program = fileURLToPath(new URL('program.js', import.meta.url))

/**
 * Reports of all parts, or undefined when it was interrupted. Throws CHECK where nothing can be said: the process cannot be started,
 * dies before it begins, or has too little memory.
 */
export async function checkDevice(device: string, options: CheckOptions): Promise<PartReport[] | undefined> {
  const reports: PartReport[] = []
  let left = [...(options.parts ?? partsOf(device))]
  while (left.length > 0) {
    const made = await checkInProcess(device, left, options)
    if (made === undefined) return undefined
    for (const report of made) {
      reports.push(report)
      options.onReport?.(report)
    }
    const seen = new Set(made.map(({ part }) => part))
    left = left.filter((part) => !seen.has(part))
  }
  return reports
}

/** Reports until the process has done all parts or has ended with one of them. */
function checkInProcess(
  device: string,
  parts: readonly Part[],
  { secondsPerPart, interrupted }: CheckOptions,
): Promise<PartReport[] | undefined> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [program, device, String(process.pid), ...parts], { stdio: ['ignore', 'pipe', 'pipe'] })
    const reports: PartReport[] = []
    let current: { part: Part; since: number } | undefined
    let [ready, stopped, late, text, complaints, memory] = [false, false, false, '', '', '']
    // Loading the addon and starting the driver take their time too.
    let since = performance.now()
    const kill = (): void => void child.kill('SIGKILL')
    process.once('exit', kill)
    const clock = setInterval(() => {
      if (toEnd() || interrupted?.() === true) stopped = true
      if (performance.now() - since > secondsPerPart * 1000) late = true
      if (stopped || late) kill()
    }, 100)
    const report = (made: Omit<PartReport, 'part' | 'seconds'>): void => {
      reports.push({ part: current!.part, ...made, seconds: (performance.now() - current!.since) / 1000 })
      current = undefined
    }
    const read = (line: Line): void => {
      since = performance.now()
      ready = true
      if ('start' in line) current = { part: line.start, since }
      else if ('findings' in line) {
        const worst = line.findings
          .map((finding) => ({ ...finding, error: Number(finding.error as number | 'Infinity') }))
          .reduce((a, b) => (a.error / a.bound >= b.error / b.bound || (a.error > a.bound && !(b.error > b.bound)) ? a : b))
        report({ verdict: agrees(worst) ? 'agrees' : 'disagrees', finding: worst })
      } else if ('error' in line) {
        if (line.code === 'OUT_OF_MEMORY') memory = `${line.part}: ${line.error}`
        report({ verdict: 'fails', error: line.error })
      }
    }
    child.stdout.on('data', (data: Buffer) => {
      text += data.toString()
      const lines = text.split('\n')
      text = lines.pop()!
      for (const line of lines) read(JSON.parse(line) as Line)
    })
    child.stderr.on('data', (data: Buffer) => (complaints = (complaints + data.toString()).slice(-4000)))
    const end = (): void => {
      clearInterval(clock)
      process.off('exit', kill)
    }
    child.on('error', (error) => {
      end()
      reject(new DenseclError('CHECK', `the process that checks ${device} cannot be started: ${error.message}`))
    })
    child.on('close', (code, signal) => {
      end()
      if (stopped) return resolve(undefined)
      if (memory !== '') return reject(new DenseclError('CHECK', memory))
      if (current !== undefined)
        report(
          late
            ? { verdict: 'hangs' }
            : { verdict: 'fails', error: `its process ended with ${signal ?? `exit code ${code}`}${lastLine(complaints)}` },
        )
      if (reports.length > 0) return resolve(reports)
      const how = late
        ? `did not start within ${secondsPerPart} s`
        : `ended with ${signal ?? `exit code ${code}`}${ready ? '' : ' before it began'}`
      reject(new DenseclError('CHECK', `the process that checks ${device} ${how}${lastLine(complaints)}`))
    })
  })
}

const lastLine = (text: string): string => {
  const line = text
    .trim()
    .split('\n')
    .reverse()
    .find((each) => each.includes('rror'))
  return line === undefined ? '' : `: ${line.trim()}`
}

export const families = (reports: readonly PartReport[]): KernelFamily[] =>
  reports
    .filter(({ verdict }) => verdict !== 'agrees')
    .map(({ part }) => part)
    .filter(isFamily)

/** Parts that disagree and that nothing can stand in for. */
export const broken = (reports: readonly PartReport[]): PartReport[] =>
  reports.filter(({ part, verdict }) => verdict !== 'agrees' && !isFamily(part))

const digits = (value: number): string => (value < 1e300 ? value.toPrecision(2) : 'no number')

/** A report in words. */
export function describeReport({ part, verdict, finding, error, seconds }: PartReport): string {
  if (verdict === 'hangs') return `${part} did not end within ${seconds.toFixed(0)} s`
  if (verdict === 'fails') return `${part} failed: ${error}`
  const { shape, against, error: found, bound } = finding!
  return verdict === 'agrees'
    ? `${part} agrees with ${against}: largest error ${digits(found)} of ${digits(bound)} allowed`
    : `${part} disagrees with ${against}: ${shape} is off by ${digits(found)} where ${digits(bound)} is allowed`
}
