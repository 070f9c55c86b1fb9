/**
 * PyTorch's files: reading the zip format (1.6 and later) and the legacy one, writing the zip format. A plain pickle of NumPy's arrays, as
 * detectron2's .pkl files are, is read too.
 */
import { readFileSync } from 'node:fs'

import { fail } from '../tensor/errors.js'
import { Inert, Unpickler } from './pickle.js'
import { PickledArray } from './pickledArrays.js'
import { Storage, storageDTypes, TensorView } from './pickledTensors.js'
import { type StoredTensor, safetensorsDTypes, type TensorFile } from './safetensors.js'
import { zip, zipEntries } from './zip.js'

/** All tensors of a file by name; of nested dictionaries joined with dots (`state_dict.conv1.weight`). */
export const readPth = (path: string): Map<string, StoredTensor> => readPthFile(path).tensors

/** The same, and as metadata the strings of the outermost dictionary. */
export function readPthFile(path: string): TensorFile {
  let bytes: Buffer
  try {
    bytes = readFileSync(path)
  } catch (error) {
    return fail('FILE', `${path}: cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`)
  }
  const storages = new Map<string, Storage>()
  const { root, passedOver } =
    bytes.length > 4 && bytes.readUInt32LE(0) === 0x04034b50 ? readZipped(path, bytes, storages) : readLegacy(path, bytes, storages)
  if (root instanceof Inert) refuse(path, root)
  const into: Collected = { path, tensors: new Map(), visited: new Set(), budget: mostExpansion * bytes.length }
  collect('', root, into, 0)
  const entries = root instanceof Map ? [...(root as Map<unknown, unknown>)] : []
  const strings = entries.filter((entry): entry is [string, string] => entry.every((each) => typeof each === 'string'))
  return { tensors: into.tensors, metadata: Object.fromEntries(strings), passedOver }
}

/** Tensors may share storages and repeat values, but all together have no more than so many times the bytes of their file. */
const mostExpansion = 8

const mostDimensions = 64
const mostNesting = 8

/** What is gathered from a file. */
interface Collected {
  path: string
  tensors: Map<string, StoredTensor>
  /** A dictionary that is met again, inside of itself or elsewhere, has given its tensors: with n references to each they would be n^8. */
  visited: Set<unknown>
  /** Bytes that tensors may still take. */
  budget: number
}

function collect(name: string, value: unknown, into: Collected, depth: number): void {
  if (value instanceof TensorView) into.tensors.set(name, materialise(name, value, into))
  else if (value instanceof PickledArray) collect(name, value.view, into, depth)
  else if (value instanceof Map && depth < mostNesting && !into.visited.has(value)) {
    into.visited.add(value)
    for (const [key, item] of value as Map<unknown, unknown>)
      if (typeof key === 'string' || typeof key === 'number') collect(name === '' ? String(key) : `${name}.${key}`, item, into, depth + 1)
  }
}

/** A contiguous copy. */
function materialise(name: string, { storage, offset, shape, strides }: TensorView, into: Collected): StoredTensor {
  const { path } = into
  const size = safetensorsDTypes[storage.dtype]
  const count = shape.reduce((product, d) => product * d, 1)
  if (shape.length > mostDimensions) fail('FORMAT', `${path}: tensor ${name} has ${shape.length} axes: expected at most ${mostDimensions}`)
  const bytes = storage.bytes ?? fail('FORMAT', `${path}: the data of tensor ${name} is missing`)
  const last = count === 0 ? 0 : shape.reduce((sum, d, i) => sum + (d - 1) * strides[i]!, offset) + 1
  if (strides.length !== shape.length || last * size > bytes.length)
    fail('FORMAT', `${path}: tensor ${name} [${shape.join(',')}] reaches outside of its storage of ${bytes.length} bytes`)
  into.budget -= count * size
  if (!(into.budget >= 0))
    fail(
      'FORMAT',
      `${path}: tensor ${name} [${shape.join(',')}] repeats its storage of ${bytes.length} bytes beyond ${mostExpansion} times the file`,
    )
  const out = new Uint8Array(count * size)
  const index = new Array<number>(shape.length).fill(0)
  for (let i = 0; i < count; ++i) {
    const from = index.reduce((sum, at, axis) => sum + at * strides[axis]!, offset) * size
    for (let b = 0; b < size; ++b) out[i * size + b] = bytes[from + b]!
    for (let axis = shape.length - 1; axis >= 0; --axis) {
      const next = index[axis]! + 1
      index[axis] = next === shape[axis] ? 0 : next
      if (index[axis] !== 0) break
    }
  }
  return { dtype: storage.dtype, shape, bytes: out }
}

const refuse = (path: string, { name }: Inert): never =>
  fail(
    'FORMAT',
    `${path}: holds ${name}, which is not what weights are made of; it was not executed. Expected a dictionary of tensors: ` +
      'torch.save(model.state_dict(), ...)',
  )

/** What torch.save was given, and the names in it that are not known. */
interface Unpickled {
  root: unknown
  passedOver: readonly string[]
}

function readZipped(path: string, bytes: Buffer, storages: Map<string, Storage>): Unpickled {
  const entries = new Map(zipEntries(path, bytes).map((entry) => [entry.name, entry.data]))
  const pickle =
    [...entries.keys()].find((name) => name.endsWith('/data.pkl') || name === 'data.pkl') ??
    fail('FORMAT', `${path}: the zip holds no data.pkl`)
  const unpickler = new Unpickler(entries.get(pickle)!, 0, storages, path)
  const root = unpickler.load()
  const folder = pickle.slice(0, -'data.pkl'.length)
  for (const storage of storages.values()) {
    const data = entries.get(`${folder}data/${storage.key}`)
    if (data !== undefined && data.length >= storage.count * safetensorsDTypes[storage.dtype]) storage.bytes = data
  }
  return { root, passedOver: [...unpickler.passedOver] }
}

