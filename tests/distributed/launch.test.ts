/** `densecl launch`, signals and faults: what a user sees of several processes. */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { stripVTControlCharacters } from 'node:util'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { files } from '../../src/run/runFolder.js'
import { readMetrics } from '../../src/run/runLog.js'
import { addonPath } from '../../src/tensor/native.js'
import { isAlive, launch, running, tiny, until } from '../support/launch.js'
import { environmentOf, hasMpi, mpi, mpich, mpiEnvironment, noMpi } from '../support/mpi.js'
import { cli, runCli, suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('launch')

for (const [by, who, signal] of [
  [mpi, 'launch', 'SIGTERM'],
  [mpi, 'launch', 'SIGINT'],
  [mpi, 'one of its processes', 'SIGTERM'],
  [mpich, 'launch', 'SIGTERM'],
] as const)
  testWhere(
    by.missing === undefined,
    by.missing!,
    test,
    `${signal} to ${who} by ${by.name} ends all at one step, saved, to go on from there`,
    async () => {
      await withFolder(async (folder) => {
        const out = join(folder, 'run')
        const { child, ended, ranks } = await running(out, { env: environmentOf(by) })
        process.kill(who === 'launch' ? child.pid! : ranks[1]!, signal)
        const { code, out: said, err } = await ended
        assert.is(code, signal === 'SIGINT' && who === 'launch' ? 130 : 143, said + err)
        assert.match(said, /interrupted: saved at epoch \d+, step \d+; continue with --resume/)
        assert.is(said, stripVTControlCharacters(said))
        assert.is([...(said + err).matchAll(/more than half of the data set/g)].length, 1, said + err)
        for (const pid of ranks) assert.not.ok(isAlive(pid))
        const steps = Math.max(...readMetrics(files(out).metrics).map((row) => row.globalStep!))
        const resumed = launch(['--processes', '2', '--', 'pretrain', '--resume', '--out', out], environmentOf(by))
        await until(() => readMetrics(files(out).metrics).some((row) => row.globalStep! > steps), 120, 'a step more')
        resumed.child.kill('SIGTERM')
        assert.is((await resumed.ended).code, 143)
      })
    },
  )

for (const by of [mpi, mpich])
  testWhere(by.missing === undefined, by.missing!, test, `a launch that is killed ends its processes by ${by.name}, saved`, () =>
    withFolder(async (folder) => {
      const out = join(folder, 'run')
      const { child, ended, ranks, started } = await running(out, { env: environmentOf(by) })
      child.kill('SIGKILL')
      await until(() => !started.some(isAlive), 30, 'the end of all processes')
      // What the processes say passes through their mpirun, which has it from launch.
      const { out: said, err } = await ended
      assert.match(err, /^densecl: densecl launch has ended$/m)
      assert.match(said, /interrupted: saved at epoch \d+, step \d+; continue with --resume/)
      assert.ok(ranks.every((pid) => started.includes(pid)) && started.length > ranks.length, 'mpirun is one of those that ended')
    }),
  )

testWhere(hasMpi, noMpi, test, 'what all processes find wrong is said once, what one finds with its rank', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const three = await launch(['--processes', '3', '--', 'pretrain', ...tiny, '--out', out]).ended
    assert.is(three.code, 2, three.err)
    assert.is(three.err.match(/--norm-groups is 4 but there are 3 processes: expected a multiple of 3/g)?.length, 1, three.err)
    assert.not.ok(existsSync(out))
    assert.not.match(three.err, /rank \d/)
  })
})

testWhere(
  hasMpi,
  noMpi,
  test,
  'what differs between processes is named with the rank, and costs no run that was to be replaced',
  async () => {
    await withFolder(async (folder) => {
      const [out, kept] = [join(folder, 'run'), join(folder, 'run', 'metrics.jsonl')]
      mkdirSync(out)
      writeFileSync(kept, '')
      // The same paths, which lead elsewhere in another folder.
      const places = ['here', 'there'].map((name) => join(folder, name))
      const image = await sharp({ create: { width: 40, height: 40, channels: 3, background: 'red' } })
        .png()
        .toBuffer()
      for (const place of places) {
        mkdirSync(join(place, 'images'), { recursive: true })
        for (let i = 0; i < 16; ++i) writeFileSync(join(place, 'images', `${i === 7 ? place.length : i}.png`), image)
      }
      const { program, options } = mpi.mpirun!
      const command = [...tiny, 'data=images', 'knnEvery=0', '--overwrite', '--out', out]
      const run = (where: readonly string[], ...more: string[]) =>
        spawnSync(
          program,
          [
            ...[...options, '-n', '1', '--wdir', where[0]!, process.execPath, cli, 'pretrain', ...command, ':'],
            ...['-n', '1', '--wdir', where[1]!, process.execPath, cli, 'pretrain', ...command, ...more],
          ],
          { env: mpiEnvironment, encoding: 'utf8' },
        )
      for (const [ended, what] of [
        [run(places), 'the list of images'],
        [run([places[0]!, places[0]!], 'lr=0.5'), 'lr'],
      ] as const) {
        assert.is(ended.status, 1, ended.stderr)
        assert.match(ended.stderr, new RegExp(`^densecl: (--)?${what} of rank (1|0, 1) is not that of the others: expected the same`, 'm'))
        assert.is(ended.stderr.match(/not that of/g)?.length, 1, ended.stderr)
        assert.ok(existsSync(kept))
      }
    })
  },
)

