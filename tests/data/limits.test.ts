import { spawnSync } from 'node:child_process'
import { existsSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { crc32, deflateSync } from 'node:zlib'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { decode } from '../../src/data/decode.js'
import { Loader } from '../../src/data/loader.js'
import { mostWorkers } from '../../src/data/workerPool.js'
import { decodeMask } from '../../src/data/masks.js'
import { openSource } from '../../src/data/sources.js'
import { resolveConfig } from '../../src/methods/index.js'
import { viewRun } from '../../src/report/runView.js'
import { readConfigFile } from '../../src/run/options.js'
import { readMetrics } from '../../src/run/runLog.js'
import { numbersOf } from '../../src/tensor/numbers.js'
import { readPth } from '../../src/weights/pth.js'
import { zip } from '../../src/weights/zip.js'
import { processorTime } from '../support/processorTime.js'
import { cli, rejectsError, runCli, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('limits')

/** What an attack may take. */
function quickly<R>(body: () => R): R {
  const took = processorTime()
  const before = process.memoryUsage().rss
  const result = body()
  assert.ok(took() < 2, `took ${took()} s`)
  const grown = (process.memoryUsage().rss - before) / 2 ** 20
  assert.ok(grown < 256, `took ${grown.toFixed(0)} MiB`)
  return result
}

function chunk(type: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(type), data])
  const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)]
  length.writeUInt32BE(data.length)
  sum.writeUInt32BE(crc32(body))
  return Buffer.concat([length, body, sum])
}
function png(width: number, height: number, depth: number, type: number, samples: Buffer, others: Buffer[] = []): Buffer {
  const frame = Buffer.alloc(13)
  frame.writeUInt32BE(width, 0)
  frame.writeUInt32BE(height, 4)
  frame[8] = depth
  frame[9] = type
  return Buffer.concat([
    Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'),
    chunk('IHDR', frame),
    ...others,
    chunk('IDAT', deflateSync(samples)),
    chunk('IEND', Buffer.alloc(0)),
  ])
}

test('masks that claim or inflate to absurd sizes are refused before they are decoded', () => {
  const small = Buffer.alloc(20)
  const refuse = (mask: Buffer, ...words: RegExp[]): void =>
    quickly(() => throwsError(() => decodeMask(mask, 'm.png', 8), 'DATA', /m\.png/, ...words))
  refuse(png(4294967295, 1, 4, 0, small), /4294967295x1 pixels, more than the 400000000 allowed/)
  refuse(png(20_000, 20_000, 8, 0, small), /too few for 20000x20000/)
  refuse(png(8, 8, 8, 0, Buffer.alloc(300 * 2 ** 20)), /inflate to more than the \d+ bytes of 8x8/)
  refuse(png(8, 8, 3, 0, small), /3 bits/)
  refuse(png(0, 8, 8, 0, small), /0x8/)
  refuse(png(8, 8, 8, 0, Buffer.alloc(72)).subarray(0, 60), /cut off|ends at byte/)
  const image = { name: 'i.jpg', width: 9, height: 8 }
  throwsError(() => decodeMask(png(8, 8, 8, 0, small), 'm.png', 8, undefined, image), 'DATA', /8x8 pixels but i\.jpg has 9x8/)
})

test('a profile or a text beside a mask is not inflated', () => {
  const profile = chunk('iCCP', Buffer.concat([Buffer.from('p\0\0'), deflateSync(Buffer.alloc(300 * 2 ** 20))]))
  const { labels } = quickly(() => decodeMask(png(2, 2, 8, 0, Buffer.from([0, 1, 2, 0, 3, 4]), [profile]), 'm.png', 8))
  assert.equal([...labels], [1, 2, 3, 4])
})

test('a JPEG that claims more pixels than its bytes can hold is refused; the sparsest real ones are not', async () => {
  const plain = await sharp({ create: { width: 2048, height: 2048, channels: 3, background: '#000' } })
    .jpeg({ quality: 1, progressive: true, optimiseCoding: true })
    .toBuffer()
  assert.is((await decode(plain, 'plain.jpg')).width, 2048)
  const tiny = await sharp({ create: { width: 8, height: 8, channels: 3, background: '#123' } })
    .jpeg()
    .toBuffer()
  const frame = tiny.indexOf(Buffer.from([0xff, 0xc0]))
  tiny.writeUInt16BE(65500, frame + 5)
  tiny.writeUInt16BE(6000, frame + 7)
  const took = processorTime()
  await rejectsError(() => decode(tiny, 'tiny.jpg'), 'DECODE', /tiny\.jpg/, /6000x65500 pixels, which its \d+ bytes cannot hold/)
  assert.ok(took() < 0.5, `took ${took()} s`)
})

