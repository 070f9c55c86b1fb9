/** COCO's scores of masks. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import type { BoxItem, BoxObject, BoxSource } from '../../src/data/boxes.js'
import { openBoxes } from '../../src/data/boxSources.js'
import { maskRuns } from '../../src/data/instanceMasks.js'
import { maskArea, maskBounds, type RunLengths } from '../../src/data/runLengths.js'
import { cocoMaskScores } from '../../src/eval/cocoMaskScores.js'
import type { CocoScores } from '../../src/eval/cocoBoxScores.js'
import { cocoResults, cocoSegmentation, type Detection } from '../../src/eval/detections.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { Random } from '../../src/tensor/random.js'
import { cocoScores, hasCocoTools, noCocoTools } from '../support/cocoTools.js'
import { hasRealData, noRealData, realData, suite, testWhere } from '../support/suite.js'

const test = suite('scores of masks')

interface Case {
  source: BoxSource
  detections: Detection[]
}
const twelve = ({ apByClass: _, ...numbers }: CocoScores): number[] => Object.values(numbers)
const near = (value: number, expected: number): void => assert.ok(Math.abs(value - expected) <= 1e-12, `${value} instead of ${expected}`)

/** The same mask moved by so many columns and rows at most; what leaves it at the bottom enters the next column. */
function moved(random: Random, { height, width, counts }: RunLengths, most: number): RunLengths {
  const by = height * (random.below(2 * most + 1) - most) + random.below(2 * most + 1) - most
  // An empty mask stays, and one that ends with ones has no room there.
  const room = counts.length % 2 === 1 && counts.length > 1 ? counts.at(-1)! : 0
  const shift = counts.length === 1 ? 0 : Math.max(-counts[0]!, Math.min(room, by))
  return { height, width, counts: counts.map((length, i) => length + (i === 0 ? shift : i === counts.length - 1 ? -shift : 0)) }
}

/** Random objects and detections with all that the rules tell apart: crowds, ties, empty images and classes, odd areas, many of them. */
function randomCase(seed: number): Case {
  const random = new Random(seed, 5)
  const classes = ['a', 'b', 'c', 'd']
  const items = Array.from({ length: 10 }, (_, id): BoxItem => {
    const [width, height] = [120 + random.below(60), 100 + random.below(60)]
    const objects = Array.from({ length: random.below(7) }, (): BoxObject => {
      const [w, h] = [8 + random.below(90), 8 + random.below(90)]
      const [x, y] = [random.below(width - 20), random.below(height - 20)]
      const corner = (): number[] => [x + w * random.uniform(), y + h * random.uniform()]
      const rectangle = [x, y, x, y + h, x + w, y + h, x + w, y]
      const polygons: [number[], ...number[][]] = [random.uniform() < 0.5 ? rectangle : [corner(), corner(), corner(), corner()].flat()]
      if (random.uniform() < 0.3) polygons.push([corner(), corner(), corner()].flat())
      const crowd = random.uniform() < 0.15
      const mask = crowd ? maskRuns({ polygons }, { height, width }) : { polygons }
      // Also areas at the ends of COCO's ranges.
      const area = random.uniform() < 0.2 ? [1024, 9216][random.below(2)]! : maskArea(maskRuns(mask, { height, width }))
      return { label: random.below(3), box: [x, y, x + w, y + h], difficult: false, truncated: false, crowd, area, mask }
    })
    return { name: `${id}.jpg`, kind: 'file', path: '', id: String(id + 1), width, height, objects: random.uniform() < 0.1 ? [] : objects }
  })
  const detections = items.flatMap(({ objects, height, width }, image) => {
    const many = image === 0 ? 25 : 3
    return objects.flatMap((object) =>
      Array.from({ length: random.below(many + 1) }, (): Detection => {
        const mask = moved(random, maskRuns(object.mask!, { height, width }), random.below(8))
        const [x, y, w, h] = maskBounds(mask)
        const label = random.uniform() < 0.1 ? 3 : object.label
        return { image, label, score: random.below(20) / 20, box: [x, y, x + w, y + h], mask }
      }),
    )
  })
  return { source: { layout: 'coco', classes, items, skipped: [], masks: true }, detections }
}