/**
 * A dictionary of arrays in one pickle; or the legacy format: pickles of a magic number, a version, system facts, the object and the
 * storage keys; then each storage's data.
 */
function readLegacy(path: string, bytes: Buffer, storages: Map<string, Storage>): Unpickled {
  let at = 0
  const passedOver = new Set<string>()
  const next = (): unknown => {
    const unpickler = new Unpickler(bytes, at, storages, path)
    const value = unpickler.load()
    at = unpickler.at
    for (const name of unpickler.passedOver) passedOver.add(name)
    return value
  }
  if (bytes.length === 0 || bytes[0] !== 0x80) fail('FORMAT', `${path}: neither PyTorch's zip nor its legacy format`)
  const magic = next()
  if (magic instanceof Inert) refuse(path, magic)
  if (magic instanceof Map) return { root: magic, passedOver: [...passedOver] }
  if (magic !== Number(0x1950a86a20f9469cfc6cn)) fail('FORMAT', `${path}: a pickle, but not one that torch.save wrote`)
  next()
  next()
  const root = next()
  const keys = next()
  if (!Array.isArray(keys)) return fail('FORMAT', `${path}: the list of storages is missing`)
  for (const key of keys) {
    const storage = storages.get(String(key)) ?? fail('FORMAT', `${path}: the storage ${String(key)} belongs to no tensor`)
    if (at + 8 > bytes.length) fail('FORMAT', `${path}: the file ends before storage ${storage.key}`)
    const count = Number(bytes.readBigInt64LE(at))
    const length = count * safetensorsDTypes[storage.dtype]
    if (count < 0 || at + 8 + length > bytes.length)
      fail('FORMAT', `${path}: storage ${storage.key} of ${count} elements ends after the file`)
    storage.bytes = bytes.subarray(at + 8, at + 8 + length)
    at += 8 + length
  }
  return { root, passedOver: [...passedOver] }
}

/** What encodePth writes. */
export type Pickled = string | boolean | readonly string[] | Map<string, StoredTensor> | { readonly [key: string]: Pickled }

/** A zip that torch.load reads, of strings, booleans, tuples of strings, dictionaries and tensors. Storages are aligned to 64 bytes. */
export function encodePth(content: Pickled): Uint8Array {
  const storages: StoredTensor[] = []
  const pickle = Buffer.concat([Buffer.from([0x80, 2]), encode(content, storages), Buffer.from('.')])
  return zip([
    { name: 'archive/data.pkl', data: pickle },
    ...storages.map((tensor, i) => ({
      name: `archive/data/${i}`,
      data: Buffer.from(tensor.bytes.buffer, tensor.bytes.byteOffset, tensor.bytes.length),
    })),
    { name: 'archive/version', data: Buffer.from('3\n') },
  ])
}

function encode(value: Pickled, storages: StoredTensor[]): Buffer {
  if (typeof value === 'string') return unicode(value)
  if (typeof value === 'boolean') return Buffer.from([value ? 0x88 : 0x89])
  if (isTuple(value)) return Buffer.concat([Buffer.from('('), ...value.map(unicode), Buffer.from('t')])
  const entries: [string, Buffer][] =
    value instanceof Map
      ? [...value].map(([name, tensor]) => [name, encodeTensor(tensor, storages)])
      : Object.entries(value).map(([key, item]) => [key, encode(item, storages)])
  return Buffer.concat([Buffer.from('}('), ...entries.flatMap(([key, item]) => [unicode(key), item]), Buffer.from('u')])
}

const isTuple = (value: Pickled): value is readonly string[] => Array.isArray(value)

function encodeTensor(tensor: StoredTensor, storages: StoredTensor[]): Buffer {
  const type = Object.keys(storageDTypes).find((name) => storageDTypes[name] === tensor.dtype)!
  const size = tensor.bytes.length / safetensorsDTypes[tensor.dtype]
  const strides = tensor.shape.map((_, i) => tensor.shape.slice(i + 1).reduce((product, d) => product * d, 1))
  const storage = Buffer.concat([
    Buffer.from('('),
    unicode('storage'),
    Buffer.from(`ctorch\n${type}\n`),
    unicode(String(storages.length)),
    unicode('cpu'),
    integer(size),
    Buffer.from('tQ'),
  ])
  storages.push(tensor)
  return Buffer.concat([
    Buffer.from('ctorch._utils\n_rebuild_tensor_v2\n('),
    storage,
    integer(0),
    tuple(tensor.shape),
    tuple(strides),
    Buffer.from([0x89]),
    Buffer.from('ccollections\nOrderedDict\n)RtR'),
  ])
}

function unicode(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf8')
  const head = Buffer.alloc(5)
  head.write('X', 'latin1')
  head.writeUInt32LE(bytes.length, 1)
  return Buffer.concat([head, bytes])
}
function integer(value: number): Buffer {
  if (value >= 2 ** 31) return Buffer.from(`L${value}L\n`)
  const out = Buffer.alloc(5)
  out.write('J', 'latin1')
  out.writeInt32LE(value, 1)
  return out
}
const tuple = (values: readonly number[]): Buffer => Buffer.concat([Buffer.from('('), ...values.map(integer), Buffer.from('t')])
