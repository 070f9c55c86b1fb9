/** NCCL as it is found, loaded and used: by a stand-in on `simt`; the library itself as far as it needs no GPU. */
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { launchVariables } from '../../src/distributed/launcher.js'
import { loadNccl } from '../../src/distributed/nccl.js'
import { files } from '../../src/run/runFolder.js'
import { readMetrics } from '../../src/run/runLog.js'
import { native } from '../../src/tensor/native.js'
import { isAlive, launch, type Launched, type Running, running, start as startCommand, tiny, until } from '../support/launch.js'
import { beside, type Ended } from '../support/mpi.js'
import { freePort, hasNccl, ncclEnvironment, ncclStandIn, noNccl, runNccl, start, together } from '../support/nccl.js'
import { suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('nccl')
const program = beside(import.meta.url, 'ncclProgram')

/** What a process without others says of the NCCL that it finds. */
const load = (env: NodeJS.ProcessEnv): Promise<Ended> => start(program, ['load'], env).ended

test('an addon without GPUs says so', () => {
  if (native.loadNccl === undefined) throwsError(() => loadNccl(), 'COMM', /this addon has no NCCL/)
})

testWhere(hasNccl, noNccl, test, 'a library that will not do is refused in a sentence', async () => {
  assert.is((await load({})).out, '2.18.5 128 128\n')
  for (const { env, said } of [
    { env: { NCCL_STANDIN_VERSION: '21000' }, said: /is NCCL 2\.10\.0: expected 2\.18\.0 or later; DENSECL_NCCL names the file/ },
    { env: { NCCL_STANDIN_VERSION: '2804' }, said: /is NCCL 2\.8\.4: / },
    { env: { DENSECL_NCCL: ncclStandIn('-DWITHOUT_MESSAGES') }, said: /lacks ncclSend, ncclRecv: expected 2\.18\.0 or later/ },
    { env: { DENSECL_NCCL: '/nonexistent/nccl' }, said: /cannot be loaded: \/nonexistent\/nccl: cannot open shared object file/ },
  ]) {
    const { code, err } = await load(env)
    assert.is(code, 1)
    assert.match(err, said)
  }
})

testWhere(hasNccl, noNccl, test, 'without DENSECL_NCCL the loader is asked, then the python3 of the PATH', async () => {
  await withFolder(async (folder) => {
    const library = join(folder, 'package', 'lib', 'libnccl.so.2')
    mkdirSync(join(library, '..'), { recursive: true })
    copyFileSync(ncclStandIn(), library)
    const python = (body: string): void => writeFileSync(join(folder, 'python3'), `#!/bin/sh\n${body}\n`, { mode: 0o755 })
    const path = { DENSECL_NCCL: undefined, PATH: `${folder}:${process.env.PATH}` }
    python(`echo ${library}`)
    const [byPython, byLoader] = [await load(path), await load({ ...path, LD_LIBRARY_PATH: join(library, '..') })]
    assert.match(byPython.out, / 128 128\n$/, byPython.err)
    assert.match(byLoader.out, / 128 128\n$/, byLoader.err)
    if (spawnSync('sh', ['-c', 'ldconfig -p | grep libnccl.so.2']).status === 0) return
    python('exit 1')
    const { err } = await load(path)
    assert.match(err, /cannot be loaded: libnccl\.so\.2: cannot open .*; pip install nvidia-nccl-cu12, or apt-get install libnccl2/)
  })
})

const real = hasNccl ? await load({ DENSECL_NCCL: undefined }) : undefined
testWhere(real?.code === 0, real === undefined ? noNccl : 'NCCL itself is not installed', test, 'NCCL itself gives ids', () => {
  assert.match(real!.out, /^2\.\d+\.\d+ 128 128\n$/)
})

testWhere(hasNccl, noNccl, test, 'two processes that have one GPU are named, whatever they call it', async () => {
  const port = String(await freePort())
  const run = async (ids: readonly string[]): Promise<Ended[]> => {
    const env = { DENSECL_TOKEN: 'a secret', DENSECL_PORT: port }
    const of = (rank: number) => ({ ...launchVariables(rank, ids.length), ...env, DENSECL_SIMT_BUS_ID: ids[rank]! })
    return Promise.all(ids.map((_, rank) => start(program, ['call'], of(rank)).ended))
  }
  const [first, second] = ['0000:1b:00.0', '0000:43:00.0']
  for (const { code, err } of await run([first, second, first])) {
    assert.is(code, 1)
    const names = [0, 2].map((rank) => `rank ${rank} \\(\\S+, pid \\d+\\)`)
    assert.match(err, new RegExp(`${names.join(' and ')} have one GPU, ${first}: expected one for each process`))
  }
  for (const ids of [
    [first, second],
    ['', ''],
  ])
    for (const { code, err } of await run(ids)) assert.is(code, 0, err)
})

/** Who ended, as others say it. */
const ended = (rank: number): RegExp => new RegExp(`rank ${rank} \\(\\S+, pid \\d+\\) ended with exit code 1`)

testWhere(hasNccl, noNccl, test, 'what goes wrong in the library is told by the rank where it does, and named by the others', async () => {
  for (const { env, args = ['call'], said } of [
    {
      env: { NCCL_STANDIN_FAIL: '1:5' },
      said: [ended(1), /^densecl: rank 1: allReduce: NCCL says system error: the stand-in was told to fail$/m],
    },
    {
      env: { NCCL_STANDIN_BREAK: '1:5' },
      said: [0, 1].map(() => /rank 1 \(\S+, pid \d+\): NCCL on simt: NCCL says remote error: the cable was pulled$/m),
    },
    // So long that a process of a busy machine has spoken in between.
    {
      env: { NCCL_STANDIN_STALL: '0:5', DENSECL_STALL_SECONDS: '12' },
      said: [0, 1].map(() => /ranks 0, 1 waited for each other for 12 s/),
    },
    { env: {}, args: ['call', '1'], said: [/NCCL says invalid usage: not all ranks make the same call|ended/, /not all ranks|ended/] },
  ]) {
    const all = await runNccl(2, program, args, env)
    for (const [rank, { code, err }] of all.entries()) {
      assert.is(code, 1, err)
      assert.ok(said[rank]!.test(err), `rank ${rank}, of which ${said[rank]} was expected, said ${err}`)
    }
  }
})

testWhere(hasNccl, noNccl, test, 'a rank that does not come, or is of another run, is named', async () => {
  const shared = { DENSECL_PORT: String(await freePort()), DENSECL_CONNECT_SECONDS: '6' }
  const rank = (which: number, token: string): Promise<Ended> =>
    start(program, ['call'], { ...shared, DENSECL_TOKEN: token, ...launchVariables(which, 3) }).ended
  const [zero, one, two] = await Promise.all([rank(0, 'a secret'), rank(1, 'a secret'), rank(2, 'a guess')])
  assert.equal([zero.code, one.code, two.code], [1, 1, 1])
  assert.match(zero.err, /rank 2 did not connect within 6 s/)
  assert.match(one.err, ended(0))
  assert.match(two.err, /rank 0 was not reached within 6 s: .*connect 127\.0\.0\.1:\d+: not answered by rank 0 of this run/)
})

testWhere(hasNccl, noNccl, test, 'ranks of unequal widths end by the time in which they are to meet, and say so', async () => {
  const shared = { DENSECL_TOKEN: 'a secret', DENSECL_PORT: String(await freePort()), DENSECL_CONNECT_SECONDS: '6' }
  const sizes = [2, 3]
  const all = await Promise.all(sizes.map((size, rank) => start(program, ['call'], { ...shared, ...launchVariables(rank, size) }).ended))
  for (const { code, err } of all) {
    assert.is(code, 1)
    assert.match(err, /within 6 s.* rank 1 \(\S+, pid \d+\) is one of 3 processes, rank 0 \(\S+, pid \d+\) one of 2: expected/)
  }
})

/** Two ports in a row of which the second is taken, and what takes it. */
async function takenPort(): Promise<{ before: number; close: () => void }> {
  const server = createServer((socket) => socket.destroy()).listen({ port: 0, host: '127.0.0.1' })
  await new Promise((resolve) => server.on('listening', resolve))
  return { before: (server.address() as { port: number }).port - 1, close: () => server.close() }
}

testWhere(hasNccl, noNccl, test, 'torchrun and srun start processes that meet, beside a stranger on their port', async () => {
  const { before, close } = await takenPort()
  const torchrun = (rank: number): NodeJS.ProcessEnv => ({
    ...{ RANK: String(rank), WORLD_SIZE: '2', LOCAL_RANK: String(rank), LOCAL_WORLD_SIZE: '2' },
    ...{ MASTER_ADDR: 'elsewhere.invalid', MASTER_PORT: String(before), TORCHELASTIC_RUN_ID: 'a run' },
  })
  const srun = (rank: number): NodeJS.ProcessEnv => ({
    ...{ SLURM_PROCID: String(rank), SLURM_STEP_NUM_TASKS: '2', SLURM_LOCALID: String(rank), SLURM_STEP_TASKS_PER_NODE: '2' },
    ...{ SLURM_JOB_ID: String(before), SLURM_STEP_ID: '0', SLURM_STEP_NODELIST: 'node[1-2]' },
  })
  for (const launcher of [torchrun, srun]) {
    const { code, out, err } = together(await Promise.all([0, 1].map((rank) => start(program, ['call'], launcher(rank)).ended)))
    assert.is(code, 0, err)
    assert.is(out, 'rank 0 of 2 by NCCL 2.18.5 ok\nrank 1 of 2 by NCCL 2.18.5 ok\n')
  }
  close()
})

/** A run of two processes on simt, by densecl launch, some steps on. */
const runningOnSimt = (out: string): Promise<Running> =>
  running(out, { env: ncclEnvironment(), settings: ['device=simt', 'precision=f32', 'normGroups=null'], seconds: 300 })

testWhere(hasNccl, noNccl, test, 'SIGTERM to launch saves a run at one step of all, which goes on from there', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const { child, ended: end, ranks } = await runningOnSimt(out)
    child.kill('SIGTERM')
    const { code, out: said, err } = await end
    assert.is(code, 143, said + err)
    assert.match(said, /interrupted: saved at epoch \d+, step \d+; continue with --resume/)
    assert.match(readFileSync(files(out).config, 'utf8'), /^normGroups: 2$/m)
    for (const pid of ranks) assert.not.ok(isAlive(pid))
    const steps = Math.max(...readMetrics(files(out).metrics).map((row) => row.globalStep!))
    const resumed = launch(['--processes', '2', '--', 'pretrain', '--resume', '--out', out, 'device=simt'], ncclEnvironment())
    await until(() => readMetrics(files(out).metrics).some((row) => row.globalStep! > steps), 300, 'a step more')
    resumed.child.kill('SIGTERM')
    assert.is((await resumed.ended).code, 143)
  })
})

