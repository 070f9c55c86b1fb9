/**
 * Pickles as data: what weights are made of is interpreted, everything else becomes an object that has a name and nothing more; nothing is
 * ever imported or called.
 * Format: CPython Lib/pickletools.py, torch/serialization.py (facts only).
 */
import { fail } from '../tensor/errors.js'
import { ArrayDType, arrayDType, arrayView, fromBuffer, PickledArray, reconstruct } from './pickledArrays.js'
import { Storage, storageDTypes, TensorView } from './pickledTensors.js'

/** A name that a pickle mentions. */
class Global {
  constructor(readonly name: string) {}
}

/** What stands for an object of a class that weights are not made of, such as a trainer's settings: its name, without content. */
export class Inert {
  constructor(readonly name: string) {}
}

const dictionaries = ['collections.OrderedDict', 'collections.defaultdict']

const mark = Symbol('mark')
/** Bytes of an integer: more are no number of weights. */
const mostDigits = 1024

/** Interprets one pickle from `bytes` at `start`. Persistent ids are storages. */
export class Unpickler {
  at: number
  readonly #view: DataView
  readonly #stack: unknown[] = []
  readonly #memo = new Map<number, unknown>()
  /** The classes and functions that were asked for and passed over. */
  readonly passedOver = new Set<string>()

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
  #u64(): number {
    return Number(this.#take(8).readBigUInt64LE())
  }
  #long(count: number): number {
    let value = 0n
    if (count > mostDigits) this.bad(`the pickle has an integer of ${count} bytes`)
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
        case '\x80':
          this.#u8()
          break // PROTO
        case '\x95':
          this.#take(8)
          break // FRAME
        case '.':
          return this.#pop()
        case '(':
          push(mark)
          break
        case '}':
          push(new Map())
          break
        case ']':
          push([])
          break
        case ')':
          push([])
          break
        case 'N':
          push(null)
          break
        case '\x88':
          push(true)
          break
        case '\x89':
          push(false)
          break
        case 'K':
          push(this.#u8())
          break
        case 'M':
          push(this.#take(2).readUInt16LE())
          break
        case 'J':
          push(this.#take(4).readInt32LE())
          break
        case 'I': {
          const text = this.#line()
          push(text === '01' ? true : text === '00' ? false : Number(text))
          break
        }
        case 'L':
          push(Number(this.#line().replace(/L$/, '')))
          break
        case '\x8a':
          push(this.#long(this.#u8()))
          break
        case '\x8b':
          push(this.#long(this.#u32()))
          break
        case 'G':
          this.#take(8)
          push(this.#view.getFloat64(this.at - 8, false))
          break
        case 'F':
          push(Number(this.#line()))
          break
        case 'X':
          push(this.#take(this.#u32()).toString('utf8'))
          break
        case '\x8c':
          push(this.#take(this.#u8()).toString('utf8'))
          break
        case '\x8d':
          push(this.#take(this.#u64()).toString('utf8'))
          break
        case 'T':
          push(this.#take(this.#u32()).toString('latin1'))
          break
        case 'U':
          push(this.#take(this.#u8()).toString('latin1'))
          break
        case 'S':
          push(this.#line().replace(/^['"]|['"]$/g, ''))
          break
        case 'V':
          push(this.#line())
          break
        case 'B':
          push(this.#take(this.#u32()))
          break
        case 'C':
          push(this.#take(this.#u8()))
          break
        case '\x8e':
        case '\x96':
          push(this.#take(this.#u64()))
          break
        case 't':
          push(this.#popMark())
          break
        case 'l':
        case '\x91':
          push(this.#popMark())
          break
        case '\x8f':
          push([])
          break
        case 'd': {
          const items = this.#popMark()
          push(new Map(Array.from({ length: items.length >> 1 }, (_, i) => [items[2 * i], items[2 * i + 1]])))
          break
        }
        case '\x85':
          push([this.#pop()])
          break
        case '\x86': {
          const b = this.#pop()
          push([this.#pop(), b])
          break
        }
        case '\x87': {
          const c = this.#pop()
          const b = this.#pop()
          push([this.#pop(), b, c])
          break
        }
        case 'q':
          this.#memo.set(this.#u8(), this.#stack.at(-1))
          break
        case 'r':
          this.#memo.set(this.#u32(), this.#stack.at(-1))
          break
        case 'p':
          this.#memo.set(Number(this.#line()), this.#stack.at(-1))
          break
        case '\x94':
          this.#memo.set(this.#memo.size, this.#stack.at(-1))
          break
        case 'h':
          push(this.#recall(this.#u8()))
          break
        case 'j':
          push(this.#recall(this.#u32()))
          break
        case 'g':
          push(this.#recall(Number(this.#line())))
          break
        case '0':
          this.#pop()
          break
        case '1':
          this.#popMark()
          break
        case '2': {
          const value = this.#pop()
          push(value)
          push(value)
          break
        }
        case 'c':
          push(this.#global(`${this.#line()}.${this.#line()}`))
          break
        case '\x93': {
          const [name, module] = [this.#pop(), this.#pop()]
          if (typeof name !== 'string' || typeof module !== 'string') return this.bad('the pickle asks for something that has no name')
          push(this.#global(`${module}.${name}`))
          break
        }
        case 's': {
          const value = this.#pop()
          this.#set(this.#pop(), value)
          break
        }
        case 'u': {
          const items = this.#popMark()
          for (let i = 0; i + 1 < items.length; i += 2) this.#set(items[i], items[i + 1])
          break
        }
        case 'a': {
          const value = this.#pop()
          this.#append([value])
          break
        }
        case 'e':
        case '\x90':
          this.#append(this.#popMark())
          break
        case 'Q':
          push(this.#persistent(this.#pop()))
          break
        case 'R': {
          const args = this.#pop()
          push(this.#call(this.#pop(), args))
          break
        }
        case '\x81': {
          const args = this.#pop()
          push(this.#call(this.#pop(), args)) // NEWOBJ
          break
        }
        case '\x92': {
          this.#pop()
          const args = this.#pop()
          push(this.#call(this.#pop(), args)) // NEWOBJ_EX, by names too
          break
        }
        case 'b':
          this.#fill(this.#pop())
          break
        default:
          this.bad(`the pickle has the opcode 0x${opcode.charCodeAt(0).toString(16)}, which weights do not need`)
      }
    }
  }

  #recall(key: number): unknown {
    return this.#memo.has(key) ? this.#memo.get(key) : this.bad(`the pickle recalls the unknown item ${key}`)
  }
  #set(key: unknown, value: unknown): void {
    const target = this.#stack.at(-1)
    if (target instanceof Inert) return
    if (!(target instanceof Map)) this.bad('the pickle sets an item of something that is no dictionary')
    else target.set(key, value)
  }
  #append(values: unknown[]): void {
    const target = this.#stack.at(-1)
    if (target instanceof Inert) return
    if (!Array.isArray(target)) this.bad('the pickle appends to something that is no list')
    else for (const value of values) target.push(value)
  }

  #global(name: string): Global {
    const known =
      dictionaries.includes(name) ||
      [
        'torch._utils._rebuild_tensor',
        'torch._utils._rebuild_tensor_v2',
        'torch._utils._rebuild_parameter',
        'torch._tensor._rebuild_from_type_v2',
        'torch.Size',
        'numpy.ndarray',
        'numpy.dtype',
        '_codecs.encode',
        ...reconstruct,
        ...fromBuffer,
      ].includes(name) ||
      /^torch(\.cuda)?\.(\w+Storage)$/.test(name)
    if (!known) this.passedOver.add(name)
    return new Global(name)
  }

  #call(callable: unknown, args: unknown): unknown {
    if (callable instanceof Inert) return callable
    if (!(callable instanceof Global) || !Array.isArray(args)) return this.bad('the pickle calls something that is no constructor')
    switch (callable.name) {
      case 'collections.OrderedDict':
        return new Map(this.#pairs(args[0] ?? []))
      case 'collections.defaultdict':
        return new Map()
      case 'torch.Size':
      case 'torch._utils._rebuild_parameter':
        return args[0]
      case 'torch._tensor._rebuild_from_type_v2':
        return this.#call(args[0], args[2])
      case 'torch._utils._rebuild_tensor':
      case 'torch._utils._rebuild_tensor_v2':
        if (!(args[0] instanceof Storage) || !Number.isSafeInteger(args[1])) return this.bad('a tensor has no storage')
        return new TensorView(args[0], args[1] as number, this.#sizes(args[2]), this.#sizes(args[3]))
      case 'numpy.dtype':
        return arrayDType(args[0])
      case '_codecs.encode': // How protocol 2 writes bytes.
        return typeof args[0] === 'string' && args[1] === 'latin1' ? Buffer.from(args[0], 'latin1') : new Inert(callable.name)
      default:
        if (reconstruct.includes(callable.name)) return new PickledArray()
        if (fromBuffer.includes(callable.name)) return new PickledArray(this.#array(args[2], args[1], args[3] === 'F', args[0]))
        this.passedOver.add(callable.name)
        return new Inert(callable.name)
    }
  }

  /** BUILD: attributes of dictionaries carry no tensors that belong to weights, but arrays and their dtypes are made by it. */
  #fill(state: unknown): void {
    const target = this.#stack.at(-1)
    if (!Array.isArray(state)) return
    const [, second, third, fourth, fifth] = state as unknown[]
    if (target instanceof ArrayDType) target.littleEndian = second !== '>'
    else if (target instanceof PickledArray) target.view = this.#array(second, third, fourth === true, fifth)
  }

  /** An array; one that is no weight is named. */
  #array(shape: unknown, dtype: unknown, byColumns: boolean, data: unknown): TensorView | undefined {
    const view = arrayView(() => this.#sizes(shape), dtype, byColumns, data)
    if (view === undefined) this.passedOver.add('numpy.ndarray')
    return view
  }

  #sizes(value: unknown): number[] {
    return Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0)
      ? (value as number[])
      : this.bad('a tensor has no shape')
  }

  #pairs(value: unknown): [unknown, unknown][] {
    return Array.isArray(value) && value.every((pair) => Array.isArray(pair) && pair.length === 2)
      ? (value as [unknown, unknown][])
      : this.bad('an ordered dictionary is made of something that is no list of pairs')
  }

  /** ('storage', type, key, device, count[, view of a storage]) */
  #persistent(id: unknown): Storage {
    if (
      !Array.isArray(id) ||
      id[0] !== 'storage' ||
      !(id[1] instanceof Global) ||
      typeof id[2] !== 'string' ||
      !Number.isSafeInteger(id[4])
    )
      return this.bad('a storage has an unknown form')
    if (id[5] !== undefined && id[5] !== null) return this.bad('a storage is a view of another, as only very old files have')
    const dtype = storageDTypes[id[1].name.split('.').at(-1)!] ?? this.bad(`a storage has the unknown type ${id[1].name}`)
    const known = this.storages.get(id[2])
    if (known !== undefined) return known
    const storage = new Storage(id[2], dtype, id[4] as number)
    this.storages.set(id[2], storage)
    return storage
  }
}
