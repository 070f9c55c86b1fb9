/** `densecl launch`, signals and faults: what a user sees of several processes. */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { stripVTControlCharacters } from 'node:util'

import * as assert from 'uvu/assert'

import { files } from '../../src/run/runFolder.js'
import { readMetrics } from '../../src/run/runLog.js'
import { type Ended, hasMpi, mpiEnvironment, noMpi } from '../support/mpi.js'
import { cli, runCli, suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('launch')

const tiny = [
  ...[
    'data=scenes:64',
    'imageSize=32',
    'batchSize=16',
    'normGroups=2',
    'epochs=200',
    'depth=18',
    'baseChannels=4',
    'hidden=8',
    'featDim=8',
  ],
  ...['queueLength=64', 'logEvery=1', 'workers=1', 'knnImages=20', 'knnData=scenes:20', 'checkpointSteps=1', 'checkpointEvery=1000'],
  ...['stopOnCollapse=false'],
]

interface Launched {
  child: ChildProcess
  ended: Promise<Ended>
}

function launch(...args: string[]): Launched {
  const child = spawn(process.execPath, [cli, 'launch', ...args], { env: mpiEnvironment })
  let [out, err] = ['', '']
  child.stdout.on('data', (data: Buffer) => (out += stripVTControlCharacters(data.toString()).replaceAll('\r', '')))
  child.stderr.on('data', (data: Buffer) => (err += data.toString()))
  return { child, ended: new Promise((resolve) => child.on('close', (code) => resolve({ code, out, err }))) }
}

/** The processes that `parent` has started, and those that they have. */
function descendants(parent: number): { pid: number; command: string }[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        // The name of the program is in parentheses and may hold anything.
        const stat = readFileSync(join('/proc', name, 'stat'), 'utf8')
        if (Number(stat.slice(stat.lastIndexOf(')') + 4).split(' ')[0]) !== parent) return []
        const pid = Number(name)
        return [{ pid, command: readFileSync(join('/proc', name, 'cmdline'), 'utf8') }, ...descendants(pid)]
      } catch {
        return [] // It has ended.
      }
    })
}

const isAlive = (pid: number): boolean => existsSync(`/proc/${pid}/cmdline`) && readFileSync(`/proc/${pid}/cmdline`, 'utf8') !== ''

async function until(condition: () => boolean, seconds: number, what: string): Promise<void> {
  for (const limit = performance.now() + 1000 * seconds; !condition(); await new Promise((resolve) => setTimeout(resolve, 20)))
    if (performance.now() > limit) assert.unreachable(`${what} did not happen within ${seconds} s`)
}

/** A run of two processes that is some steps on, and the pids of its ranks. */
async function running(out: string): Promise<Launched & { ranks: number[] }> {
  const launched = launch('--processes', '2', '--', 'pretrain', ...tiny, '--out', out)
  await until(() => readMetrics(files(out).metrics).filter((row) => row.loss !== undefined).length > 2, 120, 'a third step')
  const ranks = descendants(launched.child.pid!).filter(
    ({ command }) => command.includes('pretrain') && command.startsWith(process.execPath),
  )
  assert.is(ranks.length, 2)
  return { ...launched, ranks: ranks.map(({ pid }) => pid) }
}

for (const [who, signal] of [
  ['launch', 'SIGTERM'],
  ['launch', 'SIGINT'],
  ['one of its processes', 'SIGTERM'],
] as const)
  testWhere(hasMpi, noMpi, test, `${signal} to ${who} ends all at one step, saved, to go on from there`, async () => {
    await withFolder(async (folder) => {
      const out = join(folder, 'run')
      const { child, ended, ranks } = await running(out)
      process.kill(who === 'launch' ? child.pid! : ranks[1]!, signal)
      const { code, out: said, err } = await ended
      assert.is(code, signal === 'SIGINT' && who === 'launch' ? 130 : 143, said + err)
      assert.match(said, /interrupted: saved at epoch \d+, step \d+; continue with --resume/)
      for (const pid of ranks) assert.not.ok(isAlive(pid))
      const steps = Math.max(...readMetrics(files(out).metrics).map((row) => row.globalStep!))
      const resumed = launch('--processes', '2', '--', 'pretrain', '--resume', '--out', out)
      await until(() => readMetrics(files(out).metrics).some((row) => row.globalStep! > steps), 120, 'a step more')
      resumed.child.kill('SIGTERM')
      assert.is((await resumed.ended).code, 143)
    })
  })

for (const rank of [0, 1])
  testWhere(hasMpi, noMpi, test, `kill -9 of rank ${rank} ends all within seconds, and leaves a sound checkpoint`, async () => {
    await withFolder(async (folder) => {
      const out = join(folder, 'run')
      const { ended, ranks } = await running(out)
      const killed = performance.now()
      process.kill(ranks[rank]!, 'SIGKILL')
      const { code } = await ended
      assert.is.not(code, 0)
      assert.ok(performance.now() - killed < 30_000)
      for (const pid of ranks) assert.not.ok(isAlive(pid))
      const { code: imported, err } = runCli(['import', files(out).last])
      assert.is(imported, 0, err)
    })
  })

testWhere(hasMpi, noMpi, test, 'what all processes find wrong is said once, what one finds with its rank', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const three = await launch('--processes', '3', '--', 'pretrain', ...tiny, '--out', out).ended
    assert.is(three.code, 2, three.err)
    assert.is(three.err.match(/normGroups is 2 but there are 3 processes: expected a multiple of 3/g)?.length, 1, three.err)
    assert.not.ok(existsSync(out))

    const geometry = await launch('--processes', '2', '--', 'pretrain', ...tiny, '--dense-match', 'geometry', '--out', out).ended
    assert.is(geometry.code, 2)
    assert.match(geometry.err, /denseMatch is geometry: expected feature where several processes share a run/)
  })
})

test('runs pretrain alone, with an addon that is there', () => {
  const other = runCli(['launch', '--processes', '2', '--', 'doctor'])
  assert.is(other.code, 2)
  assert.match(other.err, /expected pretrain after -- but received doctor/)
  const none = runCli(['launch', '--processes', '0', '--', 'pretrain'])
  assert.match(none.err, /--processes is 0: expected an integer in 1\.\.4096/)
})

test('a launcher whose processes could not reach each other is told so', () => {
  const { code, err } = runCli(['pretrain', 'data=scenes:64', '--out', '/nonexistent/run'], { env: { RANK: '1', WORLD_SIZE: '2' } })
  assert.is(code, 1)
  assert.match(err, /^densecl: rank 1: torchrun started 2 processes, of which this is rank 1, but the addon .* has no MPI/m)
})

test.run()
