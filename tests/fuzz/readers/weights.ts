/** Files of weights, and of states that something continues from. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

import fc from 'fast-check'

import { openDetector, saveDetector } from '../../../src/detection/detectorFile.js'
import { FasterRcnn } from '../../../src/detection/fasterRcnn.js'
import { classifierKey, type ClassifierRecord, importClassifier, saveClassifier } from '../../../src/eval/classifierFile.js'
import { Resumable } from '../../../src/eval/resumable.js'
import { densecl } from '../../../src/methods/densecl/method.js'
import { resolveConfig } from '../../../src/methods/index.js'
import type { BackboneKind } from '../../../src/nn/backbone.js'
import { Classifier } from '../../../src/nn/classifier.js'
import { resnetKind } from '../../../src/nn/resnet.js'
import { optimizerOf } from '../../../src/optim/choose.js'
import { backboneOf } from '../../../src/run/backbone.js'
import { settingsOf } from '../../../src/run/options.js'
import { statePath } from '../../../src/run/results.js'
import { Random } from '../../../src/tensor/random.js'
import { Tensor } from '../../../src/tensor/tensor.js'
import { readCheckpoint, restoreCheckpoint, saveCheckpoint } from '../../../src/train/checkpoint.js'
import { exportTargets, storedBackbone, writeBackbone } from '../../../src/weights/export.js'
import { importBackbone } from '../../../src/weights/import.js'
import { encodePth, readPth } from '../../../src/weights/pth.js'
import { encodeSafetensors, readSafetensors, storedValues } from '../../../src/weights/safetensors.js'
import { saveState } from '../../../src/weights/state.js'
import { zip } from '../../../src/weights/zip.js'
import { editedJson } from '../mutate.js'
import { type FuzzedReader, written } from '../reader.js'

const words = [
  '"shape":',
  '"dtype":"F16"',
  '"data_offsets":[0,0]',
  '__metadata__',
  '__proto__',
  '[0]',
  '1e400',
  '-1',
  'BOOL',
  '{',
  '}',
  ',',
]

/** Safetensors files with another header, whose length is right. */
function editedHeaders(seeds: readonly Uint8Array[]): fc.Arbitrary<Uint8Array> {
  const parts = seeds.map((seed) => {
    const bytes = Buffer.from(seed)
    const end = 8 + Number(bytes.readBigUInt64LE())
    return { header: JSON.parse(bytes.toString('utf8', 8, end)) as unknown, data: bytes.subarray(end) }
  })
  return fc.nat(parts.length - 1).chain((i) =>
    editedJson([parts[i]!.header]).map((header) => {
      const text = Buffer.from(JSON.stringify(header))
      const length = Buffer.alloc(8)
      length.writeBigUInt64LE(BigInt(text.length))
      return Buffer.concat([length, text, parts[i]!.data])
    }),
  )
}

export const safetensors: FuzzedReader = {
  file: 'fuzzed.safetensors',
  seeds: () => [
    Buffer.concat(
      encodeSafetensors({
        tensors: new Map([
          ['a.weight', { dtype: 'F32', shape: [2, 3], bytes: new Uint8Array(24) }],
          ['half', { dtype: 'BF16', shape: [4], bytes: new Uint8Array(8) }],
          ['empty', { dtype: 'I64', shape: [0, 5], bytes: new Uint8Array(0) }],
          ['count', { dtype: 'I64', shape: [], bytes: new Uint8Array(8) }],
        ]),
        metadata: { format: 'pt' },
      }),
    ),
  ],
  words,
  structured: editedHeaders,
  read: (path) => {
    for (const tensor of readSafetensors(path).tensors.values()) storedValues(tensor)
  },
}

/** The smallest configuration that there is. */
const tiny = resolveConfig(
  settingsOf({ depth: 18, baseChannels: 1, hidden: 2, featDim: 2, queueLength: 4, imageSize: 32, batchSize: 2, precision: 'f32' }, 'test'),
)
const tinyBackbone = backboneOf(tiny, resnetKind)

export const backbone: FuzzedReader = {
  file: 'fuzzed.safetensors',
  seeds() {
    const built = tinyBackbone({ random: new Random(0), dtype: 'f32' })
    const seeds = exportTargets.map((target) => written('.safetensors', (path) => writeBackbone(path, built, target)))
    const record = { backbone: JSON.stringify({ kind: 'resnet', options: { depth: 18, baseChannels: 1 } }) }
    seeds.push(Buffer.concat(encodeSafetensors({ tensors: storedBackbone(built), metadata: record })))
    built.dispose()
    return seeds
  },
  words: [...words, 'layer1.0.', 'conv1.weight', 'bn1.running_mean', 'backbone.', 'downsample'],
  structured: editedHeaders,
  read: (path) => importBackbone(path).backbone.dispose(),
}

