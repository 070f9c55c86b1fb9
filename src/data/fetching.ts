/**
 * Files on other machines, read by Node's fetch: ranges of bytes, or all of a file. Whatever a server answers is held against what was
 * asked (RFC 9110: ranges in section 14, validators in section 8.8); what may pass is tried again, with growing waits.
 */
import { setMaxListeners } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'

import { DenseclError, fail } from '../tensor/errors.js'
import { decoded, shownAddress } from './addresses.js'

/** A file on another machine, as its server described it. */
export interface RemoteFile {
  url: string
  /** In bytes. */
  size: number
  /** ETag, else Last-Modified, else nothing: tells whether the file is still the same. */
  version: string
  /** Whether parts of it can be had. */
  ranges: boolean
}

/** A failure that may pass. */
class Passing extends Error {
  constructor(
    message: string,
    /** Seconds that the server wants to be left alone. */
    readonly after = 0,
  ) {
    super(message)
  }
}

/** A positive number in an environment variable. */
function limit(variable: string, value: string | undefined, otherwise: number): number {
  if (value === undefined) return otherwise
  const number = Number(value)
  return number > 0 && number < Infinity ? number : fail('CONFIG', `${variable} is ${value}: expected a number above 0`)
}
/** Seconds without a byte after which an answer is given up. */
const silence = (): number => limit('DENSECL_FETCH_SECONDS', process.env.DENSECL_FETCH_SECONDS, 30)
const tries = (): number => limit('DENSECL_FETCH_TRIES', process.env.DENSECL_FETCH_TRIES, 6)

/** Bytes a second that an answer must reach on the whole. */
const slowest = 100_000

/** Seconds before the second try; each wait after that is twice as long. */
const firstWait = 0.5
const longestWait = 30

/** How long an answer is waited for: a server that sends nothing, or too little, is left. */
class Patience {
  readonly #controller = new AbortController()
  readonly #outer: AbortSignal | undefined
  readonly #whole: NodeJS.Timeout
  #quiet: NodeJS.Timeout
  /** Why it ended. */
  ended: string | undefined

