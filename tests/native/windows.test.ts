/**
 * The sources that are compiled otherwise for Windows are sound C++ there: what asks the system, and what has loops for several sets of
 * instructions. Nothing is linked; `npm run package` builds the whole (scripts/prebuild.mjs).
 */
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite('sources for Windows')
const compiler = 'x86_64-w64-mingw32-g++-posix'
const has = spawnSync(compiler, ['--version']).error === undefined

/** The sources whose text Windows reads in another way, by folders of native. */
const sources = ['addon', 'core', 'cpu', 'jpeg'].flatMap((folder) =>
  readdirSync(join(packageRoot, 'native', folder))
    .filter((name) => name.endsWith('.cpp'))
    .map((name) => join('native', folder, name))
    .filter((path) => /\b(_WIN32|DENSECL_LOOP_LEVEL|SIMD\w*)\b/.test(readFileSync(join(packageRoot, path), 'utf8'))),
)

test('they are those that ask the system, and most loops', () => {
  for (const name of ['core/system', 'cpu/isa', 'cpu/maps', 'cpu/augment']) assert.ok(sources.includes(join('native', `${name}.cpp`)), name)
})

testWhere(has, `${compiler} is not on the PATH`, test, 'MinGW-w64 takes each without a warning', () => {
  const require = createRequire(import.meta.url)
  const { include_dir: node } = require('node-api-headers') as { include_dir: string }
  const includes = [dirname(require.resolve('node-addon-api/napi.h')), node, join('native', 'third_party', 'libjpeg-turbo')].map(
    (folder) => `-I${folder}`,
  )
  const defines = ['_FILE_OFFSET_BITS=64', 'NAPI_VERSION=8', 'NAPI_CPP_EXCEPTIONS'].map((each) => `-D${each}`)
  const flags = ['-std=c++17', '-fsyntax-only', '-Wall', '-Wextra', '-Wno-psabi', '-Werror']
  const { status, stderr } = spawnSync(compiler, [...flags, ...defines, ...includes, ...sources], { cwd: packageRoot, encoding: 'utf8' })
  assert.is(status, 0, stderr)
})

test.run()
