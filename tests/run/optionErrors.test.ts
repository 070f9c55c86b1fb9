/** What is said of a wrong option: its name and value as they were given, and what was expected, in words of this package. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'
import { z } from 'zod'

import { densecl } from '../../src/methods/densecl/method.js'
import { optionsOf, resolveConfig } from '../../src/methods/index.js'
import {
  kebabCase,
  keyValue,
  type OptionTable,
  readConfigFile,
  resolveOptions,
  sectionOf,
  type Setting,
  settingsOf,
} from '../../src/run/options.js'
import { DenseclError } from '../../src/tensor/errors.js'
import { expectedOf, firstIssue } from '../../src/tensor/issues.js'
import { suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('wrong options')

/** Words of zod's own. */
const foreign = /Invalid (input|option|string|number|key|element)|Too (small|big)|Unrecognized|received|\|/

/** What is said of settings; undefined where they are taken. */
function said(table: OptionTable, settings: readonly Setting[]): string | undefined {
  try {
    resolveOptions(table, settings)
    return undefined
  } catch (error) {
    assert.instance(error, DenseclError)
    return (error as DenseclError).message
  }
}

const table = optionsOf(densecl)
const options = Object.keys(table)
const sections = new Set(Object.values(table).map(sectionOf))
/** What people mistype, and what programs pass by mistake. */
const texts = fc.oneof(
  fc.constantFrom(
    '',
    'x',
    '-1',
    '0.5',
    '1e999',
    'NaN',
    'null',
    'true',
    '1,2',
    '1,x',
    '[1,"x"]',
    '[]',
    '{"a":1}',
    '{',
    '99999999999999999999',
  ),
  fc.string(),
)
const values = fc.oneof(
  texts,
  fc.constantFrom(
    undefined,
    null,
    NaN,
    Infinity,
    -1,
    0.5,
    2n,
    Symbol('s'),
    () => 1,
    [NaN],
    [[1]],
    { a: NaN },
    new Map([[1, 2]]),
    new Date(0),
  ),
  fc.anything(),
)

test('of every option, whatever it is given, by a flag, key=value, a file or a program', () =>
  withFolder((folder) => {
    const refused = new Set<string>()
    for (const key of options) {
      const check = (message: string | undefined, begins: string): void => {
        // Of a section that is called as an option a map is its options.
        if (message === undefined || (sections.has(key) && message.includes(`: unknown option ${key}.`))) return
        refused.add(key)
        assert.ok(message.startsWith(begins), `${message} does not begin with ${begins}`)
        const [, expected] = /^.*: expected (.+)$/s.exec(message) ?? []
        assert.ok(expected !== undefined, message)
        assert.not.match(expected, foreign)
      }
      fc.assert(
        fc.property(texts, (text) => {
          for (const spelling of [key, kebabCase(key)]) check(said(table, [keyValue(table, `${spelling}=${text}`)]), `${spelling}=${text}`)
        }),
        { numRuns: 15 },
      )
      fc.assert(
        fc.property(values, (value) => check(said(table, settingsOf({ [key]: value }, 'config')), `config: ${key} is `)),
        { numRuns: 15 },
      )
      const path = join(folder, 'a.yaml')
      writeFileSync(path, `# mine\n${kebabCase(key)}: {x: [.nan]}\n`)
      check(said(table, readConfigFile(path)), `${path} line 2: ${kebabCase(key)} is {"x":["NaN"]}`)
    }
    // The rest take any text, or any map.
    const lenient = options.filter((key) => !refused.has(key))
    assert.equal(lenient, [])
  }))

