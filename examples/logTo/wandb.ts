/**
 * The log of a run in Weights & Biases, by its own client (https://docs.wandb.ai): `pip install wandb` for the python3 of the path, then
 * `densecl pretrain ... --log-to dist/examples/logTo/wandb.js`. The client's variables hold: WANDB_API_KEY, WANDB_PROJECT, and WANDB_MODE,
 * whose value `offline` keeps everything in the folder wandb until `wandb sync`.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { createInterface } from 'node:readline'

import type { LogRecord, LogTo } from '../../src/index.js'

/** Takes a record a line, answers each with a line, and ends with the process that it was started by. */
const program = `
import json, sys, wandb
run = wandb.init(name=sys.argv[1], settings=wandb.Settings(console="off"))
for line in sys.stdin:
    record = json.loads(line)
    run.log(record["values"], step=record["step"])
    print(flush=True)
run.finish()
`

interface Client {
  input: Socket
  output: Socket
  answers: AsyncIterator<string>
}

async function clientOf(folder: string): Promise<Client> {
  const child = spawn('python3', ['-c', program, folder], { stdio: ['pipe', 'pipe', 'inherit'] })
  const [input, output] = [child.stdin, child.stdout] as unknown as [Socket, Socket]
  // One that ends early is told by the answer that does not come.
  input.on('error', () => undefined)
  await once(child, 'spawn')
  // This process ends when the run does, and the client after it, when its input ends.
  child.unref()
  input.unref()
  return { input, output, answers: createInterface({ input: output })[Symbol.asyncIterator]() }
}

/** W&B's client of a run folder, started when its first record comes. */
const clients = new Map<string, Promise<Client>>()

const logTo: LogTo = async ({ run, step, epoch, values }: LogRecord) => {
  if (!clients.has(run)) clients.set(run, clientOf(run))
  const { input, output, answers } = await clients.get(run)!
  const finite = Object.entries({ ...values, epoch }).filter(([, value]) => Number.isFinite(value))
  output.ref()
  input.write(`${JSON.stringify({ step, values: Object.fromEntries(finite) })}\n`)
  const { done } = await answers.next()
  output.unref()
  if (done === true) throw new Error('python3 has no wandb, or that ended; what it said is above')
}

export default logTo
