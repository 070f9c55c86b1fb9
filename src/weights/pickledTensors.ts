/** What pickles of PyTorch make tensors of: storages, and views of them. */
import type { StoredDType } from './safetensors.js'

/** The dtypes of storages by the names of their classes. */
export const storageDTypes: Record<string, StoredDType> = {
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

/** Values that tensors lie in; its bytes are found behind the pickle, or in another file of the archive. */
export class Storage {
  bytes: Uint8Array | undefined
  constructor(
    readonly key: string,
    readonly dtype: StoredDType,
    readonly count: number,
  ) {}
}

/** A tensor: elements of a storage from `offset` on, by sizes and strides. */
export class TensorView {
  constructor(
    readonly storage: Storage,
    readonly offset: number,
    readonly shape: number[],
    readonly strides: number[],
  ) {}
}