test('what was expected is all that an option takes, with the nearest where that is a word', () => {
  const of = (text: string): string | undefined => said(table, [keyValue(table, text)])
  for (const [text, expected] of [
    ['lr=fast', 'a number above 0'],
    ['batch-size=0', 'an integer of at least 1'],
    ['knnK=1.5', 'an integer of at least 1'],
    ['flip=2', 'a number in 0..1'],
    ['momentum=1', 'a number of at least 0 and below 1'],
    ['graph=7', 'true or false'],
    ['depth=17', 'one of 18, 34, 50, 101, 152'],
    ['init=orginal', 'one of original, mmselfsup (did you mean original?)'],
    ['keyPrecision=bf16', 'fp8, or null'],
    ['strides=1,2', 'a list of 4 entries, each an integer in 1..4'],
    ['mean=red', 'a list, each a number in 0..1, or null'],
    ['cropScale=1,2,3', 'a list of 2 entries, each a number'],
    ['cropScale=2,1', 'a pair [low, high] with low <= high'],
    ['backboneOptions=4', 'a map'],
  ] as const)
    assert.is(of(text), `${text}: expected ${expected}`)
  // Of a part the whole is shown, which the rest belongs to.
  assert.is(of('cropScale.0=9'), 'cropScale.0=9: cropScale is [9,1]: expected a pair [low, high] with low <= high')
  throwsError(
    () => resolveConfig(settingsOf({ lr: NaN, graph: 'yes' }, 'config')),
    'CONFIG',
    /^config: lr is NaN: expected a number above 0\nconfig: graph is "yes": expected true or false$/,
  )
})

test('options of a method of others are refused in the same words, or in its own', () => {
  const own = {
    size: z.union([z.int(), z.literal('auto')]).default(1),
    even: z
      .number()
      .refine((x) => x % 2 === 0, 'expected an even number')
      .default(2),
    odd: z
      .number()
      .refine((x) => x % 2 === 1)
      .default(1),
    third: z.number().multipleOf(3).default(3),
    word: z.string().regex(/^a+$/).max(3).default('a'),
    own: z.number({ error: 'expected a number of whales' }).default(1),
    parts: z.strictObject({ a: z.number() }).default({ a: 1 }),
    when: z.date().nullable().default(null),
    set: z.set(z.number()).default(new Set()),
  }
  for (const [key, value, expected] of [
    ['size', 'big', 'an integer, or auto'],
    ['even', 3, 'an even number'],
    ['odd', 2, 'another value'],
    ['third', 4, 'a number, a multiple of 3'],
    ['word', 'b', 'text of at most 3 letters of the form ^a+$'],
    ['own', 'x', 'a number of whales'],
    ['parts', { a: 1, b: 2 }, 'a map'],
    ['when', 'now', 'a value of the kind date'],
    ['set', [1], 'a value of the kind set'],
  ] as const)
    assert.is(said(own, settingsOf({ [key]: value }, 'mine')), `mine: ${key} is ${JSON.stringify(value)}: expected ${expected}`)
})

test('every kind of issue has words, in files that are read too', () => {
  const words = (schema: z.ZodType, value: unknown): string => expectedOf(schema.safeParse(value).error!.issues[0]!)
  for (const [schema, value, expected] of [
    [z.int(), 0.5, 'an integer'],
    [z.literal(['a', 'b']), 'c', 'one of a, b'],
    [z.number().min(1), 0, 'at least 1'],
    [z.number().positive(), 0, 'more than 0'],
    [z.number().lt(1), 1, 'less than 1'],
    [z.string().min(2), 'a', 'at least 2 letters'],
    [z.array(z.number()).length(2), [1], '2 entries'],
    [z.number().max(1), 2, 'at most 1'],
    [z.number().multipleOf(2), 3, 'a multiple of 2'],
    [z.string().regex(/^a$/), 'b', 'text of the form /^a$/'],
    [z.strictObject({}), { b: 1 }, 'nothing called b'],
    [z.union([z.number(), z.boolean()]), 'b', 'a number, or true or false'],
    [z.record(z.string().max(1), z.number()), { bb: 1 }, 'at most 1 letters'],
    [z.map(z.string(), z.number()), new Map([['a', 'b']]), 'a number'],
    [z.number().refine(() => false), 1, 'another value'],
  ] as const)
    assert.is(words(schema, value), expected)
  const record = z.object({ position: z.object({ epoch: z.int().min(0) }) })
  const { error } = record.safeParse({ position: { epoch: -1 } })
  assert.is(firstIssue(error!), 'position.epoch: expected at least 0')
  assert.is(firstIssue(error!, 'rows[3]'), 'rows[3].position.epoch: expected at least 0')
})

test.run()
