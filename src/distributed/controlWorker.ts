/**
 * The control thread of a process (src/distributed/control.ts): a star of connections to rank 0, whose thread decides who is lost and says
 * so to all. It ends its process by itself, since the main thread may sit in a native call for ever.
 */
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { readFileSync, writeSync } from 'node:fs'
import { type AddressInfo, createConnection, createServer, type Socket } from 'node:net'
import { hostname } from 'node:os'
import { type MessagePort, parentPort, workerData } from 'node:worker_threads'

import { packageVersion } from '../tensor/addon.js'
import { native } from '../tensor/native.js'
import { launchPort } from './launcher.js'
import { type Beat, Pace } from './pace.js'
import { type Patience, Watch } from './watch.js'

/** What the thread is started with. */
export interface ControlData {
  rank: number
  size: number
  /** Pace.memory of the process. */
  pace: SharedArrayBuffer
  /** i32 [1]: grows with each answer, which the main thread waits for without its event loop. */
  answered: SharedArrayBuffer
  answers: MessagePort
  /** Where rank 0 is reached, in the order in which it is tried. It listens on the first of `ports` that it gets, of 0 on any. */
  addresses: readonly string[]
  ports: readonly number[]
  /** What rank 0 says to all, of processes that meet: it may begin to listen after others look for it. */
  word?: string
  /** The GPU of a process that meets others, by its place in the machine; empty where nobody else can have it. */
  gpu?: string
  /** The secret of the run. */
  token: string
  patience: Patience
  /** Seconds within which all must have found each other. */
  connectSeconds: number
}

/** What the thread says to the main thread. `done`: what it was last asked for. */
export type ControlAnswer = { port: number } | { connected: true; word: string } | { error: string } | { done: true }

/**
 * What the main thread asks for: to hear signals itself, once the processes share what they exchange tensors by; a word to the others that
 * this process leaves as agreed, or with an exit code.
 */
export type ControlRequest = 'opened' | 'leave' | { failed: number }

/**
 * Lines of JSON. Rank 0 begins with `challenge`, the other answers with `hello`, rank 0 with `welcome`: each proves that it knows the
 * secret. One that does so and does not belong to the processes of rank 0 is `refused`, and why. From then on `beat`; `left` before a
 * connection is closed as agreed; `failed` to rank 0, and `lost` from it to all.
 */
type Line =
  | { kind: 'challenge'; nonce: string }
  | Hello
  | { kind: 'welcome'; name: string; proof: string; word: string }
  | { kind: 'refused'; proof: string; why: string }
  | ({ kind: 'beat' } & Beat)
  | { kind: 'left' }
  | { kind: 'failed'; code: number }
  | { kind: 'lost'; text: string; code: number }

interface Hello {
  kind: 'hello'
  rank: number
  size: number
  version: string
  name: string
  gpu: string
  nonce: string
  proof: string
}

const data = workerData as ControlData
const { rank, size, patience, connectSeconds, word = '' } = data
const longestLine = 4096
/** Milliseconds between two beats, and for which a last word may take to be sent. */
const [beatEvery, lastWord] = [Math.min(2000, 100 * patience.silence), 1000]

const pace = new Pace(data.pace)
const watch = new Watch(patience)
const now = (): number => performance.now() / 1000
/** One GPU in the same machine for all of its containers, and in different ones for different machines. */
const ownGpu = data.gpu === undefined || data.gpu === '' ? '' : `${machine()} ${data.gpu}`
const ownName = `rank ${rank} (${hostname()}, pid ${process.pid})`
/** Of rank 0 all others, of them rank 0. */
const peers = new Map<number, Socket>()
let leaving = false

function machine(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
  } catch {
    return hostname()
  }
}

function answer(said: ControlAnswer): void {
  data.answers.postMessage(said)
  const count = new Int32Array(data.answered)
  Atomics.add(count, 0, 1)
  Atomics.notify(count, 0)
}

const proofOf = (who: string, nonce: string): string => createHmac('sha256', data.token).update(`${who} ${nonce}`).digest('hex')

function proves(who: string, nonce: string, proof: unknown): boolean {
  const expected = Buffer.from(proofOf(who, nonce))
  const given = Buffer.from(String(proof))
  return given.length === expected.length && timingSafeEqual(given, expected)
}

/** Sends a line; `sent` is called once the system has it, or will not take it. */
const send = (socket: Socket, line: Line, sent?: () => void): boolean => socket.write(`${JSON.stringify(line)}\n`, sent)

/** Calls `take` with every line that arrives; whoever sends something else, or throws in `take`, is cut off. */
function receive(socket: Socket, take: (line: Line) => void): void {
  let text = ''
  socket.setEncoding('utf8').setNoDelay(true)
  socket.on('data', (more: string) => {
    const parts = (text + more).split('\n')
    text = parts.pop()!
    try {
      if (text.length > longestLine) throw new Error('a line without an end')
      for (const part of parts) take(JSON.parse(part) as Line)
    } catch {
      socket.destroy()
    }
  })
  // What follows is `close`.
  socket.on('error', () => undefined)
}

