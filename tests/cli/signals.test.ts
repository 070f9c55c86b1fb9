/** SIGINT, SIGTERM and SIGHUP: heard in whatever takes long, and what is finished then stays. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { processStart } from '../../src/files/processes.js'
import { files } from '../../src/run/runFolder.js'
import { canMount } from '../support/mount.js'
import { cli, hasSignals, noSignals, runCli, suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('signals')
const signalled = (name: string, body: () => Promise<void>): void => testWhere(hasSignals, noSignals, test, name, body)

interface Started {
  child: ChildProcess
  out: () => string
  err: () => string
  /** Waits until the command has said something. */
  said: (text: string) => Promise<void>
  /** The exit code, and the seconds until it ended; a command that does not end in time is killed. */
  ended: (patience?: number) => Promise<{ code: number | null; seconds: number }>
}

const pause = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds))

const start = (args: string[]): Started => watched(spawn(process.execPath, [cli, ...args], { stdio: ['ignore', 'pipe', 'pipe'] }))

function watched<C extends ChildProcess & { stdout: Readable; stderr: Readable }>(child: C): Started & { child: C } {
  let [out, err] = ['', '']
  child.stdout.on('data', (data: Buffer) => (out += data.toString()))
  child.stderr.on('data', (data: Buffer) => (err += data.toString()))
  const closed = once(child, 'close') as Promise<[number | null]>
  return {
    child,
    out: () => out,
    err: () => err,
    said: async (text) => {
      for (let tries = 0; !(out + err).includes(text); ++tries) {
        assert.ok(tries < 3000 && child.exitCode === null, `never said ${text}: ${out}${err}`)
        await pause(20)
      }
    },
    ended: async (patience = 60) => {
      const since = performance.now()
      const late = setTimeout(() => child.kill('SIGKILL'), 1000 * patience)
      const [code] = await closed
      clearTimeout(late)
      return { code, seconds: (performance.now() - since) / 1000 }
    },
  }
}

/** A named pipe: who reads it waits for what the test gives. The handle is there when a reader is. */
function pipe(path: string): () => Promise<FileHandle> {
  assert.is(spawnSync('mkfifo', [path]).status, 0)
  return () => open(path, 'w')
}

const settings = ['imageSize=32', 'batchSize=8', 'depth=18', 'baseChannels=4', 'hidden=16', 'featDim=8', 'queueLength=16', 'workers=1']
const tiny = ['data=scenes:40', 'knnData=scenes:20', ...settings]

/** A run of one epoch, for evaluations. */
function trained(folder: string): string {
  const { code, err } = runCli(['pretrain', '--out', join(folder, 'run'), ...tiny, 'epochs=1'])
  assert.is(code, 0, err)
  return join(folder, 'run', 'backbone.safetensors')
}

const first = 'stopping where nothing is lost'

signalled('a list that is being read: SIGINT ends with 130 before anything is made', async () => {
  await withFolder(async (folder) => {
    const list = join(folder, 'list.txt')
    const reader = pipe(list)
    const run = start(['pretrain', '--out', join(folder, 'run'), `data=${list}`, 'format=list', ...settings])
    const handle = await reader()
    run.child.kill('SIGINT')
    await run.said(first)
    const rows = Array.from({ length: 200_000 }, (_, i) => `${i}.jpg ${i % 10}\n`).join('')
    await handle.writeFile(rows)
    await handle.close()
    const { code } = await run.ended()
    assert.is(code, 130, run.err())
    assert.match(run.err(), 'densecl: interrupted')
    assert.equal(readdirSync(folder), ['list.txt'])
  })
})

const hasTerminal = spawnSync('script', ['--version']).stdout?.includes('util-linux') ?? false
const noTerminal = 'script (util-linux), which gives a command a terminal, is not installed'

/** Starts a command in a terminal of its own, in which it first says its pid. */
const startInTerminal = (args: string[]): Started & { child: { stdin: Writable } } => {
  const command = ['exec', process.execPath, cli, ...args].join(' ')
  return watched(spawn('script', ['--quiet', '--return', '--command', `echo pid $$.; ${command}`, '/dev/null']))
}

const pidOf = (run: Started): number => Number(/pid (\d+)\./.exec(run.out())![1])