testWhere(hasMpi, noMpi, test, 'images that cannot be read are counted over all processes', async () => {
  await withFolder(async (folder) => {
    const data = join(folder, 'images')
    mkdirSync(data)
    for (let i = 0; i < 16; ++i) {
      const image = sharp({ create: { width: 40, height: 40, channels: 3, background: { r: 15 * i, g: 90, b: 90 } } })
      writeFileSync(join(data, `${i}.png`), i % 4 === 1 ? 'not a picture' : await image.png().toBuffer())
    }
    const settings = [...tiny.filter((text) => !text.startsWith('knn')), `data=${data}`, 'knnEvery=0', 'maxBroken=0.2']
    const { code, err } = await launch(['--processes', '2', '--', 'pretrain', ...settings, '--out', join(folder, 'run')]).ended
    assert.is(code, 1)
    assert.match(err, /^densecl: data: 4 of 16 images cannot be read, more than --max-broken 0\.2 allows/m)
    assert.not.match(err, /rank/)
  })
})

test('runs what processes can share alone, with an addon that is there', () => {
  const other = runCli(['launch', '--processes', '2', '--', 'doctor'])
  assert.is(other.code, 2)
  assert.match(other.err, /expected pretrain, or eval linear, .*, after -- but received doctor/)
  assert.match(runCli(['launch', '--processes', '2', '--', 'eval', 'knn', 'x']).err, /after -- but received eval knn/)
  const none = runCli(['launch', '--processes', '0', '--', 'pretrain'])
  assert.match(none.err, /--processes is 0: expected an integer in 1\.\.4096/)
})

test('a launcher whose processes could not reach each other is told so', () => {
  const { code, err } = runCli(['pretrain', 'data=scenes:64', '--out', '/nonexistent/run'], { env: { RANK: '1', WORLD_SIZE: '2' } })
  assert.is(code, 1)
  assert.match(err, /^densecl: rank 1: torchrun started 2 processes, of which this is rank 1, but the addon .* has no MPI/m)
})

testWhere(mpich.missing === undefined, mpich.missing!, test, 'MPICH without the socket of its launcher says who closes it', () => {
  const env = { ...environmentOf(mpich), PMI_RANK: '0', PMI_SIZE: '2', PMI_FD: '1000' }
  const { code, err } = runCli(['pretrain', 'data=scenes:64', '--out', '/nonexistent/run'], { env })
  assert.is(code, 1)
  assert.match(err, /^densecl: MPICH handed this process descriptor 1000 .* as npx does: let it start node_modules\/\.bin\/densecl/m)
})

test('a run that is told to end never looks done, though an mpirun says so', async () => {
  await withFolder(async (folder) => {
    const [mpirun, started] = [join(folder, 'mpirun'), join(folder, 'started')]
    // As MPICH's, which now and then ends with 0 after SIGTERM.
    const lines = [
      `[ "$1" != --version ] || { printf 'HYDRA build details:\\n    Version:    4.0.2\\n'; exit; }`,
      "trap 'kill $!; exit 0' TERM",
      `sleep 60 & touch '${started}'; wait`,
    ]
    writeFileSync(mpirun, ['#!/bin/sh', ...lines, ''].join('\n'), { mode: 0o755 })
    const env = { DENSECL_ADDON: addonPath(), DENSECL_MPIRUN: mpirun }
    const { child, ended } = launch(['--processes', '2', '--cpu', '--', 'pretrain', 'data=scenes:64'], env)
    await until(() => existsSync(started), 20, 'a start')
    child.kill('SIGTERM')
    assert.is((await ended).code, 143)
  })
})

test('a launcher of MPI that is not there is named with what names another', () => {
  const env = { DENSECL_ADDON: addonPath(), DENSECL_MPIRUN: '/nonexistent/mpirun' }
  const { code, err } = runCli(['launch', '--processes', '2', '--cpu', '--', 'pretrain', 'data=scenes:64'], { env })
  assert.is(code, 1)
  assert.match(err, /^densecl: launch: \/nonexistent\/mpirun was not found: .* DENSECL_MPIRUN names/m)
})

test.run()