const text = (value: string): string => `X${String.fromCharCode(value.length, 0, 0, 0)}${value}`
const global = (module: string, name: string): string => `c${module}\n${name}\n`
const number = (value: number): string => `I${value}\n`
const orderedDict = global('collections', 'OrderedDict')
const storage = (type: string, key: string, count: number): string =>
  `(${text('storage')}${global('torch', type)}${text(key)}${text('cpu')}${number(count)}tQ`
const tuple = (values: readonly number[]): string => `(${values.map(number).join('')}t`
const tensor = (body: string, offset: number, shape: readonly number[], strides: readonly number[]): string =>
  `${global('torch._utils', '_rebuild_tensor_v2')}(${body}${number(offset)}${tuple(shape)}${tuple(strides)}\x89${orderedDict})RtR`
/** An array of NumPy of two bytes. */
const array =
  `${global('numpy._core.multiarray', '_reconstruct')}${global('numpy', 'ndarray')}K\0\x85C\x01b\x87R(K\x01K\x02\x85` +
  `${global('numpy', 'dtype')}${text('u1')}\x89\x88\x87R(K\x03${text('<')}Ntb\x89C\x02\x01\x02tb`
const pickleWords = [
  ...[
    '(',
    '}',
    ']',
    ')',
    't',
    'l',
    'u',
    's',
    'a',
    'e',
    '0',
    'q\0',
    'h\0',
    'q\x01',
    'h\x01',
    'R',
    'Q',
    'b',
    '\x93',
    '\x94',
    '\x85',
    '\x86',
    '\x87',
  ],
  ...[
    'N',
    '\x88',
    '\x89',
    'K\x02',
    'M\x03\0',
    'J\xff\xff\xff\xff',
    'L99L\n',
    'I01\n',
    'I-1\n',
    'Ix\n',
    '\x8a\x01\xff',
    'G\0\0\0\0\0\0\0\0',
    '.',
  ],
  ...[
    text('a'),
    text('__proto__'),
    text('storage'),
    "S'a'\n",
    'Va\n',
    'C\x01a',
    'B\x01\0\0\0a',
    '\x8c\x01a',
    'U\x01a',
    'j\0\0\0\0',
    'g0\n',
    'p0\n',
  ],
  ...[global('collections', 'OrderedDict'), global('torch', 'Size'), global('torch._utils', '_rebuild_parameter'), global('os', 'system')],
  ...[global('numpy._core.multiarray', '_reconstruct'), global('numpy', 'dtype'), global('_codecs', 'encode'), array, 'b'],
  ...[global('torch._utils', '_rebuild_tensor_v2'), global('torch', 'FloatStorage'), storage('FloatStorage', '0', 6)],
  ...[tensor(storage('FloatStorage', '0', 6), 0, [2, 3], [3, 1]), tensor(storage('LongStorage', '1', 1), 0, [], [])],
]
const sizes = fc.oneof(fc.nat(4), fc.constantFrom(-1, 255, 65_536, 2 ** 31, 2 ** 40, 2 ** 53 - 1))
const oddTensor = fc
  .record({
    type: fc.constantFrom('FloatStorage', 'BFloat16Storage', 'BoolStorage', 'QStorage'),
    key: fc.constantFrom('0', '1', 'x'),
    count: sizes,
    offset: sizes,
    shape: fc.array(sizes, { maxLength: 5 }),
    strides: fc.array(sizes, { maxLength: 5 }),
  })
  .map(({ type, key, count, offset, shape, strides }) => tensor(storage(type, key, count), offset, shape, strides.slice(0, shape.length)))
const program = fc
  .array(fc.oneof({ weight: 4, arbitrary: fc.constantFrom(...pickleWords) }, { weight: 1, arbitrary: oddTensor }), { maxLength: 24 })
  .map((parts) => parts.join(''))
/** Entries of a dictionary, mostly sound. */
const entries = fc
  .array(fc.tuple(fc.constantFrom('a', 'b', 'state_dict', '__proto__'), fc.oneof(oddTensor, program)), { maxLength: 4 })
  .map((list) => `}q\0(${list.map(([key, value]) => text(key) + value).join('')}u`)