testWhere(
  hasTerminal,
  noTerminal,
  test,
  'the question for data: Ctrl-C and Ctrl-D leave it with 130 and a sentence, SIGTERM with 143, and nothing is made',
  async () => {
    await withFolder(async (folder) => {
      for (const { key, signal, code, words } of [
        { key: '\x03', code: 130, words: 'nothing was trained' },
        { key: '\x04', code: 130, words: 'nothing was trained' },
        { signal: 'SIGTERM', code: 143, words: 'densecl: interrupted' },
      ]) {
        const run = startInTerminal(['pretrain', '--out', join(folder, 'run')])
        await run.said('Enter for built-in pictures')
        if (key !== undefined) run.child.stdin.write(key)
        else process.kill(pidOf(run), signal)
        assert.is((await run.ended(30)).code, code, run.out())
        assert.match(run.out(), words)
        assert.equal(readdirSync(folder), [])
      }
    })
  },
)

testWhere(hasTerminal, noTerminal, test, 'a run whose terminal is closed ends, saved', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const run = startInTerminal(['pretrain', '--out', out, ...tiny, 'epochs=1000', 'checkpointSteps=1000000'])
    await run.said('epoch 2/')
    const pid = pidOf(run)
    const saved = (): number => statSync(files(out).last).mtimeMs
    const before = saved()
    run.child.kill('SIGKILL')
    for (let tries = 0; processStart(pid) !== undefined; ++tries) {
      if (tries === 3000) process.kill(pid, 'SIGKILL')
      await pause(20)
    }
    assert.ok(saved() > before)
    assert.not.ok(existsSync(files(out).lock), 'it did not end by itself')
  })
})

signalled('a second signal ends at once, even while this thread waits for the disk', async () => {
  await withFolder(async (folder) => {
    const list = join(folder, 'list.txt')
    const reader = pipe(list)
    const run = start(['check-data', '--format', 'list', list])
    const handle = await reader()
    run.child.kill('SIGTERM')
    await run.said(first)
    // As from a terminal and a parent at a time: the same one.
    run.child.kill('SIGTERM')
    await pause(400)
    assert.is(run.child.exitCode, null)
    run.child.kill('SIGTERM')
    const { code, seconds } = await run.ended(20)
    await handle.close()
    assert.is(code, 143)
    assert.ok(seconds < 5, `took ${seconds} s`)
  })
})

signalled('eval knn while features are extracted: SIGINT ends with 130, and a second one does not wait for the image', async () => {
  await withFolder(async (folder) => {
    const weights = trained(folder)
    await sharp({ create: { width: 40, height: 40, channels: 3, background: '#888' } })
      .png()
      .toFile(join(folder, 'a.png'))
    writeFileSync(join(folder, 'list.txt'), 'a.png 0\nslow.png 1\n')
    const reader = pipe(join(folder, 'slow.png'))
    const args = ['eval', 'knn', weights, '--train', join(folder, 'list.txt'), '--val', join(folder, 'list.txt'), '--image-size', '32']
    for (const twice of [false, true]) {
      const run = start(args)
      const handle = await reader()
      run.child.kill('SIGINT')
      await run.said(first)
      await pause(300)
      if (twice) run.child.kill('SIGINT')
      else await handle.close()
      const { code, seconds } = await run.ended()
      if (twice) await handle.close()
      assert.is(code, 130, run.err())
      assert.is(run.err().includes('densecl: interrupted'), !twice)
      assert.ok(seconds < 5, `took ${seconds} s`)
    }
  })
})

signalled('eval linear: SIGTERM ends with 143, and --resume gives the result of the one that was not cut off', async () => {
  await withFolder(async (folder) => {
    const weights = trained(folder)
    const args = (out: string): string[] => [
      ...['eval', 'linear', weights, '--train', 'scenes:60', '--val', 'scenes:30', '--out', join(folder, out)],
      ...['--image-size', '32', '--epochs', '12', '--batch-size', '8', '--workers', '1'],
    ]
    assert.is(runCli(args('whole')).code, 0)
    const run = start(args('cut'))
    await run.said('epoch 2/12')
    run.child.kill('SIGTERM')
    assert.is((await run.ended()).code, 143, run.err())
    assert.match(run.err(), /interrupted in epoch \d+; continue with --resume/)
    const resumed = runCli([...args('cut'), '--resume'])
    assert.is(resumed.code, 0, resumed.err)
    const rows = (out: string): string => readFileSync(join(folder, out, 'linear-imagenet-avgpool', 'metrics.jsonl'), 'utf8')
    assert.is(rows('cut'), rows('whole'))
    const state = (out: string): Buffer => readFileSync(join(folder, out, 'linear-imagenet-avgpool', 'state.safetensors'))
    assert.ok(state('cut').equals(state('whole')))
  })
})

