import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { addressesOf, decoded, shownAddress, withoutSecrets, withSecrets } from '../../src/data/addresses.js'
import { checkSource } from '../../src/data/check.js'
import { Loader } from '../../src/data/loader.js'
import { epochBatches } from '../../src/data/sampler.js'
import { type Item, readItemBytes, type Source, type StoredItem } from '../../src/data/source.js'
import { openSource } from '../../src/data/sources.js'
import { listingLine } from '../../src/data/shardList.js'
import { TarWriter } from '../../src/data/tar.js'
import { processorTime } from '../support/processorTime.js'
import { bytesOf, sameAsLocal } from '../support/shards.js'
import { type Fault, type ServedRequest, ShardServer } from '../support/shardServer.js'
import { cli, rejectsError, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('remote')

// Patience of a quarter of a second, and three tries.
Object.assign(process.env, { DENSECL_FETCH_SECONDS: '1', DENSECL_FETCH_TRIES: '3' })

const [shards, each] = [3, 8]
/** Noise: images of some kilobytes that no two of are alike. */
const jpegs = await Promise.all(
  Array.from({ length: shards * each }, (_, i) =>
    sharp({ create: { width: 40, height: 40, channels: 3, background: '#888', noise: { type: 'gaussian', mean: 100 + i, sigma: 40 } } })
      .jpeg({ quality: 90 })
      .toBuffer(),
  ),
)

/** Shards s-00.tar .. in a folder, as files by name. */
function writeShards(folder: string): Record<string, Buffer> {
  mkdirSync(folder, { recursive: true })
  for (let shard = 0; shard < shards; ++shard) {
    const tar = new TarWriter(join(folder, `s-0${shard}.tar`))
    for (let i = shard * each; i < (shard + 1) * each; ++i) {
      tar.add(`${String(i).padStart(4, '0')}.jpg`, jpegs[i]!)
      tar.add(`${String(i).padStart(4, '0')}.cls`, Buffer.from(String(i % 2)))
    }
    tar.add('read.me', Buffer.from('x'.repeat(100)))
    tar.close()
  }
  writeFileSync(join(folder, 'classes.txt'), 'cat\ndog\n')
  return Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name))]))
}

const pattern = 's-{00..02}.tar'

interface Place {
  local: string
  files: Record<string, Buffer>
  server: ShardServer
  base: string
  cache: string
  /** Opens what the server has. */
  open: (options?: { gigabytes?: number; path?: string }) => Promise<Source>
}

/** Files, a server of them and an empty cache. */
const served = (body: (place: Place) => Promise<void>, fault?: (request: ServedRequest) => Fault | undefined): Promise<void> =>
  withFolder(async (root) => {
    const [local, cache] = [join(root, 'local'), join(root, 'cache')]
    const files = writeShards(local)
    await ShardServer.with(
      files,
      (server, base) => {
        const open: Place['open'] = ({ gigabytes = 1, path = `${base}/${pattern}` } = {}) =>
          openSource(path, { cache: { shardCache: cache, shardCacheGigabytes: gigabytes } })
        return body({ local, files, server, base, cache, open })
      },
      fault,
    )
  })

/** Bytes of all files below a folder, without lists. */
const blocksIn = (folder: string): { path: string; size: number }[] =>
  readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.block'))
    .map((name) => ({ path: join(folder, name), size: statSync(join(folder, name)).size }))

test('patterns stand for all numbers, with their zeros; what stands for none is refused', () => {
  assert.equal(addressesOf('https://h/a-{8..11}.tar'), [
    'https://h/a-8.tar',
    'https://h/a-9.tar',
    'https://h/a-10.tar',
    'https://h/a-11.tar',
  ])
  assert.equal(
    addressesOf('https://h/{0..1}/{00..01}.tar'),
    ['0/00', '0/01', '1/00', '1/01'].map((name) => `https://h/${name}.tar`),
  )
  assert.equal(addressesOf('https://h/a.tar'), ['https://h/a.tar'])
  assert.equal(['a%20b', 'a%zz', '%'].map(decoded), ['a b', 'a%zz', '%'])
  throwsError(() => addressesOf('https://h/{3..1}.tar'), 'DATA', /https:\/\/h\/\{3\.\.1\}\.tar/, /smaller one first/)
  throwsError(() => addressesOf('https://h/{0..9999}{0..9999}.tar'), 'DATA', /more than 1000000/)
})

