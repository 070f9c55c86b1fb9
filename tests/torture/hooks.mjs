// Loaded into a command in front of it (node --import), to hurt it at an exact moment: DENSECL_TORTURE says how.
//   write:N   half of the bytes of its Nth write are written, then it is killed
//   rename:N  it is killed in front of its Nth renaming of a file
//   clock:N   from its Nth reading on, the time of day jumps by years, back and forth
import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { isMainThread } from 'node:worker_threads'

const [how, text] = (process.env.DENSECL_TORTURE ?? '').split(':')
let left = Number(text)
const due = () => isMainThread && --left === 0
const die = () => process.kill(process.pid, 'SIGKILL')

if (how === 'write') {
  const write = fs.writeSync
  fs.writeSync = (descriptor, bytes, ...more) => {
    if (!due()) return write(descriptor, bytes, ...more)
    const [from = 0, length = bytes.length - from, position] = typeof bytes === 'string' ? [] : more
    if (typeof bytes !== 'string') write(descriptor, bytes, from, Math.floor(length / 2), position)
    return die()
  }
}
if (how === 'rename') {
  const rename = fs.renameSync
  fs.renameSync = (...paths) => (due() ? die() : rename(...paths))
}
if (how === 'clock') {
  const now = Date.now
  const shifted = () => (--left > 0 ? now() : now() + (left % 3 === 0 ? 1 : -1) * 2e11)
  Date.now = shifted
  globalThis.Date = class extends Date {
    constructor(...parts) {
      super(...(parts.length === 0 ? [shifted()] : parts))
    }
  }
}
syncBuiltinESMExports()
