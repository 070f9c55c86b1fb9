/**
 * Commands are hurt - killed anywhere, starved of disk and descriptors, lied to about the time, their data and folders taken away - and
 * must then go on to the same bits as if nothing had happened, or say in a sentence what is wrong. Everything is drawn from one seed.
 */
import { spawn } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'

import { Random } from '../../src/tensor/random.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { canMount } from '../support/mount.js'
import { cli } from '../support/suite.js'
import { type Inputs, type Job, jobsOf, makeInputs, tiny } from './jobs.js'

/** What was tried of one sort, and what became of it. */
export interface Row {
  what: string
  rounds: number
  /** Processes that were killed. */
  kills: number
  /** Ended before they could be hurt. */
  missed: number
  /** Problems: what is wrong, with the output of the command. */
  wrong: string[]
}

interface Ended {
  code: number | null
  signal: NodeJS.Signals | null
  said: string
  seconds: number
}

const hooks = join(packageRoot, 'tests', 'torture', 'hooks.mjs')

interface How {
  /** Seconds after which it is killed. */
  killAfter?: number | undefined
  /** DENSECL_TORTURE of hooks.mjs. */
  hook?: string | undefined
  /** Commands of a shell in front of it. */
  shell?: string | undefined
  /** Done when it has said this, once. */
  at?: { text: string; action: () => void } | undefined
}

function run(args: string[], { killAfter, hook, shell, at }: How = {}): Promise<Ended> {
  const start = performance.now()
  const node = [process.execPath, ...(hook === undefined ? [] : ['--import', hooks]), cli, ...args]
  const command = shell === undefined ? node : ['sh', '-c', `${shell}; exec "$@"`, 'sh', ...node]
  const env = { ...process.env, ...(hook === undefined ? {} : { DENSECL_TORTURE: hook }) }
  const child = spawn(command[0]!, command.slice(1), { stdio: ['ignore', 'pipe', 'pipe'], env })
  let said = ''
  let acted = false
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (data: Buffer) => {
      said += data.toString()
      if (at === undefined || acted || !said.includes(at.text)) return
      acted = true
      at.action()
    })
  const clock = killAfter === undefined ? undefined : setTimeout(() => child.kill('SIGKILL'), 1000 * killAfter)
  // One that hangs is wrong, and ends the rounds otherwise.
  const late = setTimeout(() => child.kill('SIGABRT'), 300_000)
  return new Promise((resolve) =>
    child.on('close', (code, signal) => {
      clearTimeout(clock)
      clearTimeout(late)
      resolve({ code, signal, said, seconds: (performance.now() - start) / 1000 })
    }),
  )
}

/** What is wrong with how a command ended that was not killed: it must say in a sentence what it could not do. */
function unclean({ code, signal, said }: Ended, allowed: readonly number[]): string | undefined {
  if (signal !== null) return `ended with ${signal}:\n${said}`
  if (/this is a mistake in densecl|\n\s+at .*\(.*:\d+:\d+\)/.test(said)) return `a stack trace:\n${said}`
  if (!allowed.includes(code!)) return `exit code ${code}:\n${said}`
  return code === 1 && !/densecl: .+/.test(said) ? `code 1 without a reason:\n${said}` : undefined
}

/** Names of results that are not the same. */
function differences(expected: Map<string, Buffer | string>, found: Map<string, Buffer | string>): string[] {
  const names = new Set([...expected.keys(), ...found.keys()])
  return [...names].filter((name) => {
    const [a, b] = [expected.get(name), found.get(name)]
    return a === undefined || b === undefined || !Buffer.from(a).equals(Buffer.from(b))
  })
}

export interface TortureOptions {
  /** Processes to kill, spread over all commands. */
  kills: number
  seed: number
  /** A folder for everything, which is left empty. */
  folder: string
  say?: (line: string) => void
}

export class Torture {
  readonly rows: Row[] = []
  readonly #random: Random
  readonly #options: TortureOptions
  #jobs: Job[] = []
  #inputs!: Inputs
  readonly #whole = new Map<string, { result: Map<string, Buffer | string>; seconds: number }>()

  constructor(options: TortureOptions) {
    this.#options = options
    this.#random = new Random(options.seed)
  }