test('user, password and query of addresses are shown nowhere, and found again by what is shown', () => {
  const cases = [
    ['https://host/a-{00..11}.tar', 'https://host/a-{00..11}.tar'],
    ['https://me:secret@host:81/a.tar', 'https://***@host:81/a.tar'],
    ['https://host/a.tar?X-Amz-Signature=secret', 'https://host/a.tar?***'],
    ['https://me:se@cret@host/a.tar#secret', 'https://***@host/a.tar?***'],
    ['https://me:sec/ret@host/a.tar', 'https://***'],
  ] as const
  for (const [address, shown] of cases) {
    assert.is(shownAddress(address), shown)
    assert.is(withSecrets(withoutSecrets(`--data=${address}`)), `--data=${address}`)
  }
  const [one, two] = ['a', 'b'].map((file) => withoutSecrets(`https://host/get?file=${file}`))
  assert.is.not(one, two)
  assert.is(withSecrets(two!), 'https://host/get?file=b')
  assert.is(withoutSecrets(one!), one)
  throwsError(() => withSecrets('https://host/other?***'), 'CONFIG', /host\/other/, /give the address again/)
})

test('images, labels, classes and bytes are those of the shards on a disk: kept, too many to keep, and without ranges', async () => {
  await served(async ({ local, open, cache, server, files }) => {
    await sameAsLocal(await open(), local)
    const all = Object.values(files).reduce((sum, { length }) => sum + length, 0)
    assert.ok(server.bytes < 1.01 * all, `${server.bytes} bytes were sent of files of ${all}: each once`)
    assert.is(blocksIn(cache).length, shards)
  })
  await served(async ({ local, open, cache }) => {
    await sameAsLocal(await open({ gigabytes: 1e-9 }), local)
    assert.equal(blocksIn(cache), [])
  })
  await served(
    async ({ local, open, base }) => {
      await sameAsLocal(await open(), local)
      await rejectsError(() => open({ gigabytes: 1e-5 }), 'DATA', new RegExp(`${base}/s-00.tar`), /no parts/, /--shard-cache-gigabytes/)
    },
    () => ({ whole: true }),
  )
})

test('shards are kept as long as there is room, those first that cannot be had in parts', async () => {
  for (const [whole, kept] of [
    ['', ['s-00.tar', 's-01.tar']],
    ['s-02.tar', ['s-00.tar', 's-02.tar']],
  ] as const)
    await served(
      async ({ local, open, files, server }) => {
        const room = 2.5 * Math.max(...Object.values(files).map(({ length }) => length))
        const source = await open({ gigabytes: room / 0.9 / 1e9 })
        await sameAsLocal(source, local)
        const keeping = source.items.flatMap((item) => (item.kind === 'remote' && item.shard.keep ? [item.name.split(':')[0]!] : []))
        assert.equal([...new Set(keeping)], kept)
        server.requests.length = 0
        await bytesOf(source.items)
        const fetched = Object.keys(files).filter((name) => server.requests.some(({ path }) => path === name))
        assert.equal(
          fetched,
          ['s-00.tar', 's-01.tar', 's-02.tar'].filter((name) => !kept.some((each) => each === name)),
        )
      },
      ({ path }) => (path === whole ? { whole: true } : undefined),
    )
})

/** A tar whose first file has another name, which begins with zz. */
function renamed(tar: Buffer): Buffer {
  const changed = Buffer.from(tar)
  changed.write('zz', 0)
  const sum = changed
    .subarray(0, 512)
    .fill(' ', 148, 156)
    .reduce((total, byte) => total + byte, 0)
  changed.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return changed
}

