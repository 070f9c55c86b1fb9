/** Masks in COCO's annotation files: what is read, what is left out and counted, what is refused. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { type BoxReading, BoxFaults, type BoxSource } from '../../src/data/boxes.js'
import { openBoxes } from '../../src/data/boxSources.js'
import { maskRuns } from '../../src/data/instanceMasks.js'
import { maskArea, writeRuns } from '../../src/data/runLengths.js'
import { hasCocoTools, noCocoTools, runCocoTools } from '../support/cocoTools.js'
import { hasRealData, noRealData, realData, suite, testWhere, throwsError, withFolder } from '../support/suite.js'
import { writeBoxTree } from '../support/boxTree.js'

const test = suite('masks of COCO')

/** Opens one image of 8 x 6 pixels with an object of each of these segmentations. */
function opened(folder: string, segmentations: readonly unknown[], reading: BoxReading = { masks: true }): BoxSource {
  for (const name of ['annotations', 'val']) mkdirSync(join(folder, name), { recursive: true })
  writeFileSync(join(folder, 'val', 'a.jpg'), '')
  const file = {
    images: [{ id: 7, file_name: 'a.jpg', width: 8, height: 6 }],
    categories: [{ id: 1, name: 'person' }],
    annotations: segmentations.map((segmentation) => ({ image_id: 7, category_id: 1, bbox: [1, 1, 3, 3], segmentation })),
  }
  // A number that JSON.stringify has not.
  writeFileSync(join(folder, 'annotations', 'instances_val.json'), JSON.stringify(file).replaceAll('"infinite"', '1e999'))
  return openBoxes(folder, ['val'], reading)
}
const square = [1, 1, 1, 4, 4, 4, 4, 1]

test('polygons, lists of runs and strings of runs are read where they are asked for', () =>
  withFolder((folder) => {
    const given = [[square, [0, 0, 3, 0, 3, 3]], { size: [6, 8], counts: [7, 3, 38] }, { size: [6, 8], counts: '73V1' }]
    const { items, masks } = opened(folder, given)
    assert.is(masks, true)
    const [polygons, list, text] = items[0]!.objects.map(({ mask }) => mask!)
    assert.equal(polygons, { polygons: given[0] })
    assert.equal(list, { height: 6, width: 8, counts: Uint32Array.from([7, 3, 38]) })
    assert.equal(text, list)
    for (const object of opened(folder, given, {}).items[0]!.objects) assert.is(object.mask, undefined)
  }))

test('polygons that are none are left out and counted, and objects that have no other are without mask', () =>
  withFolder((folder) => {
    const { items, skipped } = opened(folder, [[[1, 1, 2, 2], square], [[1, 2, 3, 4, 5, 6, 7]], [], undefined, [square, [square[0]!]]])
    assert.equal(
      items[0]!.objects.map(({ mask }) => mask),
      [{ polygons: [square] }, undefined, undefined, undefined, { polygons: [square] }],
    )
    assert.equal(skipped, [
      {
        what: 'polygon that is none',
        count: 3,
        names: ['4 numbers of annotations[0] of a.jpg', '7 numbers of annotations[1] of a.jpg', '1 numbers of annotations[4] of a.jpg'],
      },
      { what: 'object without mask', count: 3, names: [1, 2, 3].map((i) => `annotations[${i}] of a.jpg`) },
    ])
  }))

