/** Studies of seconds: what arms differ in, that all of it is there, that it goes on where it was killed, and what is refused. */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'
import { parse } from 'yaml'

import { pageBody } from '../../src/report/page.js'
import { viewRun } from '../../src/report/runView.js'
import { settingsOf } from '../../src/run/options.js'
import { armNames, armOf, arms, chosenArms } from '../../src/study/arms.js'
import { planPath, readPlan } from '../../src/study/plan.js'
import { writeStudy } from '../../src/study/results.js'
import { type StudySize, studySizes } from '../../src/study/sizes.js'
import { configsOf, runStudy, type StudyOptions, type StudyResult } from '../../src/study/study.js'
import { Random } from '../../src/tensor/random.js'
import { rejectsError, suite, throwsError, withFolder } from '../support/suite.js'
import { colourPng, drawn, writeVocTree } from '../support/vocTree.js'

const test = suite('study')

/** A network of 4 channels on 6 + 4 drawings of two classes, grid 4x4; two masked trees. */
const size: StudySize = {
  ...studySizes.smoke!,
  config: {
    ...{ depth: 18, baseChannels: 4, strides: [1, 2, 1, 1], imageSize: 32, batchSize: 2, epochs: 1, lr: 0.02, denseWeight: 0.25 },
    ...{ queueLength: 8, featDim: 8, hidden: 8, denseEvery: 1, logEvery: 1, workers: 1 },
  },
  seeds: 2,
  equalTime: 1.4,
  correspondence: { images: 4 },
  objects: { window: 32, windows: 1 },
  scenes: { window: 32, windows: 1 },
}

function writeData(folder: string): Pick<StudyOptions, 'images' | 'segmentation'> {
  const images = join(folder, 'images')
  for (const [split, count] of [
    ['train', 3],
    ['val', 2],
  ] as const)
    for (const name of ['a', 'b']) {
      mkdirSync(join(images, split, name), { recursive: true })
      for (let i = 0; i < count; ++i)
        writeFileSync(join(images, split, name, `${i}.png`), colourPng(drawn(new Random(i, name.charCodeAt(0)), 40, 36).rgb, 40, 36))
    }
  const trees = ['objects', 'scenes'].map((name) => join(folder, name))
  for (const tree of trees) {
    mkdirSync(tree)
    writeVocTree(tree, { train: 2, val: 2, width: 40, height: 36 })
  }
  writeFileSync(join(trees[1]!, 'classes.txt'), ['road', 'red', 'green', 'blue'].map((name, i) => `${i} ${name}\n`).join(''))
  return { images, segmentation: trees }
}

const optionsIn = (
  folder: string,
  data: Pick<StudyOptions, 'images' | 'segmentation'>,
  more: Partial<StudyOptions> = {},
): StudyOptions => ({
  ...{ size, sizeName: 'test', arms: ['mocov2-scaled', 'geometry-image'], seeds: 2, ...data },
  ...{ also: [], out: join(folder, 'study'), settings: [], line: () => undefined },
  ...more,
})

const finished = async (options: StudyOptions): Promise<StudyResult> => {
  const result = await runStudy(options)
  if (result === 'interrupted') throw new Error('it was interrupted')
  return result
}

test('arms differ in what they say they set, and in nothing else', async () => {
  const all = optionsIn('/nowhere', { images: '/images', segmentation: [] }, { arms: armNames })
  const configs = await configsOf(all)
  const base = { lr: 0.02, denseWeight: 0.25, epochs: 1, equalTime: 1.4 }
  const common: Record<string, unknown> = configs.get('random')!
  for (const [arm, config] of configs) assert.equal({ ...config }, { ...common, ...armOf(arm).sets(base) }, arm)
  // The control's learning rate is what the weight of the global loss leaves of it; equal time rounds up.
  assert.equal(arms['mocov2-scaled'].sets(base), { denseWeight: 0, lr: 0.015 })
  assert.equal(arms['mocov2-time'].sets(base), { denseWeight: 0, lr: 0.015, epochs: 2 })
  // No two trained arms are the same.
  const different = new Set([...configs].map(([arm, config]) => (arm === 'random' ? '' : JSON.stringify(config))))
  assert.is(different.size, armNames.length)
  // Those of the sizes are sound, and their grid is at least 7 x 7.
  for (const [name, own] of Object.entries(studySizes)) {
    const { imageSize, strides } = (await configsOf({ ...all, size: own })).get('geometry-image')!
    assert.ok(imageSize / (4 * strides.reduce((product, stride) => product * stride, 1)) >= 7, name)
  }
})

