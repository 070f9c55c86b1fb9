/** Lists of images: annotations, shards, lists, the lists of VOC. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

import fc from 'fast-check'

import { readItemBytes } from '../../../src/data/source.js'
import { openSource } from '../../../src/data/sources.js'
import { defaultSplits, openSegmentation } from '../../../src/data/segmentationSources.js'
import { openVocBoxes } from '../../../src/data/vocBoxes.js'
import { openCocoBoxes } from '../../../src/data/cocoBoxes.js'
import { maskRuns } from '../../../src/data/instanceMasks.js'
import { maskArea } from '../../../src/data/runLengths.js'
import { openVocClassification } from '../../../src/data/voc.js'
import { editedJson, json } from '../mutate.js'
import { bundle, type FuzzedReader, unbundle } from '../reader.js'

const box = { id: 1, image_id: 7, category_id: 3, bbox: [1, 2, 3, 4], area: 12, iscrowd: 0 }
const images = [
  { id: 7, file_name: 'here.jpg', width: 4, height: 3 },
  { id: 8, file_name: 'here.jpg', width: 4, height: 3 },
]
const soundCoco = [
  { images, annotations: [box, { ...box, id: 2 }], categories: [{ id: 3, name: 'cat' }] },
  {
    images,
    annotations: [
      { id: 1, image_id: 7, category_id: 3 },
      { id: 2, image_id: 8, category_id: 4 },
    ],
    categories: [{ id: 3, name: 'cat' }, { id: 4 }],
  },
]

export const coco: FuzzedReader = {
  file: 'fuzzed.json',
  seeds: () => soundCoco.map(json),
  words: [
    '"images":',
    '"annotations":',
    '"categories":',
    '"file_name":',
    '"id":',
    '"__proto__":',
    '[',
    ']',
    '{',
    '}',
    'null',
    '1e999',
    '"',
  ],
  structured: () => editedJson(soundCoco).map(json),
  read: async (path) => {
    writeFileSync(join(dirname(path), 'here.jpg'), '')
    await openSource(path)
  },
}

const label = fc.constantFrom('', ' 0', ' 1', ',2', '\t3', ' -1', ' 4095', ' 1000000', ' 1e3', ' 99999999999999999999', ' 1 2', ',,1', ' x')
const name = fc.constantFrom(
  'a.jpg',
  'b c.png',
  'd',
  '',
  ' ',
  '../e.jpg',
  '/f.jpg',
  '#g',
  'größe.jpg',
  '7',
  'a,b.jpg',
  '\0',
  '\u2028',
  '\ufeffh.jpg',
)
const lineEnd = fc.constantFrom('\n', '\n', '\r\n', '\r', '\u2028', '\f')

export const list: FuzzedReader = {
  file: 'fuzzed.txt',
  seeds: () =>
    ['a.jpg 0\nb.jpg 1\n', 'path,label\na.jpg,0\nfolder/b c.jpg,12\n', '# all\r\na.jpg\r\n\r\nb.jpg'].map((text) => Buffer.from(text)),
  words: [' ', ',', '\n', '\r', '\t', '#', '.jpg', ' 1', '\u2028', '\0', '1000000'],
  structured: () =>
    fc.oneof(
      fc.array(fc.tuple(name, label, lineEnd), { maxLength: 8 }).map((rows) => Buffer.from(rows.flat().join(''))),
      // Long runs of one character are what slow readers do not like.
      fc
        .tuple(fc.constantFrom(' ', ',', '0', 'a', '\n', '\r'), fc.constantFrom(100, 16_383, 16_385, 60_000), name, label)
        .map(([character, count, file, end]) => Buffer.from(`${file}${character.repeat(count)}${end}`)),
    ),
  read: (path) => openSource(path, { format: 'list' }),
}

const octal = (size: number): string => `${size.toString(8).padStart(11, '0')}\0`
interface Header {
  name: string
  size: string
  type: string
  magic: string
  prefix: string
}
function tarHeader({ name: file, size, type, magic, prefix }: Header): Buffer {
  const bytes = Buffer.alloc(512)
  bytes.write(file, 0, 100)
  bytes.write('0000644\x000000000\x000000000\0', 100)
  bytes.write(size, 124, 12, 'latin1')
  bytes.write('00000000000\0        ', 136)
  bytes.write(type, 156, 1, 'latin1')
  bytes.write(magic, 257, 8, 'latin1')
  bytes.write(prefix, 345, 155)
  const sum = bytes.reduce((total, byte) => total + byte, 0)
  bytes.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return bytes
}
const padded = (data: Buffer): Buffer => Buffer.concat([data, Buffer.alloc((512 - (data.length % 512)) % 512)])
const ustar = 'ustar\x0000'
const member = (file: string, data: string, type = '0'): Buffer =>
  Buffer.concat([
    tarHeader({ name: file, size: octal(Buffer.byteLength(data)), type, magic: ustar, prefix: '' }),
    padded(Buffer.from(data)),
  ])

const odd = fc.record<Header>({
  name: fc.constantFrom('a.jpg', 'a.cls', 'b.png', '', '/', 'c/', '._a.jpg', '__proto__.jpg', 'x'.repeat(100), '../d.jpg'),
  size: fc.oneof(
    fc.constantFrom(
      octal(0),
      octal(3),
      octal(512),
      octal(2 ** 33 - 1),
      '-0000001000',
      '           ',
      '\x80\0\0\0\0\0\0\0\0\0\x02\0',
      '\xff'.repeat(12),
      '1 2',
      '9',
    ),
    fc.string({ maxLength: 12 }),
  ),
  type: fc.constantFrom('0', '\0', '1', '2', '5', 'x', 'g', 'L', 'K', 'S', 'V', 'M', '7', '?'),
  magic: fc.constantFrom(ustar, 'ustar  \0', ''),
  prefix: fc.constantFrom('', 'p', 'q/r', '\xff'),
})
const record = fc
  .tuple(
    fc.constantFrom('path', 'size', 'GNU.sparse.name', 'GNU.sparse.major', '__proto__', ''),
    fc.constantFrom('e.jpg', '5', '-5', '9e9', '', '\0', '9007199254740993'),
  )
  .map(([key, value]) => {
    const rest = ` ${key}=${value}\n`
    const length = rest.length + 1
    return `${length > 9 ? length + 1 : length}${rest}`
  })
const part = fc.oneof(
  odd.map(tarHeader),
  fc
    .tuple(odd, fc.nat(600))
    .map(([header, count]) => Buffer.concat([tarHeader({ ...header, size: octal(count) }), padded(Buffer.alloc(count, '1'))])),
  fc.tuple(fc.array(record, { maxLength: 3 }), fc.constantFrom('x', 'g')).map(([records, type]) => member('pax', records.join(''), type)),
  fc
    .tuple(fc.constantFrom('long.jpg', '', '7', 'l'.repeat(600)), fc.constantFrom('L', 'K'))
    .map(([data, type]) => member('././@LongLink', data, type)),
  fc.constantFrom(
    member('a.jpg', 'xyz'),
    member('a.cls', '3'),
    member('b.cls', '-3'),
    Buffer.alloc(512),
    Buffer.alloc(1024),
    Buffer.from('rest'),
  ),
)

export const tar: FuzzedReader = {
  file: 'fuzzed.tar',
  seeds: () => [
    Buffer.concat([member('a.jpg', 'xyz'), member('a.cls', '3'), member('b.jpg', ''), member('b.cls', '0'), Buffer.alloc(1024)]),
    Buffer.concat([
      member('pax', '14 path=e.jpg\n', 'x'),
      member('z', 'xyz'),
      member('l', `${'y'.repeat(200)}.jpg`, 'L'),
      member('y', 'w'),
      Buffer.alloc(1024),
    ]),
  ],
  words: ['ustar\x0000', 'ustar  \0', '\x80', '.jpg', '.cls', '14 path=e.jpg\n', '12 size=5\n', '\0\0\0\0', 'x', 'L'],
  structured: () => fc.array(part, { maxLength: 6 }).map((parts) => Buffer.concat(parts)),
  async read(path) {
    const { items } = await openSource(path, { format: 'tar' })
    for (const item of items.slice(0, 8)) if (item.kind === 'tar') await readItemBytes(item)
  },
}

const vocFiles = {
  main: 'ImageSets/Main/train.txt',
  cat: 'ImageSets/Main/cat_train.txt',
  dog: 'ImageSets/Main/dog_train.txt',
  segmentation: 'ImageSets/Segmentation/train.txt',
  classes: 'classes.txt',
  first: 'JPEGImages/a.jpg',
  second: 'JPEGImages/b.jpg',
  mask: 'SegmentationClass/a.png',
} as const
const names = fc.constantFrom('a', 'b', 'c', '', 'a b', '__proto__', '../a', 'a.jpg', '\0')
const values = fc.constantFrom(' 1', ' -1', ' 0', '  1', ' 2', '', ' 1e9', ' x', '\t-1', ' 1 1')
const lines = (row: fc.Arbitrary<string>): fc.Arbitrary<string> =>
  fc.array(fc.tuple(row, fc.constantFrom('\n', '\r\n', '\n\n', '')), { maxLength: 4 }).map((rows) => rows.flat().join(''))
const labelRows = lines(fc.tuple(names, values).map(([image, value]) => image + value))
const soundVoc = {
  [vocFiles.main]: 'a\nb\n',
  [vocFiles.cat]: 'a  1\nb -1\n',
  [vocFiles.dog]: 'a  0\nb  1\n',
  [vocFiles.segmentation]: 'a\n',
  [vocFiles.classes]: '0 sky\n1 road\n255 none\n',
  [vocFiles.first]: '',
  [vocFiles.second]: '',
  [vocFiles.mask]: '',
}

/** The lists, labels and names of classes of a VOC tree. */
export const voc: FuzzedReader = {
  file: 'fuzzed',
  seeds: () => [bundle(soundVoc)],
  words: ['a', 'b', ' 1', ' -1', ' 0', '\n', '\r\n', '255', '\0', '\n--- classes.txt\n'],
  structured: () =>
    fc
      .record({ main: lines(names), cat: labelRows, dog: labelRows, segmentation: lines(names), classes: lines(names) })
      .chain((texts) =>
        fc
          .subarray(Object.keys(texts) as (keyof typeof texts)[], { minLength: 1 })
          .map((kept) => bundle({ ...soundVoc, ...Object.fromEntries(kept.map((each) => [vocFiles[each], texts[each]])) })),
      ),
  async read(path, bytes) {
    const tree = `${path}-tree`
    unbundle(bytes, tree, Object.values(vocFiles))
    const errors: unknown[] = []
    const attempts = [
      () => openSource(tree, { format: 'voc' }),
      () => openVocClassification(tree, 'train'),
      () => openSegmentation(tree, defaultSplits(tree).train),
    ]
    // Each has its own look at the tree: the first error of all is judged, and any that is worse.
    for (const attempt of attempts)
      try {
        await attempt()
      } catch (error) {
        errors.push(error)
      }
    const worst = errors.find((error) => !(error instanceof Error) || error.name !== 'DenseclError' || !error.message.includes('fuzzed'))
    if (errors.length > 0) throw worst ?? errors[0]
  },
}

