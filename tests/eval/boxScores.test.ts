import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { type Box, boxArea, type BoxItem, type BoxObject, type BoxSource } from '../../src/data/boxes.js'
import { openBoxes } from '../../src/data/boxSources.js'
import { cocoBoxScores, type CocoScores } from '../../src/eval/cocoBoxScores.js'
import type { Detection } from '../../src/eval/detections.js'
import { printed, vocBoxScores, vocRules } from '../../src/eval/vocBoxScores.js'
import { Random } from '../../src/tensor/random.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { cocoScores, hasCocoTools, noCocoTools } from '../support/cocoTools.js'
import { hasModules, python, runPython } from '../support/python.js'
import { hasRealData, noRealData, realData, suite, testWhere } from '../support/suite.js'

const test = suite('scores of boxes')

type Truth = Pick<BoxSource, 'items' | 'classes'>
const object = (box: Box, more: Partial<BoxObject> = {}): BoxObject => ({
  label: 0,
  box,
  difficult: false,
  truncated: false,
  crowd: false,
  area: boxArea(box),
  ...more,
})
const image = (id: number, objects: BoxObject[]): BoxItem => ({
  name: `${id}.jpg`,
  kind: 'file',
  path: `${id}.jpg`,
  id: String(id),
  width: 400,
  height: 300,
  objects,
})
const near = (value: number, expected: number, bound = 1e-12): void =>
  assert.ok(Math.abs(value - expected) <= bound, `${value} instead of ${expected}`)

/** Random objects and detections with everything that the rules tell apart: crowds, ties, empty images, absent classes, odd areas. */
function randomCase(seed: number): { source: Truth; detections: Detection[] } {
  const random = new Random(seed, 1)
  const classes = ['a', 'b', 'c', 'd']
  // Quarters of pixels are exact in every sum, so that overlaps of exactly one half are too.
  const box = (): Box => {
    const [w, h] = [4 * (1 + random.below(40)), 4 * (1 + random.below(40))].map((side) => (random.uniform() < 0.3 ? 32 : side)) as [
      number,
      number,
    ]
    const [x, y] = [random.below(800) / 4, random.below(600) / 4]
    return [x, y, x + w, y + h]
  }
  const items = Array.from({ length: 12 }, (_, id) =>
    image(
      id + 1,
      Array.from({ length: random.below(7) }).flatMap(() => {
        const [x1, y1, x2, y2] = box()
        const half = (x2 - x1) / 2
        const label = random.below(3)
        const beside: Box[] = random.uniform() < 0.3 ? [[x1 + half, y1, x2 + half, y2]] : []
        return [[x1, y1, x2, y2] as Box, ...beside].map((own) => {
          const area = random.uniform() < 0.3 ? 1024 : random.uniform() < 0.2 ? 9216 : boxArea(own) * 0.7
          return object(own, { label, crowd: random.uniform() < 0.15, area })
        })
      }),
    ),
  )
  const detections = items.flatMap(({ objects }, at): Detection[] => {
    if (random.uniform() < 0.15) return []
    const wild = Array.from({ length: random.below(12) + (at === 3 ? 130 : 0) }, () => ({ box: box(), label: random.below(4) }))
    const close = objects.flatMap(({ box: [x1, y1, x2, y2], label }) =>
      Array.from({ length: random.below(4) }, () => {
        const move = (): number => (random.below(17) - 8) / 4
        return { box: [x1 + move(), y1 + move(), Math.max(x2 + move(), x1 + 3), Math.max(y2 + move(), y1 + 3)] as const, label }
      }),
    )
    // Overlaps of exactly one half, and of 0.6 with two objects at once.
    const exact = objects.flatMap(({ box: [x1, y1, x2, y2], label }) => {
      const half = (x2 - x1) / 2
      return random.uniform() < 0.5
        ? []
        : [
            { box: [x1, y1, x1 + half, y2] as const, label },
            { box: [x1 + half / 2, y1, x2 + half / 2, y2] as const, label },
          ]
    })
    return [...wild, ...close, ...exact].map((each) => ({ ...each, image: at, score: random.below(20) / 20 }))
  })
  return { source: { items, classes }, detections }
}

/** A case in the form of COCO's files. */
function cocoFiles({ source, detections }: { source: Truth; detections: Detection[] }): unknown[] {
  const xywh = ([x1, y1, x2, y2]: Box): number[] => [x1, y1, x2 - x1, y2 - y1]
  let id = 0
  return [
    {
      images: source.items.map((each) => ({ id: Number(each.id), width: each.width, height: each.height })),
      categories: source.classes.map((name, i) => ({ id: i + 1, name })),
      annotations: source.items.flatMap((each) =>
        each.objects.map(({ label, box, area, crowd }) => ({
          id: ++id,
          image_id: Number(each.id),
          category_id: label + 1,
          bbox: xywh(box),
          area,
          iscrowd: Number(crowd),
        })),
      ),
    },
    detections.map(({ image: at, label, box, score }) => ({
      image_id: Number(source.items[at]!.id),
      category_id: label + 1,
      bbox: xywh(box),
      score,
    })),
  ]
}
const twelve = ({ apByClass: _, ...numbers }: CocoScores): number[] => Object.values(numbers)

