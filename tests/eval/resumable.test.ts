/** An evaluation that goes on: from where it was cut off, with what it had done, and tests at the positions that were asked for. */
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { Resumable } from '../../src/eval/resumable.js'
import { Tensor } from '../../src/tensor/tensor.js'
import { saveState } from '../../src/weights/state.js'
import { rejectsError, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('resumable')

const kind = { key: 'test', what: 'a test', unit: 'round' }

/** Opens the evaluation of the folder, and gives it back after `body`. */
async function opened<R>(out: string, resume: boolean, body: (state: Resumable) => R | Promise<R>, began = { seed: 1 }): Promise<R> {
  const state = new Resumable(kind, { out, resume, quiet: true }, began)
  try {
    return await body(state)
  } finally {
    state.release()
  }
}

test('position, what was finished after it and tensors come back, also where no round was done', async () => {
  for (const position of [0, 1, 7])
    await withFolder(async (folder) => {
      const out = join(folder, 'state')
      const [weights, again] = [Tensor.from([1, 2, position]), Tensor.zeros([3])]
      await opened(out, false, (state) => {
        state.restore([['w', weights]])
        state.position = position
        for (const name of ['train', 'val']) state.finished.add(name)
        assert.is(state.saved, 0)
        state.save([['w', weights]])
        assert.is(state.saved, position)
      })
      await opened(out, true, (state) => {
        state.restore([['w', again]])
        assert.equal([state.position, state.saved, [...state.finished]], [position, position, ['train', 'val']])
      })
      assert.equal(again.data(), weights.data())
      await throwsOnResume(out, { seed: 2 }, 'CONFIG', /seed was 1 and is now 2/)
      for (const tensor of [weights, again]) tensor.dispose()
    })
})

async function throwsOnResume(out: string, began: { seed: number }, code: string, ...words: RegExp[]): Promise<void> {
  throwsError(() => new Resumable(kind, { out, resume: true }, began), code, ...words)
  // It has let go of the folder.
  await rejectsError(() => opened(out, false, () => undefined), 'RUN', /holds an evaluation already/)
}

test('what one that was killed before its first state left is no part of the next, and nothing else is touched', () =>
  withFolder(async (folder) => {
    const out = join(folder, 'state')
    await opened(out, false, (state) => {
      state.restore([])
      state.log.metrics({ globalStep: 3, loss: 1 })
    })
    writeFileSync(join(out, 'notes.txt'), 'mine')
    const events = (): string[] => readdirSync(out).filter((name) => name.startsWith('events.'))
    assert.is(events().length, 1)
    await opened(out, false, () => assert.equal([events(), readdirSync(out).includes('metrics.jsonl')], [[], false]))
    assert.ok(readdirSync(out).includes('notes.txt'))
  }))

test('a state with a position that there is not, or of another kind, is refused by name', () =>
  withFolder(async (folder) => {
    const out = join(folder, 'state')
    await opened(out, false, () => undefined)
    const path = join(out, 'state.safetensors')
    for (const round of [-1, 0.5, 'one', undefined]) {
      saveState(path, [], 'test', { round, began: { seed: 1 } })
      await throwsOnResume(out, { seed: 1 }, 'CHECKPOINT', /record "test" is damaged/, /round/)
    }
    saveState(path, [], 'other', { round: 1, began: { seed: 1 } })
    await throwsOnResume(out, { seed: 1 }, 'CHECKPOINT', /is not the state of a test/)
  }))

test('tests follow every so many positions and the last one, and one that was cut off is made up for', () =>
  withFolder(async (folder) => {
    /** Where tests were made from `from` to 7; training ends early at `cut`. */
    const tests = (from: number, every: number, { cut = Infinity, logged = false } = {}): Promise<[number[], number | undefined]> =>
      withFolder((own) =>
        opened(join(own, folder.slice(-3)), false, async (state) => {
          state.restore([])
          state.position = from
          if (logged) state.log.metrics({ globalStep: from, score: 1 })
          const made: number[] = []
          const result = await state.trainAndTest<number>(
            { end: 7, every, result: 'score' },
            (until) => {
              assert.ok(until > state.position && until <= 7)
              state.position = Math.min(until, cut)
              return Promise.resolve(until <= cut)
            },
            () => {
              made.push(state.position)
              return Promise.resolve(10 * state.position)
            },
          )
          return [made, result] as [number[], number | undefined]
        }),
      )
    assert.equal(await tests(0, 0), [[7], 70])
    assert.equal(await tests(0, 3), [[3, 6, 7], 70])
    assert.equal(await tests(4, 3), [[6, 7], 70])
    assert.equal(await tests(3, 3), [[3, 6, 7], 70])
    assert.equal(await tests(3, 3, { logged: true }), [[6, 7], 70])
    assert.equal(await tests(7, 3), [[7], 70])
    assert.equal(await tests(0, 3, { cut: 5 }), [[3], undefined])
    assert.equal(await tests(0, 3, { cut: 2 }), [[], undefined])
  }))

test.run()
