// Formats every source file that git knows: TypeScript by Prettier, native code by clang-format. `--check` only says what differs.
import { execFileSync, spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const require = createRequire(import.meta.url)
const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const check = process.argv.includes('--check')
const tracked = (...patterns) =>
  execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', ...patterns], { cwd: root, encoding: 'utf8' })
    .split('\n')
    .filter(Boolean)

function run(command, args) {
  const { status, error } = spawnSync(process.execPath, [command, ...args], { cwd: root, stdio: 'inherit' })
  if (error) throw error
  if (status !== 0) process.exitCode = 1
}

const prettier = join(dirname(require.resolve('prettier/package.json')), 'bin', 'prettier.cjs')
run(prettier, [check ? '--check' : '--write', '--log-level', 'warn', ...tracked('*.ts', '*.mjs')])

const clangFormat = join(dirname(require.resolve('clang-format-node/package.json')), 'build', 'cli.js')
const native = tracked('native/*.cpp', 'native/*.h', 'native/*.cu', 'native/*.cuh')
run(clangFormat, [...(check ? ['--dry-run', '--Werror'] : ['-i']), ...native])
