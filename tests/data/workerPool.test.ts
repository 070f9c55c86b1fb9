/** The threads that read images, when one of them is gone. */
import { syncBuiltinESMExports } from 'node:module'
import threads, { Worker } from 'node:worker_threads'

import * as assert from 'uvu/assert'

import { Loader } from '../../src/data/loader.js'
import { openSource } from '../../src/data/sources.js'
import { rejectsError, suite } from '../support/suite.js'

const test = suite('data workers')

test('one that ends by itself fails what is asked of it, and what is asked later', async () => {
  const started: Worker[] = []
  const own = Worker
  threads.Worker = class extends own {
    constructor(...args: ConstructorParameters<typeof Worker>) {
      super(...args)
      started.push(this)
    }
  }
  syncBuiltinESMExports()
  try {
    const { items } = await openSource('scenes:64')
    const loader = new Loader({ items, imageSize: 32, batchSize: 4, views: 'centre', workers: 2 })
    const requests = Array.from({ length: 16 }, (_, epoch) => ({ epoch, indices: Int32Array.of(0, 1, 2, 3) }))
    let read = 0
    const readAll = async (): Promise<void> => {
      for await (const _ of loader.batches(requests)) if (++read === 1) await started[1]!.terminate()
    }
    await rejectsError(readAll, 'DATA', 'a worker stopped: it ended with exit code 1')
    assert.ok(read >= 1 && read < requests.length, `${read} batches`)
    await rejectsError(readAll, 'DATA', 'a worker stopped')
    await loader.close()
  } finally {
    threads.Worker = own
    syncBuiltinESMExports()
  }
  assert.is(started.length, 2)
})

test.run()
