/** Which parts of the product have run, by V8's own counters: no instrumented copy of the code is needed. */
import { type Profiler, Session } from 'node:inspector'

/** Must be made before the code is loaded that it looks at. */
export class Coverage {
  readonly #session = new Session()
  readonly #seen = new Set<string>()

  constructor() {
    this.#session.connect()
    this.#session.post('Profiler.enable')
    this.#session.post('Profiler.startPreciseCoverage', { callCount: true, detailed: true })
  }

  /** What has run since the last call of any method here. */
  taken(): string[] {
    const parts: string[] = []
    this.#session.post('Profiler.takePreciseCoverage', (_: unknown, { result }: Profiler.TakePreciseCoverageReturnType) => {
      for (const { url, scriptId, functions } of result) {
        if (!url.includes('/dist/src/')) continue
        for (const { ranges } of functions)
          for (const { startOffset, endOffset, count } of ranges) if (count > 0) parts.push(`${scriptId}:${startOffset}:${endOffset}`)
      }
    })
    return parts
  }

  /** What of that had never run before; from now on it has. */
  fresh(): Set<string> {
    const found = new Set(this.taken().filter((part) => !this.#seen.has(part)))
    for (const part of found) this.#seen.add(part)
    return found
  }

  get size(): number {
    return this.#seen.size
  }
}
