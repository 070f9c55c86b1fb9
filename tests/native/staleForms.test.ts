/** A form of the addon that was built from other sources is told from one that was built from these (scripts/nativeSources.mjs). */
import { appendFileSync, existsSync, mkdirSync, renameSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('stale forms of the addon')
const path = join(packageRoot, 'scripts', 'nativeSources.mjs')

/** What the script exports of this. */
interface Script {
  sourcesHash: (form: string, recipe?: string, from?: string) => string
  keepHash: (folder: string, hash: string) => void
  staleForms: (from: string) => { folder: string; command: string }[]
}

testWhere(existsSync(path), 'this is no clone', test, 'a form is stale when one of its own sources has changed, and no other form is', () =>
  withFolder(async (root) => {
    const { sourcesHash, keepHash, staleForms } = (await import(pathToFileURL(path).href)) as Script
    const write = (name: string, text: string): void => {
      mkdirSync(dirname(join(root, name)), { recursive: true })
      writeFileSync(join(root, name), text)
    }
    for (const folder of ['addon', 'core', 'cpu', 'jpeg', 'third_party/deep', 'comm', 'nvjpeg', 'cuda/kernel', 'simt'])
      write(`native/${folder}/a.cpp`, folder)
    for (const recipe of ['CMakeLists.txt', 'binding.gyp']) write(recipe, recipe)
    const forms = ['cpu', 'mpi', 'simt', 'cuda'] as const
    const stale = (): string[] => staleForms(root).map(({ folder }) => folder)
    const build = (): void => {
      for (const form of forms) keepHash(join(root, `build-${form}`), sourcesHash(form, undefined, root))
    }
    assert.equal(stale(), [])
    for (const form of forms) write(`build-${form}/Release/densecl.node`, '')
    write('build-cpu-asan/Release/densecl.node', '')
    // Nobody knows what these are of.
    assert.equal(stale(), ['build-mpi', 'build-simt', 'build-cpu-asan', 'build-cuda'])
    keepHash(join(root, 'build-cpu-asan'), sourcesHash('cpu', undefined, root))
    build()
    assert.equal(stale(), [])
    for (const [file, found] of [
      ['native/simt/a.cpp', ['build-simt']],
      ['native/cuda/kernel/a.cpp', ['build-simt', 'build-cuda']],
      ['native/comm/a.cpp', ['build-mpi', 'build-simt', 'build-cuda']],
      ['native/third_party/deep/a.cpp', ['build-mpi', 'build-simt', 'build-cpu-asan', 'build-cuda']],
      ['CMakeLists.txt', ['build-mpi', 'build-simt', 'build-cpu-asan', 'build-cuda']],
      ['native/prebuild/a.cpp', []],
    ] as const) {
      write(file, 'changed')
      assert.equal(stale(), found, file)
      keepHash(join(root, 'build-cpu-asan'), sourcesHash('cpu', undefined, root))
      build()
    }
    // Another name, and a byte that changes its file.
    renameSync(join(root, 'native/simt/a.cpp'), join(root, 'native/simt/b.cpp'))
    assert.equal(stale(), ['build-simt'])
    build()
    const before = sourcesHash('cpu', undefined, root)
    write('native/core/b.cpp', 'core')
    const [one, two] = [join(root, 'native/core/a.cpp'), join(root, 'native/core/b.cpp')]
    appendFileSync(one, 'x')
    const moved = sourcesHash('cpu', undefined, root)
    write('native/core/a.cpp', 'core')
    appendFileSync(two, 'x')
    assert.is(new Set([before, moved, sourcesHash('cpu', undefined, root)]).size, 3)
  }),
)

test.run()
