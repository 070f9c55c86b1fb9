/** One run a folder: who has it, and what the killed leave. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

import * as assert from 'uvu/assert'

import { packSource } from '../../src/data/pack.js'
import { openSource } from '../../src/data/sources.js'
import { extractFrames } from '../../src/data/videos.js'
import { completed } from '../../src/eval/resumable.js'
import { makeFolder, removeLeftovers } from '../../src/files/atomic.js'
import { FileLock, type LockHolder, untilSure } from '../../src/files/lock.js'
import { processSpace, processStart } from '../../src/files/processes.js'
import { claimEvaluation, evaluationFolder, evaluationLock, saveResult } from '../../src/run/results.js'
import { files, lockRun } from '../../src/run/runFolder.js'
import { leaveLock } from '../support/locks.js'
import { cli, rejectsError, runCli, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('lock')

const settings = [
  ...['data=scenes:40', 'knnData=scenes:20', 'imageSize=32', 'batchSize=8', 'logEvery=1', 'workers=1'],
  ...['depth=18', 'baseChannels=4', 'hidden=16', 'featDim=8', 'queueLength=16', 'normGroups=2'],
]
const pretrain = (out: string, ...more: string[]): string[] => ['pretrain', '--out', out, ...settings, ...more]

const gone = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
}

/** A process that has ended: its number is nobody's. */
async function deadProcess(): Promise<number> {
  const child = spawn(process.execPath, ['--eval', ''])
  await gone(child)
  return child.pid!
}

test('a second run on a folder is refused while the first is alive, and not after kill -9, whose left-overs go', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const first = spawn(process.execPath, [cli, ...pretrain(out, 'epochs=4000', 'checkpointEvery=4000', 'knnEvery=0')])
    try {
      let said = ''
      for await (const text of first.stdout) if ((said += String(text)).includes('step 2/')) break
      for (const how of ['--overwrite', '--resume']) {
        const { code, err } = runCli(pretrain(out, 'epochs=4000', 'checkpointEvery=4000', 'knnEvery=0', how))
        assert.is(code, 1, err)
        assert.match(err, `${out}: process ${first.pid} `)
      }
      assert.ok(existsSync(files(out).last), 'what was refused has removed nothing')
      // An evaluation writes beside it.
      saveResult(evaluationFolder(files(out).last), 'knn', { title: 'kNN', columns: [], rows: [], notes: [] }, {})
    } finally {
      first.kill('SIGKILL')
      await gone(first)
    }
    const left = [`${files(out).last}.tmp-${first.pid}`, join(files(out).pictures, `a.svg.tmp-${first.pid}`)]
    for (const path of left) writeFileSync(path, 'half')
    assert.ok(existsSync(files(out).lock), 'a killed run leaves its lock')
    const { code, err } = runCli(pretrain(out, 'epochs=1', '--overwrite'))
    assert.is(code, 0, err)
    for (const path of [...left, files(out).lock]) assert.not.ok(existsSync(path), path)
  })
})

test('a lock is of one holder, until it is released', async () => {
  await withFolder((folder) => {
    const lock = lockRun(folder)
    throwsError(() => lockRun(folder), 'RUN', `process ${process.pid} on`, folder)
    lock.release()
    assert.equal(readdirSync(folder), [])
    lockRun(folder).release()
  })
})

testWhere(
  process.platform !== 'win32',
  'Windows has no limits of files',
  test,
  'a lock that cannot be written whole leaves nothing',
  async () => {
    await withFolder((folder) => {
      const path = join(folder, 'lock')
      const source = `
      const { FileLock } = await import('${new URL('../../src/files/lock.js', import.meta.url).href}')
      try {
        new FileLock(${JSON.stringify(path)}).take()
      } catch (error) {
        console.log(error.code, error.message)
      }`
      // No file may have more than 0 bytes: a disk that is full.
      const { stdout, stderr } = spawnSync('sh', ['-c', 'ulimit -f 0; exec "$0" --input-type=module -e "$1"', process.execPath, source], {
        encoding: 'utf8',
      })
      assert.match(stdout, `WRITE ${path}: cannot be written`, stderr)
      assert.equal(readdirSync(folder), [])
    })
  },
)