/** A zip that holds the pickle, and two storages of 24 bytes and 8. */
const zipped = (pickle: Uint8Array): Buffer =>
  Buffer.from(
    zip([
      { name: 'a/data.pkl', data: Buffer.from(pickle) },
      { name: 'a/data/0', data: Buffer.alloc(24) },
      { name: 'a/data/1', data: Buffer.alloc(8) },
    ]),
  )
const soundTensors = [
  tensor(storage('FloatStorage', '0', 6), 0, [2, 3], [3, 1]),
  tensor(storage('LongStorage', '1', 1), 0, [], []),
] as const
const soundPickle = Buffer.from(`\x80\x02}q\0(${text('w')}${soundTensors[0]}${text('n')}${soundTensors[1]}u.`, 'latin1')

/** Pickles alone: the zip around them is sound. */
export const pickle: FuzzedReader = {
  file: 'fuzzed.pth',
  seeds: () => [soundPickle],
  words: pickleWords,
  structured: () => fc.oneof(program, entries).map((body) => Buffer.from(`\x80\x02${body}.`, 'latin1')),
  read(path, bytes) {
    writeFileSync(path, zipped(bytes))
    readPth(path)
  },
}

export const pth: FuzzedReader = {
  file: 'fuzzed.pth',
  seeds: () => [
    zipped(soundPickle),
    Buffer.from(encodePth({ state_dict: new Map([['a', { dtype: 'F32', shape: [2], bytes: new Uint8Array(8) }]]) })),
  ],
  words: [...pickleWords, 'PK\x01\x02', 'PK\x03\x04', 'PK\x05\x06', 'PK\x06\x06', 'data.pkl', 'a/data/0'],
  read: (path) => readPth(path),
}

const legacy = (body: string, keys: string, data: Buffer): Buffer =>
  Buffer.concat([
    Buffer.from('\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.', 'latin1'),
    Buffer.from(`\x80\x02${body}.\x80\x02${keys}.`, 'latin1'),
    data,
  ])
const legacyData = Buffer.alloc(8 + 24)
legacyData.writeBigInt64LE(6n)

export const legacyPth: FuzzedReader = {
  file: 'fuzzed.pth',
  seeds: () => [
    legacy(`}(${text('w')}${tensor(storage('FloatStorage', '0', 6), 0, [2, 3], [3, 1])}u`, `](${text('0')}e`, legacyData),
    Buffer.from(`\x80\x02}(${text('w')}${array}u.`, 'latin1'),
  ],
  words: pickleWords,
  structured: () =>
    fc
      .tuple(fc.oneof(program, entries), fc.constantFrom(`](${text('0')}e`, ']', 'N', `](${text('0')}${text('0')}e`, '](}e'))
      .map(([body, keys]) => legacy(body, keys, legacyData)),
  read: (path) => readPth(path),
}

const built = densecl.build(tiny, { backbone: tinyBackbone, compute: 'f32' })
const optimizer = optimizerOf(tiny, built.trained().parameters)

export const checkpoint: FuzzedReader = {
  file: 'fuzzed.safetensors',
  seeds: () => [
    written('.safetensors', (path) =>
      saveCheckpoint(path, densecl, built, optimizer, tiny, { epoch: 1, step: 0, globalStep: 3, images: 8 }),
    ),
    // Without a checksum, as old ones are: what is changed is then looked at.
    written('.safetensors', (path) => {
      saveCheckpoint(path, densecl, built, optimizer, tiny, { epoch: 1, step: 0, globalStep: 3, images: 8 })
      const { tensors, metadata } = readSafetensors(path)
      const { sha256: _, ...rest } = metadata
      writeFileSync(path, Buffer.concat(encodeSafetensors({ tensors, metadata: rest })))
    }),
  ],
  words: [...words, '\\"epoch\\":', '\\"version\\":1', 'optimizer.', 'null', '\\"config\\":{}'],
  structured: (seeds) => {
    const { tensors, metadata } = readWritten(seeds[1]!)
    const record = JSON.parse(metadata.densecl!) as unknown
    return fc.oneof(
      editedHeaders(seeds.slice(1)),
      editedJson([record]).map((densecl) => Buffer.concat(encodeSafetensors({ tensors, metadata: { densecl: JSON.stringify(densecl) } }))),
    )
  },
  read: (path) => restoreCheckpoint(readCheckpoint(path, densecl), built, optimizer),
}

const detectorKinds = {
  classes: ['cat', 'dog'],
  anchors: [16, 32],
  ratios: [0.5, 1, 2],
  style: 'detectron2',
  testScale: 64,
  longest: 96,
  testRegions: 50,
} as const

