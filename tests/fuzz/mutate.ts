/** Changes of sound inputs: of bytes, and of the structure of JSON. */
import fc from 'fast-check'

import type { Random } from '../../src/tensor/random.js'

const numbers = [
  '0',
  '-1',
  '1',
  '2',
  '255',
  '256',
  '65535',
  '2147483648',
  '4294967295',
  '9007199254740993',
  '1e308',
  '-0',
  'NaN',
  '99999999999',
]
const widths = [1, 2, 4, 8] as const
const edges = [
  0n,
  1n,
  0x7fn,
  0x80n,
  0xffn,
  0x7fffn,
  0xffffn,
  0x7fffffffn,
  0x80000000n,
  0xffffffffn,
  0x7fffffffffffffffn,
  0xffffffffffffffffn,
]

/** Bytes of a changed input: no more than this beyond the longer of those that it is made of. */
const mostGrowth = 2 ** 14

const of = <T>(random: Random, list: readonly T[]): T => list[random.below(list.length)]!

function change(random: Random, bytes: Buffer<ArrayBuffer>, words: readonly string[], other: Uint8Array): Buffer<ArrayBuffer> {
  const at = random.below(bytes.length + 1)
  const end = Math.min(bytes.length, at + 1 + random.below(random.below(4) === 0 ? bytes.length + 1 : 16))
  const replace = (by: Uint8Array, to = end): Buffer<ArrayBuffer> => Buffer.concat([bytes.subarray(0, at), by, bytes.subarray(to)])
  const text = (word: string): Buffer => Buffer.from(word, 'latin1')
  switch (random.below(words.length > 0 ? 10 : 8)) {
    case 0:
      if (at < bytes.length) bytes[at]! ^= 1 << random.below(8)
      return bytes
    case 1:
      if (at < bytes.length) bytes[at] = random.below(256)
      return bytes
    case 2: {
      const width = of(random, widths)
      const field = Buffer.alloc(8)
      field.writeBigUInt64LE(of(random, edges))
      const wide = field.subarray(0, width)
      return replace(random.below(2) === 0 ? wide : wide.reverse(), Math.min(bytes.length, at + width))
    }
    case 3:
      return replace(new Uint8Array(0))
    case 4:
      return replace(Buffer.concat([bytes.subarray(at, end), bytes.subarray(at, end)]))
    case 5: {
      const from = random.below(other.length + 1)
      return replace(other.subarray(from, from + 1 + random.below(64)))
    }
    case 6: {
      // A number as text becomes another.
      const digits = /\d+/.exec(bytes.toString('latin1', at, at + 256))
      if (digits === null) return random.below(8) === 0 ? bytes.subarray(0, at) : bytes
      const start = at + digits.index
      return Buffer.concat([bytes.subarray(0, start), text(of(random, numbers)), bytes.subarray(start + digits[0].length)])
    }
    case 7:
      return random.below(4) === 0 ? bytes.subarray(0, at) : replace(text(of(random, numbers)), at)
    case 8:
      return replace(text(of(random, words)), at)
    default:
      return replace(text(of(random, words)))
  }
}

/** `bytes` with a few changes, some of them with parts of `other`. */
export function mutate(random: Random, bytes: Uint8Array, words: readonly string[], other: Uint8Array): Buffer {
  let changed: Buffer<ArrayBuffer> = Buffer.from(bytes)
  for (let count = 1 + random.below(random.below(4) === 0 ? 12 : 3); count > 0; --count) changed = change(random, changed, words, other)
  return changed.subarray(0, Math.max(bytes.length, other.length) + mostGrowth)
}

/** Text that must not come out as markup. */
export const markup = '<fuzz>'

const oddTexts = ['', 'x', '__proto__', 'constructor', markup, '"', '\u2028', '\ud800', '../..', '/', 'a'.repeat(300), '1', 'null']
const oddNumbers = [0, -1, 1, 1.5, -0, 1e308, 2 ** 31, 2 ** 53, 2 ** 53 + 2, 1e-320, 255, 4_294_967_295]
const odd = fc.oneof(
  fc.constantFrom<unknown>(null, true, false, [], {}, [null], [[]], { a: null }),
  fc.constantFrom<unknown>(...oddNumbers),
  fc.constantFrom<unknown>(...oddTexts),
  fc.jsonValue({ maxDepth: 2 }),
)

interface Edit {
  at: number
  how: 'set' | 'remove' | 'rename' | 'repeat' | 'wrap' | 'copy'
  value: unknown
  name: string
  from: number
}
const edit = fc.record<Edit>({
  at: fc.nat(),
  how: fc.constantFrom('set', 'set', 'set', 'remove', 'rename', 'repeat', 'wrap', 'copy'),
  value: odd,
  name: fc.constantFrom(...oddTexts),
  from: fc.nat(),
})

/** A place in a tree: the value `holder[key]`. */
interface Place {
  holder: Record<string, unknown> | unknown[]
  key: string
}

function places(value: unknown, into: Place[] = []): Place[] {
  if (typeof value !== 'object' || value === null) return into
  for (const key of Object.keys(value)) {
    into.push({ holder: value as Place['holder'], key })
    places((value as Record<string, unknown>)[key], into)
  }
  return into
}

/** Also of `__proto__`, as a property of its own. */
const put = (holder: Place['holder'], key: string, value: unknown): unknown =>
  Object.defineProperty(holder, key, { value, enumerable: true, configurable: true, writable: true })

function edited(root: unknown, { at, how, value, name, from }: Edit): unknown {
  const all = places(root)
  if (all.length === 0) return how === 'set' ? structuredClone(value) : root
  // Near the top of the tree more often than its many leaves.
  const { holder, key } = all[(at % 4 === 0 ? at % Math.min(all.length, 8) : at) % all.length]!
  const old = (holder as Record<string, unknown>)[key]
  // A copy: what is put in may be changed later, and put into itself.
  if (how === 'set') put(holder, key, structuredClone(value))
  else if (how === 'wrap') put(holder, key, [old])
  else if (how === 'copy') {
    const other = all[from % all.length]!
    put(holder, key, structuredClone((other.holder as Record<string, unknown>)[other.key]))
  } else if (how === 'repeat') {
    if (Array.isArray(holder)) holder.push(...Array.from({ length: 1 + (from % 3) }, () => structuredClone(old)))
    else put(holder, `${key}2`, structuredClone(old))
  } else if (Array.isArray(holder)) holder.splice(Number(key), 1)
  else {
    Reflect.deleteProperty(holder, key)
    if (how === 'rename') put(holder, name, old)
  }
  return root
}

/** Values of JSON like `sound` ones, with a few places changed: of another type, out of range, absent, twice, under another name. */
export const editedJson = (sound: readonly unknown[]): fc.Arbitrary<unknown> =>
  fc
    .tuple(fc.nat(sound.length - 1), fc.array(edit, { minLength: 1, maxLength: 4 }))
    .map(([i, edits]) => edits.reduce<unknown>(edited, JSON.parse(JSON.stringify(sound[i]))))

export const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value) ?? 'null')
