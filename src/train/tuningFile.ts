/** tuning.json of a run folder: what the run computes its convolutions with, so that it is continued bit for bit. */
import { existsSync, readFileSync } from 'node:fs'

import { z } from 'zod'

import type { DeviceIdentity } from '../files/cache.js'
import { fail } from '../tensor/errors.js'
import { firstIssue } from '../tensor/issues.js'
import { writeTextAtomic } from '../files/atomic.js'
import { bulkStoredTile } from '../ops/kernels.js'
import type { Tuning } from './tuner.js'

const version = 1
const whole = z.int().min(0)
const milliseconds = z.number().min(0)
const schema = z.object({
  version: z.literal(version),
  device: z.string(),
  driver: z.string(),
  build: z.string(),
  level: z.enum(['pointwise', 'epilogue', 'full']),
  milliseconds: z.object({ table: milliseconds, chosen: milliseconds }),
  products: z.array(
    z.object({
      shape: z.string(),
      prologue: z.boolean(),
      tile: whole.max(bulkStoredTile),
      splits: whole,
      count: whole,
      table: milliseconds.optional(),
      chosen: milliseconds.optional(),
    }),
  ),
})
export type KeptTuning = z.infer<typeof schema>

export function saveTuning(path: string, { level, products, table, chosen }: Tuning, identity: DeviceIdentity): void {
  const { products: rows, ...head } = { version, ...identity, level, milliseconds: { table, chosen }, products } satisfies KeptTuning
  const lines = rows.map((row) => `    ${JSON.stringify(row)}`).join(',\n')
  writeTextAtomic(path, `${JSON.stringify(head, undefined, 2).slice(0, -2)},\n  "products": [\n${lines}\n  ]\n}\n`)
}

/** The choice of a run; undefined where it has none. Throws TUNING for a file that holds no choice. */
export function readTuning(path: string): KeptTuning | undefined {
  if (!existsSync(path)) return undefined
  let problem: string
  try {
    const { data, error } = schema.safeParse(JSON.parse(readFileSync(path, 'utf8')))
    if (data !== undefined) return data
    problem = firstIssue(error)
  } catch (error) {
    problem = error instanceof SyntaxError ? 'it is no JSON' : ((error as NodeJS.ErrnoException).code ?? String(error))
  }
  return fail(
    'TUNING',
    `${path}: expected the choice of kernels that this run was started with (${problem}); bring it back from a copy, or ` +
      'remove it: the run is then tuned anew and not continued bit for bit',
  )
}
