/** NCCL, by which GPUs exchange tensors: found and loaded when several processes share a run, and needed by nobody else. */
import { spawnSync } from 'node:child_process'

import { DenseclError, fail } from '../tensor/errors.js'
import { native } from '../tensor/native.js'

const library = 'libnccl.so.2'

/** Where packages of Python have it. */
const askPython = 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0] + "/lib")'

/** What is tried, in this order: DENSECL_NCCL and nothing else; what the system's loader finds; that of the python3 on the PATH. */
function* candidates(): Generator<string, void> {
  const chosen = process.env.DENSECL_NCCL
  if (chosen !== undefined) {
    yield chosen
    return
  }
  yield library
  const { status, stdout } = spawnSync('python3', ['-c', askPython], { encoding: 'utf8' })
  if (status === 0) yield `${stdout.trim()}/${library}`
}

/** Loads NCCL into this process: its version. Throws COMM with all that was tried, and what to do. */
export function loadNccl(): string {
  if (native.loadNccl === undefined) fail('COMM', 'this addon has no NCCL, by which GPUs exchange tensors: one that is built for CUDA has')
  const refused: string[] = []
  for (const path of candidates())
    try {
      return native.loadNccl(path)
    } catch (error) {
      if (!(error instanceof DenseclError)) throw error
      refused.push(error.message)
    }
  const remedy =
    process.env.DENSECL_NCCL === undefined
      ? 'pip install nvidia-nccl-cu12, or apt-get install libnccl2, brings it, and DENSECL_NCCL=FILE names it elsewhere'
      : 'DENSECL_NCCL names the file, expected libnccl.so.2'
  return fail('COMM', `NCCL, by which GPUs exchange tensors, cannot be loaded: ${refused.join('; ')}; ${remedy}`)
}