/** A case in the form of COCO's files; results without boxes, of which pycocotools would take the areas. */
function cocoFiles({ source, detections }: Case): unknown[] {
  let id = 0
  return [
    {
      images: source.items.map((each) => ({ id: Number(each.id), width: each.width, height: each.height })),
      categories: source.classes.map((name, i) => ({ id: i + 1, name })),
      annotations: source.items.flatMap((each) =>
        each.objects.map(({ label, box: [x1, y1, x2, y2], area, crowd, mask }) => ({
          id: ++id,
          image_id: Number(each.id),
          category_id: label + 1,
          bbox: [x1, y1, x2 - x1, y2 - y1],
          area,
          iscrowd: Number(crowd),
          segmentation: 'polygons' in mask! ? mask.polygons : { size: [mask!.height, mask!.width], counts: [...mask!.counts] },
        })),
      ),
    },
    cocoResults({ ...source, categoryIds: source.classes.map((_, i) => i + 1) }, detections).map(({ bbox: _, ...each }) => each),
  ]
}

/** What pycocotools 2.0.11 said of random cases 1 to 8: for machines without it. */
const recorded = join(packageRoot, 'tests', 'fixtures', 'detection', 'cocoMaskScores.json')
const seeds = Array.from({ length: 8 }, (_, i) => i + 1)

test('the twelve numbers are those that pycocotools gave for random cases with crowds, ties, empty images and classes', () => {
  const expected = JSON.parse(readFileSync(recorded, 'utf8')) as number[][]
  for (const [i, seed] of seeds.entries()) {
    const { source, detections } = randomCase(seed)
    twelve(cocoMaskScores(source, detections)).forEach((value, n) => near(value, expected[i]![n]!))
  }
})

testWhere(hasCocoTools, noCocoTools, test, 'pycocotools agrees today', () => {
  const random = Number(process.env.DENSECL_TEST_SEED ?? Date.now() % 1e9)
  console.log(`seed ${random}: DENSECL_TEST_SEED=${random} tries the same`)
  const cases = [...seeds, ...seeds.map((seed) => random + seed)].map(randomCase)
  const expected = cocoScores(cases.map(cocoFiles), 'segm')
  if (process.env.DENSECL_WRITE_COCO !== undefined) writeFileSync(recorded, `${JSON.stringify(expected.slice(0, seeds.length))}\n`)
  cases.forEach(({ source, detections }, i) =>
    twelve(cocoMaskScores(source, detections)).forEach((value, n) => near(value, expected[i]![n]!)),
  )
})

test('masks that are those of the objects score one; a detection or an object without mask overlaps nothing', () => {
  const { source } = randomCase(3)
  const detections = source.items.flatMap((item, image) =>
    item.objects
      .filter(({ crowd }) => !crowd)
      .map(({ label, box, mask }): Detection => ({ image, label, box, score: 0.5, mask: maskRuns(mask!, item) })),
  )
  const empty = source.items.flatMap(({ objects, ...item }) =>
    objects.filter(({ mask, crowd }) => !crowd && maskArea(maskRuns(mask!, item)) === 0),
  ).length
  assert.is(empty, 0, 'every object has a pixel')
  assert.ok(cocoMaskScores(source, detections).ap > 0.99)
  assert.is(
    cocoMaskScores(
      source,
      detections.map(({ mask: _, ...each }) => each),
    ).ap,
    0,
  )
  const items = source.items.map((item) => ({ ...item, objects: item.objects.map(({ mask: _, ...each }) => each) }))
  assert.is(cocoMaskScores({ ...source, items }, detections).ap, 0)
})

test('results have masks in the form of COCO’s files', () => {
  const mask = { height: 3, width: 4, counts: Uint32Array.from([2, 3, 7]) }
  assert.equal(cocoSegmentation(mask), { size: [3, 4], counts: '237' })
  const source = randomCase(1).source
  const [plain, masked] = cocoResults(source, [
    { image: 0, label: 0, box: [1, 2, 3, 4], score: 1 },
    { image: 0, label: 0, box: [1, 2, 3, 4], score: 1, mask },
  ])
  assert.not('segmentation' in plain!)
  assert.equal(masked!.segmentation, cocoSegmentation(mask))
})

testWhere(
  hasRealData && hasCocoTools,
  hasRealData ? noCocoTools : noRealData,
  test,
  'real annotations with crowds, as pycocotools scores them',
  () => {
    const source = openBoxes(join(realData, 'coco_instances'), ['val2017'], { masks: true })
    const random = new Random(3, 6)
    const detections = source.items.flatMap((item, image) =>
      item.objects.map(({ box, label, mask }): Detection => ({
        image,
        label,
        box,
        score: random.uniform(),
        mask: moved(random, maskRuns(mask!, item), 6),
      })),
    )
    const [expected] = cocoScores([cocoFiles({ source, detections })], 'segm')
    const scores = twelve(cocoMaskScores(source, detections))
    scores.forEach((value, n) => near(value, expected![n]!))
    assert.ok(scores[0]! > 0.1 && scores[0]! < 0.9)
  },
)

test.run()
