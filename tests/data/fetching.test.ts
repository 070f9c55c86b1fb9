/** Files on other machines, request by request: what a server may answer, and how long it is waited for. */
import { createHash } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { setTimeout as sleep } from 'node:timers/promises'

import * as assert from 'uvu/assert'

import { lookAt, readRange, readTextAt, readWhole, type RemoteFile } from '../../src/data/fetching.js'
import { ReadAhead } from '../../src/data/readAhead.js'
import type { Item } from '../../src/data/source.js'
import { type Fault, ShardServer } from '../support/shardServer.js'
import { rejectsError, suite } from '../support/suite.js'

const test = suite('fetching')
Object.assign(process.env, { DENSECL_FETCH_SECONDS: '5', DENSECL_FETCH_TRIES: '3' })

const bytes = Buffer.from(Array.from({ length: 4000 }, (_, i) => i % 251))
const size = bytes.length

/** A server of one file, and what it said of it before its faults began. */
const served = (body: (server: ShardServer, file: RemoteFile) => Promise<void>, before?: Fault): Promise<void> =>
  ShardServer.with(
    { file: bytes },
    async (server, base) => {
      const file = await lookAt(`${base}/file`)
      server.requests.length = 0
      await body(server, file)
    },
    () => before,
  )

/** Fails the first requests, and does what follows right. */
function failing(server: ShardServer, fault: Fault, times = 1): void {
  let left = times
  server.fault = () => (left-- > 0 ? fault : undefined)
}

test('a range is believed where first byte, last byte and size are those that were asked for', () =>
  served(async (server, file) => {
    assert.equal(await readRange(file, 100, 200), bytes.subarray(100, 200))
    for (const said of [`99-199/${size}`, `100-198/${size}`, `100-200/${size}`, `100-199/${size + 1}`, '100-199/*', `*/${size}`, '']) {
      server.fault = () => ({ headers: { 'content-range': said === '' ? '' : `bytes ${said}` } })
      const received = said === '' ? 'no range' : said
      await rejectsError(() => readRange(file, 100, 200), 'FETCH', received, /expected that range/)
    }
    for (const said of [`1-1/${size}`, `0-1/${size}`, '0-0/*']) {
      server.fault = () => ({ headers: { 'content-range': `bytes ${said}` } })
      await rejectsError(() => lookAt(file.url), 'FETCH', said, /expected bytes 0-0 of a stated size/)
    }
    assert.is(server.requests.length, 11, 'a lie is not asked for again')
  }))

test('a file without parts is known by its length, one of nothing and one of no length are refused', () =>
  served(async (server, file) => {
    server.fault = () => ({ whole: true })
    assert.equal(await lookAt(file.url), { ...file, ranges: false })
    server.fault = () => ({ whole: true, headers: { 'content-length': '', 'transfer-encoding': 'chunked' } })
    await rejectsError(() => lookAt(file.url), 'FETCH', /neither ranges nor its length/)
    server.fault = () => ({ status: 416 })
    await rejectsError(() => lookAt(file.url), 'FETCH', /holds no byte/)
  }))

test('a file is the same by its ETag, else by when it was changed', async () => {
  const [monday, tuesday] = ['Mon, 02 Nov 2026 10:00:00 GMT', 'Tue, 03 Nov 2026 10:00:00 GMT']
  await served(
    async (server, file) => {
      assert.is(file.version, monday)
      await readRange(file, 0, 10)
      server.fault = () => ({ headers: { etag: '', 'last-modified': tuesday } })
      await rejectsError(() => readRange(file, 0, 10), 'FETCH', /changed while it is read/, monday, tuesday)
      await rejectsError(() => readWhole(file, 1000, () => undefined), 'FETCH', /changed while it is read/)
    },
    { headers: { etag: '', 'last-modified': monday } },
  )
  await served(async (server, file) => {
    assert.is(file.version, `"${createHash('md5').update(bytes).digest('hex')}"`)
    server.fault = () => ({ headers: { 'last-modified': tuesday } })
    await readRange(file, 0, 10)
  })
})

test('an answer that trickles is left, however often a byte comes', () =>
  served(async (server, file) => {
    server.fault = () => ({ drip: 50 })
    process.env.DENSECL_FETCH_SECONDS = '1'
    try {
      await rejectsError(() => readRange(file, 0, 1000), 'FETCH', /1000 bytes took more than/, /tried 3 times/)
    } finally {
      process.env.DENSECL_FETCH_SECONDS = '5'
    }
  }))