testWhere(hasNccl, noNccl, test, 'a signal while the processes meet, or while NCCL connects, ends them at once with its code', async () => {
  await withFolder(async (folder) => {
    const shared = { ...ncclEnvironment(), DENSECL_TOKEN: 'a secret', DENSECL_PORT: String(await freePort()) }
    const rank = (which: number, env: NodeJS.ProcessEnv = {}): Launched =>
      startCommand(['pretrain', ...tiny, 'device=simt', '--out', join(folder, 'run')], { ...shared, ...launchVariables(which, 2), ...env })
    /** Signals to the last, and how long all take to end. */
    const interrupted = async (all: Launched[], signal: NodeJS.Signals, code: number): Promise<string[]> => {
      const from = performance.now()
      all.at(-1)!.child.kill(signal)
      const ends = await Promise.all(all.map(({ ended }) => ended))
      assert.ok(performance.now() - from < 10_000, 'it was waited for')
      for (const end of ends) assert.is(end.code, code, end.out + end.err)
      return ends.map(({ err }) => err)
    }
    const listens = rank(0)
    const port = Number(shared.DENSECL_PORT)
    let reached = false
    const knock = (): void => void connect({ port, host: '127.0.0.1' }, () => (reached = true)).on('error', () => setTimeout(knock, 20))
    knock()
    await until(() => reached, 60, 'the meeting')
    assert.match((await interrupted([listens], 'SIGTERM', 143))[0]!, /^densecl: interrupted while the processes connect$/m)
    // Who looks for rank 0 finds a stranger.
    reached = false
    const stranger = createServer((socket) => (socket.destroy(), (reached = true))).listen({ port, host: '127.0.0.1' })
    const looks = rank(1)
    await until(() => reached, 60, 'a look for rank 0')
    assert.match((await interrupted([looks], 'SIGINT', 130))[0]!, /^densecl: rank 1: interrupted while the processes connect$/m)
    stranger.close()
    // Of two that have met one never comes to NCCL.
    const both = [0, 1].map((which) => rank(which, { NCCL_STANDIN_STALL: '0:0' }))
    const opening = new Set<Launched>()
    for (const each of both)
      each.child.stderr!.on('data', (data: Buffer) => {
        if (data.includes('opening')) opening.add(each)
      })
    await until(() => opening.size === 2, 60, 'NCCL')
    const [zero, one] = await interrupted(both, 'SIGTERM', 143)
    assert.match(one!, /^densecl: rank 1: interrupted while the processes connect$/m)
    assert.match(zero!, /^densecl: rank 1 \(\S+, pid \d+\) ended with exit code 143$/m)
    assert.not.ok(existsSync(join(folder, 'run')))
  })
})

