/** `densecl build` in an installed package: what it asks of the tools, where the addon goes, and what it says where it cannot. */
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { addonPath } from '../../src/tensor/native.js'
import { suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('densecl build')

interface Installed {
  /** The package's folder. */
  root: string
  /** Runs a command of it with a PATH of `tools` alone. */
  run: (args: string[], env?: NodeJS.ProcessEnv) => { code: number | null; out: string; err: string }
  /** Puts a program there that runs `lines` of a shell. */
  tool: (name: string, ...lines: string[]) => string
}

/** The package as npm installs it, without an addon, for one call. */
const withPackage = (body: (installed: Installed) => void): Promise<void> =>
  withFolder((folder) => {
    const [modules, tools] = [join(folder, 'node_modules'), join(folder, 'tools')]
    const root = join(modules, 'densecl')
    mkdirSync(root, { recursive: true })
    mkdirSync(tools)
    for (const name of readdirSync(join(packageRoot, 'node_modules')))
      if (name !== 'densecl') symlinkSync(join(packageRoot, 'node_modules', name), join(modules, name), 'junction')
    for (const name of ['package.json', 'CMakeLists.txt']) copyFileSync(join(packageRoot, name), join(root, name))
    for (const name of ['dist/src', 'native', 'scripts/native.mjs', 'scripts/nativeSources.mjs', 'src/ops/tuning'])
      cpSync(join(packageRoot, name), join(root, name), { recursive: true, filter: (path) => !path.includes('third_party/doc') })
    body({
      root,
      run(args, env = {}) {
        const { DENSECL_ADDON: _, ...own } = process.env
        const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, 'dist', 'src', 'cli', 'main.js'), ...args], {
          encoding: 'utf8',
          cwd: folder,
          env: { ...own, PATH: tools, CXX: '', ...env },
        })
        return { code: status, out: stdout, err: stderr }
      },
      tool(name, ...lines) {
        const path = join(tools, name)
        writeFileSync(path, ['#!/bin/sh', ...lines, ''].join('\n'))
        chmodSync(path, 0o755)
        return path
      },
    })
  })

/** A CMake that notes what it is asked, and for --build leaves `addon` in `into`. */
const cmake = (root: string, into: string, addon: string): string[] => [
  `printf '%s\\n' "$@" >> '${join(root, 'asked')}'`,
  '[ "$1" = --build ] || exit 0',
  `/bin/mkdir -p '${join(root, into, 'Release')}'`,
  `/bin/cp '${addon}' '${join(root, into, 'Release')}/densecl.node'`,
]

test('what is missing is named with what installs it, and nothing is left', () =>
  withPackage(({ root, run, tool }) => {
    const refused = (args: string[], ...words: RegExp[]): void => {
      const { code, out, err } = run(['build', ...args], { CXX: 'g++' })
      assert.is(code, 1, `${out}${err}`)
      for (const word of words) assert.match(err, word)
    }
    refused([], /cmake was not found/, /apt-get install cmake/)
    tool('cmake', 'exit 0')
    refused([], /g\+\+ was not found/, /apt-get install g\+\+/)
    refused(['--cuda'], /nvcc was not found/, /CUDA toolkit, 12\.0 or later/)
    tool('g++', 'exit 0')
    refused(['--mpi'], /mpicxx was not found/, /Open MPI or MPICH/)
    const mine = run(['build', '--mpi'], { CXX: 'g++', MPICXX: 'mpicxx.mine' })
    assert.match(mine.err, /mpicxx\.mine was not found/)
    const both = run(['build', '--cuda', '--mpi'])
    assert.is(both.code, 2)
    assert.match(both.err, /expected --cuda or --mpi, one at a time/)
    for (const folder of ['build', 'build-cuda', 'build-mpi']) assert.not.ok(existsSync(join(root, folder)), folder)
  }))

