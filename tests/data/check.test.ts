/** What check-data sees beside broken images: parts of a data set that were read as classes, unusual images, files that are not read. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import sharp, { type Sharp } from 'sharp'
import * as assert from 'uvu/assert'

import { checkSource } from '../../src/data/check.js'
import { openSource } from '../../src/data/sources.js'
import { runCli, suite, withFolder } from '../support/suite.js'

const test = suite('check')

const plain = (): Sharp => sharp({ create: { width: 40, height: 40, channels: 3, background: '#a52' } })
const withAlpha = (): Sharp => sharp({ create: { width: 40, height: 40, channels: 4, background: { r: 9, g: 99, b: 9, alpha: 0.5 } } })

function folderOf(path: string, files: Record<string, Buffer | string>): string {
  mkdirSync(path, { recursive: true })
  for (const [name, bytes] of Object.entries(files)) writeFileSync(join(path, name), bytes)
  return path
}

test('folders named train and val are told from classes, in check-data and at the start of a run', () =>
  withFolder(async (folder) => {
    const jpeg = await plain().jpeg().toBuffer()
    const images = { 'a.jpg': jpeg, 'b.jpg': jpeg }
    for (const [parts, warned] of [
      [['train', 'val'], true],
      [['Training', 'Validation', 'other'], true],
      [['train', 'tram'], false],
      [['cat', 'dog'], false],
    ] as const) {
      const root = join(folder, parts.join('-'))
      for (const part of parts) folderOf(join(root, part), images)
      const { warnings } = await checkSource(await openSource(root))
      assert.is(warnings.length, warned ? 1 : 0, parts.join())
      if (warned)
        assert.match(
          warnings[0]!,
          new RegExp(`${parts[0]} and ${parts[1]} are parts of a data set, not classes: .*2 in ${parts[0]}.*such as ${parts[0]}`),
        )
    }
    const root = join(folder, 'train-val')
    assert.match(runCli(['check-data', root]).out, /^warning its folders train and val are parts/m)
    const dry = ['pretrain', '--dry-run', 'epochs=1', 'imageSize=32', 'batchSize=4', 'depth=18', 'baseChannels=4', 'queueLength=4']
    assert.match(runCli([...dry, '--data', root]).out, /^warning its folders train and val are parts/m)
    assert.not.match(runCli([...dry, 'batchSize=2', '--data', join(root, 'train')]).out, 'are parts')
  }))

test('images that are not RGB of 8 bits are counted with what becomes of them, others are not', () =>
  withFolder(async (folder) => {
    folderOf(folder, {
      'plain.jpg': await plain().jpeg().toBuffer(),
      'plain.png': await plain().png().toBuffer(),
      'grey.jpg': await plain().toColourspace('b-w').jpeg().toBuffer(),
      'grey.png': await plain().toColourspace('b-w').png().toBuffer(),
      'cmyk.jpg': await plain().toColourspace('cmyk').jpeg().toBuffer(),
      'deep.png': await plain().toColourspace('rgb16').png().toBuffer(),
      'alpha.png': await withAlpha().png().toBuffer(),
      'really-png.jpg': await plain().png().toBuffer(),
      'readme.txt': 'photos of mine',
      'moving.gif': 'GIF89a',
    })
    const report = await checkSource(await openSource(folder))
    assert.equal(report.broken, [])
    assert.equal(report.forms.map(({ what, names }) => [what, names.map((name) => name.slice(folder.length + 1))]).sort(), [
      ['16 bit: read as 8 bit', ['deep.png']],
      ['CMYK: turned into RGB without a colour profile of your own', ['cmyk.jpg']],
      ['grey: read as RGB of three equal channels', ['grey.jpg', 'grey.png']],
      ['png with the name of a jpeg: read by its content', ['really-png.jpg']],
      ['with alpha: what is transparent becomes black', ['alpha.png']],
    ])
    assert.equal(report.skipped.map(({ what, count }) => [what, count]).sort(), [
      ['no image that is read, .gif', 1],
      ['no image that is read, .txt', 1],
    ])
    const { code, out } = runCli(['check-data', folder])
    assert.is(code, 0)
    assert.match(out, /^2 grey \(read as RGB of three equal channels\): \S*grey\.jpg, \S*grey\.png$/m)
    assert.match(out, /^1 skipped \(no image that is read, \.txt\): /m)
  }))

test('images of a VOC tree that its list does not name are counted', () =>
  withFolder(async (folder) => {
    const jpeg = await plain().jpeg().toBuffer()
    folderOf(join(folder, 'JPEGImages'), { 'a.jpg': jpeg, 'b.jpg': jpeg, 'c.jpg': jpeg })
    folderOf(join(folder, 'ImageSets', 'Main'), { 'train.txt': 'a\n' })
    const { skipped, items } = await openSource(folder)
    assert.is(items.length, 1)
    assert.equal(
      skipped!.map(({ count, names }) => [count, names]),
      [[2, ['b.jpg', 'c.jpg']]],
    )
    assert.match(skipped![0]!.what, /train\.txt does not name/)
  }))

test.run()