test('where a server tells no versions apart, two addresses that differ in their query are two files', () =>
  served(
    async ({ open, server, base, files }) => {
      for (const [query, name] of [
        ['a', '0000.jpg'],
        ['b', 'zz00.jpg'],
      ]) {
        if (query === 'b') server.files.set('s-00.tar', renamed(files['s-00.tar']!))
        assert.is((await open({ path: `${base}/s-00.tar?file=${query}` })).items[0]!.name, `s-00.tar:${name}`)
      }
    },
    () => ({ headers: { etag: '' } }),
  ))

test('a second start asks for a byte of each shard; another one is listed anew', async () => {
  await served(async ({ local, open, server, files }) => {
    await open()
    server.bytes = 0
    await sameAsLocal(await open(), local)
    assert.is(server.bytes, shards + files['classes.txt']!.length)
    server.files.set('s-01.tar', renamed(files['s-01.tar']!))
    assert.is((await open()).items[each]!.name, 's-01.tar:zz08.jpg')
  })
})

test('how far the listing is has a unit in which something is seen', () => {
  for (const [done, all, said] of [
    [800, 40_000, '0.8 of 40.0 kB'],
    [1.5e6, 2e6, '1.5 of 2.0 MB'],
    [2.25e9, 150e9, '2.3 of 150.0 GB'],
  ] as const)
    assert.is(listingLine({ shards: 1, bytes: done }, { shards: 3, bytes: all }), `shards listed 1 of 3, once for all: ${said} read`)
})

test('a list of addresses in a file is read in its order, and shows nothing of them', async () => {
  await served(
    async ({ open, local, base, files, cache }) => {
      const list = join(local, '..', 'shards.txt')
      writeFileSync(
        list,
        `# signed\n${Object.keys(files)
          .filter((name) => name.endsWith('.tar'))
          .map((name) => `${base}/${name}?key=hush-hush-${name}\n`)
          .join('')}`,
      )
      const { items, classes } = await open({ path: list })
      assert.equal(await bytesOf(items), jpegs)
      assert.equal(classes, ['0', '1'])
      writeFileSync(list, `${base}/s-00.tar?key=hush-hush\nphotos/a.jpg\n`)
      await rejectsError(() => open({ path: list }), 'DATA', /line 2 of/, /no address/)
      writeFileSync(list, `${base}/s-00.tar?key=hush-hush\n`.repeat(2))
      await rejectsError(() => open({ path: list }), 'DATA', /names .*s-00\.tar\?\*\*\* twice/)
      writeFileSync(list, `${base}/none.tar?key=hush-hush-none.tar\n`)
      const error = (await open({ path: list }).catch((thrown: unknown) => thrown)) as Error
      assert.match(error.message, `${base}/none.tar?***: status 404`)
      assert.not.match(error.message, 'hush-hush')
      assert.is(existsSync(cache), true)
    },
    ({ url, path }) => (url.endsWith(`?key=hush-hush-${path}`) ? undefined : { status: 403 }),
  )
})

/** Faults that a second try finds gone. */
const passing: Record<string, Fault> = {
  'status 500': { status: 500 },
  'status 503 with a wait': { status: 503, headers: { 'retry-after': '1' } },
  'a closed connection': { reset: true },
  'an answer without a header': { stallAfter: -1 },
  'an answer that stalls': { stallAfter: 700 },
  'an answer that is cut off': { cutAfter: 700 },
  'an answer of fewer bytes than asked': { change: (bytes) => bytes.subarray(0, bytes.length - 1) },
  'an answer of more bytes than asked': { change: (bytes) => Buffer.concat([bytes, Buffer.alloc(1)]) },
}
const isContent = ({ path, range }: ServedRequest): boolean => path.endsWith('.tar') && range !== 'bytes=0-0'

