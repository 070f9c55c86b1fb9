/** Programs as several processes under mpirun, where it and the form of the addon with MPI are. */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import { mpiAddonPath } from '../../src/tensor/addon.js'

const hasMpirun = spawnSync('mpirun', ['--version']).status === 0
export const hasMpi = hasMpirun && existsSync(mpiAddonPath)
export const noMpi = hasMpirun ? 'the addon with MPI is not built (npm run build:mpi)' : 'mpirun is not installed'

export const mpiEnvironment: NodeJS.ProcessEnv = {
  ...process.env,
  DENSECL_ADDON: mpiAddonPath,
  OMPI_ALLOW_RUN_AS_ROOT: '1',
  OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: '1',
}

export interface Ended {
  code: number | null
  out: string
  err: string
}

/** Runs a program of Node as `processes` processes, of one compute thread each unless `env` says otherwise. */
export function runMpi(processes: number, program: string, args: readonly string[] = [], env: NodeJS.ProcessEnv = {}): Promise<Ended> {
  const child = spawn('mpirun', ['-n', String(processes), '--oversubscribe', '--bind-to', 'none', process.execPath, program, ...args], {
    env: { ...mpiEnvironment, ...env },
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
