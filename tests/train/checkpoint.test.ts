/** The record of a checkpoint: any position of a run comes back, and one that no run has is refused by name. */
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { densecl } from '../../src/methods/densecl/method.js'
import { resolveConfig } from '../../src/methods/index.js'
import { resnet } from '../../src/nn/resnet.js'
import { optimizerOf } from '../../src/optim/choose.js'
import type { Config } from '../../src/run/config.js'
import { settingsOf } from '../../src/run/options.js'
import { type Position, readCheckpoint, saveCheckpoint } from '../../src/train/checkpoint.js'
import { suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('checkpoint')

/** Saves checkpoints of one small run at the positions that are asked for. */
function withRun(folder: string, body: (path: string, save: (position: Position) => void, config: Config) => void): void {
  const tiny = { depth: 18, baseChannels: 1, hidden: 2, featDim: 2, queueLength: 4, batchSize: 2 } as const
  const config = resolveConfig(settingsOf(tiny, 'test'))
  const built = densecl.build(config, { backbone: resnet({ depth: 18, baseChannels: 1 }), compute: 'f32' })
  const { parameters, copies } = built.trained()
  const optimizer = optimizerOf(config, parameters, copies)
  const path = join(folder, 'last.safetensors')
  try {
    body(path, (position) => saveCheckpoint(path, densecl, built, optimizer, config, position), config)
  } finally {
    optimizer.dispose()
    built.dispose()
  }
}

test('the position of any step comes back, with the configuration', () =>
  withFolder((folder) =>
    withRun(folder, (path, save, config) => {
      const count = fc.integer({ min: 0, max: 2 ** 40 })
      fc.assert(
        fc.property(fc.record({ epoch: count, step: count, globalStep: count, images: count }), (position) => {
          save(position)
          const read = readCheckpoint(path, densecl)
          assert.equal({ ...read.position }, { ...position })
          assert.equal(read.config, config)
        }),
        { numRuns: 10, examples: [[{ epoch: 0, step: 0, globalStep: 0, images: 0 }]] },
      )
    }),
  ))

test('a position below 0 or between two steps is refused with its name', () =>
  withFolder((folder) =>
    withRun(folder, (path, save) => {
      const position = { epoch: 1, step: 2, globalStep: 7, images: 10 }
      for (const key of Object.keys(position))
        for (const value of [-1, 0.5]) {
          save({ ...position, [key]: value })
          throwsError(() => readCheckpoint(path, densecl), 'CHECKPOINT', /last\.safetensors/, new RegExp(`position\\.${key}: expected `))
        }
    }),
  ))

test.run()
