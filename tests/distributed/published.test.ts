/** The published configuration, 8 x 32 images, as the processes of each launcher and as one process have it. */
import * as assert from 'uvu/assert'
import { stringify } from 'yaml'

import { Group } from '../../src/distributed/group.js'
import { identity } from '../../src/distributed/launcher.js'
import { densecl } from '../../src/methods/densecl/method.js'
import { presets } from '../../src/methods/densecl/presets.js'
import { configure, presetSettings } from '../../src/methods/index.js'
import { begunConfig, type BegunConfig, checkShare, shareOf } from '../../src/train/share.js'
import { rejectsError, suite } from '../support/suite.js'

const test = suite('published configurations of several processes')

/** What launchers say to rank `rank` of 8 on one machine. */
const launchers: Record<string, (rank: string) => Record<string, string>> = {
  'densecl launch': (rank) => ({ DENSECL_RANK: rank, DENSECL_SIZE: '8' }),
  torchrun: (rank) => ({ RANK: rank, WORLD_SIZE: '8', LOCAL_RANK: rank, LOCAL_WORLD_SIZE: '8' }),
  'Open MPI': (rank) => ({
    OMPI_COMM_WORLD_RANK: rank,
    OMPI_COMM_WORLD_SIZE: '8',
    OMPI_COMM_WORLD_LOCAL_RANK: rank,
    OMPI_COMM_WORLD_LOCAL_SIZE: '8',
  }),
  MPICH: (rank) => ({ PMI_RANK: rank, PMI_SIZE: '8', MPI_LOCALRANKID: rank, MPI_LOCALNRANKS: '8' }),
  srun: (rank) => ({ SLURM_PROCID: rank, SLURM_STEP_NUM_TASKS: '8', SLURM_LOCALID: rank, SLURM_STEP_TASKS_PER_NODE: '8' }),
}

/** A preset as `densecl pretrain --preset` begins it in a process: what the run records, and what this process does of it. */
async function begun(preset: string, environment: Record<string, string>): Promise<{ config: BegunConfig; share: BegunConfig }> {
  const { rank, size, localSize } = identity(environment)
  const group = new Group(rank, size, 'cpu')
  const config = begunConfig((await configure(presetSettings(preset))).config, size)
  checkShare(config, densecl, group, 'cpu')
  return { config, share: shareOf(config, group, localSize) }
}

for (const preset of Object.keys(presets).filter((name) => /\d/.test(name)))
  test(`${preset}: 1 x 256 in 8 groups is 8 x 32 in one each, and one record`, async () => {
    const alone = await begun(preset, {})
    assert.equal([alone.share.batchSize, alone.share.normGroups], [256, 8])
    for (const [launcher, environment] of Object.entries(launchers))
      for (const rank of ['0', '7']) {
        const { config, share } = await begun(preset, environment(rank))
        assert.equal([share.batchSize, share.normGroups], [32, 1], `${launcher}, rank ${rank}`)
        // What config.yaml and checkpoints hold, so that either continues the other.
        assert.is(stringify(config), stringify(alone.config), launcher)
      }
  })

test('processes that 8 groups cannot be shared by are refused, with the number that would do', async () => {
  const of = (size: string) => begun('densecl_resnet50_8xb32-coslr-200e_in1k', { RANK: '0', WORLD_SIZE: size })
  assert.is((await of('4')).share.normGroups, 2)
  await rejectsError(() => of('16'), 'CONFIG', /normGroups is 8 but there are 16 processes/, /--norm-groups 16/)
})

test.run()
