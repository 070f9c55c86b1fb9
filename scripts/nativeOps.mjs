// Writes src/tensor/nativeOps.ts, what TypeScript passes to each native op, from native/core/ops.def. Part of `npm run build`.
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const source = 'native/core/ops.def'
const text = readFileSync(join(root, source), 'utf8').replace(/\/\/.*$/gm, '')

const tensorKinds = { OUT: '', IN: '', OPTIONAL: '?', OPTIONAL_OUT: '?', LIST: '*', OPTIONAL_LIST: '?*' }
const numberKinds = { REAL: '', FLAG: '', INTEGER: '', LARGE_INTEGER: '', INTEGERS: '*' }
const tensorTypes = { '': 'T', '?': 'T | undefined', '*': 'readonly T[]', '?*': 'readonly (T | undefined)[]' }

function fail(op, message) {
  console.error(`${source}: ${op}: ${message}`)
  process.exit(1)
}

/** What stands between the parenthesis at `open` and its partner. */
function inside(open) {
  let depth = 0
  for (let at = open; at < text.length; ++at) {
    if (text[at] === '(') ++depth
    else if (text[at] === ')' && --depth === 0) return text.slice(open + 1, at)
  }
  return fail('', `a parenthesis is not closed: ${text.slice(open, open + 60)}`)
}

function parameters(op, list, kinds) {
  const found = []
  for (const [, kind, name] of list.matchAll(/([A-Z_]+)\((\w+)[^()]*\)/g)) {
    if (!(kind in kinds)) fail(op, `${kind}(${name}): expected one of ${Object.keys(kinds).join(', ')}`)
    if (found.some((other) => other.name === name)) fail(op, `${name} stands there twice`)
    found.push({ kind, name, mark: kinds[kind] })
  }
  return found
}

const ops = []
for (const { 1: name, index } of text.matchAll(/^OP\((\w+)/gm)) {
  const body = inside(index + 2)
  const part = (word) => {
    const at = text.indexOf(`${word}(`, index)
    return at < 0 || at > index + body.length ? '' : inside(at + word.length)
  }
  if (ops.some((other) => other.name === name)) fail(name, 'stands there twice')
  ops.push({ name, tensors: parameters(name, part('TENSORS'), tensorKinds), numbers: parameters(name, part('NUMBERS'), numberKinds) })
}

const tensorField = ({ name, mark }) => `${name}${mark === '?' ? '?' : ''}: ${tensorTypes[mark]}`
const numberField = ({ name, kind }) => `${name}: ${{ FLAG: 'boolean', INTEGERS: 'readonly number[]' }[kind] ?? 'number'}`
const record = (fields) => (fields.length === 0 ? 'Record<never, never>' : `{ ${fields.join('; ')} }`)
const rows = ops.map(
  ({ name, tensors, numbers }) =>
    `  ${name}: { tensors: ${record(tensors.map(tensorField))}; numbers: ${record(numbers.map(numberField))} }`,
)
const written = ({ name, mark }) => name + mark
const signatures = ops.map(({ name, tensors, numbers }) => `  '${name}(${tensors.map(written)})(${numbers.map(written)})',`)
let made = `// Made by scripts/nativeOps.mjs from ${source}; npm run build writes it again.

/** What each native op is called with; T is a tensor. */
export interface NativeOps<T> {
${rows.join('\n')}
}

/** The ops in the order of ${source}, as the addon says them: name(tensors)(numbers), ? for optional, * for lists. */
export const opSignatures: readonly string[] = [
${signatures.join('\n')}
]
`

// The kinds of elementwise ops: places in the lists of maps.def.
const maps = readFileSync(join(root, 'native/core/maps.def'), 'utf8')
const placed = (list, value) =>
  [...maps.matchAll(new RegExp(`^(${list})\\((\\w+),`, 'gm'))].map(([, kind, name], i) => `  ${name}: ${value(kind, i)},`).join('\n')
const opOf = { BINARY: 'binary', COMPARISON: 'compare', UNARY_X: 'unary', UNARY_Y: 'unary' }
const formulas = [...maps.matchAll(/^(BINARY|COMPARISON|UNARY_[XY])\((\w+),/gm)].map(([, kind, name]) => `  '${opOf[kind]} ${name}',`)
made += `
/** The formulas of native/core/maps.def in their order, as the addon says them: the op, and the name. */
export const formulas: readonly string[] = [
${formulas.join('\n')}
]

/** The formulas of native/core/maps.def by which binary computes, as the numbers that it is called with. */
export const binaryKinds = {
${placed('BINARY', (_, i) => i)}
} as const

/** The same of compare. */
export const compareKinds = {
${placed('COMPARISON', (_, i) => i)}
} as const

/** The same of unary and unaryBackward, and which of x and y the gradient is computed from. */
export const unaryKinds = {
${placed('UNARY_[XY]', (kind, i) => `{ kind: ${i}, saved: '${kind.at(-1).toLowerCase()}' }`)}
} as const
`
const path = join(root, 'src', 'tensor', 'nativeOps.ts')
if (!existsSync(path) || readFileSync(path, 'utf8') !== made) writeFileSync(path, made)
