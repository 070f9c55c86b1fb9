/** The program of all commands, and what it says and exits with when one fails. */
import { Command, CommanderError } from 'commander'

import { DenseclError } from '../tensor/errors.js'
import { packageVersion } from '../tensor/addon.js'
import { speaker } from '../distributed/speaker.js'
import { register as bench } from './bench.js'
import { register as build } from './build.js'
import { register as checkData } from './checkData.js'
import type { Register } from './command.js'
import { register as detect } from './detect.js'
import { register as doctor } from './doctor.js'
import { register as embed } from './embed.js'
import { register as evaluations } from './eval.js'
import { register as exportWeights } from './export.js'
import { register as importWeights } from './import.js'
import { register as launch } from './launch.js'
import { register as match } from './match.js'
import { register as pack } from './pack.js'
import { register as predict } from './predict.js'
import { register as pretrain } from './pretrain.js'
import { register as report } from './report.js'
import { register as search } from './search.js'
import { register as study } from './study.js'
import { register as watch } from './watch.js'

const commands: readonly Register[] = [
  pretrain,
  launch,
  evaluations,
  exportWeights,
  importWeights,
  study,
  match,
  detect,
  predict,
  embed,
  search,
  report,
  watch,
  checkData,
  pack,
  bench,
  build,
  doctor,
]

/** Runs the command of `args`, which are what follows `densecl`, and gives its exit code. Throws what explain() explains. */
export async function runProgram(args: readonly string[]): Promise<number> {
  const program = new Command('densecl')
    .description('self-supervised pre-training of image backbones: dense contrastive learning (DenseCL, CVPR 2021)')
    .version(packageVersion)
    .exitOverride()
    .showHelpAfterError('(add --help for usage)')
  let code = 0
  for (const register of commands) await register(program, (result) => (code = result), args)
  await program.parseAsync(args, { from: 'user' })
  return code
}

/**
 * What is said of an error, and the exit code: 2 for wrong usage. A `mistake` is one of densecl itself. Of what all processes of a run say
 * rank 0's is heard.
 */
export function explain(error: unknown): { code: number; text?: string; mistake?: true } {
  const { code, text, mistake } = explainHere(error)
  const before = speaker(error)
  if (text === undefined || before === undefined) return { code }
  return { code, text: `${before}${text}`, ...(mistake === undefined ? {} : { mistake }) }
}

function explainHere(error: unknown): { code: number; text?: string; mistake?: true } {
  // Commander has said it.
  if (error instanceof CommanderError) return { code: error.exitCode === 0 ? 0 : 2 }
  if (error instanceof DenseclError) return { code: error.code === 'CONFIG' ? 2 : 1, text: error.message }
  // The system refuses something, and says what and where.
  if (error instanceof Error && 'syscall' in error) return { code: 1, text: error.message }
  return { code: 1, text: 'this is a mistake in densecl; please report it:', mistake: true }
}
