/** The programs of examples/: they run, learn what they say, and free every tensor that they make. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/native.js'
import { suite } from '../support/suite.js'

const test = suite('programs')

/** Says at the end of the process how many tensors are left. */
const counting = `data:text/javascript,${encodeURIComponent(
  `import { leakedTensors, memory } from '${pathToFileURL(join(packageRoot, 'dist', 'src', 'engine.js')).href}'
   process.on('exit', () => console.error(JSON.stringify([memory('cpu').handles, leakedTensors()])))`,
)}`

/** What an example prints; fails when it fails or leaves tensors. */
function run(example: string, ...args: string[]): string {
  const program = join(packageRoot, 'dist', 'examples', `${example}.js`)
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--import', counting, program, ...args], { encoding: 'utf8' })
  assert.is(status, 0, stderr)
  assert.is(stderr.trim(), '[0,0]', 'tensors that are left, and that were collected')
  return stdout
}

const numbers = (text: string, pattern: RegExp): number[] => [...text.matchAll(pattern)].map(([, number]) => Number(number))

test('matches: places of a scene are found in a part of it where they are', () => {
  const out = run('matches')
  const pairs = [...out.matchAll(/\((\d+), (\d+)\) -> \((\d+), (\d+)\) {2}cosine similarity ([\d.]+)/g)].map((match) =>
    match.slice(1).map(Number),
  )
  assert.is(pairs.length, 10, out)
  for (const [x, y, otherX, otherY] of pairs) assert.equal([x! - otherX!, y! - otherY!], [16, 8], out)
  const [mutual] = numbers(out, /^(\d+) of 144 places/gm)
  assert.ok(mutual! > 50, out)
})

test('negativeCosine: the predictor learns to point to its targets', () => {
  const losses = numbers(run('negativeCosine'), /loss (-?[\d.]+)/g)
  assert.is(losses.length, 5)
  assert.ok(losses[0]! > -0.7 && losses.at(-1)! < -0.99, losses.join(' '))
})

test.run()