test('what is damaged is named: file, annotation and value; or collected, with the object kept', () =>
  withFolder((folder) => {
    const runs = (counts: unknown, size: unknown = [6, 8]): unknown => ({ size, counts })
    const cases: [unknown, RegExp][] = [
      [runs([7, 3, 37]), /segmentation\.counts is of 47 pixels: expected the 48 of its image of 8x6/],
      [runs([7, 3, 39]), /counts is of 49 pixels/],
      [runs([7, -3, 44]), /counts has the run -3 at 1: expected a count of pixels/],
      [runs([7.5, 3, 37.5]), /counts has the run 7\.5 at 0/],
      [runs(['7', 3, 38]), /counts has the run "7" at 0/],
      [runs([7, 'infinite']), /counts has the run null at 1/],
      [runs([7, 3, 38], [8, 6]), /segmentation\.size is \[8,6\]: expected the height and width of the image, \[6,8\]/],
      [runs([7, 3, 38], 'all'), /segmentation\.size is "all"/],
      [runs([7, 3, 38], [6, 8, 1]), /segmentation\.size is \[6,8,1\]/],
      [runs('73V'), /counts is "73V": expected lengths of runs/],
      [runs('73 1'), /counts is "73 1"/],
      [runs('73O'), /counts has the run -1/],
      [runs(7), /segmentation\.counts is 7/],
      [runs(undefined), /segmentation\.counts is absent/],
      [{}, /segmentation\.size is absent/],
      ['73V1', /segmentation is "73V1": expected a list of polygons, or runs with size and counts/],
      [7, /segmentation is 7: expected a list of polygons/],
      [[7], /segmentation\[0\] is 7: expected a list of coordinates/],
      [square, /segmentation\[0\] is 1: expected a list of coordinates/],
      [
        [
          [
            [1, 1],
            [1, 4],
            [4, 4],
          ],
        ],
        /segmentation\[0\]\[0\] is \[1,1\]: expected a coordinate in pixels/,
      ],
      [[[1, 1, 1, null, 4, 4]], /segmentation\[0\]\[3\] is null: expected a coordinate in pixels/],
      [[square, [1, 1, 1, 'x', 4, 4]], /segmentation\[1\]\[3\] is "x"/],
      [[[1, 1, 1, 'infinite', 4, 4]], /segmentation\[0\]\[3\] is null/],
      [[[1, 1, 1, 1e9, 4, 4]], /segmentation\[0\]\[3\] is 1000000000: expected a coordinate in pixels, at most 100000000 from 0/],
    ]
    for (const [segmentation, expected] of cases) {
      throwsError(() => opened(folder, [[square], segmentation]), 'DATA', expected, /instances_val\.json: annotations\[1\]/)
      const faults = new BoxFaults()
      const source = opened(folder, [[square], segmentation], { masks: true, faults })
      assert.is(source.items[0]!.objects.length, 2)
      assert.is(source.items[0]!.objects[1]!.mask, undefined)
      assert.equal(
        faults.errors.list().map(({ what, count }) => [what, count]),
        [['mask that is damaged', 1]],
      )
    }
  }))

test('a tree of another layout has no masks of objects', () =>
  withFolder((folder) => {
    writeBoxTree(folder, 1)
    throwsError(() => openBoxes(folder, ['train'], { masks: true }), 'DATA', /has no folder annotations: expected COCO's layout/)
  }))

testWhere(hasRealData, noRealData, test, 'real annotations: all masks are read, and their areas are those that the file states', () => {
  const { items, skipped } = openBoxes(join(realData, 'coco_instances'), ['train2017', 'val2017'], { masks: true })
  assert.equal(skipped, [])
  const objects = items.flatMap((item) => item.objects.map((object) => ({ object, item })))
  assert.is(objects.length, 705 + 815)
  assert.is(objects.filter(({ object: { crowd, mask } }) => crowd && !('polygons' in mask!)).length, 17)
  // The file states the area within the lines, which counts twice what they enclose twice; of crowds it is another's.
  const far = objects.filter(({ object: { mask, area, box, crowd }, item }) => {
    const [x1, y1, x2, y2] = box
    return !crowd && Math.abs(maskArea(maskRuns(mask!, item)) - area) > x2 - x1 + (y2 - y1)
  })
  assert.ok(far.length < objects.length / 100, `${far.length} areas are others`)
})

const program = `
import json, sys
from pycocotools.coco import COCO
out = []
for path in json.load(sys.stdin):
    coco = COCO(); coco.dataset = json.load(open(path)); sys.stdout = sys.stderr; coco.createIndex(); sys.stdout = sys.__stdout__
    # Of each image in the order of the file.
    for image in coco.dataset['images']:
        for each in coco.dataset['annotations']:
            if each['image_id'] == image['id']: out.append(coco.annToRLE(each)['counts'].decode())
print(json.dumps(out))`

testWhere(hasRealData && hasCocoTools, noCocoTools, test, 'real annotations: the masks are pycocotools’, crowds too', () => {
  const folder = join(realData, 'coco_instances')
  const splits = ['train2017', 'val2017']
  const { items } = openBoxes(folder, splits, { masks: true })
  const expected = runCocoTools(
    program,
    splits.map((split) => join(folder, 'annotations', `instances_${split}.json`)),
  )
  assert.equal(
    items.flatMap((item) => item.objects.map(({ mask }) => writeRuns(maskRuns(mask!, item).counts))),
    expected,
  )
})

test.run()
