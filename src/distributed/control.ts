/**
 * What the processes of a run tell each other beside tensors: that they are there, how far they are, and that they leave. A thread of each
 * (src/distributed/controlWorker.ts) does so while the main thread computes, and ends the process when another one is lost.
 */
import { randomBytes } from 'node:crypto'
import { hostname, networkInterfaces } from 'node:os'
import { MessageChannel, type MessagePort, receiveMessageOnPort, Worker } from 'node:worker_threads'

import { fail } from '../tensor/errors.js'
import type { ControlAnswer, ControlData, ControlRequest } from './controlWorker.js'
import type { Group } from './group.js'
import { type Identity, identity, meetingOf } from './launcher.js'
import { pace } from './pace.js'
import { ofAll } from './speaker.js'
import type { Patience } from './watch.js'

/** Milliseconds that a last word may take. */
const lastWord = 3000

/** A number from the environment. Throws CONFIG for what is none in the range. */
function fromEnvironment(name: string, otherwise: number, least: number, most: number): number {
  const text = process.env[name]
  const value = text === undefined ? otherwise : Number(text)
  if (text?.trim() === '' || !(value >= least && value <= most))
    fail('CONFIG', `${name} is ${text}: expected a number in ${least}..${most}`)
  return value
}

function settings(): { port: number; patience: Patience; connectSeconds: number } {
  const [least, most] = [0.1, 1e6]
  try {
    return {
      port: fromEnvironment('DENSECL_PORT', 0, 0, 65535),
      patience: {
        silence: fromEnvironment('DENSECL_SILENCE_SECONDS', 20, least, most),
        stall: fromEnvironment('DENSECL_STALL_SECONDS', 600, least, most),
      },
      connectSeconds: fromEnvironment('DENSECL_CONNECT_SECONDS', 60, least, 1e5),
    }
  } catch (error) {
    throw ofAll(error)
  }
}

/** Where the other ranks may reach rank 0, whose process this is. */
function ownAddresses({ size, localSize }: Identity): string[] {
  if (size === localSize) return ['127.0.0.1']
  if (process.env.MASTER_ADDR !== undefined) return [process.env.MASTER_ADDR]
  const outside = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .filter(({ internal, scopeid = 0 }) => !internal && scopeid === 0)
  return [...outside.map(({ address }) => address), hostname()]
}

class Control {
  readonly #worker: Worker
  readonly #answers: MessagePort
  readonly #answered = new Int32Array(new SharedArrayBuffer(4))
  #taken = 0

  readonly #seconds: number

  constructor(data: Omit<ControlData, 'pace' | 'answered' | 'answers'>) {
    const { port1, port2 } = new MessageChannel()
    this.#answers = port1
    this.#seconds = data.connectSeconds
    const workerData: ControlData = { ...data, pace: pace.memory, answered: this.#answered.buffer, answers: port2 }
    this.#worker = new Worker(new URL('./controlWorker.js', import.meta.url), { workerData, transferList: [port2] })
    this.#worker.unref()
  }

  /** The next thing that the thread says; waits for it outside of the event loop, as calls of a Group do. */
  answer(milliseconds = 2000 * this.#seconds): ControlAnswer {
    if (Atomics.wait(this.#answered, 0, this.#taken, milliseconds) === 'timed-out') return { error: 'the control thread does not answer' }
    this.#taken += 1
    return (receiveMessageOnPort(this.#answers) as { message: ControlAnswer }).message
  }

  tell(request: ControlRequest): void {
    this.#worker.postMessage(request)
    this.answer(lastWord)
  }
}

/** Undefined where nobody is watched, and once this process has said that it leaves. */
let control: Control | undefined

const unreached = (why: string): never =>
  fail(
    'COMM',
    `the control channel, by which ranks notice that one is lost: ${why}; MASTER_ADDR names rank 0's machine, DENSECL_PORT a free port`,
  )

/**
 * Connects the control threads of all processes of a group, each of which calls it: from now on one that ends unsaid, or stands still, ends
 * all of them. Nothing where they have met. Throws COMM where they do not reach each other.
 */
export function watchTogether(group: Group): void {
  if (control !== undefined) return
  const { rank, size } = group
  const { port: wanted, ...limits } = settings()
  let opened: Control | undefined
  let answer: ControlAnswer | undefined
  if (rank === 0) {
    const token = randomBytes(32).toString('hex')
    const addresses = ownAddresses(identity())
    opened = new Control({ rank, size, addresses, ports: [wanted], token, ...limits })
    answer = opened.answer()
    const port = 'port' in answer ? answer.port : 0
    group.said(JSON.stringify({ addresses, ports: port === 0 ? [] : [port], token }))
  } else {
    const said = JSON.parse(group.said('')) as Pick<ControlData, 'addresses' | 'ports' | 'token'>
    if (said.ports.length > 0) opened = new Control({ rank, size, ...said, ...limits })
  }
  if (opened !== undefined && (answer === undefined || 'port' in answer)) answer = opened.answer()
  const connected = answer !== undefined && 'connected' in answer
  if (!group.any(!connected)) {
    control = opened
    handOverSignals()
    return
  }
  opened?.tell('leave')
  unreached(answer !== undefined && 'error' in answer ? answer.error : 'another rank could not use it')
}

/**
 * Does what watchTogether() does for processes that share no library yet, where their launcher says that they meet: what rank 0 says in
 * `word`, in all of them. Throws COMM where they do not all come in time. Where two of a machine have the same `gpu`, which may be empty,
 * all end and say which they are.
 */
export function meet(own: Identity, word: string, gpu = ''): string {
  const { rank, size } = own
  const { host, ports, token } = meetingOf(own)
  const { patience, connectSeconds } = settings()
  const opened = new Control({ rank, size, addresses: [host], ports, token, word, gpu, patience, connectSeconds })
  let answer = opened.answer()
  if ('port' in answer) answer = opened.answer()
  if ('connected' in answer) {
    control = opened
    return answer.word
  }
  opened.tell({ failed: 1 })
  return unreached('error' in answer ? answer.error : 'it ended')
}

/**
 * Says that the processes share what they exchange tensors by: from here on the main thread hears signals. Until then it waits for the
 * others, and the control thread ends the process at one.
 */
export const handOverSignals = (): void => control?.tell('opened')

/** Tells the others that this process leaves: as all of them do, or alone with an exit code, which ends them. */
export function stopWatching(failedWith?: number): void {
  control?.tell(failedWith === undefined ? 'leave' : { failed: failedWith })
  control = undefined
}
