/**
 * PyTorch's files: reading the zip format (1.6 and later) and the legacy one, writing the zip format. Pickles are data here:
 * an allow-list of constructors is interpreted, nothing is ever imported or called.
 * Formats: CPython Lib/pickletools.py, torch/serialization.py, PKWARE APPNOTE (facts only).
 */
import { readFileSync } from 'node:fs'
import { crc32 } from 'node:zlib'

import { fail } from '../tensor/errors.js'
import { type StoredDType, type StoredTensor, safetensorsDTypes } from './safetensors.js'

const storageDTypes: Record<string, StoredDType> = {
  FloatStorage: 'F32',
  DoubleStorage: 'F64',
  HalfStorage: 'F16',
  BFloat16Storage: 'BF16',
  LongStorage: 'I64',
  IntStorage: 'I32',
  ShortStorage: 'I16',
  CharStorage: 'I8',
  ByteStorage: 'U8',
  BoolStorage: 'BOOL',
}

class Storage {
  bytes: Uint8Array | undefined
  constructor(
    readonly key: string,
    readonly dtype: StoredDType,
    readonly count: number,
  ) {}
}

class TensorView {
  constructor(
    readonly storage: Storage,
    readonly offset: number,
    readonly shape: number[],
    readonly strides: number[],
  ) {}
}

/** A name that a pickle mentions; only the allowed ones can be called. */
class Global {
  constructor(readonly name: string) {}
}

const mark = Symbol('mark')

/** Interprets one pickle from `bytes` at `start`. Persistent ids are storages. */
class Unpickler {
  at: number
  readonly #view: DataView
  readonly #stack: unknown[] = []
  readonly #memo = new Map<number, unknown>()

