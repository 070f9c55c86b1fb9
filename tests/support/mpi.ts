/** Programs as several processes under mpirun, where it and the form of the addon with MPI are. */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { findMpirun, type Mpirun } from '../../src/distributed/mpirun.js'
import { mpiAddonPath, packageRoot } from '../../src/tensor/addon.js'

/** An MPI that may be on this machine, with the addon that was built with it. */
export interface Mpi {
  name: string
  addon: string
  mpirun: Mpirun | undefined
  /** Why tests with it are skipped; undefined where all is there. */
  missing: string | undefined
}

function mpiOf(name: string, program: string, addon: string, build: string): Mpi {
  const mpirun = findMpirun(program)
  const missing = mpirun === undefined ? `${program} is not installed` : existsSync(addon) ? undefined : `its addon is not built (${build})`
  return { name, addon, mpirun, missing }
}

/** The MPI of this machine, with which most tests run. */
export const mpi = mpiOf('MPI', 'mpirun', mpiAddonPath, 'npm run build:mpi')

/** MPICH beside it, as Debian and Ubuntu call it where both are installed. */
export const mpich = mpiOf(
  'MPICH',
  'mpirun.mpich',
  join(packageRoot, 'build-mpich', 'Release', 'densecl.node'),
  'MPICXX=mpicxx.mpich node scripts/native.mjs mpi --into build-mpich',
)

export const mpis = [mpi, mpich]
export const hasMpi = mpi.missing === undefined
export const noMpi = mpi.missing ?? ''

/** The environment in which `densecl` takes an MPI. */
export const environmentOf = ({ addon, mpirun }: Mpi): NodeJS.ProcessEnv => ({ DENSECL_ADDON: addon, DENSECL_MPIRUN: mpirun?.program })

export const mpiEnvironment: NodeJS.ProcessEnv = {
  ...process.env,
  ...environmentOf(mpi),
  OMPI_ALLOW_RUN_AS_ROOT: '1',
  OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: '1',
}

export interface Ended {
  code: number | null
  out: string
  err: string
}

/** Runs a program of Node as `processes` processes, of one compute thread each unless `env` says otherwise. */
export function runMpi(
  processes: number,
  program: string,
  args: readonly string[] = [],
  env: NodeJS.ProcessEnv = {},
  by = mpi,
): Promise<Ended> {
  const { program: mpirun, options } = by.mpirun!
  const child = spawn(mpirun, ['-n', String(processes), ...options, process.execPath, program, ...args], {
    env: { ...mpiEnvironment, ...environmentOf(by), ...env },
  })
  let [out, err] = ['', '']
  child.stdout.on('data', (data: Buffer) => (out += data.toString()))
  child.stderr.on('data', (data: Buffer) => (err += data.toString()))
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code) => resolve({ code, out, err }))
  })
}

/** The path of a program that lies beside a test, as it is compiled. */
export const beside = (url: string, name: string): string => fileURLToPath(new URL(`./${name}.js`, url))