test('waits double, are those that the server asks for, and end after the last try', () =>
  served(async (server, file) => {
    const seconds = async (fault: Fault, times: number): Promise<number> => {
      failing(server, fault, times)
      const start = performance.now()
      await readRange(file, 0, 10)
      return (performance.now() - start) / 1000
    }
    // Half a second and one, each by a quarter more or less.
    const twice = await seconds({ status: 429 }, 2)
    assert.ok(twice >= 1.12, `${twice} s`)
    const asked = await seconds({ status: 503, headers: { 'retry-after': '2' } }, 1)
    assert.ok(asked >= 1.49, `${asked} s`)
    server.requests.length = 0
    failing(server, { status: 500 }, 3)
    await rejectsError(() => readRange(file, 0, 10), 'FETCH', /status 500/, /tried 3 times/)
    assert.is(server.requests.length, 3)
    server.requests.length = 0
    for (const status of [400, 401, 404, 410]) {
      failing(server, { status })
      await rejectsError(() => readRange(file, 0, 10), 'FETCH', `status ${status}`)
    }
    assert.is(server.requests.length, 4, 'each once')
  }))

test('what is wrong with a connection for good is not tried again', () =>
  served(async (_, file) => {
    await rejectsError(() => lookAt(file.url.replace('http:', 'https:')), 'FETCH', /cannot be fetched: ERR_SSL/, /tried 1 times/)
  }))

test('user and password of an address become the header that they stand for', () =>
  served(async (server, file) => {
    await readRange({ ...file, url: file.url.replace('//', '//me:p%40ss@') }, 0, 10)
    assert.is(server.requests.at(-1)!.authorization, `Basic ${Buffer.from('me:p@ss').toString('base64')}`)
  }))

test('a thread has so many requests on their way, and no failure costs one of them', () =>
  served(async (server, file) => {
    failing(server, { reset: true }, 20)
    await Promise.all(Array.from({ length: 20 }, () => readRange(file, 0, 10)))
    server.fault = () => ({ late: 100 })
    server.mostAtOnce = 0
    const start = performance.now()
    await Promise.all(Array.from({ length: 64 }, () => readRange(file, 0, 10)))
    assert.is(server.mostAtOnce, 16)
    assert.ok(performance.now() - start < 4000)
  }))

test('a body that nobody wants is not downloaded', () =>
  served(async (server, file) => {
    server.fault = () => ({ drip: 20, whole: true })
    await rejectsError(() => readRange(file, 0, 10), 'FETCH', /sent the whole file/)
    const limit = performance.now() + 5000
    while (server.atOnce > 0 && performance.now() < limit) await sleep(10)
    assert.is(server.atOnce, 0)
  }))

test('a text is of a length, or not there', () =>
  served(async (server, file) => {
    assert.is((await readTextAt(file.url, size))!.length > 0, true)
    await rejectsError(() => readTextAt(file.url, size - 1), 'FETCH', new RegExp(`more than ${size - 1} bytes`))
    for (const status of [403, 404]) {
      server.fault = () => ({ status })
      assert.is(await readTextAt(file.url, size), undefined)
    }
  }))

/** Parts of the file as images, 100 bytes each. */
const itemsOf = (file: RemoteFile): (Item & { kind: 'remote' })[] =>
  Array.from({ length: 20 }, (_, i) => ({
    ...{ name: `${i}.jpg`, kind: 'remote', offset: 100 * i, size: 100, crc: crc32(bytes.subarray(100 * i, 100 * i + 100)) },
    shard: { ...file, cache: { folder: '/nonexistent', bytes: 0 }, key: '', keep: false },
  }))

test('so many images are fetched ahead, and so many bytes are held; each that is taken makes room', () =>
  served(async (server, file) => {
    const items = itemsOf(file)
    const ahead = (images: number, held: number): ReadAhead => {
      const made = new ReadAhead({ images, bytes: held })
      for (const [i, item] of items.entries()) made.expect(i, item)
      return made
    }
    server.fault = () => ({ late: 30 })
    server.mostAtOnce = 0
    const few = ahead(3, Infinity)
    for (const [i] of items.entries()) assert.equal(await few.take(i), bytes.subarray(100 * i, 100 * i + 100))
    assert.is(server.mostAtOnce, 3)
    assert.is(few.take(0), undefined)

    server.requests.length = 0
    const held = ahead(32, 500)
    const settled = async (count: number): Promise<void> => {
      for (let tries = 0; server.requests.length < count && tries < 500; ++tries) await sleep(10)
      await sleep(200)
      assert.is(server.requests.length, count, 'held until they are taken')
    }
    await settled(5)
    for (const i of [0, 1]) await held.take(i)
    await settled(7)
    held.stop()
  }))

test('what is on its way when nobody wants it any more ends at once', () =>
  served(async (server, file) => {
    server.fault = () => ({ late: 250 })
    const ahead = new ReadAhead()
    const [item] = itemsOf(file)
    ahead.expect(0, item!)
    const bytesOfIt = ahead.take(0)!
    while (server.requests.length === 0) await sleep(1)
    ahead.stop()
    let failed = false
    await bytesOfIt.catch(() => (failed = true))
    assert.ok(failed)
    ahead.expect(1, item!)
    await sleep(20)
    assert.is(server.requests.length, 1)
  }))

test.run()
