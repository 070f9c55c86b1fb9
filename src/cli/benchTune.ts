/** `densecl bench tune`: the table of tiles of an architecture, from times on a GPU or from the model. */
import { writeFileSync } from 'node:fs'
import { dirname } from 'node:path'

import { Option } from 'commander'

import { makeFolder } from '../files/atomic.js'
import { architectures, type Architecture, predict, tilesFor, timedTiles } from '../bench/model.js'
import { convolutionCases } from '../bench/cases/conv2d.js'
import { DeviceClock } from '../ops/timing.js'
import { type Product, tilePays, tuningFile, type TuningTable } from '../ops/tuning.js'
import { namedDevice } from '../run/device.js'
import { useDevice } from '../selftest/trust.js'
import { fail } from '../tensor/errors.js'
import { native } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'
import { type AddBench, batchOf, deviceFlag, unknownLayer } from './benchShared.js'
import { examples, heedingSignals } from './command.js'

interface Flags {
  device: string
  model?: string
  batch?: string
  layer?: string
  json?: boolean
  save?: string
}

export const addTune: AddBench = (parent, done) => {
  parent
    .command('tune')
    .description('time the tiles of convolutions, and write the table of those that a GPU takes where a run has timed none')
    .option(...deviceFlag)
    .addOption(new Option('--model <architecture>', 'sm_80, sm_86, sm_89 or sm_90 by the model instead of a GPU').conflicts('device'))
    .option('--batch <images>', 'default: 256')
    .option('--layer <word>', 'only cases whose name holds the word')
    .option('--json', 'print JSON, and write no table')
    .option('--save <file>', 'write the table there too, after each row')
    .addHelpText('after', examples([['densecl bench tune', 'writes the table of tiles of this GPU']]))
    .action(
      heedingSignals(done, async ({ model, layer, json, save, ...flags }: Flags) => {
        const device = model === undefined ? await useDevice(namedDevice(flags.device)) : 'cpu'
        const batch = batchOf(flags.batch) ?? 256
        const table = tune(
          { device, batch, ...(model === undefined ? {} : { model }), ...(layer === undefined ? {} : { layer }) },
          (row, soFar) => {
            if (json !== true) console.log(tuneLine(row))
            if (save !== undefined) saveTable(soFar, save)
          },
        )
        if (json === true) console.log(JSON.stringify(table, undefined, 2))
        else console.log(layer === undefined ? `written to ${saveTable(table)}` : 'not written: --layer leaves shapes out')
        done(0)
      }),
    )
}

interface TuneRow {
  name: string
  product: Product
  /** Microseconds of each tile. */
  times: Record<number, number>
  tile: number
}

interface TuneOptions {
  /** An architecture to model, or a device to time. */
  model?: string
  device: string
  batch: number
  layer?: string
}

/** `simt` runs the kernels that DENSECL_CAPABILITY asks for, so that a run on a GPU can be rehearsed; its times say nothing. */
function tunable(device: string): string | undefined {
  const { tunable: choices, capability } = deviceTraits(device)
  return choices ? `sm_${capability}` : undefined
}

/** `onRow` gets each row as it comes, with the table of all rows so far. */
export function tune(options: TuneOptions, onRow: (row: TuneRow, soFar: TuningTable) => void): TuningTable {
  const architecture =
    architectures[options.model ?? tunable(options.device) ?? ''] ??
    fail(
      'CONFIG',
      `bench tune: expected --model to be one of ${Object.keys(architectures).join(', ')}, or a GPU of one of them, but ` +
        `received ${options.model ?? options.device}`,
    )
  const how = options.model === undefined ? native.describeDevice(options.device) : 'model'
  const table: TuningTable = { architecture: architecture.name, date: new Date().toISOString().slice(0, 10), how, entries: [] }
  const clock = new DeviceClock(options.device)
  try {
    for (const work of convolutionCases(options.batch)) {
      if (options.layer !== undefined && !work.name.includes(options.layer)) continue
      const times = options.model === undefined ? timed(work, architecture, clock) : modelled(architecture, work)
      const [best] = Object.entries(times).sort((a, b) => a[1] - b[1])
      const row = { name: work.name, product: work.product, times, tile: Number(best![0]) }
      table.entries.push({ ...row.product, tile: row.tile })
      onRow(row, table)
    }
  } finally {
    clock.dispose()
  }
  if (table.entries.length === 0 && options.layer !== undefined) unknownLayer(options.layer, 'convolution')
  return table
}

type Work = ReturnType<typeof convolutionCases>[number]

const modelled = (architecture: Architecture, { product, bytes, wholeSlices }: Work): Record<number, number> =>
  Object.fromEntries(
    timedTiles(architecture, wholeSlices).map((tile) => [tile.id, predict(architecture, product, tile, bytes).microseconds]),
  )

/** Microseconds of each tile, timed as a run times its own convolutions. */
function timed({ call, product, wholeSlices }: Work, architecture: Architecture, clock: DeviceClock): Record<number, number> {
  const candidates = tilesFor(architecture, wholeSlices).filter(({ id }) => tilePays(id, product))
  return Object.fromEntries(candidates.map(({ id }) => [id, 1000 * clock.time(call, { tile: id, splits: 0 })]))
}

function saveTable(table: TuningTable, path = tuningFile(table.architecture)): string {
  makeFolder(dirname(path))
  const entries = table.entries.map((entry) => `    ${JSON.stringify(entry)}`).join(',\n')
  writeFileSync(
    path,
    `{\n  "architecture": "${table.architecture}",\n  "date": "${table.date}",\n  "how": ${JSON.stringify(table.how)},\n  ` +
      `"entries": [\n${entries}\n  ]\n}\n`,
  )
  return path
}

const tuneLine = ({ name, times, tile }: TuneRow): string =>
  `${name.padEnd(40)} ${Object.entries(times)
    .map(([id, time]) => `${id}${Number(id) === tile ? '*' : ' '} ${time.toFixed(0).padStart(5)} us`)
    .join('   ')}`
