/** The instructions that native/cuda names: those of Hopper stand where Hopper alone compiles them, so that Ampere assembles the rest. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { suite } from '../support/suite.js'

const test = suite('instructions')

/** Those of sm_80, by the PTX manual: "Target ISA Notes" of each. */
const ampere = [
  /^bar\.sync$/,
  /^cp\.async\.(cg\.shared\.global|commit_group|wait_group)$/,
  /^cvt\.(rn(\.relu)?\.bf16x2|rna\.tf32)\.f32$/,
  /^ex2\.approx\.ftz\.f32$/,
  /^ldmatrix\.sync\.aligned\.m8n8\.x4(\.trans)?\.shared\.b16$/,
  /^mma\.sync\.aligned\.m16n8k(16\.row\.col\.f32\.bf16\.bf16|8\.row\.col\.f32\.tf32\.tf32)\.f32$/,
  /^st\.global\.v[24]\.b32$/,
]

/** Every instruction in the strings of a source, and whether a condition on DENSECL_HOPPER holds around it. */
function instructions(source: string): { name: string; hopper: boolean }[] {
  const around: boolean[] = []
  return source.split('\n').flatMap((line) => {
    const directive = /^\s*#\s*(\w+)(.*)/.exec(line)
    if (directive !== null) {
      const [, word, rest] = directive as unknown as [string, string, string]
      if (word.startsWith('if')) around.push(/(?<!!)defined\(DENSECL_HOPPER\)/.test(rest))
      else if (word.startsWith('el')) around[around.length - 1] = word === 'elif' && rest.includes('defined(DENSECL_HOPPER)')
      else if (word === 'endif') around.pop()
      return []
    }
    const strings = [...line.replace(/\/\/.*/, '').matchAll(/"([^"]*)"/g)].map(([, text]) => text!)
    return strings
      .flatMap((text) => text.match(/(?<![\w.%])[a-z]\w*(?:\.[a-z]\w*(?:::\w+)?)+/g) ?? [])
      .filter((name) => !/\.(cuh?|h|def)$/.test(name))
      .map((name) => ({ name, hopper: around.includes(true) }))
  })
}

test('instructions that Ampere does not have are compiled for Hopper alone', () => {
  const folder = join(packageRoot, 'native', 'cuda')
  const found = readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((file) => /\.cuh?$/.test(file))
    .flatMap((file) => instructions(readFileSync(join(folder, file), 'utf8')).map((each) => ({ ...each, file })))
  const of = (hopper: boolean): typeof found => found.filter((each) => each.hopper === hopper)
  assert.equal(
    of(false)
      .filter(({ name }) => !ampere.some((form) => form.test(name)))
      .map(({ file, name }) => `${file}: ${name}`),
    [],
  )
  // What is looked for is found: both kinds are there.
  for (const form of ampere)
    assert.ok(
      of(false).some(({ name }) => form.test(name)),
      `${form.source} is used no more`,
    )
  for (const word of ['wgmma.mma_async', 'cp.async.bulk', 'mbarrier.', 'setmaxnreg.', 'elect.sync'])
    assert.ok(
      of(true).some(({ name }) => name.startsWith(word)),
      word,
    )
})

test('a condition ends with its branch', () => {
  const names = (source: string): [string, boolean][] => instructions(source).map(({ name, hopper }) => [name, hopper])
  const body = (word: string): string => `  asm("${word}.sync;");`
  assert.equal(names(['#if defined(DENSECL_HOPPER)', body('a'), '#else', body('b'), '#endif', body('c')].join('\n')), [
    ['a.sync', true],
    ['b.sync', false],
    ['c.sync', false],
  ])
  assert.equal(names(['#if defined(__CUDA_ARCH__)', body('a'), '#if defined(DENSECL_HOPPER)', body('b'), '#endif', '#endif'].join('\n')), [
    ['a.sync', false],
    ['b.sync', true],
  ])
})

test.run()
