/** NCCL, by which GPUs exchange tensors: found and loaded when several processes share a run, and needed by nobody else. */
import { fail } from '../tensor/errors.js'
import { type ForeignLibrary, loadLibrary } from '../tensor/library.js'
import { native } from '../tensor/native.js'

const nccl: ForeignLibrary = {
  name: 'NCCL, by which GPUs exchange tensors,',
  variable: 'DENSECL_NCCL',
  files: ['libnccl.so.2'],
  source: 'pip install nvidia-nccl-cu12, or apt-get install libnccl2,',
  code: 'COMM',
}

/** Loads NCCL into this process: its version. Throws COMM with all that was tried, and what to do. */
export function loadNccl(): string {
  if (native.loadNccl === undefined) fail('COMM', 'this addon has no NCCL, by which GPUs exchange tensors: one that is built for CUDA has')
  return loadLibrary(nccl, (path) => native.loadNccl!(path))
}