test('a lock is nobody’s when its process has ended, its number is another process’s, or it is damaged', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'lock')
    const taken = (change: (holder: LockHolder) => string): boolean => {
      const lock = new FileLock(path)
      lock.take()
      writeFileSync(path, change(JSON.parse(readFileSync(path, 'utf8')) as LockHolder))
      lock.release()
      const next = new FileLock(path)
      const free = next.take() === undefined
      next.release()
      return free
    }
    const dead = await deadProcess()
    assert.not.ok(taken((holder) => JSON.stringify(holder)))
    assert.ok(taken((holder) => JSON.stringify({ ...holder, pid: dead })))
    if (process.platform === 'linux') assert.ok(taken((holder) => JSON.stringify({ ...holder, start: '1' })))
    else {
      // Its number may be another's by now: it counts as long as it gives signs of life.
      const [quiet, next] = [new FileLock(path), new FileLock(path)]
      quiet.take()
      assert.ok(next.take() !== undefined)
      utimesSync(path, 0, 0)
      assert.is(next.take(), undefined)
      next.release()
    }
    for (const text of ['', '{', 'null', '{"pid":"1"}'])
      assert.ok(
        taken(() => text),
        text,
      )
    // Of a container or machine whose processes cannot be asked for: by its last sign of life.
    const elsewhere = (holder: LockHolder): string => JSON.stringify({ ...holder, pid: dead, space: 'elsewhere' })
    assert.not.ok(taken(elsewhere))
    utimesSync(path, 0, 0)
    const lock = new FileLock(path)
    assert.is(lock.take(), undefined)
    lock.release()
  })
})

test('who comes from elsewhere waits until the holder of a lock gives a sign of life, or counts as gone', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'lock')
    const next = new FileLock(path)
    const heldSince = (seconds: number, space: string): void => leaveLock(path, seconds, space)
    const said: string[] = []
    const waited = async (): Promise<number> => {
      const start = performance.now()
      await untilSure(path, (line) => said.push(line))
      return (performance.now() - start) / 1000
    }
    // Nothing for so long that it counts as gone 2 s from now.
    heldSince(118, 'elsewhere')
    assert.ok((await waited()) > 1)
    assert.is(next.take(), undefined)
    next.release()
    heldSince(60, 'elsewhere')
    setTimeout(() => utimesSync(path, new Date(), new Date()), 500)
    assert.ok((await waited()) < 30)
    assert.is(next.take()?.space, 'elsewhere')
    assert.equal(
      said.map((line) => /: waits for a sign of life of process \d+ on .*, 120 s at most$/.test(line)),
      [true, true],
    )
    rmSync(path)
    await waited()
    // Of a process that can be asked for nothing is in doubt.
    heldSince(60, processSpace())
    await waited()
    assert.is(said.length, 2)
  })
})

test('an evaluation, packing and the writing of frames wait in the same way for what was killed elsewhere', async () => {
  await withFolder(async (folder) => {
    const [out, packed, frames] = ['linear', 'packed', 'frames'].map((name) => join(folder, name)) as [string, string, string]
    const locks = [evaluationLock(out), join(packed, 'pack.lock'), join(frames, 'frames.lock')]
    for (const path of locks) {
      mkdirSync(dirname(path))
      leaveLock(path, 119, 'elsewhere')
    }
    const evaluation = (): Parameters<typeof completed>[0] => () => {
      const lock = claimEvaluation(out, {})
      return { share: () => undefined, execute: () => Promise.resolve('done'), cutOff: () => 'cut off', close: () => lock.release() }
    }
    const source = await openSource('scenes:3')
    const [ended, report] = await Promise.all([
      completed(evaluation(), { out }),
      packSource(source, packed, { mostPixels: 10_000, quality: 90, shardBytes: 1e6 }),
      extractFrames([], frames, { framesPerSecond: 1, mostPixels: 10_000 }),
    ])
    assert.equal([ended, report.images], ['done', 3])
    for (const path of locks) assert.not.ok(existsSync(path), path)
    // One that lives is named after its sign of life.
    leaveLock(evaluationLock(out), 60, 'elsewhere')
    setTimeout(() => utimesSync(evaluationLock(out), new Date(), new Date()), 300)
    await rejectsError(() => completed(evaluation(), { out }), 'RUN', /writes its evaluation there since/)
  })
})