const text = (value: string): string => `X${String.fromCharCode(value.length, 0, 0, 0)}${value}`
const number = (value: number): string => (value < 2 ** 31 ? `I${value}\n` : `L${value}L\n`)
const tensor = (shape: number[], strides: number[], count = 1): string =>
  `ctorch._utils\n_rebuild_tensor_v2\n((${text('storage')}ctorch\nFloatStorage\n${text('0')}${text('cpu')}${number(count)}tQ` +
  `${number(0)}(${shape.map(number).join('')}t(${strides.map(number).join('')}t\x89ccollections\nOrderedDict\n)RtR`

/** A file of a pickle of one storage. */
const readPickle = (pickle: string, floats = 1): Promise<Map<string, unknown>> =>
  withFolder((root) => {
    const path = join(root, 'w.pth')
    const data = Buffer.from(`\x80\x02${pickle}.`, 'latin1')
    writeFileSync(
      path,
      zip([
        { name: 'a/data.pkl', data },
        { name: 'a/data/0', data: Buffer.alloc(4 * floats) },
      ]),
    )
    return quickly(() => readPth(path))
  })

test('tensors that repeat a small storage without end are refused, ones that repeat it a little are read', async () => {
  for (const shape of [[2 ** 33], [30_000_000], [2 ** 40, 2 ** 40], [2 ** 53 - 1]])
    await rejectsError(
      () =>
        readPickle(
          `}${text('t')}${tensor(
            shape,
            shape.map(() => 0),
          )}s`,
        ),
      'FORMAT',
      /w\.pth/,
      /tensor t/,
      /repeats/,
    )
  const many = Array.from({ length: 1000 }, (_, i) => `${text(`t${i}`)}${tensor([1000], [1], 1000)}`).join('')
  await rejectsError(() => readPickle(`}(${many}u`, 1000), 'FORMAT', /repeats/)
  const once = await readPickle(`}${text('t')}${tensor([2, 3], [0, 0])}s`)
  assert.equal((once.get('t') as { bytes: Uint8Array }).bytes.length, 24)
  await rejectsError(() => readPickle(`}${text('t')}${tensor(Array<number>(65).fill(1), Array<number>(65).fill(1))}s`), 'FORMAT', /65 axes/)
})

test('dictionaries that hold themselves, or another very often, give their tensors once', async () => {
  const keys = Array.from({ length: 100 }, (_, i) => text(`k${i}`))
  const itself = `}q\x00${text('t')}${tensor([1], [1])}s(${keys.map((key) => `${key}h\x00`).join('')}u`
  assert.equal([...(await readPickle(itself)).keys()], ['t'])
  // Each of eight dictionaries holds the one before a hundred times.
  let nested = `}q\x00${text('t')}${tensor([1], [1])}s0`
  for (let i = 1; i <= 7; ++i) {
    const inner = `h${String.fromCharCode(i - 1)}`
    nested += `}q${String.fromCharCode(i)}(${keys.map((key) => key + inner).join('')}u${i < 7 ? '0' : ''}`
  }
  assert.is((await readPickle(nested)).size, 1)
})

test('what is no dictionary, name or size in a pickle or its zip is a sentence', async () => {
  await rejectsError(() => readPickle(`ccollections\nOrderedDict\n(${number(3)}tR`), 'FORMAT', /list of pairs/)
  await rejectsError(() => readPickle(`ccollections\nOrderedDict\n((${number(3)}ltR`), 'FORMAT', /list of pairs/)
  await rejectsError(() => readPickle(`}}\x93`), 'FORMAT', /no name/)
  await withFolder((root) => {
    const path = join(root, 'z.pth')
    const bytes = Buffer.from(zip([{ name: 'a/data.pkl', data: Buffer.from('\x80\x02}.', 'latin1') }]))
    const directory = bytes.indexOf(Buffer.from('PK\x01\x02', 'latin1'))
    const wide = Buffer.from(bytes)
    wide.writeUInt32LE(0xffffffff, directory + 24)
    wide.writeUInt16LE(4, directory + 30)
    writeFileSync(path, Buffer.concat([wide.subarray(0, directory + 56), Buffer.from([1, 0, 0, 0]), wide.subarray(directory + 56)]))
    throwsError(() => readPth(path), 'FORMAT', /z\.pth/, /sizes of a\/data\.pkl end after its entry/)
    const long = Buffer.from(bytes)
    long.writeUInt16LE(60_000, directory + 30)
    writeFileSync(path, long)
    throwsError(() => readPth(path), 'FORMAT', /ends after the file/)
  })
})

