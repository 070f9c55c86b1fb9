/** The trainings that a fine-tuning consists of, one after the other: one for each setting that is tried, and the one that is kept. */
import { evenStepsPerEpoch } from '../data/sampler.js'
import type { Item } from '../data/source.js'
import { type FinetuneProtocol, type FinetuneSetting, settingsOfProtocol } from './finetuneProtocols.js'
import { holdOut } from './labelledImages.js'

/**
 * What a setting is chosen by: labelled images that are held out, with all of which it is then trained once more, or, as it is published,
 * the validation images themselves.
 */
export const choicesOfSetting = ['held-out', 'val'] as const
/** What the setting of a fine-tuning is chosen by: labelled images that are held out, or the validation images. */
export type ChoiceOfSetting = (typeof choicesOfSetting)[number]

/** One training. */
export interface FinetuneStage {
  /** What the log calls it. */
  name: string
  /** Absent where it is the one that the stages before have chosen. */
  setting?: FinetuneSetting
  items: Item[]
  test: Item[]
  stepsPerEpoch: number
  /** The iterations of all trainings before it, and with it. */
  begin: number
  end: number
  /** Whether its test takes part in the choice, and whether it is on the validation images: its classifier may then be the result. */
  choice: boolean
  final: boolean
}

/** What the stages follow from. */
export interface StagedOptions {
  protocol: FinetuneProtocol
  chooseBy: ChoiceOfSetting
  train: Item[]
  val: Item[]
  classes: readonly string[]
  seed?: number
  /** Images that a batch has at least: leastImages(). */
  least: number
}

/** The trainings of a fine-tuning in their order. Throws DATA where no image can be held out to choose by. */
export function finetuneStages({ protocol, chooseBy, train, val, classes, seed = 0, least }: StagedOptions): FinetuneStage[] {
  const settings = settingsOfProtocol(protocol)
  const named = (setting: FinetuneSetting, i: number) => ({
    name: `setting ${i + 1}/${settings.length} (lr ${setting.lr}, head x${setting.headMultiplier})`,
    setting,
  })
  const whole = { items: train, test: val, final: true }
  const { rest, heldOut } =
    settings.length > 1 && chooseBy === 'held-out' ? holdOut(train, classes.length, seed) : { rest: train, heldOut: val }
  const planned =
    settings.length === 1
      ? [{ name: 'training', setting: settings[0]!, ...whole, choice: false }]
      : chooseBy === 'val'
        ? settings.map((setting, i) => ({ ...named(setting, i), ...whole, choice: true }))
        : [
            ...settings.map((setting, i) => ({ ...named(setting, i), items: rest, test: heldOut, choice: true, final: false })),
            { name: 'training', ...whole, choice: false },
          ]
  let begin = 0
  return planned.map((stage) => {
    const stepsPerEpoch = evenStepsPerEpoch(stage.items.length, protocol.batchSize, least)
    const end = begin + protocol.epochs * stepsPerEpoch
    const placed = { ...stage, stepsPerEpoch, begin, end }
    begin = end
    return placed
  })
}

/** Whether more images are right, or as many at a lower loss: of few images many settings get the same right. */
export const isBetter = (one: { top1: number; loss: number }, other: { top1: number; loss: number }): boolean =>
  one.top1 === other.top1 ? one.loss < other.loss : one.top1 > other.top1

/** The keys of a stage's results in the log. */
export const keyOf = ({ final }: FinetuneStage): { top1: string; top5: string; loss: string } =>
  final ? { top1: 'top1', top5: 'top5', loss: 'testLoss' } : { top1: 'heldOutTop1', top5: 'heldOutTop5', loss: 'heldOutLoss' }