test('an evaluation that keeps a state has its folder for itself, until it ends or fails', async () => {
  await withFolder((folder) => {
    const first = claimEvaluation(join(folder, 'eval', 'linear'), {})
    for (const how of [{}, { resume: true }, { overwrite: true }])
      throwsError(() => claimEvaluation(join(folder, 'eval', 'linear'), how), 'RUN', `process ${process.pid} on`, join('eval', 'linear'))
    claimEvaluation(join(folder, 'eval', 'segmentation'), {}).release()
    first.release()
    writeFileSync(join(folder, 'eval', 'linear', 'state.safetensors'), '')
    for (let tries = 0; tries < 2; ++tries) throwsError(() => claimEvaluation(join(folder, 'eval', 'linear'), {}), 'RUN', /--resume/)
    claimEvaluation(join(folder, 'eval', 'linear'), { overwrite: true }).release()
    assert.equal(readdirSync(join(folder, 'eval', 'linear')), [])
  })
})

test('a folder that cannot be made is an error, in /proc too', async () => {
  await withFolder((folder) => {
    writeFileSync(join(folder, 'file'), '')
    const [named, why] = process.platform === 'win32' ? ['', /cannot be made \(EEXIST\)/] : ['a', /cannot be made \(ENOTDIR\)/]
    throwsError(() => makeFolder(join(folder, 'file', 'a', 'b')), 'WRITE', join(folder, 'file', named), why)
    makeFolder(join(folder, 'a', 'b'))
    makeFolder(join(folder, 'a', 'b'))
    assert.equal(readdirSync(join(folder, 'a')), ['b'])
    if (process.platform === 'linux') throwsError(() => makeFolder('/proc/x/y'), 'WRITE', '/proc/x: the folder cannot be made')
  })
})

test('a process that has ended and waits for its parent is not alive', async () => {
  assert.is(processStart(process.pid), processStart(process.pid))
  assert.ok(processStart(process.pid) !== undefined)
  assert.is(processStart(await deadProcess()), undefined)
  if (process.platform !== 'linux') return
  // exec makes the shell a program that never asks for the end of its child.
  const parent = spawn('sh', ['-c', 'sleep 1 & echo $!; exec sleep 60'])
  try {
    const [text] = (await once(parent.stdout, 'data')) as [Buffer]
    const child = Number(text)
    for (let i = 0; i < 250 && processStart(child) !== undefined; ++i) await new Promise((resolve) => setTimeout(resolve, 20))
    assert.ok(existsSync(`/proc/${child}`), 'it is still listed')
    assert.is(processStart(child), undefined)
  } finally {
    parent.kill('SIGKILL')
    await gone(parent)
  }
})

test('left-overs of living processes stay', async () => {
  await withFolder(async (folder) => {
    const names = [`a.tmp-${process.pid}`, `a.tmp-${process.ppid}`, 'a.tmp-', 'tmp-1', 'a.json']
    for (const name of [...names, `b.tmp-${await deadProcess()}`]) writeFileSync(join(folder, name), '')
    mkdirSync(join(folder, 'c'))
    removeLeftovers(folder)
    assert.equal(readdirSync(folder).sort(), [...names, 'c'].sort())
  })
})

test.run()