/** What pycocotools 2.0.11 said of random cases 1 to 12: for machines without it. */
const recorded = join(packageRoot, 'tests', 'fixtures', 'detection', 'cocoScores.json')
const seeds = Array.from({ length: 12 }, (_, i) => i + 1)

test('COCO: the twelve numbers are those that pycocotools gave for random cases with crowds, ties and empty images', () => {
  const expected = JSON.parse(readFileSync(recorded, 'utf8')) as number[][]
  for (const [i, seed] of seeds.entries()) {
    const { source, detections } = randomCase(seed)
    twelve(cocoBoxScores(source, detections)).forEach((value, n) => near(value, expected[i]![n]!))
  }
})

testWhere(hasCocoTools, noCocoTools, test, 'COCO: pycocotools agrees today', () => {
  const random = Number(process.env.DENSECL_TEST_SEED ?? Date.now() % 1e9)
  console.log(`seed ${random}: DENSECL_TEST_SEED=${random} tries the same`)
  const cases = [...seeds, ...seeds.map((seed) => random + seed)].map(randomCase)
  const expected = cocoScores(cases.map(cocoFiles), 'bbox')
  if (process.env.DENSECL_WRITE_COCO !== undefined) writeFileSync(recorded, `${JSON.stringify(expected.slice(0, seeds.length))}\n`)
  cases.forEach(({ source, detections }, i) =>
    twelve(cocoBoxScores(source, detections)).forEach((value, n) => near(value, expected[i]![n]!)),
  )
})

test('COCO: one of two objects found is 51 of 101 recalls; a perfect result is a hair below one; nothing to find is -1', () => {
  const items = [image(1, [object([10, 10, 60, 60]), object([100, 100, 180, 180])])]
  const source = { items, classes: ['a', 'b'] }
  const perfect = items[0]!.objects.map(({ box }, i) => ({ image: 0, label: 0, box, score: 0.9 - i / 10 }))
  near(cocoBoxScores(source, perfect.slice(0, 1)).ap, 51 / 101)
  const best = cocoBoxScores(source, perfect)
  near(best.ap, 1, 1e-15)
  assert.is(best.apSmall, -1)
  assert.is(best.apByClass[1], -1)
  assert.is(cocoBoxScores({ ...source, items: [image(1, [])] }, perfect).ap, -1)
})

test('both metrics depend on the order of scores alone, and never rise by a wrong detection of low score', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 30 }), (seed) => {
      const { source, detections } = randomCase(seed)
      const scores = (found: Detection[]): number[] => [
        ...twelve(cocoBoxScores(source, found)),
        ...vocBoxScores(source, found, vocRules.mmdet).mean,
      ]
      const plain = scores(detections)
      assert.equal(scores(detections.map((each) => ({ ...each, score: Math.exp(each.score) / 3 }))), plain)
      const wrong = source.items.map((_, at): Detection => ({ image: at, label: 0, box: [300, 250, 301, 251], score: -1 }))
      scores([...detections, ...wrong]).forEach((value, i) => assert.ok(value <= plain[i]! + 1e-12))
    }),
    { numRuns: 20 },
  )
})

const voc = (objects: BoxObject[], found: [score: number, box: Box][], rules: (typeof vocRules)[keyof typeof vocRules]): number =>
  vocBoxScores(
    { items: [image(1, objects)], classes: ['a'] },
    found.map(([score, box]) => ({ image: 0, label: 0, score, box })),
    rules,
  ).mean[0]!

test('VOC: difficult objects count for nothing, a second hit of an object is wrong, and so is the lower of two in order', () => {
  const [there, hard]: Box[] = [
    [0, 0, 10, 10],
    [50, 50, 80, 80],
  ]
  const objects = [object(there!), object(hard!, { difficult: true })]
  for (const rules of [vocRules.detectron2, vocRules.mmdet]) {
    near(
      voc(
        objects,
        [
          [0.9, hard!],
          [0.8, hard!],
          [0.5, there!],
        ],
        rules,
      ),
      1,
    )
    near(
      voc(
        objects,
        [
          [0.9, there!],
          [0.8, there!],
        ],
        rules,
      ),
      1,
    )
    near(
      voc(
        [object(there!), object([20, 20, 30, 30])],
        [
          [0.9, there!],
          [0.8, there!],
          [0.7, [20, 20, 30, 30]],
        ],
        rules,
      ),
      (6 + 5 * (2 / 3)) / 11,
    )
    near(
      voc(
        objects,
        [
          [0.9, [200, 200, 220, 220]],
          [0.8, there!],
        ],
        rules,
      ),
      0.5,
    )
  }
})

