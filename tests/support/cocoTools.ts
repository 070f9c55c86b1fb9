/** pycocotools, where a Python has it: the oracle of masks and scores. */
import { spawnSync } from 'node:child_process'

import * as assert from 'uvu/assert'

import { python } from './suite.js'

const cocoPython = process.env.DENSECL_PYTHON ?? python
export const hasCocoTools = spawnSync(cocoPython, ['-c', 'import pycocotools']).status === 0
export const noCocoTools = 'pycocotools is not installed (DENSECL_PYTHON names a Python that has it)'

/** What a Python program with pycocotools prints as JSON when it is given `input` as JSON. */
export function runCocoTools(program: string, input: unknown): unknown {
  const { status, stdout, stderr } = spawnSync(cocoPython, ['-c', program], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    input: JSON.stringify(input),
  })
  assert.is(status, 0, stderr)
  return JSON.parse(stdout)
}
