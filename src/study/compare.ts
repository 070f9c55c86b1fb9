/** What the scores of a study show, and what they do not. */
import { type ArmName, armNames, armOf } from './arms.js'
import type { Measured } from './measures.js'
import { interval, type Interval } from './statistics.js'

/** What one network has scored. */
export interface StudyRow extends Measured {
  arm: ArmName
  seed: number
}

/** Differences of an arm and another, seed by seed over the seeds that both have. */
export interface Comparison extends Interval {
  score: string
  primary: boolean
  arm: ArmName
  against: ArmName
  differences: number[]
}

export interface StudySummary {
  /** Of each score the means of the arms, and that of answers which look at no image, where there are such. */
  scores: { name: string; primary: boolean; blind?: number; arms: Partial<Record<ArmName, Interval>> }[]
  /** The dense arms against every control and random weights. */
  comparisons: Comparison[]
  /** What there is to say of each dense arm. */
  verdicts: string[]
}

/**
 * Summarises rows of `arms`. An arm wins where, on every primary score, it is ahead of every control in every seed and the 95 % interval
 * of the difference lies above 0.
 */
export function summarise(rows: readonly StudyRow[], primary: readonly string[]): StudySummary {
  const present = armNames.filter((arm) => rows.some((row) => row.arm === arm))
  const names = [...new Set(rows.flatMap(({ scores }) => Object.keys(scores)))]
  const valuesOf = (name: string, arm: ArmName): Map<number, number> =>
    new Map(rows.flatMap(({ arm: own, seed, scores }) => (own === arm && scores[name] !== undefined ? [[seed, scores[name]]] : [])))
  const scores = names.map((name) => {
    const blind = rows.flatMap((row) => row.blind?.[name] ?? [])
    return {
      name,
      primary: primary.includes(name),
      ...(blind.length === 0 ? {} : { blind: interval(blind).mean }),
      arms: Object.fromEntries(present.map((arm) => [arm, interval([...valuesOf(name, arm).values()])])),
    }
  })
  const dense = present.filter((arm) => armOf(arm).role === 'dense')
  const others = present.filter((arm) => armOf(arm).role !== 'dense')
  const comparisons = scores.flatMap(({ name, primary: decides }) =>
    dense.flatMap((arm) =>
      others.map((against): Comparison => {
        const [own, other] = [valuesOf(name, arm), valuesOf(name, against)]
        const differences = [...own].flatMap(([seed, value]) => (other.has(seed) ? [value - other.get(seed)!] : []))
        return { score: name, primary: decides, arm, against, differences, ...interval(differences) }
      }),
    ),
  )
  return { scores, comparisons, verdicts: dense.map((arm) => verdict(arm, comparisons)) }
}

/** In how many seeds the arm is ahead. */
export const seedsAhead = ({ differences }: Comparison): number => differences.filter((difference) => difference > 0).length

const aheadInEverySeed = (comparison: Comparison): boolean => seedsAhead(comparison) === comparison.differences.length
const intervalAbove = ({ mean, half }: Comparison): boolean => mean > half

function verdict(arm: ArmName, comparisons: readonly Comparison[]): string {
  const { name } = armOf(arm)
  const own = comparisons.filter((each) => each.arm === arm && each.primary && armOf(each.against).role === 'control')
  if (own.length === 0) return `${name}: no control was run beside it, so that nothing is shown`
  if (own.some(({ differences }) => differences.length < 2)) return `${name}: of one seed, which shows nothing`
  const list = (some: readonly Comparison[]): string =>
    some
      .map((each) => `${each.score} against ${armOf(each.against).name} (${seedsAhead(each)} of ${each.differences.length} seeds)`)
      .join(', ')
  const behind = own.filter((each) => !aheadInEverySeed(each))
  if (behind.length > 0) return `${name}: no win; not ahead in every seed: ${list(behind)}`
  const open = own.filter((each) => !intervalAbove(each))
  if (open.length > 0)
    return `${name}: ahead of every control in every seed on every primary measure, but the interval holds 0: ${list(open)}`
  return `${name}: a win; ahead of every control in every seed on every primary measure, and every 95 % interval lies above 0`
}