test('a study of seconds has plan, runs, tables, plot and a page; again it makes nothing new', async () => {
  await withFolder(async (folder) => {
    const states: number[] = []
    const options = optionsIn(folder, writeData(folder))
    const result = await finished({
      ...options,
      done: async (found) => {
        states.push(found.left)
        await writeStudy(options.out, found)
      },
    })
    assert.equal(states, [3, 2, 1, 0])
    assert.is(result.rows.length, 4)
    const names = ['correspondence', 'correspondence, near', 'object AUC, objects', 'kNN', 'frozen mIoU, scenes']
    for (const { scores, arm } of result.rows) {
      assert.equal(Object.keys(scores), names, arm)
      for (const [name, value] of Object.entries(scores)) assert.ok(value >= 0 && value <= 100, `${arm} ${name} ${value}`)
    }
    // What needs no look is the same for all networks of a seed.
    const blind = result.rows.filter(({ seed }) => seed === 1).map((row) => JSON.stringify(row.blind))
    assert.is(new Set(blind).size, 1)

    const plan = readPlan(planPath(options.out))
    assert.equal(plan.primary, ['correspondence', 'object AUC, objects'])
    assert.equal([plan.seeds, plan.size, Object.keys(plan.arms)], [2, 'test', options.arms])
    assert.match(plan.win, 'every control in every seed')
    const run = join(options.out, 'pretrain', 'mocov2-scaled-seed1')
    const said = parse(readFileSync(join(run, 'arm.yaml'), 'utf8')) as Record<string, unknown>
    assert.equal([said.arm, said.seed, said.sets], ['mocov2-scaled', 1, { denseWeight: 0, lr: 0.015 }])

    const { tables } = await writeStudy(options.out, result)
    assert.equal(tables[0]!.columns, ['', 'MoCo v2, lr (1 - λ)', 'geometry, in image', 'without a look'])
    assert.is(tables[1]!.rows.length, names.length)
    assert.match(tables[1]!.rows[0]![1] as string, /^[+-][\d.]+ ± [\d.]+ \([0-2]\/2\)$/)

    const view = (await viewRun(options.out))!
    const body = pageBody([view], [], () => 'data:,')
    for (const words of ['Frozen features in %', 'Differences in points', 'Places found again', 'geometry-image', 'mocov2-scaled'])
      assert.match(body, words)
    assert.equal(
      view.parts.map(({ run: { name } }) => name),
      ['geometry-image-seed0', 'geometry-image-seed1', 'mocov2-scaled-seed0', 'mocov2-scaled-seed1'],
    )

    const lines: string[] = []
    const again = await finished({ ...options, line: (text) => lines.push(text) })
    assert.equal(again.rows, result.rows)
    assert.not.ok(lines.some((text) => text.includes('pretrain')))
  })
})

test('a study that is killed anywhere goes on, and gives what it would have given', async () => {
  await withFolder(async (folder) => {
    const options = optionsIn(folder, { ...writeData(folder), segmentation: [] }, { arms: ['random', 'geometry-image'], seeds: 1 })
    const whole = await finished({ ...options, out: join(folder, 'whole') })
    let rounds = 0
    for (let found: StudyResult | 'interrupted' = 'interrupted'; found === 'interrupted'; ++rounds) {
      assert.ok(rounds < 40, 'it never ends')
      let asked = 0
      const most = 1 + 4 * rounds
      found = await runStudy({ ...options, interrupted: () => ++asked > most })
      if (found !== 'interrupted') assert.equal(found.rows, whole.rows)
      // A kill leaves no table behind, and the last measure undone.
      const evaluations = join(options.out, 'pretrain', 'geometry-image-seed0', 'eval')
      const kept = existsSync(evaluations) ? readdirSync(evaluations).filter((name) => name.startsWith('study-')) : []
      if (found === 'interrupted' && kept.length > 1) rmSync(join(evaluations, kept[0]!))
    }
    assert.ok(rounds > 1, `${rounds} rounds`)
  })
})

