/** What check-data says of data sets with boxes. */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { openBoxes } from '../../src/data/boxSources.js'
import { writeBoxTree } from '../support/boxTree.js'
import { runCli, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('check of boxes')

interface Report {
  images: number
  objects: Record<string, { objects: number; difficult: number; crowd: number }>
  withoutObjects: number
  broken: { name: string; reason: string }[]
  errors: { what: string; count: number; names: string[] }[]
  notes: { what: string; count: number; names: string[] }[]
  skipped: { what: string; count: number; names: string[] }[]
}

function check(folder: string, ...flags: string[]): { code: number; report: Report } {
  const { code, out, err } = runCli(['check-data', folder, '--boxes', '--json', ...flags])
  assert.is(err, '')
  return { code: code!, report: JSON.parse(out) as Report }
}
const sort = (list: Report['errors'], what: string): [number, string] | undefined => {
  const found = list.find((each) => each.what === what)
  return found === undefined ? undefined : [found.count, found.names.join('; ')]
}

test('a sound VOC tree has nothing to tell; every fault of another is counted and named, and the exit code is 1', () =>
  withFolder((folder) => {
    writeBoxTree(folder, 9)
    const sound = check(folder)
    assert.is(sound.code, 0)
    assert.equal([sound.report.images, sound.report.errors, sound.report.notes, sound.report.broken], [18, [], [], []])
    assert.equal(Object.keys(sound.report.objects), ['green', 'red'])
    assert.is(sound.report.objects.red!.objects + sound.report.objects.green!.objects, 2 * 13)

    const change = (i: number, from: string | RegExp, to: string): void => {
      const path = join(folder, 'Annotations', `image${i}.xml`)
      writeFileSync(path, readFileSync(path, 'utf8').replace(from, to))
    }
    const object = ([xmin, ymin, xmax, ymax]: number[], more = '', name = 'red'): string => {
      const box = `<xmin>${xmin}</xmin><ymin>${ymin}</ymin><xmax>${xmax}</xmax><ymax>${ymax}</ymax>`
      return `<object><name>${name}</name>${more}<bndbox>${box}</bndbox></object>`
    }
    const end = '</annotation>'
    change(0, end, object([-3, 1, 20, 70.5]) + end) // 48 x 64
    change(1, end, object([5, 5, 9, 9]) + object([5, 5, 9, 9]) + object([5, 5, 9, 9], '', 'green') + end)
    change(2, end, object([20, 5, 9, 9]) + object([9, 9, 8, 20]) + end)
    change(3, end, object([1, 1, 9, 9], '<difficult>1</difficult>') + end)
    change(4, end, object([1, 1, 9, 9], '', 'cat') + end)
    change(5, /<size>.*<\/size>/, '<size><width>64</width><height>47</height></size>')
    change(6, /<size>.*<\/size>/, '')
    change(7, /<object>.*<\/object>/, '')
    rmSync(join(folder, 'JPEGImages', 'image8.png'))
    writeFileSync(join(folder, 'JPEGImages', 'stray.png'), 'x')
    writeFileSync(join(folder, 'ImageSets', 'Main', 'val.txt'), 'image7\n')

    const { code, report } = check(folder, '--splits', 'train', '--classes', 'red,green,blue')
    assert.is(code, 1)
    assert.equal(sort(report.notes, 'box that reaches beyond its image'), [1, 'red of image0.png by 6.5 px'])
    assert.equal(sort(report.notes, 'box that is there twice'), [1, 'red of image1.png'])
    assert.equal(report.skipped, [{ what: 'box without area', count: 2, names: ['red of image2.png', 'red of image2.png'] }])
    assert.equal([report.objects.red!.difficult, report.withoutObjects], [1, 1])
    assert.equal(sort(report.errors, 'unknown class')![0], 1)
    assert.match(sort(report.errors, 'unknown class')![1], /image4\.xml has an object cat: expected one of red, green, blue/)
    assert.match(sort(report.errors, 'annotation without size')![1], /image6\.xml/)
    assert.match(sort(report.errors, 'listed image that is not there')![1], /image8/)
    assert.equal(
      report.broken.map(({ reason }) => reason),
      ['image5.png: the image has 64x48 pixels but its annotation says 64x47'],
    )
    assert.equal(sort(report.notes, 'annotation without image'), [1, 'image8.xml'])
    assert.equal(sort(report.notes, 'image without annotation'), [1, 'stray.png'])
    assert.equal(sort(report.notes, 'class without boxes'), [1, 'blue'])
    assert.is(check(folder, '--splits', 'val', '--classes', 'red,green').code, 0)
    const { out, code: told } = runCli(['check-data', folder, '--boxes', '--splits', 'train'])
    assert.is(told, 1)
    assert.match(out, /1 x box that reaches beyond its image\n {2}red of image0\.png by 6\.5 px/)
    assert.match(out, /1 x annotation without size/)
  }))

test('COCO: annotations of no image and of no category are collected, crowds counted, files that no list names noted', () =>
  withFolder((folder) => {
    writeBoxTree(join(folder, 'voc'), 2)
    for (const name of ['annotations', 'val2017']) mkdirSync(join(folder, name))
    for (const i of [0, 1])
      writeFileSync(join(folder, 'val2017', `${i}.png`), readFileSync(join(folder, 'voc', 'JPEGImages', `image${i}.png`)))
    const row = { image_id: 1, category_id: 7, bbox: [1, 2, 10, 20] }
    const file = {
      images: [
        { id: 1, file_name: '0.png', width: 48, height: 64 },
        { id: 2, file_name: 'gone.png', width: 48, height: 64 },
      ],
      categories: [{ id: 7, name: 'cat' }],
      annotations: [row, { ...row, iscrowd: 1, bbox: [0, 0, 48, 64] }, { ...row, image_id: 3 }, { ...row, category_id: 8 }],
    }
    const path = join(folder, 'annotations', 'instances_val2017.json')
    writeFileSync(path, JSON.stringify(file))
    const { code, report } = check(folder, '--splits', 'val2017')
    assert.is(code, 1)
    assert.equal(report.objects, { cat: { objects: 2, difficult: 0, crowd: 1 } })
    assert.match(sort(report.errors, 'annotation without image')![1], /annotations\[2\]\.image_id is 3/)
    assert.match(sort(report.errors, 'unknown class')![1], /annotations\[3\]\.category_id is 8/)
    assert.equal(sort(report.notes, 'image that these splits do not name'), [1, '1.png'])
    assert.equal(
      report.broken.map(({ name }) => name),
      ['gone.png'],
    )
    writeFileSync(path, JSON.stringify({ ...file, annotations: [], categories: [...file.categories, { id: 9, name: 'cat' }] }))
    throwsError(() => openBoxes(folder, ['val2017']), 'DATA', /has the class cat twice/)
  }))

test('COCO: masks that are damaged are errors; odd ones, and objects without, are notes', () =>
  withFolder((folder) => {
    writeBoxTree(join(folder, 'voc'), 1)
    for (const name of ['annotations', 'val2017']) mkdirSync(join(folder, name))
    writeFileSync(join(folder, 'val2017', '0.png'), readFileSync(join(folder, 'voc', 'JPEGImages', 'image0.png')))
    const square = [2, 2, 2, 12, 12, 12, 12, 2]
    const masks = [
      [square],
      { size: [64, 48], counts: [64 * 48] },
      { size: [64, 48], counts: [5] },
      [[1, 2, 3, 4]],
      [[20, 2, 20, 12, 30, 12]],
    ]
    const row = { image_id: 1, category_id: 7, bbox: [2, 2, 10, 10] }
    const file = {
      images: [{ id: 1, file_name: '0.png', width: 48, height: 64 }],
      categories: [{ id: 7, name: 'cat' }],
      annotations: masks.map((segmentation, i) => ({ ...row, bbox: [2, 2, 10 + i / 8, 10], segmentation })),
    }
    writeFileSync(join(folder, 'annotations', 'instances_val2017.json'), JSON.stringify(file))
    const { code, report } = check(folder, '--splits', 'val2017')
    assert.is(code, 1)
    assert.is(report.objects.cat!.objects, 5)
    assert.equal(
      report.errors.map(({ what, count }) => [what, count]),
      [['mask that is damaged', 1]],
    )
    assert.match(report.errors[0]!.names[0]!, /annotations\[2\]\.segmentation\.counts is of 5 pixels/)
    assert.equal(sort(report.notes, 'mask without a pixel'), [1, 'cat of 0.png'])
    assert.equal(sort(report.notes, 'mask whose sides are more than 5 px from those of its box'), [1, 'cat of 0.png'])
    assert.equal(sort(report.notes, 'polygon that is none'), [1, '4 numbers of annotations[3] of 0.png'])
    assert.equal(sort(report.notes, 'object without mask'), [1, 'annotations[3] of 0.png'])
  }))

test('flags that go with --boxes alone, a class that is named twice, and a list that is not there are refused', () =>
  withFolder((folder) => {
    writeBoxTree(folder, 1)
    for (const [flags, code, word] of [
      [['--splits', 'train'], 2, /--splits goes with --boxes/],
      [['--boxes', '--classes', 'red,red'], 1, /--classes has the class red twice/],
      [['--boxes', '--splits', 'none'], 1, /none\.txt does not exist/],
    ] as const) {
      const run = runCli(['check-data', folder, ...flags])
      assert.is(run.code, code, run.err)
      assert.match(run.err, word)
    }
  }))

test.run()
