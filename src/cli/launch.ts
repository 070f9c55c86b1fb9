/** Several processes of one run on this machine: what starts them is the launcher of the MPI that the addon was built with. */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { constants } from 'node:os'
import { fileURLToPath } from 'node:url'

import { fail } from '../tensor/errors.js'
import { mpiAddonPath, mpiBuildCommand } from '../tensor/addon.js'
import { native } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'
import { examples, numberFlag, type Register } from './command.js'

/** More than any machine has cores. */
const mostProcesses = 4096

export const register: Register = (program, done) => {
  program
    .command('launch')
    .description('run pretrain as several processes on this machine (docs/distributed.md)')
    .requiredOption('--processes <n>', 'how many; the groups of a batch (--norm-groups) must be a multiple')
    .option('--cpu', 'on the CPU, although there is a GPU')
    .argument('<command...>', 'pretrain and its flags, after --')
    .addHelpText(
      'after',
      examples([
        ['densecl launch --processes 2 -- pretrain --data photos --preset small --norm-groups 2 --out runs/photos', 'two processes'],
        ['mpirun -n 8 densecl pretrain --data photos --norm-groups 8 --out runs/photos', 'the same by hand, also over several machines'],
      ]),
    )
    .action(async (command: string[], flags: { processes: string; cpu?: boolean }) => {
      const processes = numberFlag('processes', flags.processes, { least: 1, most: mostProcesses, whole: true })
      if (command[0] !== 'pretrain') fail('CONFIG', `launch: expected pretrain after -- but received ${command[0]}`)
      if (flags.cpu !== true && native.deviceNames().some((name) => !deviceTraits(name).hostMemory))
        fail('CONFIG', 'launch: several processes on GPUs are not supported yet; --cpu runs them on the CPU')
      done(await launch(processes, command))
    })
}

async function launch(processes: number, command: readonly string[]): Promise<number> {
  const addon = process.env.DENSECL_ADDON ?? mpiAddonPath
  if (!existsSync(addon)) fail('COMM', `launch: processes exchange tensors by MPI, and ${addon} is not there; run: ${mpiBuildCommand}`)
  const { stdout, error } = spawnSync('mpirun', ['--version'], { encoding: 'utf8' })
  if (error !== undefined)
    fail('TOOL', 'launch: mpirun was not found: install Open MPI or MPICH (Debian and Ubuntu: apt-get install openmpi-bin)')
  const openMpi = stdout.includes('Open MPI')
  const options = openMpi ? ['--quiet', '--oversubscribe', '--bind-to', 'none'] : []
  const main = fileURLToPath(new URL('./main.js', import.meta.url))
  // In a process group of its own: a signal of the terminal comes to it once, through this process.
  const child = spawn('mpirun', ['-n', String(processes), ...options, process.execPath, main, ...command], {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...process.env, DENSECL_ADDON: addon },
    detached: true,
  })
  let heard: 'SIGINT' | 'SIGTERM' | undefined
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.on(signal, () => {
      // Open MPI's mpirun kills a second after a SIGTERM; of what it only passes on, SIGUSR2 is what densecl takes for one. Once more
      // ends all.
      child.kill(openMpi && heard === undefined ? 'SIGUSR2' : signal)
      heard ??= signal
    })
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => {
      const interrupted = code !== 0 && heard !== undefined
      resolve(interrupted ? 128 + constants.signals[heard!] : (code ?? 128 + constants.signals[signal!]))
    })
  })
}
