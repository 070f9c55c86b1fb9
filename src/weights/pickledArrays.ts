/** What pickles of NumPy make arrays of, as tensors: detectron2's files hold them. */
import { Storage, TensorView } from './pickledTensors.js'
import { safetensorsDTypes, type StoredDType } from './safetensors.js'

/** A dtype of NumPy, whose order of bytes is said after it is made; undefined for one that weights do not have. */
export class ArrayDType {
  littleEndian = true
  constructor(readonly stored: StoredDType | undefined) {}
}

/** An array of NumPy, which detectron2's files have in place of tensors: made empty, and filled afterwards. */
export class PickledArray {
  constructor(public view?: TensorView) {}
}

/** NumPy's names of dtypes. */
const arrayDTypes: Record<string, StoredDType> = {
  f4: 'F32',
  f8: 'F64',
  f2: 'F16',
  i8: 'I64',
  i4: 'I32',
  i2: 'I16',
  i1: 'I8',
  u1: 'U8',
  b1: 'BOOL',
}

/** What NumPy 1 and 2 call the function that makes an empty array. */
export const reconstruct = ['numpy.core.multiarray._reconstruct', 'numpy._core.multiarray._reconstruct']
/** The same of that which makes one of bytes, in pickles of protocol 5. */
export const fromBuffer = ['numpy.core.numeric._frombuffer', 'numpy._core.numeric._frombuffer']

/** The dtype that NumPy calls so. */
export const arrayDType = (name: unknown): ArrayDType =>
  new ArrayDType(typeof name === 'string' ? arrayDTypes[name.replace(/^[<|=]/, '')] : undefined)

/** An array over `data`, its rows or, `byColumns`, its columns one behind the other; undefined for what is no weight. */
export function arrayView(sizes: () => number[], dtype: unknown, byColumns: boolean, data: unknown): TensorView | undefined {
  // Python 2 wrote bytes as a string.
  const bytes = typeof data === 'string' ? Buffer.from(data, 'latin1') : data
  if (!(dtype instanceof ArrayDType) || dtype.stored === undefined || !dtype.littleEndian || !Buffer.isBuffer(bytes)) return undefined
  const shape = sizes()
  const strides = shape.map((_, i) => (byColumns ? shape.slice(0, i) : shape.slice(i + 1)).reduce((product, size) => product * size, 1))
  const storage = new Storage('', dtype.stored, bytes.length / safetensorsDTypes[dtype.stored])
  storage.bytes = bytes
  return new TensorView(storage, 0, shape, strides)
}
