/** The programs of examples/: they run, learn what they say, and free every tensor that they make. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { openBoxes } from '../../src/data/boxSources.js'
import { openSegmentation, openSource, scene, sceneClasses } from '../../src/data/index.js'
import { suite, withFolder } from '../support/suite.js'

const test = suite('programs')

/** Says at the end of the process how many tensors are left. */
const counting = `data:text/javascript,${encodeURIComponent(
  `import { leakedTensors, memory } from '${pathToFileURL(join(packageRoot, 'dist', 'src', 'engine.js')).href}'
   import { isMainThread } from 'node:worker_threads'
   if (isMainThread) process.on('exit', () => console.error(JSON.stringify([memory('cpu').handles, leakedTensors()])))`,
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
const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length

test('scenesFolders: a folder for each class, with as many pictures in each', () =>
  withFolder(async (folder) => {
    assert.match(run('scenesFolders', folder, '20', '10'), '20 pictures for training, 10 for testing, of 10 classes')
    const { items, classes = [] } = await openSource(join(folder, 'train'))
    const perClass = classes.map((_, label) => items.filter((item) => item.label === label).length)
    assert.equal([classes, perClass], [sceneClasses.map((name) => name.replaceAll(' ', '-')).sort(), classes.map(() => 2)])
  }))

test('scenesTree: what it writes is read as it was drawn, by segmentation and by detection', () =>
  withFolder((folder) => {
    assert.match(run('scenesTree', folder, '6', '3'), '6 pictures for training, 3 for testing')
    const { items, classes } = openSegmentation(folder, ['val'])
    assert.equal([items.length, classes], [3, ['background', 'object']])
    const boxes = openBoxes(folder, ['train'])
    assert.is(boxes.items.length, 6)
    boxes.items.forEach(({ objects }, i) =>
      assert.equal(
        objects.map(({ box }) => [...box]),
        [scene(100, i).box],
      ),
    )
  }))

test('classifier: the loss falls, and it is right far above chance on images that it has not seen', () => {
  const out = run('classifier')
  const losses = numbers(out, /loss ([\d.]+)/g)
  assert.is(losses.length, 6, out)
  assert.ok(losses.at(-1)! < 0.85 * losses[0]!, out)
  const [accuracy] = numbers(out, /^([\d.]+) % of 300 other images/gm)
  assert.ok(accuracy! > 25, out)
  assert.match(out, /chance is 10\.0 %/)
})

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

test('simclr: the loss falls below what guessing costs', () => {
  const out = run('simclr')
  const losses = numbers(out, /loss ([\d.]+)/g)
  const [guessing] = numbers(out, /guessing costs ln\(2N - 1\) = ([\d.]+)/g)
  assert.is(losses.length, 40, out)
  assert.ok(mean(losses.slice(-5)) < mean(losses.slice(0, 5)) - 0.2, out)
  assert.ok(mean(losses.slice(-5)) < guessing! - 0.2, out)
})

test('negativeCosine: the predictor learns to point to its targets', () => {
  const losses = numbers(run('negativeCosine'), /loss (-?[\d.]+)/g)
  assert.is(losses.length, 5)
  assert.ok(losses[0]! > -0.7 && losses.at(-1)! < -0.99, losses.join(' '))
})

test.run()