test('workers end at a number', async () => {
  throwsError(() => new Loader({ items: [], imageSize: 32, batchSize: 1, views: 'centre', workers: 100_000 }), 'ARGUMENT', /0 to 256/)
  assert.is(mostWorkers, 256)
  await withFolder((root) => {
    const { code, err } = runCli(['pretrain', 'data=scenes:20', 'workers=100000', '--out', join(root, 'r')])
    assert.is(code, 2, err)
    assert.match(err, /workers=100000: expected an integer in 0..256/)
  })
})

test('a file that is longer than any text is refused before it is read', async () => {
  await withFolder(async (root) => {
    for (const name of ['x.json', 'x.txt']) {
      const path = join(root, name)
      writeFileSync(path, '')
      truncateSync(path, 2 ** 30)
      const took = processorTime()
      await rejectsError(() => openSource(path), 'DATA', new RegExp(name), /1073741824 bytes/, /at most \d+/)
      assert.ok(took() < 0.5, `took ${took()} s`)
    }
  })
})

test('so are the rows and the configuration of a run', async () => {
  await withFolder(async (root) => {
    const long = (name: string): string => {
      const path = join(root, name)
      writeFileSync(path, '')
      truncateSync(path, 2 ** 30)
      return path
    }
    const [metrics, config] = [long('metrics.jsonl'), long('config.yaml')]
    quickly(() => throwsError(() => readMetrics(metrics), 'FILE', /metrics\.jsonl/, /1073741824 bytes/, /at most \d+/))
    quickly(() => throwsError(() => readConfigFile(config), 'CONFIG', /config\.yaml/, /1073741824 bytes/, /at most \d+/))
    const { problems } = (await viewRun(root))!
    assert.match(problems.join('\n'), /curves are missing: .*metrics\.jsonl: has 1073741824 bytes/)
  })
})

test('a list of which only some lines have a label is refused by the first of each kind', async () => {
  await withFolder(async (root) => {
    const path = join(root, 'l.txt')
    const refuse = (text: string, ...words: RegExp[]): Promise<void> => {
      writeFileSync(path, text)
      return rejectsError(() => openSource(path), 'DATA', /l\.txt/, ...words)
    }
    await refuse('a.jpg 1\n# no\n\nb.jpg\nc.jpg\n', /line 4 \(b\.jpg\) has no label/, /line 1 \(a\.jpg\) has one/)
    await refuse('path,label\na.jpg,0\n', /line 1 \(path,label\) has no label/, /line 2 \(a\.jpg\)/)
    writeFileSync(path, 'a.jpg\nb.jpg\n')
    assert.is((await openSource(path)).classes, undefined)
  })
})

test('sizes of options end where no machine follows, and what a machine has no memory for is said in sizes', () => {
  const most: Record<string, number> = {
    imageSize: 8192,
    queueLength: 2 ** 24,
    baseChannels: 1024,
    hidden: 65_536,
    featDim: 65_536,
    numGrid: 1024,
  }
  for (const [key, value] of Object.entries(most)) {
    resolveConfig([{ key, value, from: 'test' }])
    for (const more of [value + 1, 9e14])
      throwsError(() => resolveConfig([{ key, value: more, from: 'test' }]), 'CONFIG', new RegExp(`${key} is ${more}`))
  }
  throwsError(
    () => new Loader({ items: [], imageSize: 8192, batchSize: 2 ** 20, views: 'augmented' }),
    'OUT_OF_MEMORY',
    /1048576 images of 8192 pixels/,
    /GiB/,
  )
  throwsError(() => numbersOf('a queue [9e14,128]', 9e14 * 128, () => 0), 'OUT_OF_MEMORY', /a queue \[9e14,128\]/)
})

testWhere(
  process.platform !== 'win32' && existsSync('/bin/bash'),
  'there is no bash',
  test,
  'few open files are named as the limit that they are',
  () => {
    for (const files of [24, 40]) {
      const { status, stderr } = spawnSync('/bin/bash', ['-c', `ulimit -n ${files}; exec "$0" "$@"`, process.execPath, cli, 'doctor'], {
        encoding: 'utf8',
      })
      assert.is(status, 1, stderr)
      assert.match(stderr, /^densecl: .*\n.*ulimit -n/)
      assert.not.match(stderr, /mistake in densecl| at /)
    }
  },
)

test.run()
