/** A process that dies, stands still or fails ends the others, which say who it was; strangers are not heard. */
import { createHmac } from 'node:crypto'
import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { MessageChannel, Worker } from 'node:worker_threads'

import * as assert from 'uvu/assert'

import type { ControlAnswer, ControlData } from '../../src/distributed/controlWorker.js'
import { Pace } from '../../src/distributed/pace.js'
import { files } from '../../src/run/runFolder.js'
import { packageVersion } from '../../src/tensor/addon.js'
import { isAlive, launch, running, tiny } from '../support/launch.js'
import { beside, environmentOf, hasMpi, mpich, noMpi, runMpi } from '../support/mpi.js'
import { runCli, suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('control channel')

/** What ranks say of the others: who spoke, and of whom. */
const said = (err: string): { by: number; rank: number; pid: number; what: string }[] =>
  [...err.matchAll(/^densecl: (?:rank (\d+): )?rank (\d+) \(\S+, pid (\d+)\) (.*)$/gm)].map(([, by = '0', rank, pid, what]) => ({
    by: Number(by),
    rank: Number(rank),
    pid: Number(pid),
    what: what!.trim(),
  }))

for (const { signal, processes, rank, seconds } of [
  { signal: 'SIGKILL', processes: 2, rank: 0, seconds: 10 },
  { signal: 'SIGKILL', processes: 2, rank: 1, seconds: 10 },
  { signal: 'SIGKILL', processes: 4, rank: 2, seconds: 10 },
  { signal: 'SIGSTOP', processes: 2, rank: 0, seconds: 20 },
  { signal: 'SIGSTOP', processes: 4, rank: 2, seconds: 20 },
] as const)
  testWhere(hasMpi, noMpi, test, `${signal} to rank ${rank} of ${processes} ends all, which name it, and leaves a sound run`, async () => {
    await withFolder(async (folder) => {
      const out = join(folder, 'run')
      const { ended, ranks } = await running(out, { processes, env: { DENSECL_SILENCE_SECONDS: '3' } })
      const hurt = performance.now()
      process.kill(ranks[rank]!, signal)
      const { code, err } = await ended
      assert.is.not(code, 0)
      assert.ok(performance.now() - hurt < 1000 * seconds, `${(performance.now() - hurt) / 1000} s`)
      for (const pid of ranks) assert.not.ok(isAlive(pid))
      const sayings = said(err).filter(({ by }) => by !== rank)
      const others = [...ranks.keys()].filter((each) => each !== rank)
      assert.equal(sayings.map(({ by }) => by).sort(), others, err)
      // Before the processes watch each other this is all that is said.
      assert.is(/^densecl: launch: a process of mpirun was ended by SIGKILL$/m.test(err), signal === 'SIGKILL', err)
      const what = signal === 'SIGKILL' ? /^ended: its connection closed$/ : /^gave no sign of life for 3 s, at step \d+$/
      for (const saying of sayings) {
        assert.equal([saying.rank, saying.pid], [rank, ranks[rank]], err)
        assert.match(saying.what, what)
      }
      const { code: imported, err: why } = runCli(['import', files(out).last])
      assert.is(imported, 0, why)
    })
  })

testWhere(mpich.missing === undefined, mpich.missing!, test, 'SIGKILL to a rank under MPICH ends all, by names', async () => {
  await withFolder(async (folder) => {
    const { ended, ranks } = await running(join(folder, 'run'), { env: environmentOf(mpich) })
    process.kill(ranks[1]!, 'SIGKILL')
    const { code, out, err } = await ended
    assert.is.not(code, 0)
    for (const pid of ranks) assert.not.ok(isAlive(pid))
    // Who is first: its launcher ends what is left as soon as it knows.
    assert.match(out + err, new RegExp(`PID ${ranks[1]} RUNNING AT|rank 1 \\(\\S+, pid ${ranks[1]}\\) ended`))
  })
})

for (const { fault, what } of [
  { fault: 'throws', what: 'ended with exit code 1' },
  { fault: 'hangs', what: 'got nothing done for 3 s at step 3, while rank 0 waited' },
])
  testWhere(hasMpi, noMpi, test, `a rank that ${fault} is named`, async () => {
    await withFolder(async (folder) => {
      const program = beside(import.meta.url, 'faultProgram')
      const stall = fault === 'hangs' ? { DENSECL_STALL_SECONDS: '3' } : {}
      const { code, err } = await runMpi(2, program, [join(folder, 'run'), fault, '1'], stall)
      assert.is(code, 1, err)
      const sayings = said(err).map((each) => `${each.by}: rank ${each.rank} ${each.what}`)
      assert.equal(sayings.sort(), fault === 'throws' ? [`0: rank 1 ${what}`] : [`0: rank 1 ${what}`, `1: rank 1 ${what}`], err)
      if (fault === 'throws') assert.match(err, /^densecl: rank 1: the images are gone$/m)
    })
  })

testWhere(hasMpi, noMpi, test, 'a run that ends, as it should or by a mistake of all, says nothing of the channel', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const good = await launch(['--processes', '2', '--', 'pretrain', ...tiny, 'epochs=1', '--out', out]).ended
    assert.is(good.code, 0, good.err)
    assert.not.match(good.err, /rank|channel/)
    const again = await launch(['--processes', '2', '--', 'pretrain', ...tiny, '--out', out]).ended
    assert.is(again.code, 1, again.err)
    assert.match(again.err, /^densecl: .* holds a run/m)
    assert.is(again.err.match(/rank/g), null, again.err)
    const wrong = await launch(['--processes', '2', '--', 'pretrain', ...tiny, '--out', out], { DENSECL_STALL_SECONDS: 'long' }).ended
    assert.is(wrong.code, 2)
    assert.is(wrong.err.match(/DENSECL_STALL_SECONDS is long: expected a number in 0.1..1000000/g)?.length, 1, wrong.err)
  })
})