test('VOC: thin boxes beside each other overlap in nothing, as little as those below or far away', () => {
  // A pixel wide or high, as inclusive corners have it.
  for (const [box, other] of [
    [
      [10, 10, 10, 39],
      [14, 10, 14, 39],
    ],
    [
      [10, 10, 39, 10],
      [10, 14, 39, 14],
    ],
    [
      [10, 10, 10, 10],
      [14, 14, 14, 14],
    ],
  ] as [Box, Box][]) {
    const none = { truthShift: [0, 0, 0, 0], detectionShift: [0, 0, 0, 0] } as const
    const found = (at: Box): number =>
      vocBoxScores({ items: [image(1, [object(box)])], classes: ['a'] }, [{ image: 0, label: 0, score: 1, box: at }], {
        ...vocRules.mmdet,
        ...none,
      }).mean[0]!
    assert.equal([found(box), found(other)], [1, 0])
  }
})

test('VOC: an overlap of exactly one half is none for detectron2 and one for mmdetection, whose corners are a pixel apart', () => {
  // In detectron2's form continuous lengths are VOC's: 10 x 10 in 20 x 10. In mmdetection's they are one more for what was found.
  near(voc([object([0, 0, 20, 10])], [[0.9, [0, 0, 10, 10]]], vocRules.detectron2), 0)
  near(voc([object([0, 0, 20, 10])], [[0.9, [0, 0, 10.2, 10]]], vocRules.detectron2), 1)
  near(voc([object([0, 0, 20, 10])], [[0.9, [0, 0, 9, 9]]], vocRules.mmdet), 1)
  near(voc([object([0, 0, 20, 10])], [[0.9, [0, 0, 8.9, 9]]], vocRules.mmdet), 0)
})

testWhere(hasModules(python), `there is no ${python}`, test, 'numbers are printed as C prints them: ties to the even digit', () => {
  const cases = fc.sample(
    fc.oneof(
      fc.double({ min: -2000, max: 2000, noNaN: true }),
      fc.integer({ min: -8000, max: 8000 }).map((n) => n / 16),
    ),
    { numRuns: 2000, seed: 7 },
  )
  const expected = JSON.parse(
    runPython('import json,sys;print(json.dumps([[float("%.1f"%v),float("%.3f"%v)] for v in json.loads(sys.argv[1])]))', [
      JSON.stringify(cases),
    ]),
  ) as [number, number][]
  cases.forEach((value, i) =>
    assert.equal(
      [printed(value, 1), printed(value, 3)],
      expected[i]!.map((each) => each),
      String(value),
    ),
  )
})

testWhere(hasRealData, noRealData, test, 'detections with a known mean: both forms, at two overlaps', () => {
  const folder = join(realData, 'metric_fixtures', 'detection_map')
  const reference = JSON.parse(readFileSync(join(folder, 'reference.json'), 'utf8')) as Record<string, number>
  const lines = (kind: string, name: string): string[][] => {
    const path = join(folder, kind, name)
    if (!existsSync(path)) return []
    return readFileSync(path, 'utf8')
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .filter((parts) => parts.length > 4)
  }
  const names = readdirSync(join(folder, 'ground-truth'))
  const classes = [...new Set(names.flatMap((name) => lines('ground-truth', name).map(([label]) => label!)))]
  const corners = (parts: string[]): Box => parts.slice(0, 4).map(Number) as unknown as Box
  const items = names.map((name, i) =>
    image(
      i,
      lines('ground-truth', name).map(([label, ...rest]) =>
        object(corners(rest), { label: classes.indexOf(label!), difficult: rest[4] === 'difficult' }),
      ),
    ),
  )
  const detections = names.flatMap((name, at) =>
    lines('detection-results', name).flatMap(([label, score, ...rest]): Detection[] =>
      classes.includes(label!) ? [{ image: at, label: classes.indexOf(label!), score: Number(score), box: corners(rest) }] : [],
    ),
  )
  for (const [form, key] of [
    ['area', 'all_points'],
    ['11-point', '11_point'],
  ] as const) {
    const none: Box = [0, 0, 0, 0]
    const rules = { overlaps: [0.5, 0.75], inclusive: true, form, truthShift: none, detectionShift: none }
    const { mean } = vocBoxScores({ items, classes }, detections, rules)
    near(mean[0]!, reference[`mAP@0.5_${key}`]!)
    near(mean[1]!, reference[`mAP@0.75_${key}`]!)
  }
})

testWhere(hasRealData && hasCocoTools, noCocoTools, test, 'COCO: real annotations with crowds, as pycocotools scores them', () => {
  const source = openBoxes(join(realData, 'coco_instances'), ['val2017'])
  const random = new Random(3, 2)
  const detections = source.items.flatMap(({ objects }, at) =>
    objects.map(({ box, label }): Detection => {
      const [w, h] = [box[2] - box[0], box[3] - box[1]]
      const move = (side: number): number => 0.15 * side * random.normal()
      const moved: Box = [
        box[0] + move(w),
        box[1] + move(h),
        Math.max(box[2] + move(w), box[0] + 1),
        Math.max(box[3] + move(h), box[1] + 1),
      ]
      return { image: at, label, score: random.uniform(), box: moved }
    }),
  )
  const [expected] = cocoScores([cocoFiles({ source, detections })], 'bbox')
  twelve(cocoBoxScores(source, detections)).forEach((value, n) => near(value, expected![n]!))
})

test.run()
