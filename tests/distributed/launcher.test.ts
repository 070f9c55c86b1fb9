import * as assert from 'uvu/assert'

import { deviceOfRank, firstHost, identity, launchVariables, meetingOf } from '../../src/distributed/launcher.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('launcher')

const alone = { launcher: 'none', rank: 0, size: 1, localRank: 0, localSize: 1 }
const torchrun = { RANK: '5', WORLD_SIZE: '16', LOCAL_RANK: '1', LOCAL_WORLD_SIZE: '4', MASTER_ADDR: 'a', MASTER_PORT: '29500' }
/** The second pod of an indexed Job of Kubernetes, each of one GPU (docs/scaling.md, Recipes). */
const pod = {
  JOB_COMPLETION_INDEX: '1',
  RANK: '1',
  WORLD_SIZE: '4',
  LOCAL_RANK: '0',
  LOCAL_WORLD_SIZE: '1',
  MASTER_ADDR: 'r50-0.r50',
  MASTER_PORT: '9',
}
const openMpi = { OMPI_COMM_WORLD_RANK: '3', OMPI_COMM_WORLD_SIZE: '4', OMPI_COMM_WORLD_LOCAL_RANK: '1', OMPI_COMM_WORLD_LOCAL_SIZE: '2' }
const mpich = { PMI_RANK: '2', PMI_SIZE: '4', MPI_LOCALRANKID: '0', MPI_LOCALNRANKS: '2' }
/** What the script of a job has in its environment. */
const batchScript = { SLURM_JOB_ID: '17', SLURM_NTASKS: '8', SLURM_PROCID: '0', SLURM_LOCALID: '0', SLURM_NODEID: '0' }
const srun = { ...batchScript, SLURM_PROCID: '6', SLURM_STEP_NUM_TASKS: '8', SLURM_LOCALID: '2', SLURM_STEP_TASKS_PER_NODE: '4(x2)' }
const srunTask = { launcher: 'srun', rank: 6, size: 8, localRank: 2, localSize: 4 }

const cases: [string, Record<string, string>, object][] = [
  ['nobody', {}, alone],
  ['torchrun', torchrun, { launcher: 'torchrun', rank: 5, size: 16, localRank: 1, localSize: 4 }],
  ['mpirun of Open MPI', openMpi, { launcher: 'Open MPI', rank: 3, size: 4, localRank: 1, localSize: 2 }],
  ['mpirun of MPICH', mpich, { launcher: 'MPICH', rank: 2, size: 4, localRank: 0, localSize: 2 }],
  ['srun', srun, srunTask],
  ['srun --mpi=pmi2, whose PMI knows no machines', { ...srun, PMI_RANK: '6', PMI_SIZE: '8' }, srunTask],
  ['mpirun of MPICH in a Slurm job', { ...srun, ...mpich }, { launcher: 'MPICH', rank: 2, size: 4, localRank: 0, localSize: 2 }],
  ['a Slurm batch script, which is one process', batchScript, alone],
  ['mpirun in a Slurm job', { ...srun, ...openMpi }, { launcher: 'Open MPI', rank: 3, size: 4, localRank: 1, localSize: 2 }],
  ['mpirun in a batch script', { ...batchScript, ...openMpi }, { launcher: 'Open MPI', rank: 3, size: 4, localRank: 1, localSize: 2 }],
  [
    'densecl launch under torchrun',
    { ...torchrun, ...launchVariables(1, 2) },
    { launcher: 'densecl launch', rank: 1, size: 2, localRank: 1, localSize: 2 },
  ],
  ['torchrun under srun', { ...srun, ...torchrun }, { launcher: 'torchrun', rank: 5, size: 16, localRank: 1, localSize: 4 }],
  ['a rank of something else', { RANK: '3' }, alone],
  ['a size of something else', { WORLD_SIZE: '3' }, alone],
  ['a pod of one GPU', pod, { launcher: 'torchrun', rank: 1, size: 4, localRank: 0, localSize: 1 }],
  ['no local numbers', { RANK: '3', WORLD_SIZE: '4' }, { launcher: 'torchrun', rank: 3, size: 4, localRank: 3, localSize: 4 }],
  ['one process of a launcher', { PMI_RANK: '0', PMI_SIZE: '1' }, { launcher: 'MPICH', rank: 0, size: 1, localRank: 0, localSize: 1 }],
]
for (const [name, environment, expected] of cases) test(name, () => assert.equal(identity(environment), expected))

