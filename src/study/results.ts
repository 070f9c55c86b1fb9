/** The results of a study as tables, plot and JSON in its folder, whole or so far. */
import { join } from 'node:path'

import { writePicture } from '../report/svg.js'
import { type EvaluationTable, saveResult } from '../run/results.js'
import { readMetrics } from '../run/runLog.js'
import { files } from '../run/runFolder.js'
import { type ArmName, armNames, armOf } from './arms.js'
import { type Comparison, seedsAhead, type StudySummary, summarise } from './compare.js'
import { intervalPlot } from './intervals.js'
import { interval, intervalText } from './statistics.js'
import type { StudyResult } from './study.js'

export interface StudyFiles {
  tables: EvaluationTable[]
  /** Of the numbers and the means, of the differences, and of the plot. */
  files: { scores: string; differences: string; picture: string }
}

/** Writes what a study has found; `notes` go below the means. */
export async function writeStudy(out: string, result: StudyResult, notes: readonly string[] = []): Promise<StudyFiles> {
  const { plan, rows, failed, left } = result
  const summary = summarise(rows, plan.primary)
  const present = armNames.filter((arm) => rows.some((row) => row.arm === arm))
  const state = left === 0 ? [] : [`so far: ${left} of the study's networks are not there yet`]
  const lost = failed.map(({ arm, seed, reason }) => `left out: ${armOf(arm).name}, seed ${seed}: ${reason}`)
  const means = {
    title: `Frozen features in %: mean and 95 % interval over ${plan.seeds} seed${plan.seeds === 1 ? '' : 's'}`,
    columns: ['', ...present.map((arm) => armOf(arm).name), 'without a look'],
    rows: [
      ...summary.scores.map(({ name, primary, blind, arms }) => [
        `${name}${primary ? ' (primary)' : ''}`,
        ...present.map((arm) => intervalText(arms[arm]!)),
        blind === undefined ? '-' : blind.toFixed(2),
      ]),
      ['ms a step, median', ...present.map((arm) => stepText(out, arm, rows)), '-'],
    ],
    notes: [
      ...state,
      ...lost,
      ...summary.verdicts,
      ...plan.added.map(({ date, what }) => `added to the plan on ${date.slice(0, 10)}: ${what}`),
      `size ${plan.size}${plan.settings.length === 0 ? '' : `, ${plan.settings.join(' ')}`}; the plan is ${join(out, 'plan.yaml')}`,
      ...notes,
    ],
  }
  const differences = differenceTable(summary, state)
  const plot = intervalPlot(
    `Frozen features, ${plan.seeds} seed${plan.seeds === 1 ? '' : 's'}`,
    summary.scores.map(({ name, arms }) => ({
      name,
      marks: present.map((arm) => ({
        method: armOf(arm).name,
        ...arms[arm]!,
        values: rows.flatMap((row) => (row.arm === arm && row.scores[name] !== undefined ? [row.scores[name]] : [])),
      })),
    })),
  )
  return {
    tables: [means, differences],
    files: {
      scores: saveResult(out, 'study', means, { plan, rows, failed, left, ...summary }),
      differences: saveResult(out, 'study-differences', differences, { comparisons: summary.comparisons }),
      picture: await writePicture(join(out, 'study'), plot),
    },
  }
}

/** Each dense arm minus each other, with the number of seeds in which it is ahead. */
function differenceTable({ scores, comparisons }: StudySummary, state: readonly string[]): EvaluationTable {
  const against = armNames.filter((arm) => comparisons.some((each) => each.against === arm))
  const dense = armNames.filter((arm) => comparisons.some((each) => each.arm === arm))
  const cell = (comparison: Comparison): string =>
    comparison.differences.length === 0
      ? '-'
      : `${intervalText(comparison, '+')} (${seedsAhead(comparison)}/${comparison.differences.length})`
  return {
    title: 'Differences in points, seed by seed: mean, 95 % interval, and in how many seeds the arm is ahead',
    columns: ['', ...against.map((arm) => `- ${armOf(arm).name}`)],
    rows: scores.flatMap(({ name, primary }) =>
      dense.map((arm) => [
        `${name}${primary ? ' (primary)' : ''}: ${armOf(arm).name}`,
        ...against.map((other) => cell(comparisons.find((each) => each.score === name && each.arm === arm && each.against === other)!)),
      ]),
    ),
    notes: [...state, "intervals by Student's t over seeds; not corrected for the number of comparisons"],
  }
}

/** What a step of the arm took, over its seeds: whether equal steps were equal time. */
function stepText(out: string, arm: ArmName, rows: StudyResult['rows']): string {
  const medians = rows.flatMap((row) => {
    if (row.arm !== arm || arm === 'random') return []
    const times = readMetrics(files(join(out, 'pretrain', `${arm}-seed${row.seed}`)).metrics)
      .flatMap(({ stepMilliseconds }) => stepMilliseconds ?? [])
      .sort((a, b) => a - b)
    return times.length === 0 ? [] : [times[times.length >> 1]!]
  })
  return medians.length === 0 ? '-' : interval(medians).mean.toFixed(0)
}