const voc2007 = { xml: 'Annotations/a.xml', main: 'ImageSets/Main/train.txt', first: 'JPEGImages/a.jpg', classes: 'classes.txt' } as const
const soundXml = `<?xml version="1.0"?>
<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>cat</name><truncated>1</truncated><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20.5</xmax><ymax>30</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part></object></annotation>`
const tag = fc.constantFrom(
  ...['annotation', 'size', 'width', 'height', 'object', 'name', 'bndbox', 'xmin', 'ymin', 'xmax', 'ymax', 'difficult', '__proto__'],
)
const xmlText = fc.constantFrom(
  ...[
    '1',
    '20',
    '-1',
    '1e309',
    'NaN',
    '',
    ' 3 ',
    'cat',
    '0x10',
    '&lt;',
    '&a;',
    '&#0;',
    '&#x1F600;',
    '<![CDATA[5]]>',
    '<!-- c -->',
    '<a/>',
    ']]>',
  ],
)
const element: fc.Arbitrary<string> = fc.letrec<{ node: string }>((tie) => ({
  node: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    xmlText,
    fc.tuple(tag, fc.array(tie('node'), { maxLength: 6 })).map(([name, inside]) => `<${name}>${inside.join('')}</${name}>`),
  ),
})).node

/** The XML of an image of VOC, in a tree of one image. */
export const vocXml: FuzzedReader = {
  file: 'fuzzed',
  seeds: () => [Buffer.from(soundXml)],
  words: [
    '<object>',
    '</object>',
    '<bndbox>',
    '<xmin>',
    '</xmin>',
    '&lt;',
    '&#0;',
    '<!DOCTYPE a [<!ENTITY b "c">]>',
    '<![CDATA[',
    ']]>',
    '<!--',
    '-->',
    '<?x?>',
    '\ufeff',
  ],
  structured: () =>
    fc.oneof(
      element.map((text) => Buffer.from(text)),
      fc.array(element, { maxLength: 4 }).map((parts) => Buffer.from(soundXml.replace('<object>', `${parts.join('')}<object>`))),
      // Deep and long ones.
      fc.tuple(tag, fc.constantFrom(100, 5000)).map(([name, count]) => Buffer.from(`<${name}>`.repeat(count) + `</${name}>`.repeat(count))),
      fc.tuple(element, fc.constantFrom(50, 500)).map(([part, count]) => Buffer.from(`<annotation>${part.repeat(count)}</annotation>`)),
    ),
  read(path, bytes) {
    const tree = `${path}-tree`
    unbundle(bundle({ [voc2007.main]: 'a\n', [voc2007.first]: '' }), tree, Object.values(voc2007))
    mkdirSync(join(tree, 'Annotations'))
    writeFileSync(join(tree, voc2007.xml), bytes)
    openVocBoxes(tree, ['train'])
  },
}

