/** PyTorch in a process beside ours: one line of JSON a request, one a reply, so that both sides are timed in turn. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

import { packageRoot } from '../tensor/addon.js'
import { type DeviceKind, deviceTraits } from '../tensor/traits.js'

/** Where PyTorch computes beside a device of ours. */
const peerDevices: Record<DeviceKind, string> = { cpu: 'cpu', simt: 'cpu', cuda: 'cuda' }

export class Peer {
  readonly #process: ChildProcess
  readonly #lines: AsyncIterator<string>
  readonly version: string

  private constructor(process: ChildProcess, lines: AsyncIterator<string>, version: string) {
    this.#process = process
    this.#lines = lines
    this.version = version
  }

  /** Starts Python; undefined, with a printed reason, where there is no PyTorch. DENSECL_PYTHON names another interpreter. */
  static async start(device: string, compiled: boolean): Promise<Peer | undefined> {
    const python = process.env.DENSECL_PYTHON ?? '/usr/bin/python3'
    if (spawnSync(python, ['-c', 'import torch']).status !== 0) {
      console.log(`no peer: PyTorch is not installed for ${python} (DENSECL_PYTHON names another)`)
      return undefined
    }
    const program = join(packageRoot, 'bench', 'peers', 'ops.py')
    const child = spawn(python, [program, peerDevices[deviceTraits(device).kind], ...(compiled ? ['--compile'] : [])], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
    const version = await lines.next()
    return new Peer(child, lines, String(version.value))
  }

  /** Median milliseconds of the same work, and on a GPU its peak memory; undefined when the peer has no form of it. */
  async measure(op: string, numbers: number[], dtype: string): Promise<{ milliseconds: number; peakMegabytes?: number } | undefined> {
    this.#process.stdin!.write(`${JSON.stringify({ op, numbers, dtype })}\n`)
    const answer = await this.#lines.next()
    if (answer.done === true) throw new Error('the peer stopped')
    const { error, ...measured } = JSON.parse(answer.value) as { milliseconds: number; peakMegabytes?: number; error?: string }
    if (error === undefined) return measured
    console.log(`peer ${op}: ${error}`)
    return undefined
  }

  stop(): void {
    this.#process.stdin!.end()
  }
}