testWhere(hasNccl, noNccl, test, 'a killed rank ends the others, which name it, and so does a killed launch', async () => {
  await withFolder(async (folder) => {
    const { child, ended: end, ranks } = await runningOnSimt(join(folder, 'one'))
    // It is told of both ends at once, as on a busy machine.
    child.kill('SIGSTOP')
    process.kill(ranks[1]!, 'SIGKILL')
    await until(() => !ranks.some(isAlive), 20, 'the end of all ranks')
    child.kill('SIGCONT')
    const { code, err } = await end
    assert.is(code, 137, err)
    assert.match(err, new RegExp(`^densecl: rank 1 \\(\\S+, pid ${ranks[1]}\\) ended: its connection closed$`, 'm'))
    assert.match(err, new RegExp(`^densecl: launch: rank 1 \\(pid ${ranks[1]}\\) was ended by SIGKILL$`, 'm'))
    assert.not.ok(isAlive(child.pid!))

    const orphans = await runningOnSimt(join(folder, 'two'))
    orphans.child.kill('SIGKILL')
    await until(() => !orphans.ranks.some((pid) => isAlive(pid)), 20, 'the end of all ranks')
    assert.match((await orphans.ended).err, /densecl launch has ended/)
  })
})

testWhere(hasNccl, noNccl, test, 'launch looks for NCCL and for GPUs before it starts anybody', async () => {
  const refused = (args: readonly string[], env: NodeJS.ProcessEnv): Promise<Ended> =>
    launch(['--processes', '2', '--', 'pretrain', ...args], { ...ncclEnvironment(), ...env }).ended
  const without = await refused(['--device', 'simt'], { DENSECL_NCCL: '/nonexistent/nccl' })
  assert.is(without.code, 1)
  assert.is(without.err.match(/cannot be loaded/g)?.length, 1, without.err)
  const one = await refused(['device=cuda:0'], {})
  assert.is(one.code, 2)
  assert.match(one.err, /^densecl: device is cuda:0: expected cuda for 2 processes on one machine/)
})

test.run()
