/** What the CPU says it can do, and that code asks it rather than look at its name. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { native, resolveDevice } from '../../src/tensor/native.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('traits')

test('the CPU computes in f32, f64 and, where asked, bf16, in host memory, records steps, and has no kernels to choose from', () => {
  const { kind, dtypes, usualDType, families, hostMemory, asynchronous, recordable, rendersViews, capability } = deviceTraits('cpu')
  assert.equal([kind, dtypes, usualDType, families], ['cpu', ['f32', 'f64', 'bf16'], 'f32', []])
  assert.equal([hostMemory, asynchronous, recordable, rendersViews, capability], [true, false, true, false, 0])
  assert.is(deviceTraits('cpu'), deviceTraits('cpu'))
})

test('there are no traits of a device that does not exist', () => {
  throwsError(() => deviceTraits('tpu'), 'DEVICE', 'there is no device tpu; expected one of cpu')
})

test('auto is a device of this build', () => {
  assert.ok(native.deviceNames().includes(resolveDevice('auto')))
})

/** Ways in which a program would find out what a device is by the look of its name, or of the sentence that describes it. */
const nameTests: readonly RegExp[] = [
  /[!=]==? ?['"`](?:cpu|simt|cuda)\b/,
  /['"`](?:cpu|simt|cuda(?::\d*)?)['"`] ?[!=]==? /,
  /\.(?:startsWith|endsWith|includes|match|search|indexOf)\(['"`/](?:\^)?(?:cpu|simt|cuda)/,
  /\/\^?(?:cpu|simt|cuda)[^/]*\/[a-z]*\.(?:test|exec)\(/,
  /case ['"`](?:cpu|simt|cuda)/,
  /describeDevice\([^)]*\)\.(?:includes|match|startsWith|split|search|replace)/,
  /\.(?:test|exec)\([^)]*describeDevice\(/,
]
/** What a user has typed is made a name there. */
const parser = /^export function (?:resolveDevice|gpuNames|meansCpu)[^]*?^}/gm

function sources(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name)
    return entry.isDirectory() ? sources(path) : /\.(?:ts|mts|mjs)$/.test(entry.name) ? [path] : []
  })
}

const lookingIn = (text: string): string[] =>
  text
    .replace(parser, '')
    .split('\n')
    .filter((line) => nameTests.some((form) => form.test(line)))

test('no source asks for the name of a device', () => {
  const found = ['src', 'bench', 'scripts', 'examples']
    .flatMap((folder) => sources(join(packageRoot, folder)))
    .flatMap((path) => lookingIn(readFileSync(path, 'utf8')).map((line) => `${path.slice(packageRoot.length + 1)}: ${line.trim()}`))
  assert.equal(found, [])
})

test('the forms of such questions are recognised', () => {
  for (const line of [
    "if (x.device === 'cpu') return",
    "x.device !== 'simt' && y",
    "deviceTraits(device).kind === 'cuda'",
    "'cpu' === device",
    "device.startsWith('cuda')",
    "names.includes('simt')",
    "names.some((name) => name.startsWith('cuda:'))",
    '/^cuda:/.test(device)',
    "case 'cuda':",
    "native.describeDevice(device).includes('compute capability 9.0')",
    '/(\\d+)/.exec(native.describeDevice(device))',
  ])
    assert.equal(lookingIn(line), [line])
  for (const line of ["let device = 'cpu'", "withDevice('cpu', body)", 'tables[deviceTraits(device).kind]', 'const cpu = cpus()[0]'])
    assert.equal(lookingIn(line), [])
})

test.run()
