import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { spawnSync } from 'node:child_process'

import { suite as uvuSuite } from 'uvu'
import * as assert from 'uvu/assert'

import { DenseclError } from '../../src/tensor/errors.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { native } from '../../src/tensor/native.js'

export interface Suite {
  (name: string, body: () => void | Promise<void>): void
  run(): void
}

/** A suite in which every test must leave as many tensors and live bytes as it found, on the CPU and on `device`. */
export function suite(name: string, device = 'cpu'): Suite {
  const made = uvuSuite(name)
  const add = (test: string, body: () => void | Promise<void>): void =>
    made(test, async () => {
      const [before, there] = [native.memory(), native.memory(device)]
      await body()
      const after = native.memory()
      assert.is(after.handles, before.handles, `${after.handles - before.handles} tensors leaked`)
      assert.is(after.live, before.live, `${after.live - before.live} bytes leaked`)
      assert.is(native.memory(device).live, there.live, `bytes leaked on ${device}`)
    })
  return Object.assign(add, { run: () => made.run() })
}

/** Registers the test, or prints why it is skipped. */
export function testWhere(available: boolean, reason: string, in_: Suite, name: string, body: () => void | Promise<void>): void {
  if (available) in_(name, body)
  else console.log(`SKIP ${name}: ${reason}`)
}

/** Runs `body` and asserts that it throws our error with `code`, naming all of `words`. */
export function throwsError(body: () => unknown, code: string, ...words: (string | RegExp)[]): void {
  try {
    body()
  } catch (error) {
    return checkError(error, code, words)
  }
  assert.unreachable(`expected an error ${code}`)
}

export async function rejectsError(body: () => Promise<unknown>, code: string, ...words: (string | RegExp)[]): Promise<void> {
  try {
    await body()
  } catch (error) {
    checkError(error, code, words)
    return
  }
  assert.unreachable(`expected an error ${code}`)
}

function checkError(error: unknown, code: string, words: (string | RegExp)[]): void {
  assert.instance(error, DenseclError, String(error instanceof Error ? error.stack : error))
  assert.is((error as DenseclError).code, code, (error as Error).message)
  for (const word of words) assert.match((error as Error).message, word)
}

/** A folder for one call, removed afterwards; with `mayStay` it need not be possible. */
export async function withFolder<R>(body: (folder: string) => R | Promise<R>, { mayStay = false } = {}): Promise<R> {
  const folder = mkdtempSync(join(tmpdir(), 'densecl-'))
  try {
    return await body(folder)
  } finally {
    remove(folder, mayStay)
  }
}

function remove(folder: string, mayStay: boolean): void {
  try {
    rmSync(folder, { recursive: true, force: true })
  } catch (error) {
    if (!mayStay) throw error
  }
}

/** Whether a process can send another one a signal: on Windows it can only end it. */
export const hasSignals = process.platform !== 'win32'
export const noSignals = 'Windows has no signals between processes'

/** Real images beside a checkout, for those who have them. */
export const realData = join(packageRoot, '..', 'shared', 'data')
export const hasRealData = existsSync(realData)
export const noRealData = 'the folder of real images is not here'

export const cli = join(packageRoot, 'dist', 'src', 'cli', 'main.js')
export function runCli(
  args: string[],
  options: { input?: string; env?: NodeJS.ProcessEnv; cwd?: string } = {},
): { code: number | null; out: string; err: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], {
    encoding: 'utf8',
    ...options,
    env: { ...process.env, ...options.env },
  })
  return { code: status, out: stdout, err: stderr }
}