/** Sends a last line to all peers, and waits as long as that may take. */
function sendLast(line: Line): Promise<unknown> {
  leaving = true
  const sent = [...peers.values()].map((socket) => new Promise<void>((resolve) => send(socket, line, resolve)))
  return Promise.race([Promise.all(sent), new Promise((resolve) => setTimeout(resolve, lastWord))])
}

/** Says something of this process. The streams of process belong to the main thread. */
function say(text: string): void {
  try {
    writeSync(2, `densecl: ${rank === 0 ? '' : `rank ${rank}: `}${text}\n`)
  } catch {
    // There is nobody to tell.
  }
}

/** Ends this process, which cannot go on without another. */
function end(text: string, code: number): never {
  say(text)
  return native.leave(code)
}

/** Ends the run: what `text` says is told to all; by others than rank 0 to rank 0, which may only have been stopped. */
async function lose(text: string, code = 1): Promise<void> {
  if (leaving) return
  await sendLast({ kind: 'lost', text, code })
  end(text, code)
}

const endedWith = (name: string, code: number): string => `${name} ended with exit code ${code}`

/** What a peer says once it is known. */
function hear(peer: number, name: string, line: Line): void {
  if (line.kind === 'beat') watch.hear(peer, line, now())
  else if (line.kind === 'failed') void lose(endedWith(name, line.code), line.code)
  else if (line.kind === 'left') forget(peer)
  else if (line.kind === 'lost' && rank === 0) void lose(line.text, line.code)
  else if (line.kind === 'lost' && !leaving) end(line.text, line.code)
}

function forget(peer: number): void {
  peers.delete(peer)
  watch.remove(peer)
}

/** Begins to watch a peer that has proved who it is. */
function know(peer: number, name: string, socket: Socket): void {
  peers.set(peer, socket)
  watch.add(peer, name, now())
  socket.setTimeout(0)
  socket.on('close', () => {
    if (peers.has(peer)) void lose(`${name} ended: its connection closed`)
  })
}

/** Two processes that have one GPU, in a sentence; undefined where each has one of its own. */
function sharedGpu(gpus: ReadonlyMap<string, readonly string[]>): string | undefined {
  for (const [gpu, names] of gpus)
    if (gpu !== '' && names.length > 1)
      return (
        `${names.join(' and ')} have one GPU, ${gpu.split(' ').at(-1)}: expected one for each process, which takes that of its local ` +
        'rank, or the only one that it is shown'
      )
  return undefined
}

/** Why a process of this run is not one of those that rank 0 expects, in a sentence; undefined where it is. `names` are those known. */
function objection(to: Hello, names: ReadonlyMap<number, string>): string | undefined {
  if (to.version !== packageVersion)
    return `${to.name} is of densecl ${to.version}, ${ownName} of ${packageVersion}: expected one version in all processes`
  if (to.size !== size) return `${to.name} is one of ${to.size} processes, ${ownName} one of ${size}: expected one number in all of them`
  const other = names.get(to.rank)
  return other === undefined ? undefined : `${to.name} came when ${other} was there: expected one process of each rank`
}

function listen(): void {
  const gpus = new Map([[ownGpu, [ownName]]])
  const names = new Map<number, string>()
  const refused = new Set<string>()
  const local = data.addresses[0] === '127.0.0.1'
  const server = createServer((socket) => {
    const nonce = randomBytes(32).toString('hex')
    let known: { rank: number; name: string } | undefined
    socket.setTimeout(1000 * connectSeconds, () => socket.destroy())
    receive(socket, (line) => {
      if (known !== undefined) return hear(known.rank, known.name, line)
      if (line.kind !== 'hello' || !proves(`rank ${line.rank}`, nonce, line.proof)) throw new Error('not of this run')
      const proof = proofOf('rank 0', line.nonce)
      const why = objection(line, names)
      if (why !== undefined) {
        refused.add(why)
        // Of processes that share a library already nobody else can come.
        if (data.word === undefined) fail(why)
        return void send(socket, { kind: 'refused', proof, why }, () => socket.destroy())
      }
      names.set(line.rank, line.name)
      known = { rank: line.rank, name: line.name }
      know(line.rank, line.name, socket)
      gpus.set(line.gpu, [...(gpus.get(line.gpu) ?? []), line.name])
      send(socket, { kind: 'welcome', name: ownName, proof, word })
      if (peers.size < size - 1) return
      server.close()
      clearTimeout(late)
      const clash = sharedGpu(gpus)
      if (clash !== undefined) return void lose(clash)
      answer({ connected: true, word })
    })
    send(socket, { kind: 'challenge', nonce })
  })
  const fail = (error: string): void => {
    clearTimeout(late)
    answer({ error })
  }
  const late = setTimeout(() => {
    const missing = Array.from({ length: size - 1 }, (_, i) => i + 1).filter((each) => !peers.has(each))
    fail([`rank ${missing.join(', ')} did not connect within ${connectSeconds} s`, ...refused].join('; '))
  }, 1000 * connectSeconds)
  const next = [...data.ports]
  const listenOn = (port: number): void => {
    server.listen({ port, ...(local ? { host: data.addresses[0] } : {}) })
  }
  server.on('listening', () => answer({ port: (server.address() as AddressInfo).port }))
  server.on('error', (error: NodeJS.ErrnoException) => {
    const other = next.shift()
    if (error.code === 'EADDRINUSE' && other !== undefined) listenOn(other)
    else fail(error.message)
  })
  listenOn(next.shift()!)
  watch.add(0, ownName, now())
}