  constructor(bytes: number, outer?: AbortSignal) {
    this.#outer = outer
    this.#quiet = this.#silenced()
    // A silence before the first byte and one after it are named as such: either ends before this does.
    const seconds = 2 * silence() + bytes / slowest
    this.#whole = setTimeout(() => this.#end(`${bytes} bytes took more than ${seconds.toFixed(0)} s`), 1000 * seconds)
    // One for each request that is on its way.
    if (outer !== undefined) setMaxListeners(0, outer)
    outer?.addEventListener('abort', this.#abort)
    if (outer?.aborted === true) this.#abort()
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** Something has come. */
  progressed(): void {
    clearTimeout(this.#quiet)
    this.#quiet = this.#silenced()
  }

  stop(): void {
    clearTimeout(this.#quiet)
    clearTimeout(this.#whole)
    this.#outer?.removeEventListener('abort', this.#abort)
    // A body that nobody wants any more is not downloaded.
    this.#controller.abort()
  }

  readonly #abort = (): void => this.#controller.abort()

  #silenced(): NodeJS.Timeout {
    return setTimeout(() => this.#end(`no byte for ${silence()} s`), 1000 * silence())
  }

  #end(why: string): void {
    // Where a thread is late, both times may be over: the first is the reason.
    this.ended ??= why
    this.#controller.abort()
  }
}

/** Requests that this thread has on their way at a time. */
const mostRequests = 16
let running = 0
const waiting: (() => void)[] = []

async function oneOfFew(): Promise<void> {
  if (running >= mostRequests) await new Promise<void>((resolve) => waiting.push(resolve))
  else running += 1
}

function nextOne(): void {
  const next = waiting.shift()
  if (next === undefined) running -= 1
  else next()
}

/** Certificates do not become right by asking again. */
const lasting = /^(CERT_|ERR_TLS|ERR_SSL|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO_|ERR_INVALID)/

function reasonOf(error: unknown): { reason: string; final: boolean } {
  const { cause } = error as { cause?: { code?: string; message?: string } }
  const { code = '', message = '' } = cause ?? (error as { code?: string; message?: string })
  return { reason: [code, message].filter((part) => part !== '').join(': ') || String(error), final: lasting.test(code) }
}

/** Calls `once` until it succeeds. Throws FETCH, naming the file, when it has failed for good or too often. */
async function retried<R>(
  url: string,
  what: string,
  bytes: number,
  outer: AbortSignal | undefined,
  once: (patience: Patience) => Promise<R>,
): Promise<R> {
  for (let attempt = 1; ; ++attempt) {
    await oneOfFew()
    const patience = new Patience(bytes, outer)
    let after = 0
    try {
      return await once(patience)
    } catch (error) {
      if (error instanceof DenseclError) throw error
      outer?.throwIfAborted()
      const { reason, final } = reasonOf(error)
      const why = patience.ended ?? reason
      if (final || attempt >= tries()) fail('FETCH', `${shownAddress(url)}: ${what} cannot be fetched: ${why} (tried ${attempt} times)`)
      if (error instanceof Passing) after = error.after
    } finally {
      patience.stop()
      nextOne()
    }
    const wait = Math.min(longestWait, Math.max(after, firstWait * 2 ** (attempt - 1)))
    // Many workers that failed together do not come back together.
    await sleep(1000 * wait * (0.75 + Math.random() / 2), undefined, outer === undefined ? {} : { signal: outer })
  }
}

/** fetch() refuses addresses with a user and password: they become the header that they stand for. */
async function request(url: string, headers: Record<string, string>, { signal }: Patience): Promise<Response> {
  const address = new URL(url)
  const { username, password } = address
  const credentials = Buffer.from(`${decoded(username)}:${decoded(password)}`).toString('base64')
  Object.assign(address, { username: '', password: '', hash: '' })
  const authorization = username === '' && password === '' ? {} : { authorization: `Basic ${credentials}` }
  return fetch(address, { headers: { 'accept-encoding': 'identity', ...authorization, ...headers }, signal })
}

const passingStatus: ReadonlySet<number> = new Set([408, 425, 429, 500, 502, 503, 504])

function refuse(url: string, { status, statusText, headers }: Response, expected: string): never {
  if (passingStatus.has(status)) throw new Passing(`status ${status} ${statusText}`.trim(), Number(headers.get('retry-after') ?? 0) || 0)
  const remedy =
    status === 401 || status === 403
      ? '; a signature may have expired, a user or password be missing'
      : status === 404 || status === 410
        ? '; do the numbers of the pattern fit?'
        : ''
  return fail('FETCH', `${shownAddress(url)}: status ${`${status} ${statusText}`.trim()}: expected ${expected}${remedy}`)
}

const versionOf = ({ headers }: Response): string => headers.get('etag') ?? headers.get('last-modified') ?? ''

function checkSame({ url, version }: RemoteFile, response: Response): void {
  const now = versionOf(response)
  if (now !== version)
    fail(
      'FETCH',
      `${shownAddress(url)}: was changed while it is read: expected the version ${version || '(none)'} but received ${now || '(none)'}`,
    )
}

function checkPlain(url: string, { headers }: Response): void {
  const encoding = headers.get('content-encoding') ?? 'identity'
  if (encoding !== 'identity') fail('FETCH', `${shownAddress(url)}: is sent as ${encoding}: expected the bytes of the file as they are`)
}

/** First and last byte, and the size of the file, of a header Content-Range. */
function contentRange({ headers }: Response): { first: number; last: number; size: number } | undefined {
  const found = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(headers.get('content-range') ?? '')
  if (found === null) return undefined
  const [first, last, size] = found.slice(1).map(Number) as [number, number, number]
  return { first, last, size }
}

/** Chunks of a body as they come; throws what may pass unless they are `length` bytes. */
async function* chunksOf({ body }: Response, length: number, patience: Patience): AsyncGenerator<Uint8Array> {
  let done = 0
  if (body !== null)
    for await (const chunk of body as unknown as AsyncIterable<Uint8Array>) {
      patience.progressed()
      done += chunk.length
      if (done > length) throw new Passing(`more than the ${length} bytes that were announced came`)
      yield chunk
    }
  if (done < length) throw new Passing(`the answer ended after ${done} of ${length} bytes`)
}

/** What a file is, by asking for its first byte: addresses that are signed for GET allow no HEAD. Throws FETCH. */
export function lookAt(url: string, outer?: AbortSignal): Promise<RemoteFile> {
  return retried(url, 'its first byte', 1, outer, async (patience) => {
    const response = await request(url, { range: 'bytes=0-0' }, patience)
    const { status, headers } = response
    if (status === 416) fail('FETCH', `${shownAddress(url)}: holds no byte: expected a tar file`)
    if (status !== 200 && status !== 206) refuse(url, response, '200 or 206, a file or a part of one')
    checkPlain(url, response)
    const version = versionOf(response)
    if (status === 206) {
      const place = contentRange(response)
      if (place?.first !== 0 || place.last !== 0)
        fail(
          'FETCH',
          `${shownAddress(url)}: answered bytes=0-0 by ${headers.get('content-range') ?? 'no range'}: expected bytes 0-0 of a stated size`,
        )
      return { url, size: place.size, version, ranges: true }
    }
    const length = headers.get('content-length')
    if (length === null) return fail('FETCH', `${shownAddress(url)}: gives neither ranges nor its length: expected one of them`)
    return { url, size: Number(length), version, ranges: false }
  })
}

/** The bytes `from` to `to`, without `to`, of a file that gives ranges. Throws FETCH, also where the file is another by now. */
export function readRange(file: RemoteFile, from: number, to: number, outer?: AbortSignal): Promise<Buffer> {
  const { url, size } = file
  return retried(url, `bytes ${from} to ${to - 1}`, to - from, outer, async (patience) => {
    const response = await request(url, { range: `bytes=${from}-${to - 1}` }, patience)
    if (response.status === 200)
      fail('FETCH', `${shownAddress(url)}: sent the whole file for bytes ${from} to ${to - 1}, and gave ranges before`)
    if (response.status !== 206) refuse(url, response, `206, the bytes ${from} to ${to - 1} of ${size}`)
    checkPlain(url, response)
    checkSame(file, response)
    const place = contentRange(response)
    if (place?.first !== from || place.last !== to - 1 || place.size !== size) {
      const received = response.headers.get('content-range') ?? 'no range'
      fail('FETCH', `${shownAddress(url)}: answered bytes ${from}-${to - 1}/${size} by ${received}: expected that range`)
    }
    const bytes = Buffer.allocUnsafe(to - from)
    let done = 0
    for await (const chunk of chunksOf(response, to - from, patience)) {
      bytes.set(chunk, done)
      done += chunk.length
    }
    return bytes
  })
}

/** All of a file in pieces of `length` bytes, the last shorter: `piece` is given each, of a failed try again. Throws FETCH. */
export function readWhole(
  file: RemoteFile,
  length: number,
  piece: (index: number, bytes: Buffer) => void,
  outer?: AbortSignal,
): Promise<void> {
  const { url, size } = file
  return retried(url, `the file of ${size} bytes`, size, outer, async (patience) => {
    const response = await request(url, {}, patience)
    if (response.status !== 200) refuse(url, response, '200, the whole file')
    checkPlain(url, response)
    checkSame(file, response)
    let [held, index] = [Buffer.alloc(0), 0]
    for await (const chunk of chunksOf(response, size, patience)) {
      held = Buffer.concat([held, chunk])
      for (; held.length >= length; held = held.subarray(length)) piece(index++, held.subarray(0, length))
    }
    if (held.length > 0) piece(index, held)
  })
}

/** A small file as text; undefined where there is none. */
export function readTextAt(url: string, most: number, outer?: AbortSignal): Promise<string | undefined> {
  return retried(url, 'the file', most, outer, async (patience) => {
    const response = await request(url, {}, patience)
    // S3 says 403 where a list of what is there is not allowed.
    if (response.status >= 400 && response.status < 500 && !passingStatus.has(response.status)) return undefined
    if (response.status !== 200) refuse(url, response, '200, a file')
    const parts: Uint8Array[] = []
    let size = 0
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
      patience.progressed()
      size += chunk.length
      if (size > most) fail('FETCH', `${shownAddress(url)}: is longer than expected, more than ${most} bytes`)
      parts.push(chunk)
    }
    return Buffer.concat(parts).toString('utf8')
  })
}