test('what fails and passes costs time and nothing else, while shards are listed and while images are read', async () => {
  const tried = Object.entries(passing).flatMap(([name, fault]) => [1, 1e-9].map((gigabytes) => ({ name, fault, gigabytes })))
  await Promise.all(
    tried.map(({ name, fault, gigabytes }) => {
      const failed = new Set<string>()
      return served(
        async ({ local, open }) => {
          await sameAsLocal(await open({ gigabytes }), local)
          assert.ok(failed.size >= shards, `${name}: ${failed.size} requests failed`)
        },
        (request) => {
          const which = `${request.path} ${request.range}`
          // The first look at one shard too.
          if (failed.has(which) || !(isContent(request) || (request.path === 's-02.tar' && fault.change === undefined))) return undefined
          failed.add(which)
          return fault
        },
      )
    }),
  )
})

test('what does not pass is an error that names the file and what came, within the stated time', async () => {
  const lasting: [string, Fault, RegExp][] = [
    ['missing', { status: 404 }, /status 404.*expected.*numbers of the pattern/],
    ['forbidden', { status: 403 }, /status 403.*expected.*signature/],
    ['broken', { status: 500 }, /status 500.*tried 3 times/],
    ['closed', { reset: true }, /cannot be fetched.*tried 3 times/],
    ['silent', { stallAfter: -1 }, /no byte for 1 s.*tried 3 times/],
    ['cut off', { cutAfter: 700 }, /tried 3 times/],
    ['stalling', { stallAfter: 700 }, /no byte for 1 s.*tried 3 times/],
    ['late and stalling', { late: 500, stallAfter: 700 }, /no byte for 1 s.*tried 3 times/],
    ['short', { change: (bytes) => bytes.subarray(1) }, /ended after \d+ of \d+ bytes.*tried 3 times/],
    ['another part', { part: [512, 1024] }, /bytes 512-1023\/\d+: expected that range/],
    ['another size', { headers: { 'content-range': 'bytes 0-9/10' } }, /bytes 0-9\/10: expected that range/],
    ['the whole file', { whole: true }, /sent the whole file for bytes/],
    ['packed', { headers: { 'content-encoding': 'gzip' } }, /gzip/],
    ['another version', { headers: { etag: '"other"' } }, /changed while it is read.*"other"/],
  ]
  const tried = lasting.flatMap(([name, fault, words]) => (['listing', 'reading'] as const).map((phase) => ({ name, fault, words, phase })))
  await Promise.all(
    tried.map(({ name, fault, words, phase }) => {
      let on = phase === 'listing'
      return served(
        async ({ open, base }) => {
          const start = performance.now()
          const read = async (): Promise<void> => {
            const { items } = await open({ gigabytes: 1e-9 })
            on = true
            await readItemBytes(items[each]! as StoredItem)
          }
          await rejectsError(read, 'FETCH', new RegExp(`^${base}/s-01\\.tar: `), words)
          const seconds = (performance.now() - start) / 1000
          // Three tries of a second, waits of at most 0.625 and 1.25 s; many of these tests are done at a time.
          assert.ok(seconds < 20, `${name}, ${phase}: ${seconds} s`)
        },
        (request) => (on && request.path === 's-01.tar' && isContent(request) ? fault : undefined),
      )
    }),
  )
})

test('bytes that are not those that were listed are never an image: of the server, and in the cache', async () => {
  const flipped = (bytes: Buffer): Buffer => {
    if (bytes.length > 1) bytes[Math.floor(bytes.length / 2)]! ^= 1
    return bytes
  }
  let lies = false
  await served(
    async ({ open, base, cache }) => {
      const { items } = await open({ gigabytes: 1e-9 })
      lies = true
      await rejectsError(() => readItemBytes(items[0] as StoredItem), 'FETCH', new RegExp(`${base}/s-00.tar`), /checksum/)
      lies = false
      const kept = (await open()).items
      // Changed on the disk, and cut off.
      await bytesOf(kept)
      const [first, second, third] = blocksIn(cache)
      writeFileSync(first!.path, Buffer.alloc(first!.size, 7))
      writeFileSync(second!.path, readFileSync(second!.path).subarray(1))
      writeFileSync(third!.path, '')
      assert.equal(await bytesOf(kept), jpegs)
      await bytesOf(kept)
    },
    (request) => (lies && isContent(request) ? { change: flipped } : undefined),
  )
})

