import { readSync } from 'node:fs'

/** Exactly `length` bytes of an open file from `position` on. Throws where the file ends before. */
export function readAt(descriptor: number, position: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  for (let done = 0; done < length;) {
    const count = readSync(descriptor, bytes, done, length - done, position + done)
    if (count === 0) throw new Error(`the file ends at byte ${position + done}`)
    done += count
  }
  return bytes
}
