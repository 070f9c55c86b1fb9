/** pycocotools, where a Python has it: the oracle of masks and scores. */
import { spawnSync } from 'node:child_process'

import * as assert from 'uvu/assert'
import { hasModules, otherPython } from './python.js'

export const hasCocoTools = hasModules(otherPython, 'pycocotools')
export const noCocoTools = 'pycocotools is not installed (DENSECL_PYTHON names a Python that has it)'

/** What a Python program with pycocotools prints as JSON when it is given `input` as JSON. */
export function runCocoTools(program: string, input: unknown): unknown {
  const { status, stdout, stderr } = spawnSync(otherPython, ['-c', program], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    input: JSON.stringify(input),
  })
  assert.is(status, 0, stderr)
  return JSON.parse(stdout)
}

const scoring = `
import contextlib, io, json, sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
out = []
given = json.load(sys.stdin)
for truth, found in given['cases']:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(); coco.dataset = truth; coco.createIndex()
        e = COCOeval(coco, coco.loadRes(found), given['type']); e.evaluate(); e.accumulate(); e.summarize()
    out.append(list(e.stats))
print(json.dumps(out))`

/** The twelve numbers of each case, annotations and results in the form of COCO's files. */
export const cocoScores = (cases: unknown, type: 'bbox' | 'segm'): number[][] => runCocoTools(scoring, { cases, type }) as number[][]
