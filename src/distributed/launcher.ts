/** Which process of a run this is, as the program that started it says in the environment. */
import { fail } from '../tensor/errors.js'
import { called } from '../tensor/settingNames.js'
import { gpuNames, resolveDevice } from '../tensor/native.js'

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
 * Launchers, the one that starts processes inside of another's first: densecl launch runs inside of anything, mpirun runs inside of a Slurm
 * job, torchrun under srun. Of Slurm only a step counts: SLURM_NTASKS and SLURM_PROCID are also set in the batch script, which is one
 * process whatever they say.
 */
const launchers = {
  'densecl launch': { rank: 'DENSECL_RANK', size: 'DENSECL_SIZE', localRank: 'DENSECL_RANK', localSize: 'DENSECL_SIZE' },
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
    if (!speaks(names, environment) || (launcher === 'MPICH' && isSrunsOwn(environment))) continue
    const size = number(environment, launcher, names.size, 1, 2 ** 24)
    const rank = number(environment, launcher, names.rank, 0, size - 1)
    const localSize = number(environment, launcher, names.localSize, 1, size, size)
    const localRank = number(environment, launcher, names.localRank, 0, localSize - 1, rank % localSize)
    return { launcher, rank, size, localRank, localSize }
  }
  return { launcher: 'none', rank: 0, size: 1, localRank: 0, localSize: 1 }
}

/** Whether a launcher says something: a rank alone, or a size, is of some other program. */
const speaks = ({ rank, size }: Launcher, environment: Environment): boolean =>
  environment[rank] !== undefined && environment[size] !== undefined

/** Whether PMI's variables are those of `srun --mpi=pmi2`, which says by its own alone where on its machine a process is. */
const isSrunsOwn = (environment: Environment): boolean =>
  environment[launchers.MPICH.localRank] === undefined && speaks(launchers.srun, environment)

function number(environment: Environment, launcher: string, name: string, least: number, most: number, otherwise?: number): number {
  const text = environment[name]
  if (text === undefined) return otherwise ?? fail('COMM', `${launcher}: ${name} is not set: expected a number of ${least} to ${most}`)
  // Slurm writes the tasks of its nodes as 4(x2),3; those of the first stand for all.
  const value = /^\d+(?=$|\(|,)/.exec(text)?.[0]
  if (value === undefined || Number(value) < least || Number(value) > most)
    fail('COMM', `${launcher}: ${name} is ${text}: expected a number of ${least} to ${most}`)
  return Number(value)
}

/** The variables that `densecl launch` starts process `rank` of `size` with. */
export const launchVariables = (rank: number, size: number): Record<string, string> => ({
  DENSECL_RANK: String(rank),
  DENSECL_SIZE: String(size),
})

/** The variable that says by which port of this machine `densecl launch` is reached: its connections close when it ends. */
export const launchPort = 'DENSECL_LAUNCH_PORT'

/** Where the processes of a run find each other before they share a library, and by what they know that they are of one run. */
export interface Meeting {
  /** The machine of rank 0. */
  host: string
  /** Rank 0 listens on the first that it gets, and the others look at all of them. */
  ports: readonly number[]
  /** The secret of the run: DENSECL_TOKEN, with the name that the launcher gives the run, which anybody may know. */
  token: string
}

/** Ports that are tried: torchrun itself has MASTER_PORT. */
const tries = 8

/** Where the processes that `identity` is one of meet. Throws COMM where the environment does not say. */
export function meetingOf({ launcher, size, localSize }: Identity, environment: Environment = process.env): Meeting {
  const { MASTER_ADDR, MASTER_PORT, DENSECL_PORT, DENSECL_TOKEN = '', SLURM_JOB_ID, SLURM_STEP_ID = '', SLURM_STEP_NODELIST } = environment
  const { TORCHELASTIC_RUN_ID, TORCHELASTIC_RESTART_COUNT = '' } = environment
  const host = size === localSize ? '127.0.0.1' : (MASTER_ADDR ?? (SLURM_STEP_NODELIST && firstHost(SLURM_STEP_NODELIST)))
  if (host === undefined || host === '')
    fail('COMM', `${launcher} started processes on several machines: expected MASTER_ADDR to be that of rank 0`)
  const inSlurm = SLURM_JOB_ID === undefined ? undefined : 20_000 + (Number(SLURM_JOB_ID) % 20_000)
  const first = MASTER_PORT === undefined ? inSlurm : port('MASTER_PORT', MASTER_PORT) + 1
  const ports = DENSECL_PORT === undefined ? undefined : [port('DENSECL_PORT', DENSECL_PORT)]
  if (ports === undefined && first === undefined)
    fail('COMM', `${launcher} does not say where its processes meet: expected DENSECL_PORT to be a free port of the machine of rank 0`)
  const name = launcher === 'srun' ? `${SLURM_JOB_ID}.${SLURM_STEP_ID}` : `${TORCHELASTIC_RUN_ID ?? ''}.${TORCHELASTIC_RESTART_COUNT}`
  return { host, ports: ports ?? Array.from({ length: tries }, (_, i) => Math.min(first! + i, 65535)), token: `${DENSECL_TOKEN} ${name}` }
}

function port(name: string, text: string): number {
  const value = /^\d+$/.test(text) ? Number(text) : 0
  return value >= 1 && value <= 65535 ? value : fail('COMM', `${name} is ${text}: expected a port in 1..65535`)
}

/** The first of hosts as Slurm writes them: `node[03-05,9],other` begins with node03. */
export function firstHost(list: string): string {
  const [, before = '', number = '', after = ''] = /^([^,[]*)(?:\[(\d+)[^\]]*\]([^,[]*))?/.exec(list) ?? []
  return `${before}${number}${after}`
}

/**
 * The device that `wanted`, a configuration's device, means to one of several processes: of the GPUs of its machine the one of its local
 * rank. Throws CONFIG where there are fewer than processes, and for a single GPU that is named to all.
 */
export function deviceOfRank(wanted: string, { launcher, localRank, localSize }: Identity): string {
  const gpus = gpuNames()
  if (/:\d+$/.test(wanted) && localSize > 1)
    fail(
      'CONFIG',
      `${called('device')} is ${wanted}: expected cuda for ${localSize} processes on one machine, of which each takes one of its GPUs`,
    )
  if (gpus.length === 0 || !['auto', 'cuda'].includes(wanted)) return resolveDevice(wanted)
  // srun may show each of its tasks a GPU of its own, as cuda:0.
  if (gpus.length === 1 && launcher === 'srun') return gpus[0]!
  return (
    gpus[localRank] ??
    fail(
      'CONFIG',
      `${called('device')} is ${wanted}: ${launcher} started ${localSize} processes on this machine, which has ${gpus.length} GPUs`,
    )
  )
}
