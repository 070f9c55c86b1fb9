/** The one way in which commands come to a device: it is checked at its first use, and what disagrees is not used. */
import { DenseclError, fail } from '../tensor/errors.js'
import { stopIfInterrupted } from '../tensor/interruption.js'
import { avoidFamilies, type KernelFamily } from '../tensor/families.js'
import { native, resolveDevice } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'
import { broken, checkDevice, describeReport, families, type PartReport } from './check.js'
import { keepVerdict, readVerdict, type Verdict } from './verdict.js'

interface TrustOptions {
  /** Asked while a check runs; true ends it, and nothing is kept. */
  interrupted?: () => boolean
  /** Lines for people: on the terminal's error output unless told otherwise. */
  say?: (line: string) => void
}

/** DENSECL_CHECK: 0 trusts every device, 1 checks `simt` too; without it GPUs are checked. */
function wanted(device: string): boolean {
  const text = process.env.DENSECL_CHECK ?? ''
  if (!['', '0', '1'].includes(text)) fail('CONFIG', `DENSECL_CHECK is ${text}: expected 0 or 1`)
  const { families, simulated } = deviceTraits(device)
  return families.length > 0 && text !== '0' && (!simulated || text === '1')
}

/** DENSECL_CHECK_SECONDS: how long a part of the check may take before it counts as one that never ends. */
export function secondsPerPart(): number {
  const text = process.env.DENSECL_CHECK_SECONDS ?? '60'
  const seconds = Number(text)
  return text.trim() !== '' && seconds > 0
    ? seconds
    : fail('CONFIG', `DENSECL_CHECK_SECONDS is ${text}: expected a positive number of seconds`)
}

const trusted = new Map<string, Promise<boolean>>()

/** resolveDevice, and trustDevice; throws INTERRUPTED where its check was. */
export async function useDevice(name: string, options: TrustOptions = {}): Promise<string> {
  const device = resolveDevice(name)
  if (!(await trustDevice(device, options))) stopIfInterrupted()
  return device
}

/**
 * Makes a device fit for use in this process: families of kernels that disagree in its verdict are avoided, with a warning each. Without a
 * verdict for this GPU, driver and build it is checked, which takes seconds. Throws CHECK where a kernel disagrees that nothing can
 * stand in for. False when the check was interrupted: the device is then to be left alone. The CPU needs none of it.
 */
export function trustDevice(device: string, options: TrustOptions = {}): Promise<boolean> {
  if (!wanted(device)) return Promise.resolve(true)
  let promise = trusted.get(device)
  if (promise === undefined) {
    promise = establish(device, options)
    trusted.set(device, promise)
    // After an error or an interruption the next use asks again.
    promise.catch(() => trusted.delete(device))
  }
  return promise
}

async function establish(device: string, { interrupted, say = (line) => console.error(line) }: TrustOptions): Promise<boolean> {
  const kept = readVerdict(device)
  const reports = 'reports' in kept ? kept.reports : await firstCheck(device, kept.why, interrupted, say)
  if (reports === 'interrupted') trusted.delete(device)
  else if (reports !== undefined) obey(device, reports, say)
  return reports !== 'interrupted'
}

async function firstCheck(
  device: string,
  why: string | undefined,
  interrupted: (() => boolean) | undefined,
  say: (line: string) => void,
): Promise<PartReport[] | 'interrupted' | undefined> {
  say(
    `densecl: checking the kernels on ${device}, ${native.describeDevice(device)} ` +
      `(${why === undefined ? 'its first use with this build' : `again: ${why}`}; DENSECL_CHECK=0 skips it)`,
  )
  const started = performance.now()
  let reports: PartReport[] | undefined
  try {
    reports = await checkDevice(device, { secondsPerPart: secondsPerPart(), ...(interrupted === undefined ? {} : { interrupted }) })
  } catch (error) {
    if (!(error instanceof DenseclError) || error.code !== 'CHECK') throw error
    say(`densecl: ${device} could not be checked and is used as it is: ${error.message}`)
    return undefined
  }
  if (reports === undefined) return 'interrupted'
  const agree = reports.filter(({ verdict }) => verdict === 'agrees').length
  say(
    `densecl: ${agree === reports.length ? 'all' : agree} of ${reports.length} parts agree, ` +
      `in ${((performance.now() - started) / 1000).toFixed(1)} s`,
  )
  const problem = keepVerdict(device, reports)
  if (problem !== undefined) say(`densecl: the verdict is not kept, so the next run checks again: ${problem}`)
  return reports
}

/** What a device takes none of without a family, by the last word of its name: of the others something else stands in. */
const nothingStandsIn: Partial<Record<string, string>> = {
  conv2dE4m3: 'keys in FP8',
  widest: 'tiles of 128x256',
  bulkStores: 'tiles that are stored by bulk copies',
}

/** Avoids what disagrees; throws CHECK where there is nothing else. */
function obey(device: string, reports: readonly PartReport[], say: (line: string) => void): void {
  const hopeless = broken(reports)
  const how = `please report it with the output of: densecl doctor --check --device ${device}`
  if (hopeless.length > 0)
    fail(
      'CHECK',
      `${device} computes wrong results, and nothing can stand in for these kernels:\n ` +
        ` ${hopeless.map(describeReport).join('\n  ')}\n  Use --device cpu, or DENSECL_CHECK=0 to run all the same; ${how}`,
    )
  const avoided = families(reports)
  avoidFamilies(device, avoided)
  for (const report of reports) {
    if (!avoided.includes(report.part as KernelFamily)) continue
    const [kind, op] = report.part.split('.') as [string, string]
    const without = nothingStandsIn[op]
    if (without !== undefined) {
      say(`densecl: warning: ${describeReport(report)}\n  ${device} takes no ${without}; ${how}`)
      continue
    }
    const instead =
      kind === 'wgmma' && !avoided.includes(`mma.${op}` as KernelFamily) ? 'tensor cores by mma.sync' : 'FMAs, which are many times slower,'
    say(`densecl: warning: ${describeReport(report)}\n  ${device} computes ${op} by ${instead} instead; ${how}`)
  }
}

/** What is known of a device in few words, for `doctor`. */
export function trustOf(device: string): string {
  const kept = readVerdict(device)
  if (!('reports' in kept)) return kept.why === undefined ? 'not checked yet' : `to be checked again: ${kept.why}`
  return verdictText(kept)
}

function verdictText({ date, reports }: Verdict): string {
  const bad = reports.filter(({ verdict }) => verdict !== 'agrees')
  return `checked ${date.slice(0, 10)}: ${bad.length === 0 ? 'all agree' : bad.map(({ part, verdict }) => `${part} ${verdict}`).join(', ')}`
}