test('lists in the cache that are damaged are made again, what killed processes left goes, and what is read counts as used', () =>
  served(async ({ open, cache, local }) => {
    await open()
    const folders = readdirSync(cache).map((key) => join(cache, key))
    const [first, second, third] = folders.map((folder) => join(folder, 'list.json')) as [string, string, string]
    writeFileSync(first, readFileSync(first, 'utf8').slice(1))
    writeFileSync(second, readFileSync(second, 'utf8').replace('"format":1', '"format":2'))
    const list = JSON.parse(readFileSync(third, 'utf8')) as { images: [name: string, offset: number, ...rest: number[]][] }
    list.images[0]![1] = 1e9
    writeFileSync(third, JSON.stringify(list))
    const left = join(folders[0]!, `000000.block.0.tmp-${2 ** 22 + 1}`)
    writeFileSync(left, 'half')
    const long = new Date(Date.now() - 3_600_000)
    const blocks = blocksIn(cache).map(({ path }) => path)
    for (const path of blocks) utimesSync(path, long, long)
    await sameAsLocal(await open(), local)
    assert.not.ok(existsSync(left))
    for (const path of blocks) assert.ok(statSync(path).mtimeMs > long.getTime() + 1_800_000, path)
  }))

test('what cannot be kept is said once, and fetched', () =>
  served(async ({ open, cache }) => {
    const { items } = await open()
    for (const key of readdirSync(cache)) {
      rmSync(join(cache, key), { recursive: true })
      writeFileSync(join(cache, key), 'in the way')
    }
    const [said, print] = [[] as string[], console.error]
    console.error = (text: string) => said.push(text)
    try {
      assert.equal(await bytesOf(items), jpegs)
    } finally {
      console.error = print
    }
    assert.is(said.length, 1)
    assert.match(said[0]!, `densecl: ${cache}: shards cannot be kept`)
  }))

test('a cache holds no more than its limit, and what was longest unused goes first', async () => {
  await served(async ({ open, cache, local, files }) => {
    const largest = Math.max(...Object.values(files).map(({ length }) => length))
    // Older data of another kind, as much as the limit.
    const limit = 4 * shards * largest
    mkdirSync(join(cache, 'older'), { recursive: true })
    for (let i = 0; i < 12; ++i) {
      const path = join(cache, 'older', `00000${i}.block`)
      writeFileSync(path, Buffer.alloc(largest))
      const when = new Date(Date.now() - 3600_000 * (i % 2 === 0 ? 2 : 1))
      utimesSync(path, when, when)
    }
    await sameAsLocal(await open({ gigabytes: limit / 1e9 }), local)
    const total = blocksIn(cache).reduce((sum, { size }) => sum + size, 0)
    assert.ok(total <= limit, `${total} bytes of ${limit}`)
    const names = readdirSync(join(cache, 'older')).map((name) => Number(name.slice(0, 6)))
    assert.ok(names.length > 0 && names.length < 12, String(names))
    assert.ok(names.length > 6 || names.every((i) => i % 2 === 1), `${names}: the older ones go first`)
    assert.is(blocksIn(cache).length - names.length, shards)
  })
})

/** Runs the command line beside this process, whose server answers it. */
const run = (args: string[], env: NodeJS.ProcessEnv = {}): Promise<{ code: number | null; text: string }> =>
  new Promise((resolve) => {
    const child = spawn(process.execPath, [cli, ...args], { env: { ...process.env, ...env } })
    let text = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (data: Buffer) => (text += data.toString()))
    child.on('close', (code) => resolve({ code, text }))
  })

