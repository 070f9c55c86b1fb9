/** What fine-tuning is told, and what it finds. */
import type { Item } from '../data/source.js'
import type { ComputeOptions } from '../tensor/compute.js'
import type { ClassificationResult } from './classificationScores.js'
import type { FinetuneProtocol, FinetuneSetting } from './finetuneProtocols.js'
import type { ChoiceOfSetting } from './finetuneStages.js'
import type { ResumableOptions } from './resumable.js'

/** What finetune trains on and where it keeps its state. */
export interface FinetuneOptions extends ResumableOptions {
  protocol: FinetuneProtocol
  /** What a setting is chosen by where the protocol has several. */
  chooseBy: ChoiceOfSetting
  /** Training images with their labels, those whose labels are used. */
  train: Item[]
  val: Item[]
  /** Names of the classes. */
  classes: string[]
  imageSize: number
  /** What the file of the classifier says that it was trained by. */
  describe?: string
  seed?: number
  workers?: number
  cacheMegabytes?: number
  maxBroken?: number
  /** A map that is filled with the images that could not be read: in training others take their places, in tests they are black. */
  broken?: Map<string, string>
  /** Iterations between two log lines and two states, and epochs between two tests of the last training; its end is always tested. */
  logEvery?: number
  saveEvery?: number
  testEvery?: number
  /** Settings to compute with; evaluationCompute() says what holds without them. */
  compute?: ComputeOptions | undefined
  /** A function that is asked between steps whether to stop; the state is then kept. */
  interrupted?: () => boolean
}

/** A setting that was tried, and what it reached on the images that settings are chosen by. */
export interface TriedSetting extends FinetuneSetting {
  top1: number
  loss: number
}

/** What finetune found. */
export interface FinetuneResult {
  interrupted: boolean
  iterations: number
  /** Settings that were tried; none where there was no choice. */
  tried: TriedSetting[]
  /** The setting that was taken, and the result on the validation images. Absent when it was interrupted. */
  setting?: FinetuneSetting
  test?: ClassificationResult
}