signalled('study inside of an evaluation: SIGINT ends with 130 and no score is made of half of it', async () => {
  await withFolder(async (folder) => {
    for (const split of ['train', 'val'])
      for (const [c, background] of ['#900', '#090'].entries()) {
        mkdirSync(join(folder, 'images', split, `class${c}`), { recursive: true })
        for (let i = 0; i < 12; ++i)
          await sharp({ create: { width: 40 + i, height: 40, channels: 3, background } })
            .png()
            .toFile(join(folder, 'images', split, `class${c}`, `${i}.png`))
      }
    const args = [
      'study',
      '--images',
      join(folder, 'images'),
      '--size',
      'cpu',
      '--seeds',
      '1',
      '--also',
      'linear',
      '--linear-epochs',
      '100000',
    ]
    const run = start([...args, '--out', join(folder, 'study'), ...settings])
    await run.said('kNN')
    const evaluations = join(folder, 'study', 'pretrain', 'random-seed0', 'eval')
    for (let tries = 0; !existsSync(join(evaluations, 'linear', 'state.safetensors')); ++tries) {
      assert.ok(tries < 1000, run.err())
      await pause(20)
    }
    run.child.kill('SIGINT')
    const { code, seconds } = await run.ended()
    assert.is(code, 130, run.err())
    assert.ok(seconds < 10, `took ${seconds} s`)
    assert.match(run.err(), 'the same command continues')
    assert.ok(existsSync(join(evaluations, 'study-knn.json')))
    assert.not.ok(existsSync(join(evaluations, 'study-linear.json')))
  })
})

signalled('check-data reports what it has read, and pack keeps whole shards', async () => {
  await withFolder(async (folder) => {
    const colour = (i: number): string => `rgb(${i}, ${255 - i}, 60)`
    mkdirSync(join(folder, 'images'))
    for (let i = 0; i < 12; ++i)
      await sharp({ create: { width: 400, height: 300, channels: 3, background: colour(i) } })
        .png({ compressionLevel: 0 })
        .toFile(join(folder, 'images', `a${String(i).padStart(2, '0')}.png`))
    const names = Array.from({ length: 12 }, (_, i) => `images/a${String(i).padStart(2, '0')}.png`)
    const list = join(folder, 'list.txt')
    writeFileSync(list, [...names, 'images/slow.png', names[0]].join('\n'))
    const reader = pipe(join(folder, 'images', 'slow.png'))
    const run = start(['check-data', list, '--json'])
    const handle = await reader()
    run.child.kill('SIGINT')
    await run.said(first)
    await handle.close()
    assert.is((await run.ended()).code, 130, run.err())
    const { images, broken } = JSON.parse(run.out()) as { images: number; broken: unknown[] }
    assert.equal([images, broken.length], [13, 1])

    const packed = (out: string, ...more: string[]): string[] => ['pack', list, '--out', join(folder, out), ...more]
    const cut = start(packed('cut'))
    const blocked = await reader()
    cut.child.kill('SIGINT')
    await cut.said(first)
    await blocked.close()
    assert.is((await cut.ended()).code, 130, cut.err())
    assert.match(cut.err(), /0 shards with 0 images are complete; continue with --resume/)
    assert.equal(readdirSync(join(folder, 'cut')), ['pack.json'])
  })
})

testWhere(
  canMount,
  'a small disk needs root and mount namespaces',
  test,
  'where the disk is full nothing is said to be saved',
  async () => {
    await withFolder((folder) => {
      const out = join(folder, 'disk', 'run')
      mkdirSync(join(folder, 'disk'))
      // What a terminal or --json would see, apart: the last checkpoint that fits is that of step 0.
      const run = `${process.execPath} ${cli} pretrain --out ${out} ${tiny.join(' ')} epochs=4000 knnEvery=0 logEvery=1`
      const script = `
mount -t tmpfs -o size=4m none ${folder}/disk || exit 1
for json in "" --json; do
  ${run} $json >${folder}/out 2>${folder}/err & run=$!
  until [ -e ${out}/environment.json ] || ! kill -0 $run; do sleep 0.05; done
  cat /dev/zero > ${folder}/disk/filler 2>/dev/null
  until grep -q 'rows of metrics' ${folder}/err || ! kill -0 $run; do sleep 0.05; done
  kill -INT $run; wait $run; echo "code $?"
  cat ${folder}/out ${folder}/err
  rm -r ${folder}/disk/*
done`
      const { stdout } = spawnSync('unshare', ['-m', 'sh', '-c', script], { encoding: 'utf8' })
      assert.is(stdout.split('code 130').length, 3, stdout)
      assert.is(stdout.split(/last\.safetensors: cannot be written \(the disk is full\)/).length >= 3, true, stdout)
      assert.is(stdout.split(/which is not saved; --resume continues at epoch \d+, step \d+/).length, 3, stdout)
      assert.not.match(stdout, /interrupted: saved/)
      assert.not.match(stdout, /mistake in densecl/)
    })
  },
)

test.run()
