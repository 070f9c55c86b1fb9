/** Several processes of one run on this machine: those of CPUs are started by the launcher of their MPI, those of GPUs from here. */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { type AddressInfo, createServer, type Server } from 'node:net'
import { constants } from 'node:os'
import { fileURLToPath } from 'node:url'

import { withSecrets } from '../data/addresses.js'
import { deviceOfRank, launchPort, launchVariables } from '../distributed/launcher.js'
import { findMpirun, mpirunName } from '../distributed/mpirun.js'
import { loadNccl } from '../distributed/nccl.js'
import { fail } from '../tensor/errors.js'
import { mpiAddonPath, mpiBuildCommand } from '../tensor/addon.js'
import { meansCpu } from '../tensor/native.js'
import { examples, numberFlag, type Register, sharedEvaluations } from './command.js'

/** More than any machine has cores. */
const mostProcesses = 4096
/** Seconds that processes have to end by themselves once one of them has failed. */
const grace = 10
const main = fileURLToPath(new URL('./main.js', import.meta.url))

export const register: Register = (program, done) => {
  program
    .command('launch')
    .description('run pretrain, or an evaluation that trains, as several processes on this machine (docs/distributed.md)')
    .requiredOption('--processes <n>', 'how many; the batch, and its groups (--norm-groups), must be a multiple')
    .option('--cpu', 'on the CPU, although there is a GPU')
    .argument('<command...>', `pretrain or eval ${sharedEvaluations.join(', ')} with its flags, after --`)
    .addHelpText(
      'after',
      examples([
        ['densecl launch --processes 8 -- pretrain --data imagenet/train --device cuda --norm-groups 8 --out runs/r50', 'eight GPUs'],
        ['densecl launch --processes 2 --cpu -- pretrain --data photos --norm-groups 2 --out runs/photos', 'two processes of the CPU'],
        ['densecl launch --processes 2 --cpu -- eval segmentation runs/photos/backbone.safetensors --data camvid', 'an evaluation'],
        ['mpirun -n 8 densecl pretrain --data photos --norm-groups 8 --out runs/photos', 'the same by hand, also over several machines'],
      ]),
    )
    .action(async (command: string[], flags: { processes: string; cpu?: boolean }) => {
      const processes = numberFlag('processes', flags.processes, { least: 1, most: mostProcesses, whole: true })
      const [first, second = ''] = command
      if (first !== 'pretrain' && !(first === 'eval' && sharedEvaluations.includes(second)))
        fail(
          'CONFIG',
          `launch: expected pretrain, or eval ${sharedEvaluations.join(', ')}, after -- but received ${[first, second].join(' ').trim()}`,
        )
      const device = flags.cpu === true ? 'cpu' : deviceAsked(command)
      const env = { ...process.env, [launchPort]: String(await attended()) }
      done(await (meansCpu(device) ? launchByMpi(processes, command, env) : launchOnGpus(processes, device, command, env)))
    })
}

/** The device that the arguments of a command name; what a file of options says is not looked at. */
const deviceAsked = (command: readonly string[]): string =>
  [...command.join(' ').matchAll(/(?:^| )(?:--)?device[ =](\S+)/g)].at(-1)?.[1] ?? 'auto'

/** Processes that meet by themselves, each with the GPU of its rank. */
async function launchOnGpus(processes: number, device: string, command: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  // What all of them would find is said once.
  loadNccl()
  deviceOfRank(device, { launcher: 'densecl launch', rank: 0, size: processes, localRank: processes - 1, localSize: processes })
  const run = { DENSECL_TOKEN: randomBytes(32).toString('hex'), DENSECL_PORT: process.env.DENSECL_PORT ?? String(await freePort()) }
  // In process groups of their own: a signal of the terminal comes to each once, through this process.
  const children = Array.from({ length: processes }, (_, rank) =>
    spawn(process.execPath, [main, ...command.map(withSecrets)], {
      stdio: ['ignore', 'inherit', 'inherit'],
      env: { ...env, ...run, ...launchVariables(rank, processes) },
      detached: true,
    }),
  )
  let heard = false
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.on(signal, () => {
      heard = true
      for (const child of children) child.kill(signal)
    })
  let [first, killed] = [0, 0]
  let killer: NodeJS.Timeout | undefined
  await Promise.all(
    children.map(async (child, rank) => {
      const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null]
      const said = code ?? 128 + constants.signals[signal!]
      if (said === 0) return
      first ||= said
      if (signal !== null && !child.killed) {
        killed ||= said
        tellOfDeath(`rank ${rank} (pid ${child.pid})`, signal)
      }
      // One that waits for it where nobody watches yet.
      if (!heard) killer ??= setTimeout(() => children.forEach((each) => each.kill('SIGKILL')), 1000 * grace)
    }),
  )
  clearTimeout(killer)
  // Those that end because another was killed may be seen to do so before it.
  return killed || first
}

