import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { openSource } from '../../src/data/sources.js'
import { viewRun } from '../../src/report/runView.js'
import { readConfigFile } from '../../src/run/options.js'
import { readMetrics } from '../../src/run/runLog.js'
import { findMethod } from '../../src/methods/index.js'
import { readCheckpoint } from '../../src/train/checkpoint.js'
import { importBackbone } from '../../src/weights/import.js'
import { encodeSafetensors, readSafetensors } from '../../src/weights/safetensors.js'
import { rejectsError, runCli, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('foreign files')

test('annotations of any other structure are refused with the place', async () => {
  const cases: [unknown, RegExp][] = [
    [null, /no list "images"/],
    [[], /no list "images"/],
    [{ images: 3 }, /"images" is no list/],
    [{ images: [null] }, /images\[0\]/],
    [{ images: [{ file_name: 'a.jpg' }, { file_name: 7 }] }, /images\[1\]\.file_name/],
    [{ images: [{ id: 1, file_name: 'a.jpg' }], annotations: 'x' }, /"annotations" is no list/],
    [{ images: [{ id: 1, file_name: 'a.jpg' }], annotations: [null], categories: [] }, /annotations\[0\]/],
    [{ images: [{ id: 1, file_name: 'a.jpg' }], annotations: [], categories: { a: 1 } }, /"categories" is no list/],
    [{ images: [{ id: 1, file_name: 'a.jpg' }], annotations: [], categories: [{ id: {} }] }, /categories\[0\]\.id/],
  ]
  await withFolder(async (root) => {
    const path = join(root, 'x.json')
    for (const [value, word] of cases) {
      writeFileSync(path, JSON.stringify(value))
      await rejectsError(() => openSource(path), 'DATA', /x\.json/, word)
    }
    await rejectsError(() => openSource('scenes:99999999999'), 'DATA', /10000000 allowed/)
  })
})

test('YAML whose aliases are unknown, hold themselves or multiply is refused with its name', async () => {
  const bomb = [
    'a: &a [1,1,1,1,1,1,1,1,1]',
    ...'bcdefghi'.split('').map((name, i) => `${name}: &${name} [${Array<string>(9).fill(`*${'abcdefgh'[i]}`).join(',')}]`),
  ]
  await withFolder((root) => {
    const path = join(root, 'c.yaml')
    for (const text of ['lr: *nothing\n', 'data: &a [*a]\n', '&a [*a]', bomb.join('\n'), '- 1\n', 'a: [1', ': 1\nlr: *x'])
      throwsError(() => (writeFileSync(path, text), readConfigFile(path)), 'CONFIG', /c\.yaml/)
    writeFileSync(path, 'lr: 1\n: 2\n')
    assert.equal(
      readConfigFile(path).map(({ key }) => key),
      ['lr', ''],
    )
  })
})

test('checkpoints whose record is none of ours, a folder as weights, and the oldest format of PyTorch are sentences', async () => {
  const { method } = await findMethod('densecl')
  await withFolder((root) => {
    const path = join(root, 'c.safetensors')
    const position = { epoch: 0, step: 0, globalStep: 0, images: 1 }
    const records = [
      'null',
      '3',
      '{',
      '{}',
      '[]',
      '{"version":1}',
      JSON.stringify({ version: 1, config: null, position }),
      JSON.stringify({ version: 1, config: {}, position: { ...position, step: -1 } }),
    ]
    for (const record of records) {
      writeFileSync(path, Buffer.concat(encodeSafetensors({ tensors: new Map(), metadata: { densecl: record } })))
      throwsError(() => readCheckpoint(path, method), 'CHECKPOINT', /c\.safetensors/, /record "densecl"/)
    }
    writeFileSync(path, Buffer.concat(encodeSafetensors({ tensors: new Map(), metadata: { densecl: '{"version":7}' } })))
    throwsError(() => readCheckpoint(path, method), 'CHECKPOINT', /version 7/)
    mkdirSync(join(root, 'folder.safetensors'))
    throwsError(() => readSafetensors(join(root, 'folder.safetensors')), 'FILE', /folder\.safetensors/, /EISDIR/)
    const tar = Buffer.alloc(2048)
    tar.write('sys_info')
    tar.write('ustar', 257)
    writeFileSync(join(root, 'old.pth'), tar)
    throwsError(() => importBackbone(join(root, 'old.pth')), 'FORMAT', /old\.pth: a tar file/, /save it again/)
  })
})

test('a run with damaged files is shown by what is whole', async () => {
  await withFolder(async (root) => {
    const rows = ['{"globalStep":1,"epoch":0,"loss":2}', 'null', '3', '{"epoch":0}', '{"globalStep":2,"lo', '{"globalStep":3,"loss":null}']
    writeFileSync(join(root, 'metrics.jsonl'), rows.join('\n'))
    assert.equal(readMetrics(join(root, 'metrics.jsonl')), [
      { globalStep: 1, epoch: 0, loss: 2 },
      { globalStep: 3, loss: NaN },
    ])
    for (const file of ['config.yaml', 'environment.json']) writeFileSync(join(root, file), 'null')
    mkdirSync(join(root, 'eval'))
    const tables = [null, 3, { table: { rows: 3 } }, { date: 'd', table: { title: 't', columns: ['a'], rows: [[{}]], notes: [] } }]
    for (const [i, table] of tables.entries()) writeFileSync(join(root, 'eval', `${i}.json`), JSON.stringify(table))
    writeFileSync(
      join(root, 'eval', 'good.json'),
      JSON.stringify({ date: 'd', table: { title: 't', columns: ['a'], rows: [['b']], notes: [] } }),
    )
    const view = (await viewRun(root))!
    assert.equal([view.config, view.environment, view.tables.map(({ name }) => name)], [{}, {}, ['good']])
    const { code, err } = runCli(['report', root, '--out', join(root, 'r.html')])
    assert.is(code, 0, err)
  })
})

test('what the system refuses is not called a mistake in densecl', async () => {
  await withFolder((root) => {
    const list = join(root, 'l.txt')
    mkdirSync(list)
    const { code, err } = runCli(['check-data', list, '--format', 'list'])
    assert.is(code, 1)
    assert.match(err, /l\.txt/)
    assert.not.match(err, /mistake in densecl/)
  })
})

test.run()
