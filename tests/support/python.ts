/** Python as an oracle: Debian's own, with PyTorch and others where they are installed. */
import { spawnSync } from 'node:child_process'

import * as assert from 'uvu/assert'

/** Debian's own Python: not the first of the PATH. */
export const python = '/usr/bin/python3'
/** One with what Debian has no packages of, where one is named. */
export const otherPython = process.env.DENSECL_PYTHON ?? python

/** Whether a Python has all of `modules`. They are looked for, not run: importing PyTorch takes a second. */
export function hasModules(program: string, ...modules: string[]): boolean {
  const look = 'import sys; from importlib.util import find_spec; sys.exit(any(find_spec(name) is None for name in sys.argv[1:]))'
  return spawnSync(program, ['-c', look, ...modules]).status === 0
}

export const hasTorch = hasModules(python, 'torch', 'torchvision')
export const noTorch = 'PyTorch and torchvision are not installed for /usr/bin/python3'

/** Runs a Python program with arguments and perhaps an input; returns what it printed. */
export const runPython = (program: string, args: string[] = [], input = ''): string => runWithPython(['-c', program, ...args], input)
/** A program of a file, which may import what lies beside it. */
export const runPythonFile = (path: string, args: string[] = []): string => runWithPython(['-B', path, ...args], '')

function runWithPython(args: string[], input: string): string {
  const { status, stdout, stderr } = spawnSync(python, args, { encoding: 'utf8', maxBuffer: 2 ** 28, input })
  assert.is(status, 0, stderr)
  return stdout
}