test('two processes that share a cache read each shard once', async () => {
  // Late, so that both want them at the same time.
  const late = (request: ServedRequest): Fault | undefined => (isContent(request) ? { late: 1000 } : undefined)
  await served(async ({ base, cache, server, files }) => {
    const env = { DENSECL_SHARD_CACHE: cache, DENSECL_FETCH_SECONDS: '30' }
    const both = await Promise.all([1, 2].map(() => run(['check-data', `${base}/${pattern}`, '--json'], env)))
    for (const { code, text } of both) {
      assert.is(code, 0, text)
      assert.is((JSON.parse(text) as { images: number }).images, shards * each)
    }
    const all = Object.values(files).reduce((sum, { length }) => sum + length, 0)
    assert.ok(server.bytes < 1.1 * all, `${server.bytes} bytes of ${all}`)
    assert.equal(
      readdirSync(cache, { recursive: true, encoding: 'utf8' }).filter((name) => /tmp|\.lock$/.test(name)),
      [],
    )
  }, late)
})

const loaderOf = (items: Item[], workers: number): Loader => new Loader({ items, imageSize: 32, batchSize: 8, views: 'augmented', workers })

test('workers fetch ahead of the image that they are at; batches are those of a disk', async () => {
  const late = 50
  await served(
    async ({ open, local, server }) => {
      const { items } = await open({ gigabytes: 1e-9 })
      const own = (await openSource(local)).items
      const values = async (of: Item[]): Promise<number[]> => {
        const loader = loaderOf(of, 2)
        try {
          const all: number[] = []
          for await (const batch of loader.batches(epochBatches({ count: of.length, batchSize: 8, until: 2 })))
            all.push(...batch.values().slice(0, 64))
          return all
        } finally {
          await loader.close()
        }
      }
      const expected = await values(own)
      server.mostAtOnce = 0
      assert.equal(await values(items), expected)
      assert.ok(server.mostAtOnce >= 12, `at most ${server.mostAtOnce} requests at a time`)
    },
    () => ({ late }),
  )
})

test('where a batch fails in one worker, what others still write of it is not in the batches after it', async () => {
  let away = false
  await served(
    async ({ open, local }) => {
      const items = [...(await open({ gigabytes: 1e-9 })).items, ...(await openSource(local)).items]
      const loader = loaderOf(items, 2)
      const batch = async (...indices: number[]): Promise<number[]> => {
        for await (const read of loader.batches([{ epoch: 0, indices: Int32Array.from(indices) }])) {
          await sleep(600)
          return [...read.values()]
        }
        throw new Error('there was no batch')
      }
      try {
        const [late, lost, own] = [0, each, shards * each + 1]
        const expected = await batch(own)
        away = true
        // A worker waits for the first, while the other says that the second is lost; then that one reads to the place of the first.
        await rejectsError(() => batch(late, lost), 'FETCH', /s-01\.tar/)
        assert.equal(await batch(own), expected)
      } finally {
        await loader.close()
      }
    },
    ({ path }) => (!away ? undefined : path === 's-01.tar' ? { status: 404 } : { late: 400 }),
  )
})

test('a server that goes away while a loader reads ends it with FETCH: no image stands in for another', async () => {
  let away = false
  await served(
    async ({ open, base }) => {
      const { items } = await open({ gigabytes: 1e-9 })
      away = true
      const loader = loaderOf(items, 1)
      const read = async (): Promise<void> => {
        for await (const batch of loader.batches(epochBatches({ count: items.length, batchSize: 8, until: 1 }))) batch.values()
      }
      try {
        await rejectsError(read, 'FETCH', new RegExp(`${base}/s-0\\d\\.tar`), /status 503/)
        assert.is(loader.broken.size, 0)
        await rejectsError(() => checkSource({ format: 'url', items }), 'FETCH')
      } finally {
        await loader.close()
      }
    },
    () => (away ? { status: 503 } : undefined),
  )
})

