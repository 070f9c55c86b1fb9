import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { encodeSafetensors, readSafetensors, storedFromNumbers, storedValues, type TensorFile } from '../../src/weights/safetensors.js'
import { suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('safetensors')

const write = (path: string, file: TensorFile): void => writeFileSync(path, Buffer.concat(encodeSafetensors(file)))

/** A file of a header text, the length it claims, and bytes of data. */
function raw(header: string, data: number, claimed = BigInt(Buffer.byteLength(header))): Buffer {
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(claimed)
  return Buffer.concat([length, Buffer.from(header), Buffer.alloc(data)])
}

test('what is written is read back, whatever the names, shapes and values', async () => {
  const tensor = fc
    .record({
      dtype: fc.constantFrom('F32' as const, 'F64' as const, 'I64' as const),
      shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 }),
    })
    .map(({ dtype, shape }) =>
      storedFromNumbers(
        Array.from({ length: shape.reduce((n, d) => n * d, 1) }, (_, i) => i - 3),
        shape,
        dtype,
      ),
    )
  const file = fc.record({
    tensors: fc
      .array(
        fc.tuple(
          fc.string().filter((name) => name !== '__metadata__' && name !== '__proto__'),
          tensor,
        ),
        { maxLength: 5 },
      )
      .map((entries) => new Map(entries)),
    metadata: fc.dictionary(
      fc.string().filter((name) => name !== '__proto__'),
      fc.string(),
      { noNullPrototype: true },
    ),
  })
  await withFolder((folder) => {
    const path = join(folder, 'x.safetensors')
    fc.assert(
      fc.property(file, (content) => {
        write(path, content)
        const back = readSafetensors(path)
        assert.equal(back.metadata, content.metadata)
        assert.equal(new Map([...back.tensors].sort()), new Map([...content.tensors].sort()))
      }),
      { numRuns: 60 },
    )
  })
})

test('every float format is read exactly', () => {
  const bytes = (...values: number[]): Uint8Array => new Uint8Array(Uint16Array.from(values).buffer)
  assert.equal(
    [...storedValues({ dtype: 'F16', shape: [5], bytes: bytes(0x3c00, 0xc000, 0x0001, 0x7c00, 0x3555) })],
    [1, -2, 2 ** -24, Infinity, 1365 / 4096],
  )
  assert.equal([...storedValues({ dtype: 'BF16', shape: [3], bytes: bytes(0x3f80, 0xc040, 0xff80) })], [1, -3, -Infinity])
})

const entry = (fields: Record<string, unknown>): string =>
  JSON.stringify({ x: { dtype: 'F32', shape: [2], data_offsets: [0, 8], ...fields } })

test('tensors may be listed in any order, those without bytes at the place of another among them', () =>
  withFolder((folder) => {
    const path = join(folder, 'x.safetensors')
    const entries = [
      ['a', { dtype: 'F32', shape: [1], data_offsets: [0, 4] }],
      ['none', { dtype: 'F32', shape: [0], data_offsets: [4, 4] }],
      ['b', { dtype: 'F32', shape: [2], data_offsets: [4, 12] }],
      ['c', { dtype: 'F32', shape: [1], data_offsets: [12, 16] }],
    ] as const
    const orders = fc.shuffledSubarray([...entries], { minLength: entries.length })
    fc.assert(
      fc.property(orders, (order) => {
        const file = raw(JSON.stringify(Object.fromEntries(order)), 16)
        for (let i = 0; i < 4; ++i) file.writeFloatLE(i, file.length - 16 + 4 * i)
        writeFileSync(path, file)
        const { tensors } = readSafetensors(path)
        assert.equal(Object.fromEntries([...tensors].map(([name, tensor]) => [name, [...storedValues(tensor)]])), {
          ...Object.fromEntries(order.map(([name]) => [name, []])),
          ...{ a: [0], none: [], b: [1, 2], c: [3] },
        })
      }),
    )
  }))

test('hostile headers are refused with the reason', async () => {
  const cases: [string, Buffer, RegExp][] = [
    ['2^60 bytes of header', raw('{}', 0, 2n ** 60n), /claims 1152921504606846976 bytes/],
    ['a header longer than the file', raw('{}', 0, 500n), /claims 500 bytes but 2 follow/],
    ['an empty file', Buffer.alloc(0), /0 bytes/],
    ['no JSON', raw('{"x":', 0), /not JSON/],
    ['a list', raw('[1,2]', 0), /not an object/],
    ['unknown dtype', raw(entry({ dtype: 'F31' }), 8), /unknown dtype "F31"/],
    ['a prototype as dtype', raw(entry({ dtype: 'constructor' }), 8), /x/],
    ['negative dimension', raw(entry({ shape: [-2] }), 8), /no shape/],
    ['a dimension of 2^53', raw(entry({ shape: [2 ** 53] }), 8), /no shape/],
    ['a product beyond everything', raw(entry({ shape: [2 ** 40, 2 ** 40, 2 ** 40] }), 8), /needs/],
    ['offsets outside', raw(entry({ data_offsets: [0, 800] }), 8), /outside of the 8 bytes/],
    ['offsets backwards', raw(entry({ data_offsets: [8, 0] }), 8), /outside/],
    ['size and shape disagree', raw(entry({ shape: [3] }), 8), /needs 12 bytes but data_offsets span 8/],
    [
      'an overlap',
      raw(
        JSON.stringify({ x: { dtype: 'F32', shape: [2], data_offsets: [0, 8] }, y: { dtype: 'F32', shape: [2], data_offsets: [4, 12] } }),
        12,
      ),
      /gap or an overlap/,
    ],
    ['a gap', raw(entry({ data_offsets: [4, 12] }), 12), /gap or an overlap/],
    ['bytes behind the tensors', raw(entry({}), 20), /the file holds 20/],
    ['metadata that is no map', raw('{"__metadata__": 3}', 0), /__metadata__/],
  ]
  await withFolder((folder) => {
    const path = join(folder, 'hostile.safetensors')
    for (const [name, bytes, reason] of cases) {
      writeFileSync(path, bytes)
      throwsError(
        () => assert.unreachable(`${name}: ${[...readSafetensors(path).tensors.keys()].join()}`),
        'FORMAT',
        /hostile\.safetensors/,
        reason,
      )
    }
  })
})

test('a file cut at any byte is refused', async () => {
  const content: TensorFile = {
    tensors: new Map([
      ['w', storedFromNumbers([1, 2, 3, 4, 5, 6], [2, 3], 'F32')],
      ['b', storedFromNumbers([7], [1], 'F64')],
    ]),
    metadata: {},
  }
  const bytes = Buffer.concat(encodeSafetensors(content))
  await withFolder((folder) => {
    const path = join(folder, 'cut.safetensors')
    for (let cut = 0; cut < bytes.length; ++cut) {
      writeFileSync(path, bytes.subarray(0, cut))
      throwsError(() => readSafetensors(path), 'FORMAT', /cut\.safetensors/)
    }
    throwsError(() => readSafetensors(join(folder, 'none.safetensors')), 'FILE', /ENOENT/)
  })
})

test.run()
