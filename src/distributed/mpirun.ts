/** What starts processes that exchange tensors by MPI. */
import { spawnSync } from 'node:child_process'

/** A launcher: Open MPI and MPICH bring one each, and one starts no processes of the other's. */
export interface Mpirun {
  program: string
  /** The MPI that it is of, with its number. */
  version: string
  isOpenMpi: boolean
  /** What it is told beside the number of processes. */
  options: readonly string[]
}

/** The name that is looked for: of the MPI that the addon was built with where a machine has several. */
export const mpirunName = process.env.DENSECL_MPIRUN ?? 'mpirun'

/** The launcher of that name; undefined where it is not there. */
export function findMpirun(program = mpirunName): Mpirun | undefined {
  const { stdout, error } = spawnSync(program, ['--version'], { encoding: 'utf8' })
  if (error !== undefined) return undefined
  const isOpenMpi = stdout.includes('Open MPI')
  // MPICH's says "HYDRA build details:" and in the next line "Version: 4.0.2".
  const hydra = /^HYDRA\b[^]*?\bVersion:\s+(\S+)/.exec(stdout)
  return {
    program,
    version: hydra === null ? (stdout.split('\n')[0] ?? 'unknown') : `MPICH ${hydra[1]}`,
    isOpenMpi,
    // Open MPI starts no more processes than there are cores, and keeps each on one, unless it is told otherwise.
    options: isOpenMpi ? ['--quiet', '--oversubscribe', '--bind-to', 'none'] : [],
  }
}