  constructor(
    readonly bytes: Buffer,
    start: number,
    readonly storages: Map<string, Storage>,
    readonly path: string,
  ) {
    this.at = start
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  bad(why: string): never {
    return fail('FORMAT', `${this.path}: not a valid PyTorch file: ${why}`)
  }

  #take(count: number): Buffer {
    if (count < 0 || this.at + count > this.bytes.length) this.bad(`the pickle ends at byte ${this.bytes.length}`)
    this.at += count
    return this.bytes.subarray(this.at - count, this.at)
  }
  #u8 = (): number => this.#take(1)[0]!
  #u32 = (): number => this.#take(4).readUInt32LE()
  #line(): string {
    const end = this.bytes.indexOf(10, this.at)
    if (end < 0) this.bad('a line of the pickle does not end')
    const text = this.bytes.toString('utf8', this.at, end)
    this.at = end + 1
    return text
  }
  #pop(): unknown {
    if (this.#stack.length === 0 || this.#stack.at(-1) === mark) this.bad('the pickle takes from an empty stack')
    return this.#stack.pop()
  }
  #popMark(): unknown[] {
    const from = this.#stack.lastIndexOf(mark)
    if (from < 0) this.bad('the pickle has no mark')
    const items = this.#stack.splice(from)
    return items.slice(1)
  }
  #long(count: number): number {
    let value = 0n
    const bytes = this.#take(count)
    for (let i = count - 1; i >= 0; --i) value = (value << 8n) | BigInt(bytes[i]!)
    if (count > 0 && bytes[count - 1]! & 128) value -= 1n << BigInt(8 * count)
    return Number(value)
  }

  load(): unknown {
    const push = (value: unknown): void => void this.#stack.push(value)
    for (;;) {
      const opcode = String.fromCharCode(this.#u8())
      switch (opcode) {
        case '\x80': this.#u8(); break // PROTO
        case '\x95': this.#take(8); break // FRAME
        case '.': return this.#pop()
        case '(': push(mark); break
        case '}': push(new Map()); break
        case ']': push([]); break
        case ')': push([]); break
        case 'N': push(null); break
        case '\x88': push(true); break
        case '\x89': push(false); break
        case 'K': push(this.#u8()); break
        case 'M': push(this.#take(2).readUInt16LE()); break
        case 'J': push(this.#take(4).readInt32LE()); break
        case 'I': { const text = this.#line(); push(text === '01' ? true : text === '00' ? false : Number(text)); break }
        case 'L': push(Number(this.#line().replace(/L$/, ''))); break
        case '\x8a': push(this.#long(this.#u8())); break
        case 'G': this.#take(8); push(this.#view.getFloat64(this.at - 8, false)); break
        case 'F': push(Number(this.#line())); break
        case 'X': push(this.#take(this.#u32()).toString('utf8')); break
        case '\x8c': push(this.#take(this.#u8()).toString('utf8')); break
        case 'T': push(this.#take(this.#u32()).toString('latin1')); break
        case 'U': push(this.#take(this.#u8()).toString('latin1')); break
        case 'S': push(this.#line().replace(/^['"]|['"]$/g, '')); break
        case 'V': push(this.#line()); break
        case 'B': push(this.#take(this.#u32())); break
        case 'C': push(this.#take(this.#u8())); break
        case 't': push(this.#popMark()); break
        case 'l': push(this.#popMark()); break
        case '\x85': push([this.#pop()]); break
        case '\x86': { const b = this.#pop(); push([this.#pop(), b]); break }
        case '\x87': { const c = this.#pop(); const b = this.#pop(); push([this.#pop(), b, c]); break }
        case 'q': this.#memo.set(this.#u8(), this.#stack.at(-1)); break
        case 'r': this.#memo.set(this.#u32(), this.#stack.at(-1)); break
        case 'p': this.#memo.set(Number(this.#line()), this.#stack.at(-1)); break
        case '\x94': this.#memo.set(this.#memo.size, this.#stack.at(-1)); break
        case 'h': push(this.#recall(this.#u8())); break
        case 'j': push(this.#recall(this.#u32())); break
        case 'g': push(this.#recall(Number(this.#line()))); break
        case '0': this.#pop(); break
        case 'c': push(this.#global(`${this.#line()}.${this.#line()}`)); break
        case '\x93': { const name = this.#pop(); push(this.#global(`${String(this.#pop())}.${String(name)}`)); break }
        case 's': { const value = this.#pop(); this.#set(this.#pop(), value); break }
        case 'u': { const items = this.#popMark(); for (let i = 0; i + 1 < items.length; i += 2) this.#set(items[i], items[i + 1]); break }
        case 'a': { const value = this.#pop(); this.#append([value]); break }
        case 'e': this.#append(this.#popMark()); break
        case 'Q': push(this.#persistent(this.#pop())); break
        case 'R': { const args = this.#pop(); push(this.#call(this.#pop(), args)); break }
        case 'b': this.#pop(); break // BUILD: attributes of an ordered dictionary carry no tensors
        default: this.bad(`the pickle has the opcode 0x${opcode.charCodeAt(0).toString(16)}, which weights do not need`)
      }
    }
  }

  #recall(key: number): unknown {
    return this.#memo.has(key) ? this.#memo.get(key) : this.bad(`the pickle recalls the unknown item ${key}`)
  }
  #set(key: unknown, value: unknown): void {
    const target = this.#stack.at(-1)
    if (!(target instanceof Map)) this.bad('the pickle sets an item of something that is no dictionary')
    else target.set(key, value)
  }
  #append(values: unknown[]): void {
    const target = this.#stack.at(-1)
    if (!Array.isArray(target)) this.bad('the pickle appends to something that is no list')
    else target.push(...values)
  }

  #global(name: string): Global {
    const allowed =
      ['collections.OrderedDict', 'torch._utils._rebuild_tensor', 'torch._utils._rebuild_tensor_v2', 'torch._utils._rebuild_parameter', 'torch.Size'].includes(name) ||
      /^torch(\.cuda)?\.(\w+Storage)$/.test(name)
    return allowed ? new Global(name) : this.bad(`it asks for ${name}, which is not on the list of what weights are made of; it may be malicious and was not executed`)
  }

  #call(callable: unknown, args: unknown): unknown {
    if (!(callable instanceof Global) || !Array.isArray(args)) return this.bad('the pickle calls something that is no constructor')
    const numbers = (value: unknown): number[] => (Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0) ? (value as number[]) : this.bad('a tensor has no shape'))
    switch (callable.name) {
      case 'collections.OrderedDict': return new Map((args[0] as [unknown, unknown][] | undefined) ?? [])
      case 'torch.Size': return args[0]
      case 'torch._utils._rebuild_parameter': return args[0]
      case 'torch._utils._rebuild_tensor':
      case 'torch._utils._rebuild_tensor_v2':
        if (!(args[0] instanceof Storage) || !Number.isSafeInteger(args[1])) return this.bad('a tensor has no storage')
        return new TensorView(args[0], args[1] as number, numbers(args[2]), numbers(args[3]))
      default: return this.bad(`the pickle calls ${callable.name}`)
    }
  }

  /** ('storage', type, key, device, count[, view of a storage]) */
  #persistent(id: unknown): Storage {
    if (!Array.isArray(id) || id[0] !== 'storage' || !(id[1] instanceof Global) || typeof id[2] !== 'string' || !Number.isSafeInteger(id[4])) return this.bad('a storage has an unknown form')
    if (id[5] !== undefined && id[5] !== null) return this.bad('a storage is a view of another, as only very old files have')
    const dtype = storageDTypes[id[1].name.split('.').at(-1)!] ?? this.bad(`a storage has the unknown type ${id[1].name}`)
    const known = this.storages.get(id[2])
    if (known !== undefined) return known
    const storage = new Storage(id[2], dtype, id[4] as number)
    this.storages.set(id[2], storage)
    return storage
  }
}

/** All tensors of a file by name; of nested dictionaries joined with dots (`state_dict.conv1.weight`). */
export function readPth(path: string): Map<string, StoredTensor> {
  let bytes: Buffer
  try {
    bytes = readFileSync(path)
  } catch (error) {
    return fail('FILE', `${path}: cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`)
  }
  const storages = new Map<string, Storage>()
  const root = bytes.length > 4 && bytes.readUInt32LE(0) === 0x04034b50 ? readZipped(path, bytes, storages) : readLegacy(path, bytes, storages)
  const tensors = new Map<string, StoredTensor>()
  collect(path, '', root, tensors, 0)
  return tensors
}

function collect(path: string, name: string, value: unknown, into: Map<string, StoredTensor>, depth: number): void {
  if (depth > 8) return
  if (value instanceof TensorView) into.set(name, materialise(path, name, value))
  else if (value instanceof Map) for (const [key, item] of value) collect(path, name === '' ? String(key) : `${name}.${String(key)}`, item, into, depth + 1)
}

/** A contiguous copy. */
function materialise(path: string, name: string, { storage, offset, shape, strides }: TensorView): StoredTensor {
  const size = safetensorsDTypes[storage.dtype]
  const count = shape.reduce((product, d) => product * d, 1)
  const bytes = storage.bytes ?? fail('FORMAT', `${path}: the data of tensor ${name} is missing`)
  const last = count === 0 ? 0 : shape.reduce((sum, d, i) => sum + (d - 1) * strides[i]!, offset) + 1
  if (strides.length !== shape.length || last * size > bytes.length) fail('FORMAT', `${path}: tensor ${name} [${shape.join(',')}] reaches outside of its storage of ${bytes.length} bytes`)
  const out = new Uint8Array(count * size)
  const index = new Array<number>(shape.length).fill(0)
  for (let i = 0; i < count; ++i) {
    const from = index.reduce((sum, at, axis) => sum + at * strides[axis]!, offset) * size
    for (let b = 0; b < size; ++b) out[i * size + b] = bytes[from + b]!
    for (let axis = shape.length - 1; axis >= 0 && ++index[axis]! === shape[axis]; --axis) index[axis] = 0
  }
  return { dtype: storage.dtype, shape, bytes: out }
}

interface ZipEntry {
  name: string
  data: Buffer
}

function readZipped(path: string, bytes: Buffer, storages: Map<string, Storage>): unknown {
  const entries = new Map(zipEntries(path, bytes).map((entry) => [entry.name, entry.data]))
  const pickle = [...entries.keys()].find((name) => name.endsWith('/data.pkl') || name === 'data.pkl') ?? fail('FORMAT', `${path}: the zip holds no data.pkl`)
  const root = new Unpickler(entries.get(pickle)!, 0, storages, path).load()
  const folder = pickle.slice(0, -'data.pkl'.length)
  for (const storage of storages.values()) {
    const data = entries.get(`${folder}data/${storage.key}`)
    if (data !== undefined && data.length >= storage.count * safetensorsDTypes[storage.dtype]) storage.bytes = data
  }
  return root
}

/** The stored (uncompressed) members of a zip, by its central directory. */
function zipEntries(path: string, bytes: Buffer): ZipEntry[] {
  const bad = (why: string): never => fail('FORMAT', `${path}: not a whole zip file: ${why}`)
  const end = bytes.lastIndexOf(Buffer.from('PK\x05\x06', 'latin1'))
  if (end < 0 || end + 22 > bytes.length) return bad('it has no end record')
  let count = bytes.readUInt16LE(end + 10)
  let at = bytes.readUInt32LE(end + 16)
  if (at === 0xffffffff || count === 0xffff) {
    const end64 = bytes.lastIndexOf(Buffer.from('PK\x06\x06', 'latin1'))
    if (end64 < 0 || end64 + 56 > bytes.length) return bad('it has no zip64 end record')
    count = Number(bytes.readBigUInt64LE(end64 + 32))
    at = Number(bytes.readBigUInt64LE(end64 + 48))
  }
  const entries: ZipEntry[] = []
  for (let i = 0; i < count; ++i) {
    if (at + 46 > bytes.length || bytes.readUInt32LE(at) !== 0x02014b50) return bad(`entry ${i} of its directory is damaged`)
    const nameLength = bytes.readUInt16LE(at + 28)
    const extraLength = bytes.readUInt16LE(at + 30)
    const name = bytes.toString('utf8', at + 46, at + 46 + nameLength)
    let size = bytes.readUInt32LE(at + 24)
    let offset = bytes.readUInt32LE(at + 42)
    // zip64: sizes and offsets that do not fit stand in the extra field, in this order.
    for (let e = at + 46 + nameLength; e + 4 <= at + 46 + nameLength + extraLength; e += 4 + bytes.readUInt16LE(e + 2)) {
      if (bytes.readUInt16LE(e) !== 1) continue
      let field = e + 4
      const wide = (): number => Number(bytes.readBigUInt64LE((field += 8) - 8))
      if (size === 0xffffffff) size = wide()
      if (bytes.readUInt32LE(at + 20) === 0xffffffff) wide()
      if (offset === 0xffffffff) offset = wide()
    }
    if (bytes.readUInt16LE(at + 10) !== 0) return bad(`${name} is compressed, as PyTorch does not write it`)
    if (offset + 30 > bytes.length || bytes.readUInt32LE(offset) !== 0x04034b50) return bad(`${name} has no local header`)
    const start = offset + 30 + bytes.readUInt16LE(offset + 26) + bytes.readUInt16LE(offset + 28)
    if (start + size > bytes.length) return bad(`${name} ends behind the file`)
    entries.push({ name, data: bytes.subarray(start, start + size) })
    at += 46 + nameLength + extraLength + bytes.readUInt16LE(at + 32)
  }
  return entries
}

/** Legacy: pickles of a magic number, a version, system facts, the object and the storage keys; then each storage's data. */
function readLegacy(path: string, bytes: Buffer, storages: Map<string, Storage>): unknown {
  let at = 0
  const next = (): unknown => {
    const unpickler = new Unpickler(bytes, at, storages, path)
    const value = unpickler.load()
    at = unpickler.at
    return value
  }
  if (bytes.length === 0 || bytes[0] !== 0x80) fail('FORMAT', `${path}: neither PyTorch's zip nor its legacy format`)
  if (next() !== Number(0x1950a86a20f9469cfc6cn)) fail('FORMAT', `${path}: a pickle, but not one that torch.save wrote`)
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
    if (count < 0 || at + 8 + length > bytes.length) fail('FORMAT', `${path}: storage ${storage.key} of ${count} elements ends behind the file`)
    storage.bytes = bytes.subarray(at + 8, at + 8 + length)
    at += 8 + length
  }
  return root
}

type Pickled = string | boolean | Map<string, StoredTensor> | { readonly [key: string]: Pickled }

/** A zip that torch.load reads, of strings, booleans, dictionaries and tensors. Storages are aligned to 64 bytes. */
export function encodePth(content: Pickled): Uint8Array {
  const storages: StoredTensor[] = []
  const pickle = Buffer.concat([Buffer.from([0x80, 2]), encode(content, storages), Buffer.from('.')])
  return zip([
    { name: 'archive/data.pkl', data: pickle },
    ...storages.map((tensor, i) => ({ name: `archive/data/${i}`, data: Buffer.from(tensor.bytes.buffer, tensor.bytes.byteOffset, tensor.bytes.length) })),
    { name: 'archive/version', data: Buffer.from('3\n') },
  ])
}

function encode(value: Pickled, storages: StoredTensor[]): Buffer {
  if (typeof value === 'string') return unicode(value)
  if (typeof value === 'boolean') return Buffer.from([value ? 0x88 : 0x89])
  const entries: [string, Buffer][] =
    value instanceof Map ? [...value].map(([name, tensor]) => [name, encodeTensor(tensor, storages)]) : Object.entries(value).map(([key, item]) => [key, encode(item, storages)])
  return Buffer.concat([Buffer.from('}('), ...entries.flatMap(([key, item]) => [unicode(key), item]), Buffer.from('u')])
}

function encodeTensor(tensor: StoredTensor, storages: StoredTensor[]): Buffer {
  const type = Object.keys(storageDTypes).find((name) => storageDTypes[name] === tensor.dtype)!
  const size = tensor.bytes.length / safetensorsDTypes[tensor.dtype]
  const strides = tensor.shape.map((_, i) => tensor.shape.slice(i + 1).reduce((product, d) => product * d, 1))
  const storage = Buffer.concat([Buffer.from('('), unicode('storage'), Buffer.from(`ctorch\n${type}\n`), unicode(String(storages.length)), unicode('cpu'), integer(size), Buffer.from('tQ')])
  storages.push(tensor)
  return Buffer.concat([Buffer.from('ctorch._utils\n_rebuild_tensor_v2\n('), storage, integer(0), tuple(tensor.shape), tuple(strides), Buffer.from([0x89]), Buffer.from('ccollections\nOrderedDict\n)RtR')])
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

/** A zip of stored members, each starting at a multiple of 64 bytes (files below 4 GiB). */
function zip(entries: readonly ZipEntry[]): Uint8Array {
  const parts: Buffer[] = []
  const directory: Buffer[] = []
  let at = 0
  for (const { name, data } of entries) {
    if (at + data.length > 0xfffffff0) fail('WRITE', `a .pth file of more than 4 GiB cannot be written; export safetensors`)
    const encoded = Buffer.from(name)
    const padding = (64 - ((at + 30 + encoded.length + 4) % 64)) % 64
    const header = Buffer.alloc(30 + encoded.length + 4 + padding)
    header.writeUInt32LE(0x04034b50, 0)
    const fields = (out: Buffer, from: number): void => {
      out.writeUInt16LE(20, from)
      out.writeUInt16LE(0x21, from + 8) // 1 January 1980
      out.writeUInt32LE(crc32(data), from + 10)
      out.writeUInt32LE(data.length, from + 14)
      out.writeUInt32LE(data.length, from + 18)
      out.writeUInt16LE(encoded.length, from + 22)
    }
    fields(header, 4)
    header.writeUInt16LE(4 + padding, 28)
    encoded.copy(header, 30)
    header.writeUInt16LE(0x4246, 30 + encoded.length) // an extra field of its own, "FB", as PyTorch pads
    header.writeUInt16LE(padding, 32 + encoded.length)
    const central = Buffer.alloc(46 + encoded.length)
    central.writeUInt32LE(0x02014b50, 0)
    central.writeUInt16LE(20, 4)
    fields(central, 6)
    central.writeUInt32LE(at, 42)
    encoded.copy(central, 46)
    parts.push(header, data)
    directory.push(central)
    at += header.length + data.length
  }
  const size = directory.reduce((sum, record) => sum + record.length, 0)
  const end = Buffer.alloc(22)
  end.writeUInt32LE(0x06054b50, 0)
  end.writeUInt16LE(entries.length, 8)
  end.writeUInt16LE(entries.length, 10)
  end.writeUInt32LE(size, 12)
  end.writeUInt32LE(at, 16)
  return Buffer.concat([...parts, ...directory, end])
}
