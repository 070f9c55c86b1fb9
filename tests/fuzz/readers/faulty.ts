/** Readers with one fault each, which harness.test.ts expects to be found. */
import { fail } from '../../../src/tensor/errors.js'
import type { FuzzedReader } from '../reader.js'

/** A reader whose fault shows where the first byte of a file is not 65. */
const withFault =
  (fault: (path: string) => unknown): (() => Promise<FuzzedReader>) =>
  () =>
    Promise.resolve({
      file: 'fuzzed',
      seeds: () => [Buffer.from('AAAA')],
      read: (path, bytes) => (bytes[0] === 65 ? undefined : fault(path)),
    })

const held: unknown[] = []

export const faulty: Readonly<Record<string, () => Promise<FuzzedReader>>> = {
  sound: withFault((path) => fail('FORMAT', `${path}: does not begin with A`)),
  throws: withFault(() => (undefined as unknown as string).length),
  nameless: withFault(() => fail('FORMAT', 'does not begin with A')),
  mistaken: withFault((path) => fail('INTERNAL', `${path}: cannot be`)),
  pollutes: withFault(() => ((Object.prototype as Record<string, unknown>).polluted = true)),
  crashes: withFault(() => process.kill(process.pid, 'SIGSEGV')),
  hangs: withFault(() => {
    for (;;) held.length = 0
  }),
  waits: withFault(() => new Promise(() => undefined)),
  grows: withFault(() => (held[0] = Buffer.alloc(300 * 2 ** 20, 1))),
  slow: withFault(() => {
    const start = process.cpuUsage()
    const spent = (): number => process.cpuUsage(start).user + process.cpuUsage(start).system
    while (spent() < 2.1e6) for (let i = 0; i < 1e6; ++i) held.length = 0
  }),
}
