// Compiles the CPU addon with node-gyp, on Windows with CMake, when `npm install` is run in a clone: npm calls it as `prepare`, which it
// does not in packages that it installs, so that those need neither scripts nor a compiler. A failure is explained in a sentence, never as
// a stack trace; --force rebuilds.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { gypHash, keepHash, nativeSources } from './nativeSources.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const require = createRequire(import.meta.url)

// npm prepares before it packs too, and addons do not come from here then (scripts/package.mjs).
if (['pack', 'publish'].includes(process.env.npm_command)) process.exit(0)

function fail(problem, remedy) {
  console.error(`densecl: ${problem}\n  ${remedy}`)
  process.exit(1)
}

const [major, minor] = process.versions.node.split('.').map(Number)
if (major < 20 || (major === 20 && minor < 17)) {
  fail(`Node ${process.versions.node} is too old: 20.17 or later is needed.`, 'Install a current Node from https://nodejs.org.')
}
if (process.platform === 'win32') {
  // node-gyp would take MSVC, which lacks the vectors that the loops are written with.
  const build = [join(root, 'scripts', 'native.mjs'), 'cpu', '--into', 'build']
  process.exit(spawnSync(process.execPath, build, { stdio: 'inherit' }).status ?? 1)
}
for (const [command, hint] of [
  [process.env.CXX ?? 'g++', 'Debian and Ubuntu: apt-get install g++ make python3. Fedora: dnf install gcc-c++ make python3.'],
  ['make', 'Debian and Ubuntu: apt-get install make.'],
  ['python3', 'Debian and Ubuntu: apt-get install python3.'],
]) {
  if (spawnSync(command, ['--version'], { stdio: 'ignore' }).status !== 0) {
    fail(`the addon has to be compiled, and ${command} was not found.`, `${hint} Then run: npm run build:native`)
  }
}

function nodeGyp() {
  try {
    return require.resolve('node-gyp/bin/node-gyp.js')
  } catch {
    return process.env.npm_config_node_gyp
  }
}

const gyp = nodeGyp()
if (gyp === undefined) fail('node-gyp was not found.', 'Run this through npm: npm run build:native')
const headers = existsSync('/usr/include/node/node_api.h') ? ['--nodedir=/usr'] : []
// The makefile lists the sources that there were when it was made.
const makefile = join(root, 'build', 'densecl.target.mk')
const listed = existsSync(makefile) ? readFileSync(makefile, 'utf8') : ''
const objects = nativeSources().map((source) => `/${source.replace(/\.\w+$/, '.o')}`)
const current = objects.every((object) => listed.includes(object)) && listed.match(/\/native\/\S+\.o/g)?.length === objects.length
const commands = process.argv.includes('--force') ? ['rebuild'] : current ? ['build'] : ['configure', 'build']
const hash = gypHash()
const result = spawnSync(process.execPath, [gyp, ...commands, '-j', 'max', '--loglevel=error', ...headers], { cwd: root, encoding: 'utf8' })
if (result.status !== 0) {
  const lines = `${result.stdout}\n${result.stderr}`
    .split('\n')
    .filter((line) => /error|fatal|ENOTFOUND|denied/i.test(line))
    .slice(0, 5)
  fail(
    `compiling the addon failed:\n    ${lines.join('\n    ')}`,
    'g++ 9 or later with C++17 is needed. Try again with: npm run build:native',
  )
}
keepHash(join(root, 'build'), hash)