/** Says which signal ended a process, that the others name with its rank once they watch each other, and nobody before. */
const tellOfDeath = (who: string, signal: string): void => console.error(`densecl: launch: ${who} was ended by ${signal}`)

/** The signal that a code of a shell or of mpirun stands for; undefined where processes that are told to end leave with it themselves. */
function fatalSignal(code: number): string | undefined {
  const [name] = Object.entries(constants.signals).find(([, number]) => 128 + number === code) ?? []
  return name === 'SIGINT' || name === 'SIGTERM' ? undefined : name
}

/** The port of a server that is there as long as this process, which it does not keep. */
async function attended(): Promise<number> {
  const server = createServer((socket) => socket.on('error', () => undefined).unref())
  const port = await portOf(server)
  server.unref()
  return port
}

async function portOf(server: Server): Promise<number> {
  server.listen({ port: 0, host: '127.0.0.1' })
  await once(server, 'listening')
  return (server.address() as AddressInfo).port
}

async function freePort(): Promise<number> {
  const server = createServer()
  const port = await portOf(server)
  server.close()
  await once(server, 'close')
  return port
}

async function launchByMpi(processes: number, command: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  const addon = process.env.DENSECL_ADDON ?? mpiAddonPath
  if (!existsSync(addon)) fail('COMM', `launch: processes exchange tensors by MPI, and ${addon} is not there; run: ${mpiBuildCommand}`)
  const mpirun = findMpirun()
  if (mpirun === undefined)
    fail(
      'TOOL',
      `launch: ${mpirunName} was not found: install Open MPI or MPICH (Debian and Ubuntu: apt-get install openmpi-bin); ` +
        'DENSECL_MPIRUN names one that is called otherwise',
    )
  // Before anybody starts, whom a signal would otherwise leave alone.
  let heard: 'SIGINT' | 'SIGTERM' | undefined
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.on(signal, () => {
      // Open MPI's mpirun kills a second after a SIGTERM; of what it only passes on, SIGUSR2 is what densecl takes for one. Once more
      // ends all.
      child.kill(mpirun.isOpenMpi && heard === undefined ? 'SIGUSR2' : signal)
      heard ??= signal
    })
  // In a process group of its own: a signal of the terminal comes to it once, through this process.
  const child = spawn(mpirun.program, ['-n', String(processes), ...mpirun.options, process.execPath, main, ...command.map(withSecrets)], {
    stdio: ['ignore', 'inherit', 'inherit'],
    // Open MPI gives its processes a terminal, whatever becomes of what they write.
    env: { ...env, DENSECL_ADDON: addon, ...(process.stdout.isTTY ? {} : { TERM: 'dumb' }) },
    detached: true,
  })
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => {
      // MPICH's mpirun sometimes ends with 0 although its processes, told to end, did not: a run that is not done must not look like one.
      const interrupted = heard !== undefined && (code !== 0 || !mpirun.isOpenMpi)
      const killedBy = heard === undefined ? fatalSignal(code ?? 0) : undefined
      if (killedBy !== undefined) tellOfDeath(`a process of ${mpirun.program}`, killedBy)
      resolve(interrupted ? 128 + constants.signals[heard!] : (code ?? 128 + constants.signals[signal!]))
    })
  })
}
