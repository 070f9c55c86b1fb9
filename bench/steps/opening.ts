/**
 * What it takes to open data sets of millions, and to have workers for them: seconds and resident memory, of lists, annotations, folders
 * and shards that are made here and hold no image. Usage: opening.js [--rows N,...] [--workers N,...] [--kinds list,coco,folder,folders,
 * shards] [--save FILE]. `folder` has all images in one folder, `folders` in those of 1000 classes.
 */
import { spawnSync } from 'node:child_process'
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { environmentRow, writeResult } from '../../src/bench/result.js'
import { Loader } from '../../src/data/loader.js'
import { orderedBatches } from '../../src/data/sampler.js'
import { openSource } from '../../src/data/sources.js'
import { TarWriter } from '../../src/data/tar.js'
import { writeRows } from '../../src/bench/madeRows.js'

const whole = { type: 'string' } as const
const options = {
  rows: { ...whole, default: '1300000,2400000' },
  workers: { ...whole, default: '2,8' },
  kinds: { ...whole, default: 'list,coco,folder,folders,shards' },
  save: whole,
  open: whole,
} as const
const { values: flags } = parseArgs({ options })

/** Names as long as ImageNet's. */
const nameOf = (i: number): string => `n${String(1440764 + (i % 1000)).padStart(8, '0')}_${i}.JPEG`

function writeFolders(root: string, rows: number, folders: number): string {
  const folderOf = (i: number): string => (folders === 1 ? root : join(root, `n${String(i % folders).padStart(8, '0')}`))
  for (let i = 0; i < folders; ++i) mkdirSync(folderOf(i), { recursive: true })
  for (let i = 0; i < rows; ++i) closeSync(openSync(join(folderOf(i), nameOf(i)), 'w'))
  return root
}

const kinds: Record<string, (folder: string, rows: number) => string> = {
  list(folder, rows) {
    const path = join(folder, 'list.txt')
    writeRows(path, rows, (i) => `train/n${String(i % 1000).padStart(8, '0')}/${nameOf(i)} ${i % 1000}`)
    return path
  },
  coco(folder, rows) {
    writeFileSync(join(folder, nameOf(0)), '')
    const path = join(folder, 'train.json')
    writeRows(path, rows, (i) => `{"id":${i},"file_name":"${nameOf(i)}","width":500,"height":375}`, ['{"images":[', ',', ']}'])
    return path
  },
  folder: (folder, rows) => writeFolders(join(folder, 'train'), rows, 1),
  folders: (folder, rows) => writeFolders(join(folder, 'train'), rows, 1000),
  shards(folder, rows) {
    const root = join(folder, 'shards')
    mkdirSync(root)
    const each = 20_000
    for (let first = 0; first < rows; first += each) {
      const shard = new TarWriter(join(root, `shard-${String(first).padStart(9, '0')}.tar`))
      for (let i = first; i < Math.min(rows, first + each); ++i) {
        shard.add(`${String(i).padStart(9, '0')}.jpg`, new Uint8Array(0))
        shard.add(`${String(i).padStart(9, '0')}.cls`, Buffer.from(String(i % 1000)))
      }
      shard.close()
    }
    return root
  },
}

interface Opened {
  images: number
  seconds: number
  /** MiB resident before opening, after it, and with all workers after their first batches. */
  before: number
  opened: number
  loading: number
}

/** Opens one data set in this process, and reads batches with so many workers. */
async function measure(path: string, workers: number): Promise<Opened> {
  const resident = (): number => {
    globalThis.gc?.()
    return Math.round(process.memoryUsage().rss / 2 ** 20)
  }
  const before = resident()
  const start = performance.now()
  const { items } = await openSource(path)
  const seconds = (performance.now() - start) / 1000
  const opened = resident()
  const loader = new Loader({ items, imageSize: 32, batchSize: 64, views: 'centre', workers, maxBroken: 1 })
  let batches = 0
  for await (const batch of loader.batches(orderedBatches(64 * 8, 64))) {
    for (const view of batch.views()) view.dispose()
    batches += 1
  }
  const loading = resident()
  await loader.close()
  if (batches !== 8) throw new Error(`${batches} batches were read`)
  return { images: items.length, seconds, before, opened, loading }
}

if (flags.open !== undefined) console.log(JSON.stringify(await measure(flags.open, Number(flags.workers))))
else {
  const rows: (Opened & { kind: string; workers: number })[] = []
  for (const kind of flags.kinds.split(','))
    for (const count of flags.rows.split(',').map(Number)) {
      const folder = mkdtempSync(join(tmpdir(), 'densecl-opening-'))
      try {
        const path = kinds[kind]!(folder, count)
        for (const workers of flags.workers.split(',')) {
          const args = ['--expose-gc', fileURLToPath(import.meta.url), '--open', path, '--workers', workers]
          const { stdout, stderr, status } = spawnSync(process.execPath, args, { encoding: 'utf8' })
          if (status !== 0) throw new Error(`${kind} of ${count} with ${workers} workers: ${stderr}`)
          const row = { kind, workers: Number(workers), ...(JSON.parse(stdout) as Opened) }
          rows.push(row)
          const { images, seconds, before, opened, loading } = row
          const cells = [`${images} images`.padStart(15), `${seconds.toFixed(1).padStart(6)} s`, `${opened - before} MiB for the list`]
          console.log(`${kind.padEnd(8)} ${cells.join('  ')}  ${loading - opened} MiB more with ${workers} workers`)
        }
      } finally {
        rmSync(folder, { recursive: true, force: true })
      }
    }
  if (flags.save !== undefined) writeResult(flags.save, { ...environmentRow(), bench: 'opening', rows })
}