interface Place {
  host: string
  port: number
}

const places = data.addresses.flatMap((host) => data.ports.map((port): Place => ({ host, port })))
const connectBy = now() + connectSeconds
/** Milliseconds for a place, and between two rounds of those who meet. */
const [limit, pause] = [data.word === undefined ? (1000 * connectSeconds) / places.length : 5000, 200]

/** Tries the places of rank 0 one after the other, and again where it may not be there yet. */
function connect([place, ...others]: readonly Place[] = places, failures: ReadonlySet<string> = new Set()): void {
  if (place === undefined && data.word !== undefined && now() < connectBy) {
    setTimeout(() => connect(places, failures), pause)
    return
  }
  if (place === undefined) {
    const within = data.word === undefined ? '' : ` within ${connectSeconds} s`
    return answer({ error: `rank 0 was not reached${within}: ${[...failures].join('; ')}` })
  }
  const socket = createConnection(place)
  const nonce = randomBytes(32).toString('hex')
  const to = `connect ${place.host}:${place.port}`
  let known: string | undefined
  let why = `${to}: not answered by rank 0 of this run`
  socket.setTimeout(limit, () => socket.destroy(new Error(`${to}: no answer within ${limit / 1000} s`)))
  socket.on('error', ({ message }) => (why = message))
  socket.on('close', () => {
    if (known === undefined) connect(others, new Set([...failures, why]))
  })
  receive(socket, (line) => {
    if (known !== undefined) return hear(0, known, line)
    if (line.kind === 'challenge') {
      const proof = proofOf(`rank ${rank}`, line.nonce)
      send(socket, { kind: 'hello', rank, size, version: packageVersion, name: ownName, gpu: ownGpu, nonce, proof })
      return
    }
    // Another run may have the same name: what belongs to this one may still come.
    if (line.kind === 'refused' && proves('rank 0', nonce, line.proof)) return void (why = line.why)
    if (line.kind !== 'welcome' || !proves('rank 0', nonce, line.proof)) throw new Error('not of this run')
    known = line.name
    know(0, known, socket)
    answer({ connected: true, word: line.word })
  })
}

async function leave(request: Exclude<ControlRequest, 'opened'>): Promise<void> {
  if (leaving) return
  if (request === 'leave') await sendLast({ kind: 'left' })
  else if (rank === 0) await sendLast({ kind: 'lost', text: endedWith(ownName, request.failed), code: request.failed })
  else await sendLast({ kind: 'failed', code: request.failed })
}

/** mpirun and torchrun end what they started; densecl launch may have been killed: then the run ends as it does where it is told to. */
function watchLaunch(port: number): void {
  const launch = createConnection({ host: '127.0.0.1', port })
  launch.on('error', () => undefined)
  launch.on('close', () => {
    if (leaving || native.heardSignal() !== 0) return
    say('densecl launch has ended')
    process.kill(process.pid, 'SIGTERM')
  })
}

// The addon is loaded now: later a disk may be what is lost.
native.heardSignal()
setInterval(() => {
  if (leaving) return
  const beat = pace.beat()
  if (rank === 0) watch.hear(0, beat, now())
  const error = native.commError()
  const text = error !== '' ? `${ownName}: ${error}` : watch.verdict(now())
  if (text !== undefined) void lose(text)
  else for (const socket of peers.values()) send(socket, { kind: 'beat', ...beat })
}, beatEvery)
// Until then it waits for the others, in NCCL too, where it hears none. A program that does not listen for signals is ended by them.
const signals = setInterval(() => {
  const signal = native.heardSignal()
  if (signal === 0 || leaving) return
  const code = 128 + signal
  void leave({ failed: code }).then(() => end('interrupted while the processes connect', code))
}, 100)
parentPort!.on('message', (request: ControlRequest) => {
  clearInterval(signals)
  void (request === 'opened' ? Promise.resolve() : leave(request)).then(() => answer({ done: true }))
})
if (rank === 0) listen()
else connect()
if (rank === 0 && process.env[launchPort] !== undefined) watchLaunch(Number(process.env[launchPort]))
