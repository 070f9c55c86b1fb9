import type { Group } from '../distributed/group.js'
import type { Source } from '../data/source.js'
import type { BuiltMethod, Method } from '../methods/method.js'
import type { Optimizer } from '../optim/optimizer.js'
import type { Config } from '../run/config.js'
import type { RunLog } from '../run/runLog.js'
import type { Position } from './checkpoint.js'
import type { LabelledSets } from './labels.js'

/** What the parts of a run share. */
export interface Run {
  /** The run folder. */
  readonly out: string
  readonly config: Config
  /** The processes that share the run, and what of the configuration this one does (src/train/share.ts). */
  readonly group: Group
  readonly share: Config
  readonly method: Method
  readonly built: BuiltMethod
  readonly optimizer: Optimizer
  readonly source: Source
  /** What kNN looks at, where there are labels. */
  readonly labelled: LabelledSets | undefined
  /** Steps of an epoch. */
  readonly steps: number
  /** The step to do next; the loop moves it on. */
  readonly position: Position
  /** The run is continued from a checkpoint. */
  readonly resumed: boolean
  /** The epochs that the run had until it was continued with more. */
  readonly extendedFrom?: number
  readonly log: RunLog
}

/** Whether steps of the run were taken before: what there is before the first is then in its folder. */
export const begunBefore = ({ resumed, position }: PlannedRun): boolean => resumed && position.globalStep > 0

/** A run before it has a folder. */
export type PlannedRun = Omit<Run, 'out' | 'log'>

/** What a run ended with. */
export interface PretrainResult {
  interrupted: boolean
  globalStep: number
  /** The step of the last checkpoint of a run that was interrupted; less than globalStep where it could not be saved there. */
  savedStep?: number
  /** kNN accuracy before and after, where there are labels. */
  knnBefore?: number
  knnAfter?: number
  /** The `total` of the last step that was read, and the terms of its loss by name. */
  losses?: Record<string, number>
  files: Record<string, string>
}