  /** All of it; the rows tell what was tried and what is wrong. */
  async all(): Promise<Row[]> {
    await this.begin()
    await this.killed(this.#options.kills)
    await this.starved()
    await this.takenAway()
    return this.rows
  }

  /** Makes the data, and runs every command without harm. */
  async begin(): Promise<void> {
    const { folder } = this.#options
    mkdirSync(folder, { recursive: true })
    this.#inputs = await makeInputs(folder)
    this.#jobs = jobsOf(this.#inputs)
    for (const job of this.#jobs) {
      // The weights of the evaluations are those of the first.
      const out = job.name === 'pretrain' ? join(folder, 'weights') : join(folder, `whole ${job.name}`)
      const ended = await run(job.args(out))
      const problem = unclean(ended, [0])
      if (problem !== undefined) throw new Error(`${job.name}: ${problem}`)
      this.#whole.set(job.name, { result: job.result(out), seconds: ended.seconds })
    }
  }

  #row(what: string): Row {
    const row = { what, rounds: 0, kills: 0, missed: 0, wrong: [] }
    this.rows.push(row)
    return row
  }

  /** A folder for one round, removed after it. */
  async #round(row: Row, body: (out: string) => Promise<string | undefined>): Promise<void> {
    const out = join(this.#options.folder, 'round')
    row.rounds += 1
    try {
      const problem = await body(join(out, 'run'))
      if (problem !== undefined) row.wrong.push(problem)
    } catch (error) {
      row.wrong.push(error instanceof Error ? (error.stack ?? error.message) : String(error))
    }
    rmSync(out, { recursive: true, force: true })
    const { what, rounds, kills, wrong } = row
    this.#options.say?.(`${what}: round ${rounds}, ${kills} kills, ${wrong.length} wrong`)
  }

  /** Lets a command go on to its end and compares what it leaves. */
  async #goesOn(job: Job, out: string, { but = [] as readonly string[] } = {}): Promise<string | undefined> {
    const ended = await run(job.args(out))
    const problem = unclean(ended, [0])
    if (problem !== undefined) return `${job.name} does not go on: ${problem}`
    const different = differences(this.#whole.get(job.name)!.result, job.result(out)).filter((name) => !but.includes(name))
    if (different.length > 0) return `${job.name} differs in ${different.join(', ')}:\n${ended.said}`
    const left = readdirSync(out, { recursive: true, encoding: 'utf8' }).filter((name) => /\.tmp-|\.partial$|\.lock$/.test(name))
    return left.length === 0 ? undefined : `${job.name} leaves ${left.join(', ')}`
  }

  /** SIGKILL at random moments, inside of writes, and before files get their names; up to three in a row before one goes on. */
  async killed(kills: number): Promise<void> {
    const rows = new Map(this.#jobs.map((job) => [job.name, this.#row(`kill -9: ${job.name}`)]))
    const done = (): number => [...rows.values()].reduce((sum, { kills: count }) => sum + count, 0)
    for (let turn = 0; done() < kills; ++turn) {
      const job = this.#jobs[turn % this.#jobs.length]!
      const row = rows.get(job.name)!
      await this.#round(row, async (out) => {
        const blows = Math.min(1 + this.#random.below(3), kills - done())
        const how: string[] = []
        for (let blow = 0; blow < blows; ++blow) {
          const means = this.#means(job)
          how.push(means.hook ?? `after ${means.killAfter!.toFixed(2)} s`)
          const ended = await run(job.args(out), means)
          if (ended.signal === 'SIGKILL') row.kills += 1
          else {
            const problem = unclean(ended, [0])
            if (problem !== undefined) return `${how.join(', ')}: ${problem}`
            row.missed += 1
            break
          }
        }
        const problem = await this.#goesOn(job, out)
        return problem === undefined ? undefined : `killed ${how.join(', ')}: ${problem}`
      })
    }
  }

  #means(job: Job): How {
    const { seconds } = this.#whole.get(job.name)!
    const kind = this.#random.below(3)
    if (kind === 0) return { killAfter: 0.2 + this.#random.uniform() * seconds }
    // A step may write several times; a run has some dozens of both.
    return { hook: kind === 1 ? `write:${1 + this.#random.below(60)}` : `rename:${1 + this.#random.below(10)}` }
  }

