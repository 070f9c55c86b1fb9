/** Which process of a run this is, as the program that started it says in the environment. */
import { fail } from '../tensor/errors.js'

type Environment = Readonly<Record<string, string | undefined>>

/** A process among those of a run. Ranks count from 0 over all machines, local ones on this machine. */
export interface Identity {
  /** Who started the processes; `none` where nobody did, and this is the only one. */
  launcher: LauncherName | 'none'
  rank: number
  size: number
  localRank: number
  localSize: number
}

/** A variable for each number; the local ones may be absent. */
interface Launcher {
  rank: string
  size: string
  localRank: string
  localSize: string
}

/**
 * Launchers, the one that starts processes inside of another's first: mpirun runs inside of a Slurm job, torchrun under srun. Of Slurm only
 * a step counts: SLURM_NTASKS and SLURM_PROCID are also set in the batch script, which is one process whatever they say.
 */
const launchers = {
  torchrun: { rank: 'RANK', size: 'WORLD_SIZE', localRank: 'LOCAL_RANK', localSize: 'LOCAL_WORLD_SIZE' },
  'Open MPI': {
    rank: 'OMPI_COMM_WORLD_RANK',
    size: 'OMPI_COMM_WORLD_SIZE',
    localRank: 'OMPI_COMM_WORLD_LOCAL_RANK',
    localSize: 'OMPI_COMM_WORLD_LOCAL_SIZE',
  },
  MPICH: { rank: 'PMI_RANK', size: 'PMI_SIZE', localRank: 'MPI_LOCALRANKID', localSize: 'MPI_LOCALNRANKS' },
  srun: { rank: 'SLURM_PROCID', size: 'SLURM_STEP_NUM_TASKS', localRank: 'SLURM_LOCALID', localSize: 'SLURM_STEP_TASKS_PER_NODE' },
} as const satisfies Record<string, Launcher>

/** What starts several processes, by its name in messages. */
export type LauncherName = keyof typeof launchers

/** The process that this one is. Throws COMM for variables that contradict each other. */
export function identity(environment: Environment = process.env): Identity {
  for (const [launcher, names] of Object.entries(launchers) as [LauncherName, Launcher][]) {
    // A rank alone, or a size, is of some other program.
    if (environment[names.rank] === undefined || environment[names.size] === undefined) continue
    const size = number(environment, launcher, names.size, 1, 2 ** 24)
    const rank = number(environment, launcher, names.rank, 0, size - 1)
    const localSize = number(environment, launcher, names.localSize, 1, size, size)
    const localRank = number(environment, launcher, names.localRank, 0, localSize - 1, rank % localSize)
    return { launcher, rank, size, localRank, localSize }
  }
  return { launcher: 'none', rank: 0, size: 1, localRank: 0, localSize: 1 }
}

function number(environment: Environment, launcher: string, name: string, least: number, most: number, otherwise?: number): number {
  const text = environment[name]
  if (text === undefined) return otherwise ?? fail('COMM', `${launcher}: ${name} is not set: expected a number of ${least} to ${most}`)
  // Slurm writes the tasks of its nodes as 4(x2),3; those of the first stand for all.
  const value = /^\d+(?=$|\(|,)/.exec(text)?.[0]
  if (value === undefined || Number(value) < least || Number(value) > most)
    fail('COMM', `${launcher}: ${name} is ${text}: expected a number of ${least} to ${most}`)
  return Number(value)
}