/** Masks of an image of 4 x 3 pixels in each of their forms. */
const soundMasks = [
  [[0, 0, 0, 2, 3.5, 2]],
  [
    [0, 0, 4, 0, 4, 3],
    [1, 1, 2, 2],
  ],
  { size: [3, 4], counts: [2, 3, 7] },
  { size: [3, 4], counts: '237' },
]
const masked = {
  images,
  annotations: soundMasks.map((segmentation, i) => ({ ...box, id: i + 1, iscrowd: Number(i > 1), segmentation })),
  categories: [{ id: 3, name: 'cat' }],
}
const count = fc.oneof(fc.integer({ min: -2, max: 13 }), fc.constantFrom(0.5, 2 ** 32, 1e300, null))
const segmentation = fc.oneof(
  fc.array(fc.array(fc.oneof(fc.double({ min: -9, max: 9, noNaN: true }), fc.constantFrom(1e8, -1e8, 1e9, 1e300)), { maxLength: 12 }), {
    maxLength: 3,
  }),
  fc.record({
    size: fc.constantFrom([3, 4], [4, 3], [3], [0, 0]),
    counts: fc.oneof(fc.array(count, { maxLength: 8 }), fc.string(), fc.stringMatching(/^[0-o]{0,12}$/)),
  }),
)
const side = fc.constantFrom(1, 4, 3, 50_000, 1e9)

/** The boxes and masks of a COCO file, in a tree of one split. */
export const cocoBoxes: FuzzedReader = {
  file: 'fuzzed',
  seeds: () => [json(soundCoco[0]), json(masked)],
  words: [...coco.words!, '"segmentation":', '"counts":', '"size":'],
  structured: () =>
    fc
      .oneof(
        editedJson([soundCoco[0], masked]),
        fc
          .tuple(fc.array(segmentation, { maxLength: 4 }), side, side)
          .map(([masks, width, height]) => ({
            ...masked,
            images: [{ ...images[0], width, height }],
            annotations: masks.map((each) => ({ ...box, segmentation: each })),
          })),
      )
      .map(json),
  read(path, bytes) {
    const tree = `${path}-coco`
    mkdirSync(join(tree, 'annotations'), { recursive: true })
    mkdirSync(join(tree, 'images'), { recursive: true })
    writeFileSync(join(tree, 'images', 'here.jpg'), '')
    writeFileSync(join(tree, 'annotations', 'instances_train.json'), bytes)
    for (const item of openCocoBoxes(tree, ['train'], { masks: true }).items)
      for (const { mask } of item.objects) if (mask !== undefined) maskArea(maskRuns(mask, item))
  },
}
