/** `densecl eval ...`: one line for each evaluation. */
import { expectOneProcess, type Register, sharedEvaluations } from './command.js'
import { addCorrespondence } from './evalCorrespondence.js'
import { addDetection } from './evalDetection.js'
import { addFinetune } from './evalFinetune.js'
import { addKnn } from './evalKnn.js'
import { addLinear } from './evalLinear.js'
import { addSegmentation } from './evalSegmentation.js'
import type { AddEvaluation } from './evalShared.js'
import { addLowShot, addSvm } from './evalSvm.js'

const evaluations: Readonly<Record<string, readonly AddEvaluation[]>> = {
  'Of frozen features:': [addKnn, addLinear, addSvm, addLowShot, addCorrespondence],
  'By fine-tuning:': [addFinetune, addSegmentation, addDetection],
}

export const register: Register = (program, done) => {
  const parent = program.command('eval').description('measure what a backbone is worth')
  parent.hook('preAction', (_, command) => {
    if (!sharedEvaluations.includes(command.name())) expectOneProcess(`eval ${command.name()}`)
  })
  for (const [heading, adders] of Object.entries(evaluations)) {
    parent.commandsGroup(heading)
    for (const add of adders) add(parent, done)
  }
}