test('numbers that cannot be are named with their variable', () => {
  throwsError(() => identity({ ...torchrun, RANK: '16' }), 'COMM', /RANK is 16/, /0 to 15/)
  throwsError(() => identity({ ...torchrun, WORLD_SIZE: '0' }), 'COMM', /WORLD_SIZE is 0/)
  throwsError(() => identity({ ...openMpi, OMPI_COMM_WORLD_RANK: '' }), 'COMM', /OMPI_COMM_WORLD_RANK is /)
  throwsError(() => identity({ ...mpich, MPI_LOCALNRANKS: '5' }), 'COMM', /MPI_LOCALNRANKS is 5/, /1 to 4/)
  throwsError(() => identity({ ...torchrun, LOCAL_RANK: '4' }), 'COMM', /LOCAL_RANK is 4/, /0 to 3/)
  throwsError(() => identity({ ...srun, SLURM_LOCALID: '-1' }), 'COMM', /SLURM_LOCALID is -1/)
})

test('processes meet where their launcher says', () => {
  const meeting = (environment: Record<string, string>) => meetingOf(identity(environment), environment)
  const upFrom = (first: number): number[] => Array.from({ length: 8 }, (_, i) => first + i)
  assert.equal(meeting({ ...torchrun, TORCHELASTIC_RUN_ID: 'r', TORCHELASTIC_RESTART_COUNT: '2', DENSECL_TOKEN: 't' }), {
    host: 'a',
    ports: upFrom(29501),
    token: 't r.2',
  })
  const slurm = { ...srun, SLURM_STEP_ID: '3', SLURM_STEP_NODELIST: 'gpu[07-09,12],other' }
  assert.equal(meeting(slurm), { host: 'gpu07', ports: upFrom(20_017), token: ' 17.3' })
  assert.equal(meeting({ ...slurm, MASTER_ADDR: 'b', DENSECL_PORT: '5' }), { host: 'b', ports: [5], token: ' 17.3' })
  assert.equal(meeting(pod), { host: 'r50-0.r50', ports: upFrom(10), token: ' .' })
  // All on one machine, whatever it is called.
  const here = meeting({ ...torchrun, RANK: '1', WORLD_SIZE: '4' })
  assert.is(here.host, '127.0.0.1')
  throwsError(() => meeting(openMpi), 'COMM', /Open MPI .*: expected MASTER_ADDR/)
  throwsError(() => meeting({ ...openMpi, MASTER_ADDR: 'a' }), 'COMM', /expected DENSECL_PORT/)
  throwsError(() => meeting({ ...torchrun, MASTER_PORT: 'x' }), 'COMM', /MASTER_PORT is x: expected a port/)
})

test('the first of several hosts is read as Slurm writes them', () => {
  const lists = { a: 'a', 'a,b': 'a', 'n[3,7]': 'n3', 'n[003-5]x,m': 'n003x', 'rack-1n[2]': 'rack-1n2' }
  for (const [list, first] of Object.entries(lists)) assert.is(firstHost(list), first)
})

test('a device that is not a GPU is what it says', () => {
  assert.is(deviceOfRank('cpu', identity(torchrun)), 'cpu')
  throwsError(() => deviceOfRank('cuda:1', identity(torchrun)), 'CONFIG', /device is cuda:1: expected cuda for 4 processes/)
})

test.run()
