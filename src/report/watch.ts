/** The report of runs as a live page: served on this machine alone, and sent again whenever a file of a run has changed. */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { extname, join, resolve } from 'node:path'

import { namesIn, statAt } from '../files/look.js'
import { fail } from '../tensor/errors.js'
import { files } from '../run/runFolder.js'
import { contentPolicy, page, pageBody } from './page.js'
import { picturesOf, type RunView, viewRun } from './runView.js'

/** The browser connects again by itself when this program or the run is started again. */
const script = `
const main = document.querySelector('main'), note = document.body.appendChild(document.createElement('div'))
note.className = 'note'
const load = async () => { const reply = await fetch('/body'); if (reply.ok) main.innerHTML = await reply.text() }
const events = new EventSource('/events')
events.onmessage = () => load().then(() => { note.textContent = 'live, ' + new Date().toLocaleTimeString() }, () => undefined)
events.onerror = () => { note.textContent = 'no answer: waiting for densecl watch' }
`

/** Headers of every answer. An SVG that is opened by itself is a document: one that runs nothing and has no origin. */
const guards = {
  'content-security-policy': "default-src 'none'; img-src data:; sandbox; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
}
const pagePolicy = { 'content-security-policy': `${contentPolicy(script)}; frame-ancestors 'none'` }

/** Size and time of all that a page is made of, whatever happens to it meanwhile. */
function stamp(runs: readonly string[]): string {
  const hash = createHash('sha1')
  const look = (path: string, depth: number): void => {
    const found = statAt(path)
    if (found === undefined) return
    if (found.isDirectory() && depth > 0) for (const name of namesIn(path)) look(join(path, name), depth - 1)
    else hash.update(`${path} ${found.size} ${found.mtimeMs}\n`)
  }
  for (const run of runs) {
    const { config, metrics, report, pictures, evaluations } = files(run)
    for (const path of [config, metrics, report]) look(path, 0)
    look(pictures, 1)
    look(evaluations, 3)
    // A folder of results, or of one evaluation, whose table lies beside it.
    if (statAt(config) === undefined)
      for (const [path, depth] of [
        [run, 3],
        [`${resolve(run)}.json`, 0],
      ] as const)
        look(path, depth)
  }
  return hash.digest('hex')
}

export interface Watch {
  url: string
  close(): Promise<void>
}

/** Serves `runs`, which need not be there yet, on loopback; port 0 takes a free one. */
export async function watchRuns(runs: readonly string[], port: number, lookEvery = 1000): Promise<Watch> {
  const listeners = new Set<ServerResponse>()
  const server = createServer((request, response) => {
    for (const [name, value] of Object.entries(guards)) response.setHeader(name, value)
    // A browser that went away while it was written to.
    response.on('error', () => undefined)
    answer(runs, request, response, listeners).catch((error: unknown) => {
      // A file that went away while it was read: the next look finds out.
      if (!response.headersSent) response.writeHead(500, { 'content-type': 'text/plain' })
      response.end(error instanceof Error ? error.message : String(error))
    })
  })
  await listen(server, port)
  // One connection that could not be taken, for want of descriptors for example: others can be.
  server.on('error', () => undefined)
  let before = stamp(runs)
  const timer = setInterval(() => {
    const now = stamp(runs)
    // A comment line keeps a connection alive that nothing passes through.
    for (const listener of listeners) listener.write(now === before ? ': \n\n' : 'data: changed\n\n')
    before = now
  }, lookEvery)
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    close: () =>
      new Promise((resolve) => {
        clearInterval(timer)
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
}

function listen(server: Server, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      try {
        fail(
          'WATCH',
          error.code === 'EADDRINUSE' ? `port ${port} is taken: choose another --port, or 0 for any` : `port ${port}: ${error.message}`,
        )
      } catch (named) {
        reject(named)
      }
    })
    server.listen(port, '127.0.0.1', resolve)
  })
}

/** Pictures are asked for by their number among those of the page. */
function pictureUrls(runs: readonly RunView[]): Map<string, string> {
  return new Map(
    runs.flatMap(picturesOf).map((path) => [
      path,
      `/picture/${createHash('sha1')
        .update(`${path} ${statAt(path)?.mtimeMs}`)
        .digest('hex')}`,
    ]),
  )
}

async function answer(
  runs: readonly string[],
  request: IncomingMessage,
  response: ServerResponse,
  listeners: Set<ServerResponse>,
): Promise<void> {
  // A page of another origin may point a name of its own at this address.
  const host = (request.headers.host ?? '').replace(/:\d+$/, '')
  if (request.method !== 'GET' || !['127.0.0.1', 'localhost'].includes(host)) {
    response.writeHead(403, { 'content-type': 'text/plain' }).end('only for this machine')
    return
  }
  const url = request.url ?? '/'
  if (url === '/events') {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' })
    response.write('retry: 1000\ndata: hello\n\n')
    listeners.add(response)
    request.on('close', () => listeners.delete(response))
    return
  }
  const views = (await Promise.all(runs.map(viewRun))).filter((run) => run !== undefined)
  const urls = pictureUrls(views)
  if (url.startsWith('/picture/')) {
    const path = [...urls].find(([, own]) => own === url)?.[0]
    if (path === undefined) {
      response.writeHead(404).end()
      return
    }
    const bytes = readFileSync(path)
    response
      .writeHead(200, { 'content-type': extname(path) === '.svg' ? 'image/svg+xml' : 'image/png', 'cache-control': 'max-age=3600' })
      .end(bytes)
    return
  }
  if (url !== '/' && url !== '/body') {
    response.writeHead(404).end()
    return
  }
  const body = pageBody(
    views,
    runs.filter((path) => !views.some((view) => view.path === path)),
    (path) => urls.get(path)!,
  )
  response
    .writeHead(200, { 'content-type': 'text/html; charset=utf-8', 'cache-control': 'no-store', ...(url === '/' ? pagePolicy : {}) })
    .end(url === '/body' ? body : page(views.map(({ name }) => name).join(', ') || 'densecl', body, script))
}
