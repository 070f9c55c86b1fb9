/** Programs as several processes on `simt`, which exchange tensors by a stand-in for NCCL (nccl.c) that is compiled here. */
import { spawn } from 'node:child_process'
import { createServer, type AddressInfo } from 'node:net'

import { launchVariables } from '../../src/distributed/launcher.js'
import type { Ended } from './mpi.js'
import { simtAddon, standIn, standInFolder } from './standIn.js'

export { hasStandIns as hasNccl, noStandIns as noNccl } from './standIn.js'

/** The path of the stand-in, compiled with these flags. */
export const ncclStandIn = (...flags: string[]): string => standIn('nccl', flags)

/** The environment in which `simt` takes the stand-in. */
export const ncclEnvironment = (): NodeJS.ProcessEnv => ({
  ...process.env,
  DENSECL_ADDON: simtAddon,
  DENSECL_NCCL: ncclStandIn(),
  NCCL_STANDIN_DEVICE: 'simt',
  TMPDIR: standInFolder,
})

export async function freePort(): Promise<number> {
  const server = createServer().listen({ port: 0, host: '127.0.0.1' })
  await new Promise((resolve) => server.on('listening', resolve))
  const { port } = server.address() as AddressInfo
  await new Promise((resolve) => server.close(resolve))
  return port
}

/** Starts a program of Node; `pid` is its own. */
export function start(program: string, args: readonly string[], env: NodeJS.ProcessEnv): { pid: number; ended: Promise<Ended> } {
  const child = spawn(process.execPath, [program, ...args], { env: { ...ncclEnvironment(), ...env } })
  let [out, err] = ['', '']
  child.stdout.on('data', (data: Buffer) => (out += data.toString()))
  child.stderr.on('data', (data: Buffer) => (err += data.toString()))
  const ended = new Promise<Ended>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code) => resolve({ code, out, err }))
  })
  return { pid: child.pid!, ended }
}

/** Runs a program as `processes` processes, as `densecl launch` starts them; what each said, in the order of ranks. */
export async function runNccl(
  processes: number,
  program: string,
  args: readonly string[] = [],
  env: NodeJS.ProcessEnv = {},
): Promise<Ended[]> {
  const shared = { DENSECL_TOKEN: 'a secret', DENSECL_PORT: String(await freePort()), ...env }
  const started = Array.from({ length: processes }, (_, rank) => start(program, args, { ...launchVariables(rank, processes), ...shared }))
  return Promise.all(started.map(({ ended }) => ended))
}

/** What processes said, and the first code that is not 0, as of one. */
export const together = (all: readonly Ended[]): Ended => ({
  code: all.find(({ code }) => code !== 0)?.code ?? 0,
  out: all.map(({ out }) => out).join(''),
  err: all.map(({ err }) => err).join(''),
})