test('seeds, arms and measures may be added to a plan, which remembers it; anything else is another study', async () => {
  await withFolder(async (folder) => {
    const data = writeData(folder)
    const options = optionsIn(folder, data, { arms: ['random'], seeds: 1, segmentation: [] })
    await finished(options)
    const { begun } = readPlan(planPath(options.out))
    await finished({ ...options, seeds: 2 })
    const grown = readPlan(planPath(options.out))
    assert.equal([grown.begun, grown.seeds, grown.added.map(({ what }) => what)], [begun, 2, ['seeds 1 to 1']])
    await rejectsError(() => runStudy(options), 'CONFIG', /plan\.yaml: the study has 2 seeds, and now 1/)
    await rejectsError(() => runStudy({ ...options, seeds: 2, ...data }), 'CONFIG', /plan\.yaml: data\.\w+\S* was .* and is now/)
    await rejectsError(() => runStudy({ ...options, seeds: 2, arms: ['mocov2'] }), 'CONFIG', /has the arm random/)
    const settings = settingsOf({ lr: 0.5 }, 'lr=0.5')
    await rejectsError(() => runStudy({ ...options, seeds: 2, settings }), 'CONFIG', /settings was \[\] and is now \["lr=0.5"\]/)
    writeFileSync(planPath(options.out), 'seeds: many')
    await rejectsError(() => runStudy(options), 'CONFIG', /plan\.yaml: no plan of a study/)
  })
})

test('a run that diverges is left out and named, and the others are made', async () => {
  await withFolder(async (folder) => {
    const options = optionsIn(folder, { ...writeData(folder), segmentation: [] }, { seeds: 1, arms: ['random', 'geometry'] })
    const result = await finished({ ...options, settings: settingsOf({ lr: 1e30 }, 'lr=1e30') })
    assert.equal(
      result.failed.map(({ arm }) => arm),
      ['geometry'],
    )
    const { tables } = await writeStudy(options.out, result)
    assert.ok(tables[0]!.notes.some((note) => /left out: geometry, seed 0: .*not a number/.test(note)))
  })
})

test('what leaves nothing to compare, or would do nothing, is refused with what was expected', async () => {
  const options = optionsIn('/nowhere', { images: '/images', segmentation: [] }, { arms: armNames })
  const refused = (values: Record<string, unknown>, ...words: RegExp[]): Promise<void> => {
    const [text] = Object.entries(values).map(([key, value]) => `${key}=${String(value)}`)
    return rejectsError(() => configsOf({ ...options, settings: settingsOf(values, text!) }), 'CONFIG', ...words)
  }
  await refused({ denseWeight: 0 }, /denseWeight is 0: expected a weight/)
  await refused({ denseWeight: 1 }, /denseWeight is 1: expected less/)
  await refused({ denseMatch: 'feature' }, /denseMatch=feature: expected no denseMatch, which the arms set/)
  await refused({ seed: 3 }, /seed=3: expected no seed/)
  await refused({ lrr: 3 }, /unknown option lrr/)
  throwsError(() => chosenArms(['mocov2', 'geometri']), 'CONFIG', /--arms is geometri: expected one of .*did you mean geometry/)
  throwsError(() => chosenArms([]), 'CONFIG', /--arms names none/)
  assert.equal(chosenArms(['geometry', 'random']), ['random', 'geometry'])
  await withFolder(async (folder) => {
    const data = writeData(folder)
    const [tree] = data.segmentation
    await rejectsError(() => runStudy(optionsIn(folder, { ...data, segmentation: [tree!, tree!] })), 'CONFIG', /two folders objects/)
    await rejectsError(() => runStudy(optionsIn(folder, data, { also: ['svm'] })), 'CONFIG', /svm: expected a VOC tree/)
    assert.not.ok(existsSync(join(folder, 'study')))
  })
})

test.run()
