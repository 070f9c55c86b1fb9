import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { openBoxes } from '../../src/data/boxSources.js'
import { parseVocAnnotation } from '../../src/data/vocAnnotation.js'
import { processorTime } from '../support/processorTime.js'
import { hasRealData, noRealData, realData, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('boxes of data sets')

interface Named {
  name: string
  corners: readonly number[]
  difficult?: boolean
}
const annotation = (objects: readonly Named[], size = '<size><width>64</width><height>48</height><depth>3</depth></size>'): string =>
  `<annotation>${size}${objects
    .map(
      ({ name, corners: [xmin, ymin, xmax, ymax], difficult = false }) =>
        `<object><name>${name}</name><difficult>${Number(difficult)}</difficult><part><name>head</name><bndbox/></part>` +
        `<bndbox><xmin>${xmin}</xmin><ymin>${ymin}</ymin><xmax>${xmax}</xmax><ymax>${ymax}</ymax></bndbox></object>`,
    )
    .join('\n')}</annotation>`

function writeTree(root: string, images: Record<string, readonly Named[]>, list = 'train'): void {
  for (const folder of ['Annotations', 'JPEGImages', 'ImageSets/Main']) mkdirSync(join(root, folder), { recursive: true })
  for (const [id, objects] of Object.entries(images)) {
    writeFileSync(join(root, 'Annotations', `${id}.xml`), annotation(objects))
    writeFileSync(join(root, 'JPEGImages', `${id}.jpg`), '')
  }
  writeFileSync(join(root, 'ImageSets', 'Main', `${list}.txt`), `${Object.keys(images).join('\n')}\n`)
}

test('an annotation is read back as it was written, VOC’s inclusive corners as continuous ones', () => {
  const side = fc.integer({ min: 1, max: 500 })
  const objects = fc.array(
    fc.record({ name: fc.constantFrom('cat', 'dog', 'köter'), corners: fc.tuple(side, side, side, side), difficult: fc.boolean() }),
    { maxLength: 8 },
  )
  fc.assert(
    fc.property(objects, (written) => {
      const { objects: read, width, height } = parseVocAnnotation(annotation(written), 'a.xml')
      assert.equal([width, height], [64, 48])
      assert.equal(
        read.map(({ name, box, difficult }) => ({ name, corners: [box[0] + 1, box[1] + 1, box[2], box[3]], difficult })),
        written.map(({ name, corners, difficult }) => ({ name, corners: [...corners], difficult })),
      )
    }),
  )
})

test('XML that is cut off, deep, huge, or asks for other files or endless text is refused with the file’s name, quickly', () => {
  const whole = annotation([{ name: 'cat', corners: [1, 2, 3, 4] }])
  const entities = `<!ENTITY a "${'x'.repeat(999)}"><!ENTITY b "${'&a;'.repeat(999)}">`
  const bomb = `<!DOCTYPE a [${entities}]><annotation><object><name>&b;</name></object></annotation>`
  const cases: [string, RegExp][] = [
    [whole.slice(0, -20), /a\.xml is not XML/],
    ['<a>'.repeat(300_000), /a\.xml/],
    [bomb, /a\.xml is not XML/],
    [
      '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]><annotation><object><name>&f;</name></object></annotation>',
      /a\.xml is not XML/,
    ],
    [' '.repeat(5 << 20), /a\.xml has 5242880 characters/],
    ['<html/>', /root element is <html>/],
    [whole.replace('<xmax>3</xmax>', ''), /object 1 \(cat\) has no <xmax>/],
    [whole.replace('<xmax>3<', '<xmax>three<'), /<xmax> of object 1 \(cat\) is "three"/],
    [whole.replace('<xmax>3<', '<xmax>1e999<'), /"1e999": expected a number/],
    [whole.replace('<name>cat</name>', ''), /object 1 has no <name>/],
    ['', /a\.xml is not XML/],
  ]
  for (const [text, expected] of cases) {
    const took = processorTime()
    throwsError(() => parseVocAnnotation(text, 'a.xml'), 'DATA', expected)
    assert.ok(took() < 2, `took ${took()} s`)
  }
})

test('trees of several years are joined; classes are VOC’s, those of classes.txt, those of the training set, or what is found', () =>
  withFolder((folder) => {
    writeTree(join(folder, 'VOCdevkit', 'VOC2007'), { '000005': [{ name: 'cat', corners: [1, 1, 10, 10] }] }, 'trainval')
    writeTree(
      join(folder, 'VOCdevkit', 'VOC2012'),
      { '2008_000008': [{ name: 'dog', corners: [2, 2, 9, 9.5], difficult: true }] },
      'trainval',
    )
    const joined = openBoxes(folder, ['2007:trainval', '2012:trainval'])
    assert.equal(
      joined.items.map(({ id }) => id),
      ['000005', '2008_000008'],
    )
    assert.is(joined.classes.length, 20)
    assert.equal(joined.items[1]!.objects, [
      { label: joined.classes.indexOf('dog'), box: [1, 1, 9, 9.5], difficult: true, truncated: false, crowd: false, area: 8 * 8.5 },
    ])
    const own = join(folder, 'own')
    writeTree(own, { b: [{ name: 'zebra', corners: [1, 1, 2, 2] }], a: [], c: [{ name: 'ant', corners: [5, 5, 4, 9] }] })
    const found = openBoxes(own, ['train'])
    assert.equal(found.classes, ['ant', 'zebra'])
    assert.equal(
      found.items.map(({ objects }) => objects.length),
      [1, 0, 0],
    )
    assert.equal(found.skipped, [{ what: 'box without area', count: 1, names: ['ant of c.jpg'] }])
    throwsError(() => openBoxes(own, ['train'], { classes: ['zebra'] }), 'DATA', /c\.xml has an object ant: expected one of zebra/)
    writeFileSync(join(own, 'classes.txt'), 'zebra\r\nant\n')
    assert.equal(openBoxes(own, ['train']).classes, ['zebra', 'ant'])
    // As a tree with masks has it.
    writeFileSync(join(own, 'classes.txt'), '0 background\n1 zebra\n2 ant\n255 void\n')
    assert.equal(openBoxes(own, ['train']).classes, ['zebra', 'ant'])
  }))

test('what is missing in a tree is named', () =>
  withFolder((folder) => {
    writeTree(folder, { a: [], b: [] })
    throwsError(() => openBoxes(join(folder, 'none'), ['train']), 'DATA', /none does not exist/)
    throwsError(() => openBoxes(folder, ['val']), 'DATA', /val\.txt does not exist: expected a split among train/)
    throwsError(() => openBoxes(folder, ['2012:train']), 'DATA', /has no 2012:train: expected a folder JPEGImages in .*VOC2012/)
    writeFileSync(join(folder, 'Annotations', 'b.xml'), annotation([], ''))
    throwsError(() => openBoxes(folder, ['train']), 'DATA', /b\.xml: <size> is 0x0/)
    rmSync(join(folder, 'Annotations', 'b.xml'))
    throwsError(() => openBoxes(folder, ['train']), 'DATA', /b\.jpg of train has no annotation: expected .*b\.xml/)
    rmSync(join(folder, 'JPEGImages', 'b.jpg'))
    throwsError(() => openBoxes(folder, ['train']), 'DATA', /train names b, which is not in/)
    writeFileSync(join(folder, 'classes.txt'), 'cat\ndog\ncat\n')
    writeFileSync(join(folder, 'ImageSets', 'Main', 'train.txt'), 'a\n')
    throwsError(() => openBoxes(folder, ['train']), 'DATA', /has the class cat twice/)
    writeFileSync(join(folder, 'ImageSets', 'Main', 'train.txt'), '')
    throwsError(() => openBoxes(folder, ['train']), 'DATA', /has no image in train/)
  }))

test('COCO: categories by id, boxes as corners, crowds and areas kept; rows that fit nothing are named', () =>
  withFolder((folder) => {
    mkdirSync(join(folder, 'annotations'))
    mkdirSync(join(folder, 'val2017'))
    writeFileSync(join(folder, 'val2017', 'a.jpg'), '')
    const file = {
      images: [
        { id: 7, file_name: 'a.jpg', width: 64, height: 48 },
        { id: 3, file_name: 'b.jpg', width: 10, height: 10 },
      ],
      categories: [
        { id: 90, name: 'toothbrush' },
        { id: 1, name: 'person' },
      ],
      annotations: [
        { image_id: 7, category_id: 90, bbox: [1, 2, 10, 20], area: 30.5, iscrowd: 1 },
        { image_id: 7, category_id: 1, bbox: [1, 2, 0, 20] },
      ],
    }
    const open = (change: object = {}): ReturnType<typeof openBoxes> => {
      writeFileSync(join(folder, 'annotations', 'instances_val2017.json'), JSON.stringify({ ...file, ...change }))
      return openBoxes(folder, ['val2017'])
    }
    const source = open()
    assert.equal(
      [source.classes, source.categoryIds],
      [
        ['person', 'toothbrush'],
        [1, 90],
      ],
    )
    assert.equal(source.items[0]!.objects, [{ label: 1, box: [1, 2, 11, 22], difficult: false, truncated: false, crowd: true, area: 30.5 }])
    assert.equal(source.items[1]!.objects, [])
    assert.equal(
      source.skipped.map(({ count, names }) => [count, names]),
      [[1, ['annotations[1] of a.jpg']]],
    )
    const row = file.annotations[0]!
    throwsError(() => open({ annotations: [{ ...row, image_id: 8 }] }), 'DATA', /annotations\[0\]\.image_id is 8/)
    throwsError(() => open({ annotations: [{ ...row, category_id: 2 }] }), 'DATA', /annotations\[0\]\.category_id is 2/)
    throwsError(() => open({ annotations: [{ ...row, bbox: [1, 2, 3] }] }), 'DATA', /annotations\[0\]\.bbox/)
    throwsError(() => open({ images: [{ ...file.images[0], width: 0 }] }), 'DATA', /images\[0\]\.width/)
    const { classes: names } = open()
    for (const [classes, words] of [
      [['cat', ...names.slice(1)], `class 1 in the order of the ids is ${names[0]}: expected cat`],
      [[...names, 'unicorn'], `class ${names.length + 1} in the order of the ids is absent: expected unicorn`],
      [names.slice(0, -1), `class ${names.length} .* is ${names.at(-1)}: expected the ${names.length - 1} of the others alone`],
    ] as const)
      throwsError(() => openBoxes(folder, ['val2017'], { classes }), 'DATA', new RegExp(`instances_val2017\\.json: ${words}`))
    throwsError(() => open({ categories: [], annotations: [] }), 'DATA', /has no class in val2017/)
    throwsError(() => openBoxes(folder, ['train2017']), 'DATA', /instances_train2017\.json does not exist/)
  }))

testWhere(hasRealData, noRealData, test, 'real data sets have the objects that their documents count', () => {
  const count = (name: string, splits: string[]): number =>
    openBoxes(join(realData, name), splits).items.reduce((sum, { objects }) => sum + objects.length, 0)
  assert.is(count('raccoon_voc', ['train', 'val']), 217)
  assert.is(count('bccd_voc', ['train', 'val', 'test']), 4155 + 372 + 361)
  assert.is(count('coco_instances', ['train2017']), 705)
})

test.run()