test('a run on addresses with secrets is the run on a disk, resumed too; nothing that is written or said holds them', async () => {
  await served(
    async ({ local, base, cache }) => {
      const [here, there] = [join(local, '..', 'here'), join(local, '..', 'there')]
      const address = `${base.replace('//', '//me:pass-hush-hush@')}/${pattern}?signature=sign-hush-hush`
      const common = ['--preset', 'quick', '--image-size', '32', '--batch-size', '8', '--queue-length', '16', '--knn-images', '20']
      const settings = [
        ...common,
        '--base-channels',
        '4',
        '--depth',
        '18',
        '--device',
        'cpu',
        '--log-every',
        '1',
        '--workers',
        '1',
        '--schedule',
        'constant',
      ]
      const env = { DENSECL_SHARD_CACHE: cache, DENSECL_FETCH_SECONDS: '30' }
      const one = await run(['pretrain', '--data', local, '--out', here, '--epochs', '2', ...settings])
      assert.is(one.code, 0, one.text)
      const two = await run(['pretrain', '--data', address, '--out', there, '--epochs', '1', ...settings], env)
      assert.is(two.code, 0, two.text)
      const refused = await run(['pretrain', '--out', there, '--epochs', '2', '--resume'], env)
      assert.is(refused.code, 2, refused.text)
      assert.match(refused.text, /give the address again/)
      const three = await run(['pretrain', '--data', address, '--out', there, '--epochs', '2', '--resume'], env)
      assert.is(three.code, 0, three.text)
      const losses = (folder: string): unknown[] =>
        readFileSync(join(folder, 'metrics.jsonl'), 'utf8')
          .split('\n')
          .flatMap((line) => {
            const { loss, globalStep } = JSON.parse(line || '{}') as { loss?: number; globalStep?: number }
            return loss === undefined ? [] : [[globalStep, loss]]
          })
      assert.is(losses(here).length, 2 * shards)
      assert.equal(losses(there), losses(here))
      const missing = await run(['check-data', address.replace('/s-', '/none-')], env)
      assert.is(missing.code, 1)
      assert.match(missing.text, /none-0\d\.tar\?\*\*\*: status 404/)
      const written = [there, cache].flatMap((folder) =>
        readdirSync(folder, { recursive: true, encoding: 'utf8' })
          .map((name) => join(folder, name))
          .filter((path) => statSync(path).isFile()),
      )
      assert.ok(written.length > 10)
      for (const path of written) assert.not.match(readFileSync(path, 'latin1'), 'hush-hush', path)
      for (const { text } of [two, refused, three, missing]) assert.not.match(text, 'hush-hush')
      assert.match(readFileSync(join(there, 'config.yaml'), 'utf8'), `***@${base.slice(7)}/${pattern}?***`)
    },
    ({ url, authorization }) =>
      url.includes('signature=sign-hush-hush') && authorization === `Basic ${Buffer.from('me:pass-hush-hush').toString('base64')}`
        ? undefined
        : { status: 403 },
  )
})

test('of hundreds of thousands of addresses the one that is there twice is found in seconds', () =>
  withFolder(async (folder) => {
    const list = join(folder, 'list.txt')
    writeFileSync(list, `${Array.from({ length: 300_000 }, (_, i) => `https://h/${i}.tar`).join('\n')}\nhttps://h/299999.tar\n`)
    const took = processorTime()
    await rejectsError(() => openSource(list), 'DATA', /names https:\/\/h\/299999\.tar twice/)
    assert.ok(took() < 10, `took ${took()} s`)
  }))

test('addresses of other kinds are refused with the ones that are read', async () => {
  await rejectsError(() => openSource('s3://bucket/s-{00..02}.tar'), 'DATA', /s3:\/\//, /https:\/\//)
  await rejectsError(() => openSource('https://host/s-{2..0}.tar'), 'DATA', /smaller one first/)
})

test.run()