const token = 'a secret'

/** A control thread of one of two processes. */
function start(more: Pick<ControlData, 'rank' | 'ports'> & Partial<ControlData>) {
  const { port1, port2 } = new MessageChannel()
  const shared: Omit<ControlData, 'rank' | 'ports' | 'answers'> = {
    size: 2,
    token,
    addresses: ['127.0.0.1'],
    pace: new Pace().memory,
    answered: new SharedArrayBuffer(4),
    patience: { silence: 20, stall: 600 },
    connectSeconds: 20,
  }
  const worker = new Worker(new URL('../../src/distributed/controlWorker.js', import.meta.url), {
    workerData: { ...shared, answers: port2, ...more },
    transferList: [port2],
  })
  const answer = async (): Promise<ControlAnswer> => ((await once(port1, 'message')) as [ControlAnswer])[0]
  return { worker, answer }
}

test('whoever does not know the secret is cut off, and does not keep the ranks from each other', async () => {
  const zero = start({ rank: 0, ports: [0] })
  const { port } = (await zero.answer()) as { port: number }

  const challenge = /^\{"kind":"challenge","nonce":"[0-9a-f]{64}"\}\n$/
  for (const words of ['GET / HTTP/1.1\r\n\r\n', `{"kind":"hello","rank":1,"name":"me","nonce":"1","proof":"1"}\n`, 'x'.repeat(10_000)]) {
    const stranger = connect({ host: '127.0.0.1', port })
    stranger.on('error', () => undefined)
    stranger.write(words)
    assert.match(await text(stranger).catch(() => ''), new RegExp(`${challenge.source}|^$`))
  }
  const liar = start({ rank: 1, ports: [port], token: 'a guess' })
  assert.match(((await liar.answer()) as { error: string }).error, /not answered by rank 0 of this run/)

  const connected = zero.answer()
  const one = start({ rank: 1, ports: [port] })
  assert.equal(await one.answer(), { connected: true, word: '' })
  assert.equal(await connected, { connected: true, word: '' })
  // One after the other: the first that leaves must not count as lost to the second.
  for (const { worker, answer } of [one, zero]) {
    worker.postMessage('leave')
    assert.equal(await answer(), { done: true })
  }
  for (const { worker } of [one, zero, liar]) await worker.terminate()
})

test('a process of another version or width, or whose rank is there, is told so: what it says is not taken for the run', async () => {
  const meeting = { ports: [0], word: 'an id', size: 3, connectSeconds: 2 }
  const zero = start({ rank: 0, ...meeting })
  const { port } = (await zero.answer()) as { port: number }
  /** What rank 0 answers to the greeting of a process that knows the secret. */
  const greet = async (more: object) => {
    const socket = connect({ host: '127.0.0.1', port })
    const lines = createInterface(socket)[Symbol.asyncIterator]()
    const next = async () => JSON.parse((await lines.next()).value as string) as { kind: string; nonce: string; why?: string }
    const proof = createHmac('sha256', token)
      .update(`rank 1 ${(await next()).nonce}`)
      .digest('hex')
    const hello = { kind: 'hello', rank: 1, size: 3, version: packageVersion, name: 'rank 1 (a, pid 7)', gpu: '', nonce: '', proof }
    socket.write(`${JSON.stringify({ ...hello, ...more })}\n`)
    return { socket, said: await next() }
  }
  const refused = async (more: object, why: RegExp): Promise<void> => {
    const { kind, why: said } = (await greet(more)).said
    assert.is(kind, 'refused')
    assert.match(said!, why)
  }
  await refused({ version: '0.0.1' }, /^rank 1 \(a, pid 7\) is of densecl 0\.0\.1, rank 0 \(.*\) of \d.*: expected one version/)
  await refused({ size: 2 }, /^rank 1 \(a, pid 7\) is one of 2 processes, rank 0 \(.*\) one of 3: expected one number/)
  const one = await greet({})
  assert.is(one.said.kind, 'welcome')
  await refused({ name: 'rank 1 (b, pid 7)' }, /^rank 1 \(b, pid 7\) came when rank 1 \(a, pid 7\) was there: /)
  const { error } = (await zero.answer()) as { error: string }
  assert.match(error, /^rank 2 did not connect within 2 s; rank 1 .* is of densecl .*; .* is one of 2 processes.*; .* came when .*/)
  zero.worker.postMessage('leave')
  await zero.answer()
  await zero.worker.terminate()
  one.socket.destroy()
})

test.run()
