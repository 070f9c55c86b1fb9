/** A server of files that does what it is told to: right, late, in part, or wrong. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { createHash } from 'node:crypto'

/** What is done instead of the right thing; each property that is absent is done right. */
export interface Fault {
  status?: number
  /** The connection is closed before an answer. */
  reset?: true
  /** Nothing more comes after so many bytes of the body; -1: not even a header. */
  stallAfter?: number
  /** The connection is closed after so many bytes. */
  cutAfter?: number
  /** Empty ones are left out. */
  headers?: Record<string, string>
  /** The part that is sent, whatever was asked. */
  part?: [from: number, to: number]
  /** The whole file is sent for a range. */
  whole?: true
  change?: (bytes: Buffer) => Buffer
  /** Milliseconds between two bytes. */
  drip?: number
  /** Milliseconds before the answer. */
  late?: number
}

export interface ServedRequest {
  path: string
  /** With the query. */
  url: string
  range: string | undefined
  authorization: string | undefined
}

export class ShardServer {
  readonly requests: ServedRequest[] = []
  /** Of bodies. */
  bytes = 0
  /** The most that were answered at a time. */
  mostAtOnce = 0
  /** That are being answered. */
  atOnce = 0
  readonly #server = createServer((request, response) => void this.#answer(request, response))

  private constructor(
    readonly files: Map<string, Buffer>,
    /** What goes wrong with a request, which may ask how many there were. */
    public fault: (request: ServedRequest) => Fault | undefined,
  ) {}

  static async with<R>(
    files: Record<string, Buffer>,
    body: (server: ShardServer, base: string) => Promise<R>,
    fault: (request: ServedRequest) => Fault | undefined = () => undefined,
  ): Promise<R> {
    const server = new ShardServer(new Map(Object.entries(files)), fault)
    await new Promise<void>((resolve) => server.#server.listen(0, '127.0.0.1', resolve))
    try {
      return await body(server, `http://127.0.0.1:${(server.#server.address() as AddressInfo).port}`)
    } finally {
      server.#server.closeAllConnections()
      await new Promise((resolve) => server.#server.close(resolve))
    }
  }

  async #answer({ url = '', headers }: IncomingMessage, response: ServerResponse): Promise<void> {
    this.mostAtOnce = Math.max(this.mostAtOnce, ++this.atOnce)
    response.on('close', () => (this.atOnce -= 1))
    const path = url.split('?')[0]!.slice(1)
    const { range, authorization } = headers
    const request = { path, url, range, authorization }
    this.requests.push(request)
    const fault = this.fault(request) ?? {}
    if (fault.late !== undefined) await new Promise((resolve) => setTimeout(resolve, fault.late))
    if (fault.reset === true) return void response.destroy()
    if (fault.stallAfter === -1) return
    const file = this.files.get(path)
    if (fault.status !== undefined || file === undefined) return void response.writeHead(fault.status ?? 404, fault.headers).end('no')
    const asked = /^bytes=(\d+)-(\d+)$/.exec(range ?? '')
    const part = fault.part ?? (asked === null ? undefined : [Number(asked[1]), Math.min(file.length, Number(asked[2]) + 1)])
    const partial = part !== undefined && fault.whole !== true
    const right = partial ? file.subarray(...part) : file
    const bytes = fault.change?.(Buffer.from(right)) ?? right
    const described = {
      'content-length': String(bytes.length),
      etag: `"${createHash('md5').update(file).digest('hex')}"`,
      ...(partial ? { 'content-range': `bytes ${part[0]}-${part[1] - 1}/${file.length}` } : {}),
      ...fault.headers,
    }
    response.writeHead(partial ? 206 : 200, Object.fromEntries(Object.entries(described).filter(([, value]) => value !== '')))
    if (fault.drip !== undefined) {
      const each = setInterval(() => response.write('x'), fault.drip)
      return void response.on('close', () => clearInterval(each))
    }
    const end = fault.stallAfter ?? fault.cutAfter
    this.bytes += Math.min(bytes.length, end ?? Infinity)
    if (end === undefined) response.end(bytes)
    else response.write(bytes.subarray(0, end), () => (fault.cutAfter === undefined ? undefined : response.destroy()))
  }
}
