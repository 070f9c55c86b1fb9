/** Options as people write them: flags, key=value and YAML give the same values, and what cannot be is named with where it came from. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'
import { z } from 'zod'

import { kebabCase, keyValue, optionKey, optionOf, parseValue, readConfigFile, resolveOptions, section } from '../../src/run/options.js'
import { nearest } from '../../src/tensor/hint.js'
import { suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('options')

const table = {
  rate: z.number().default(1),
  folder: z.string().default('x'),
  name: z.string().nullable().default(null),
  cropScale: z.tuple([z.number(), z.number()]).default([0, 1]),
  on: z.boolean().default(false),
}

test('numbers are read as people write them, whatever JSON makes of that', () => {
  for (const [text, value] of [
    ['.5', 0.5],
    ['5.', 5],
    ['+1', 1],
    ['-.25e2', -25],
    ['1e-3', 0.001],
    ['007', 7],
  ] as const)
    assert.is(keyValue(table, `rate=${text}`).value, value, text)
  fc.assert(
    fc.property(fc.double({ noNaN: true, noDefaultInfinity: true }), (value) => {
      assert.equal(parseValue(String(value), table.rate), value === 0 ? parseValue(String(value)) : value)
    }),
  )
  for (const text of ['.', '-', '1.2.3', '0x10', 'e5', '1 2', '']) assert.is(parseValue(text, table.rate), text)
})

test('an option that takes a list has it with brackets and without, and no other option is given a list for commas', () => {
  for (const text of ['0.2,1', '.2, 1', '[0.2, 1]']) assert.equal(keyValue(table, `cropScale=${text}`).value, [0.2, 1], text)
  assert.equal(parseValue('1,2,3', z.array(z.number()).nullable().default(null)), [1, 2, 3])
  for (const [option, text] of [
    ['cropScale', '0.2,x'],
    ['cropScale', '0.2,'],
    ['folder', '0.2,1'],
    ['rate', '0,5'],
  ] as const)
    assert.is(keyValue(table, `${option}=${text}`).value, text)
})

test('what an option takes as text stays text, though it looks like a number or a list', () => {
  for (const text of ['2024', '.5', '007', '[1, 2]', 'true', 'null']) assert.is(keyValue(table, `folder=${text}`).value, text)
  // null is a value of its own where an option may be absent.
  assert.is(keyValue(table, 'name=null').value, null)
  assert.is(keyValue(table, 'name=2024').value, '2024')
})

test('a key in either spelling is the option; another is told the nearest', () => {
  for (const key of Object.keys(table)) {
    assert.is(optionKey(table, key), key)
    assert.is(optionKey(table, kebabCase(key)), key)
  }
  for (const key of ['crop_scale', 'constructor', '__proto__', 'Rate', '']) assert.is(optionKey(table, key), undefined, key)
  throwsError(() => keyValue(table, 'rate'), 'CONFIG', /rate: expected key=value/, /rate=/)
  throwsError(() => keyValue(table, 'https://host/01.tar'), 'CONFIG', /an address with \{\.\.\} needs quotes/)
})

test('a hint is given only for words that are near', () => {
  const names = ['batchSize', 'lr', 'concat', 'conv2d', 'folder', 'momentum', 'imageSize', 'warmupSteps']
  for (const [word, name] of [
    ['fodler', 'folder'],
    ['batch-size', 'batchSize'],
    ['batchsize', 'batchSize'],
    ['warm', 'warmupSteps'],
    ['convolve', 'conv2d'],
    ['optimizer.lr', 'lr'],
    ['optimizer.momentun', 'momentum'],
  ])
    assert.is(nearest(word!, names), name, word)
  for (const word of ['nosuch', 'x', 'weights', '', '.', 'optimizer.', 'nonsense']) assert.is(nearest(word, names), undefined, word)
})

const sections = {
  ...section('data', { folder: z.string().default('x'), data: z.string().default('scenes') }),
  ...section('optimizer', {
    lr: z.number().default(1),
    optimizer: z.string().default('sgd'),
    range: z.tuple([z.number(), z.number()]).default([0, 1]),
    more: z.record(z.string(), z.unknown()).default({}),
  }),
}

test('a dotted key is the option of its section, or an entry of a map or list, in a file as in key=value', async () => {
  const defaults = resolveOptions(sections, [])
  for (const [text, changed] of [
    ['optimizer.lr=2', { lr: 2 }],
    ['data.folder=y', { folder: 'y' }],
    ['data.data=y', { data: 'y' }],
    ['range.0=0.5', { range: [0.5, 1] }],
    ['optimizer.range.1=3', { range: [0, 3] }],
    ['more.a.b=true', { more: { a: { b: true } } }],
    ['lr=2', { lr: 2 }],
  ] as const) {
    assert.equal(resolveOptions(sections, [keyValue(sections, text)]), { ...defaults, ...changed }, text)
    assert.ok(Object.keys(changed).includes(optionOf(sections, text.split('=')[0]!)!))
  }
  await withFolder((folder) => {
    const path = join(folder, 'a.yaml')
    writeFileSync(path, 'optimizer:\n  lr: 3\n  range: [1, 2]\nmore: {a: 1}\nmore.b: 2\n')
    assert.equal(resolveOptions(sections, readConfigFile(path)), { ...defaults, lr: 3, range: [1, 2], more: { a: 1, b: 2 } })
    writeFileSync(path, 'optimizer: adam\n')
    assert.is(resolveOptions(sections, readConfigFile(path)).optimizer, 'adam')
  })
  // The table's own default is not what was changed.
  assert.equal(resolveOptions(sections, []), defaults)
  for (const [text, ...words] of [
    ['data.lr=2', /unknown option data\.lr \(did you mean lr\?\)/],
    ['optimizer.momentum=2', /unknown option optimizer\.momentum$/],
    ['range.2=1', /range\.2=1: the option range has no 2/],
    ['lr.a=1', /unknown option lr\.a/],
    ['optimizer.lr=fast', /^optimizer\.lr=fast: expected a number$/],
  ] as const)
    throwsError(() => resolveOptions(sections, [keyValue(sections, text)]), 'CONFIG', ...words)
})

test('later settings win, absent ones are the defaults, and all that is wrong is said at once, with where it came from', () => {
  const setting = (key: string, value: unknown, from: string) => ({ key, value, from })
  assert.equal(resolveOptions(table, [setting('rate', 2, 'a'), setting('rate', 3, 'b')]), {
    rate: 3,
    folder: 'x',
    name: null,
    cropScale: [0, 1],
    on: false,
  })
  throwsError(
    () => resolveOptions(table, [setting('rate', 'x', 'a.yaml line 2'), setting('foldr', 1, '--foldr'), setting('on', 2, 'c')]),
    'CONFIG',
    /a\.yaml line 2: rate is "x"/,
    /--foldr: unknown option foldr \(did you mean folder\?\)/,
    /c: on is 2/,
  )
})

test('a YAML file gives its settings with their lines', async () => {
  await withFolder((folder) => {
    const path = join(folder, 'a.yaml')
    writeFileSync(path, '# mine\nrate: 0.1\n\ncrop-scale: [0.2, 1]\n')
    assert.equal(readConfigFile(path), [
      { key: 'rate', value: 0.1, from: `${path} line 2` },
      { key: 'crop-scale', value: [0.2, 1], from: `${path} line 4` },
    ])
    writeFileSync(path, '')
    assert.equal(readConfigFile(path), [])
    writeFileSync(path, '- 1\n')
    throwsError(() => readConfigFile(path), 'CONFIG', /a\.yaml: expected a map/)
  })
})

test.run()