  /** Too small a disk, too few descriptors, and a clock that jumps. */
  async starved(): Promise<void> {
    const disk = this.#row('full disk')
    if (canMount)
      for (const job of this.#jobs)
        await this.#round(disk, async (out) => {
          const kept = join(this.#options.folder, 'kept')
          const size = 200 + this.#random.below(2600)
          mkdirSync(out, { recursive: true })
          const inside = `mount -t tmpfs -o size=${size}k none "$0" && { "$@"; code=$?; cp -r "$0" "${kept}"; exit $code; }`
          const shell = `unshare -m sh -c '${inside}' "${out}" "$@"; exit $?`
          const ended = await run(job.args(out), { shell })
          const problem = unclean(ended, [0, 1])
          rmSync(out, { recursive: true, force: true })
          if (existsSync(kept)) cpSync(kept, out, { recursive: true })
          rmSync(kept, { recursive: true, force: true })
          // Rows that the disk could not take are left out of a run.
          return problem ?? (await this.#goesOn(job, out, job.name === 'pretrain' ? { but: ['metrics'] } : {}))
        })
    else this.#options.say?.('SKIP full disk: a small disk needs root and mount namespaces')

    const descriptors = this.#row('few file descriptors')
    for (const job of this.#jobs)
      await this.#round(descriptors, async (out) => {
        const ended = await run(job.args(out), { shell: `ulimit -n ${24 + this.#random.below(24)}` })
        // Node itself does not start with very few.
        if (ended.signal === 'SIGABRT' && !ended.said.includes('densecl:')) return undefined
        return unclean(ended, [0, 1]) ?? this.#goesOn(job, out)
      })

    const clock = this.#row('clock jumps by years')
    for (const job of this.#jobs)
      await this.#round(clock, async (out) => {
        const ended = await run(job.args(out), { hook: `clock:${1 + this.#random.below(30)}` })
        return unclean(ended, [0]) ?? this.#goesOn(job, out)
      })
  }

  /** Data that vanishes or becomes other data, and a folder that is removed, all while a command runs. */
  async takenAway(): Promise<void> {
    const copied = (out: string): string => {
      const data = join(out, '..', 'images')
      cpSync(this.#inputs.images, data, { recursive: true })
      return data
    }
    const pretraining = (out: string, data: string, ...more: string[]): string[] => [
      ...['pretrain', '--out', out, `data=${data}`, ...tiny, 'epochs=2000', 'cacheMegabytes=0', ...more],
    ]
    const remove = (folder: string): void => {
      for (const name of readdirSync(folder)) rmSync(join(folder, name), { recursive: true, force: true })
    }
    await this.#round(this.#row('data vanishes'), async (out) => {
      const data = copied(out)
      const ended = await run(pretraining(out, data), { at: { text: 'step 2/', action: () => remove(data) } })
      if (!/images cannot be read, more than --max-broken|ten images in a row cannot be read/.test(ended.said)) return ended.said
      return unclean(ended, [1])
    })
    await this.#round(this.#row('data changes'), async (out) => {
      const data = copied(out)
      const first = await run(pretraining(out, data), { at: { text: 'step 3/', action: () => remove(data) } })
      cpSync(this.#inputs.images, data, { recursive: true })
      rmSync(join(data, '00.png'))
      const ended = await run(pretraining(out, data, '--resume'))
      if (!ended.said.includes('holds 39 images but the run was started with 40')) return `${first.said}\n${ended.said}`
      return unclean(ended, [1])
    })
    const vanishing = this.#row('run folder is removed')
    for (const what of ['run', 'checkpoints'])
      await this.#round(vanishing, async (out) => {
        const gone = what === 'run' ? out : join(out, what)
        // Out of its sight at once: files that are written meanwhile would keep a folder from being removed.
        const action = (): void => renameSync(gone, join(out, '..', 'gone'))
        const ended = await run(pretraining(out, 'scenes:40', 'epochs=12'), { at: { text: 'step 2/', action } })
        if (!/cannot be (written|made|read)/.test(ended.said)) return ended.said
        return unclean(ended, [1])
      })
  }
}

/** The rows as a table. */
export function tableOf(rows: readonly Row[]): string {
  const cells = rows.map(({ what, rounds, kills, missed, wrong }) => [what, rounds, kills, missed, wrong.length].map(String))
  const all = [['tried', 'rounds', 'kills', 'too late', 'wrong'], ...cells]
  const widths = all[0]!.map((_, c) => Math.max(...all.map((row) => row[c]!.length)))
  return all.map((row) => row.map((cell, c) => (c === 0 ? cell.padEnd(widths[c]!) : cell.padStart(widths[c]!))).join('  ')).join('\n')
}