/** A wide network takes its time to make, which is no fault of the file. */
const narrow: BackboneKind = {
  ...resnetKind,
  build: (build, options, layout) => resnetKind.build(build, { ...options, baseChannels: 1 }, layout),
}

/** A detector and its record, as `densecl detect` opens it. */
export const detector: FuzzedReader = {
  file: 'fuzzed.safetensors',
  seeds: () => [
    written('.safetensors', (path) => {
      const build = { random: new Random(0), dtype: 'f32' as const }
      const { classes, anchors, ratios } = detectorKinds
      const own = tinyBackbone(build)
      const { stride } = own.maps.at(-2)!
      const model = new FasterRcnn(build, own, { classes: classes.length, anchors: { sizes: anchors, ratios, stride, order: 'size' } })
      saveDetector(path, model, { ...detectorKinds, classes: [...classes], anchors: [...anchors], ratios: [...ratios] })
    }),
  ],
  words: [...words, '\\"anchors\\":', '\\"classes\\":', '\\"kind\\":\\"resnet\\"', 'null', 'sha256'],
  structured: (seeds) => {
    const { tensors, metadata } = readWritten(seeds[0]!)
    return fc.oneof(
      editedHeaders(seeds),
      editedJson([JSON.parse(metadata.detector!)]).map((record) =>
        Buffer.concat(encodeSafetensors({ tensors, metadata: { detector: JSON.stringify(record) } })),
      ),
    )
  },
  read(path) {
    const { model } = openDetector(path, (name) => (name === 'resnet' ? narrow : undefined))
    model.dispose()
    model.backbone.dispose()
  },
}

const classifierRecord = {
  classes: ['cat', 'dog'],
  imageSize: 32,
  mean: [0.485, 0.456, 0.406],
  deviation: [0.229, 0.224, 0.225],
  protocol: 'fuzzed',
} satisfies ClassifierRecord

/** A classifier and its record, as `densecl predict` opens it. */
export const classifier: FuzzedReader = {
  file: 'fuzzed.safetensors',
  seeds: () => [
    written('.safetensors', (path) => {
      const build = { random: new Random(0), dtype: 'f32' as const }
      saveClassifier(path, new Classifier(build, tinyBackbone(build), classifierRecord.classes.length), classifierRecord)
    }),
  ],
  words: [...words, '\\"classes\\":', '\\"imageSize\\":', 'fc.weight', 'head.fc.', 'null', 'sha256'],
  structured: (seeds) => {
    const { tensors, metadata } = readWritten(seeds[0]!)
    return fc.oneof(
      editedHeaders(seeds),
      editedJson([JSON.parse(metadata[classifierKey]!)]).map((record) =>
        Buffer.concat(encodeSafetensors({ tensors, metadata: { [classifierKey]: JSON.stringify(record) } })),
      ),
    )
  },
  read(path) {
    const { model } = importClassifier(path)
    model.dispose()
    model.backbone.dispose()
  },
}

function readWritten(bytes: Uint8Array): ReturnType<typeof readSafetensors> {
  const folder = mkdtempSync(join(tmpdir(), 'densecl-'))
  try {
    writeFileSync(join(folder, 'file'), bytes)
    return readSafetensors(join(folder, 'file'))
  } finally {
    rmSync(folder, { recursive: true })
  }
}

const kind = { key: 'fuzz', what: 'a fuzzed evaluation', unit: 'epoch' }
const began = { batch: 2, rate: 0.1 }
const values: [string, Tensor][] = [['w', Tensor.zeros([3])]]

/** The state of an evaluation that is continued. */
export const state: FuzzedReader = {
  file: 'state.safetensors',
  seeds: () => [written('.safetensors', (path) => saveState(path, values, kind.key, { epoch: 2, began }))],
  words: [...words, '\\"epoch\\":', '\\"began\\":', 'null', 'sha256'],
  structured: (seeds) => {
    const { tensors } = readWritten(seeds[0]!)
    return editedJson([{ epoch: 2, began }]).map((fuzz) =>
      Buffer.concat(encodeSafetensors({ tensors, metadata: { fuzz: JSON.stringify(fuzz) } })),
    )
  },
  read(path) {
    const folder = dirname(path)
    if (path !== statePath(folder)) throw new Error(`a state is read from ${statePath(folder)}`)
    const resumed = new Resumable(kind, { out: folder, resume: true, quiet: true }, began)
    try {
      resumed.restore(values)
    } finally {
      resumed.release()
    }
  },
}