test('the addon is compiled without one, from the headers of the packages, to where it is looked for', () =>
  withPackage(({ root, run, tool }) => {
    const before = run(['doctor'])
    assert.match(before.out + before.err, /npx densecl build/)
    tool('g++', 'exit 0')
    tool('cmake', ...cmake(root, 'build', addonPath()))
    const { code, out, err } = run(['build'], { CXX: 'g++' })
    assert.is(code, 0, `${out}${err}`)
    assert.match(out, /build\/Release\/densecl\.node is built/)
    const asked = readFileSync(join(root, 'asked'), 'utf8').split('\n')
    for (const word of ['-S', '-B', 'build', '-DDENSECL_CPU=ON', '-DCMAKE_BUILD_TYPE=Release', '--build'])
      assert.ok(asked.includes(word), word)
    const headers = asked.find((word) => word.startsWith('-DDENSECL_HEADERS='))!.slice('-DDENSECL_HEADERS='.length).split(';')
    for (const name of ['node_api.h', 'napi.h'])
      assert.ok(
        headers.some((folder) => existsSync(join(folder, name))),
        `${name} in ${headers.join()}`,
      )
    // It is there, and in use.
    assert.match(run(['doctor']).out, new RegExp(join(root, 'build', 'Release', 'densecl.node').replaceAll('.', '\\.')))
  }))

test('with CUDA it goes into a folder of its own, for the GPUs that are asked for', () =>
  withPackage(({ root, run, tool }) => {
    tool('nvcc', 'exit 0')
    tool('cmake', ...cmake(root, 'build-cuda', addonPath()))
    const { code, out, err } = run(['build', '--cuda'], { DENSECL_ARCHITECTURES: '80-real' })
    assert.is(code, 0, `${out}${err}`)
    const asked = readFileSync(join(root, 'asked'), 'utf8').split('\n')
    for (const word of ['build-cuda', '-DDENSECL_CUDA=ON', '-DDENSECL_ARCHITECTURES=80-real']) assert.ok(asked.includes(word), word)
    assert.ok(existsSync(join(root, 'build-cuda', 'Release', 'densecl.node')))
  }))

test('with MPI it is for the one whose compiler is named, whatever the folder was made for', () =>
  withPackage(({ root, run, tool }) => {
    for (const name of ['g++', 'mpicxx', 'mpicxx.mine']) tool(name, 'exit 0')
    tool('cmake', ...cmake(root, 'build-mpi', addonPath()))
    for (const [env, compiler] of [
      [{}, 'mpicxx'],
      [{ MPICXX: 'mpicxx.mine' }, 'mpicxx.mine'],
    ] as const) {
      const { code, out, err } = run(['build', '--mpi'], { CXX: 'g++', ...env })
      assert.is(code, 0, `${out}${err}`)
      const configured = readFileSync(join(root, 'asked'), 'utf8').split('--build')[0]!.split('\n')
      // What CMake knew of another is forgotten before this one is named.
      const words = configured.filter((word) => word.startsWith('MPI_') || word.startsWith('-DMPI_'))
      assert.equal(words, ['MPI_*', `-DMPI_CXX_COMPILER=${compiler}`])
      rmSync(join(root, 'asked'))
    }
  }))

test("a compiler's errors are shown", () =>
  withPackage(({ run, tool }) => {
    tool('g++', 'exit 0')
    tool('cmake', 'if [ "$1" = --build ]; then echo "pool2d.cpp:3: error: no such thing" >&2; exit 2; fi')
    const { code, err } = run(['build'], { CXX: 'g++' })
    assert.is(code, 1)
    assert.match(err, /building the cpu addon failed:\s+pool2d\.cpp:3: error: no such thing/)
  }))

const found = (tool: string): boolean => spawnSync(tool, ['--version']).error === undefined
const real = process.env.DENSECL_TEST_BUILD === '1' && found('cmake') && found('g++')
const why = 'it takes minutes: DENSECL_TEST_BUILD=1 runs it, with CMake and g++'
testWhere(real, why, test, 'a compiler makes an addon of it that trains', () =>
  withPackage(({ root, run }) => {
    const { code, out, err } = run(['build'], { PATH: process.env.PATH, CXX: 'g++' })
    assert.is(code, 0, `${out}${err}`)
    const small = ['--depth', '18', '--base-channels', '4', '--image-size', '32', '--batch-size', '8', '--epochs', '1', '--workers', '1']
    const head = ['--queue-length', '16', '--hidden', '8', '--feat-dim', '8']
    const trained = run(['pretrain', '--data', 'scenes:16', ...small, ...head, '--out', join(root, 'run')])
    assert.is(trained.code, 0, trained.err)
    assert.ok(existsSync(join(root, 'run', 'backbone.safetensors')))
  }),
)

test.run()
