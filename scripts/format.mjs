// Formats every source file that git knows: TypeScript by Prettier, native code by clang-format. `--check` only says what differs,
// and which lines are too wide because no formatter breaks them: strings, comments and prose.
import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const require = createRequire(import.meta.url)
const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const check = process.argv.includes('--check')
const tracked = (...patterns) =>
  execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', ...patterns, ':!native/third_party'], {
    cwd: root,
    encoding: 'utf8',
  })
    .split('\n')
    .filter(Boolean)

function run(command, args) {
  const { status, error } = spawnSync(process.execPath, [command, ...args], { cwd: root, stdio: 'inherit' })
  if (error) throw error
  if (status !== 0) process.exitCode = 1
}

const prettier = join(dirname(require.resolve('prettier/package.json')), 'bin', 'prettier.cjs')
run(prettier, [check ? '--check' : '--write', '--log-level', 'warn', ...tracked('*.ts', '*.mjs', '*.js')])

const clangFormat = join(dirname(require.resolve('clang-format-node/package.json')), 'build', 'cli.js')
const native = tracked('native/*.cpp', 'native/*.h', 'native/*.cu', 'native/*.cuh')
run(clangFormat, [...(check ? ['--dry-run', '--Werror'] : ['-i']), ...native])

/**
 * Lines of a file over 140 columns. Of Markdown those that cannot be broken are let through: rows of tables, and what stands in code
 * fences. Of sources every line counts.
 */
function wideLines(file) {
  const prose = file.endsWith('.md')
  let fenced = false
  return readFileSync(join(root, file), 'utf8')
    .split('\n')
    .flatMap((line, i) => {
      if (prose && line.trimStart().startsWith('```')) fenced = !fenced
      return line.length > 140 && !(prose && (fenced || /^(\|| {4})/.test(line))) ? [i + 1] : []
    })
}

if (check) {
  for (const file of tracked('*.ts', '*.mjs', '*.js', '*.md', 'native/*'))
    for (const line of wideLines(file)) {
      console.error(`${file}:${line}: expected at most 140 columns`)
      process.exitCode = 1
    }
}
