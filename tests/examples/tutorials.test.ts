/**
 * The pages of docs/tutorials do what they say. Their fenced blocks are taken in order, in one folder for all pages, as whoever follows
 * them has it: `ts FILE` is written to the file, `sh` is run by bash as it stands, and `text` is looked for in what the last `sh`
 * printed, line by line and in order, whatever its numbers; `...` stands for other lines, or in a line for other words. Of `sh long`,
 * which takes hours or needs a GPU, every command is parsed by the program instead, with its options and their values.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import type { Command } from 'commander'
import * as assert from 'uvu/assert'

import { buildProgram } from '../../src/cli/program.js'
import { presetSettings, resolveConfig } from '../../src/methods/index.js'
import { parseValue, settingsOf } from '../../src/run/options.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { cli, suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('tutorials')
const pages = join(packageRoot, 'docs', 'tutorials')
/** Later pages go on with what the first leaves. */
const order = ['classifier.md', 'segmentation.md', 'detection.md', 'method.md', 'gpu-day.md']

/** A fenced block: the words behind its fence, and what it holds. */
interface Block {
  kind: string
  word?: string | undefined
  text: string
}

const blocksOf = (page: string): Block[] =>
  [...readFileSync(join(pages, page), 'utf8').matchAll(/^```(\w+)(?: (\S+))?\n([^]*?)^```$/gm)].map(([, kind, word, text]) => ({
    kind: kind!,
    word,
    text: text!,
  }))

/** A line without its numbers and durations, and with gaps of one space. */
const shape = (line: string): string =>
  line
    .replace(/-?\d[\d.,]*(?:e-?\d+)?(?:(?<=[hm\d])[hms]\d*)*\b/g, '#')
    .replace(/\s+/g, ' ')
    .trim()

const literally = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')

/** Asserts that the lines of `shown` are among those of `printed`, in order. */
function checkShown(shown: string, printed: string, page: string): void {
  const lines = printed.split(/[\n\r]/).map(shape)
  let at = 0
  for (const line of shown.split('\n').map(shape)) {
    if (line === '' || line === '...') continue
    const pattern = new RegExp(`^${line.split('...').map(literally).join('.*')}$`)
    const found = lines.findIndex((other, i) => i >= at && pattern.test(other))
    assert.ok(found >= 0, `${page} shows what was not printed: ${line}\n${printed}`)
    at = found + 1
  }
}

/** Runs lines of a page where npx finds densecl and tsc. */
function runLines(lines: string, cwd: string): { status: number | null; printed: string } {
  const tsc = join(packageRoot, 'node_modules', 'typescript', 'bin', 'tsc')
  const npx = `npx() { case $1 in densecl) node '${cli}' "\${@:2}" ;; tsc) node '${tsc}' "\${@:2}" ;; *) return 127 ;; esac; }`
  const { status, stdout } = spawnSync('bash', ['-c', `exec 2>&1\nset -e\n${npx}\n${lines}`], { cwd, encoding: 'utf8' })
  return { status, printed: stdout }
}

/** The commands of a block as words: no comments, broken lines joined, quotes gone. */
const commandsOf = (text: string): string[][] =>
  text
    .replaceAll('\\\n', ' ')
    .split('\n')
    .map((line) => [...line.replace(/(^|\s)#.*/, '').matchAll(/"([^"]*)"|(\S+)/g)].map(([, quoted, word]) => (quoted ?? word)!))
    .filter((words) => words.length > 0)

/** Parses what stands behind `densecl` without doing it; throws where a command, an option or a value is not known. */
async function parse(words: readonly string[]): Promise<void> {
  // A run that goes on would be looked up for its method.
  const program = await buildProgram(
    words.filter((word) => word !== '--resume'),
    () => undefined,
  )
  let parsed: Command | undefined
  const prepare = (command: Command): void => {
    command.exitOverride().configureOutput({ writeErr: () => undefined })
    command.commands.forEach(prepare)
    if (command.commands.length === 0 || command.registeredArguments.length > 0)
      command.action((...given) => void (parsed = given.at(-1) as Command))
  }
  prepare(program)
  await program.parseAsync([...words], { from: 'user' })
  if (parsed!.name() === 'launch') await parse(parsed!.args)
  if (parsed!.name() !== 'pretrain') return
  // The program hands values of a run on as they are.
  const { preset, out, resume, dryRun, ...values } = parsed!.opts<Record<string, string>>()
  assert.ok(
    [out, resume, dryRun].some((given) => given !== undefined),
    'a run needs a folder',
  )
  const settings = Object.fromEntries(Object.entries(values).map(([key, text]) => [key, parseValue(text)]))
  resolveConfig([...(preset === undefined ? [] : presetSettings(preset)), ...settingsOf(settings, 'the page')])
}

const here = existsSync(pages)
const where = (name: string, body: () => void | Promise<void>): void => testWhere(here, 'this is no checkout', test, name, body)

where('every page is tested', () => {
  assert.equal(readdirSync(pages).sort(), [...order].sort())
  for (const page of order.slice(0, -1))
    for (const kind of ['sh', 'text']) assert.ok(blocksOf(page).filter((block) => block.kind === kind).length > 1, `${page}: ${kind}`)
})

where('commands that take long, or a GPU, are such as the program takes', async () => {
  const { scripts } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as { scripts: Record<string, string> }
  let parsed = 0
  for (const page of order) {
    for (const [, script] of readFileSync(join(pages, page), 'utf8').matchAll(/npm run ([\w:]+)/g))
      assert.ok(scripts[script!] !== undefined, `${page}: npm run ${script}`)
    for (const { kind, word, text } of blocksOf(page)) {
      if (kind !== 'sh' || word !== 'long') continue
      for (const [program, name, ...words] of commandsOf(text)) {
        if (program === 'npm') continue
        assert.equal([program, name], ['npx', 'densecl'], page)
        try {
          await parse(words)
        } catch (error) {
          assert.unreachable(`${page}: densecl ${words.join(' ')}: ${String(error)}`)
        }
        parsed += 1
      }
    }
  }
  assert.ok(parsed > 25, `only ${parsed} commands were found`)
})

where('the pages print what they show, one after the other', () =>
  withFolder((folder) => {
    mkdirSync(join(folder, 'node_modules'))
    symlinkSync(packageRoot, join(folder, 'node_modules', 'densecl'), 'junction')
    symlinkSync(join(packageRoot, 'node_modules', 'zod'), join(folder, 'node_modules', 'zod'), 'junction')
    for (const page of order) {
      let printed: string | undefined
      for (const { kind, word, text } of blocksOf(page)) {
        if (kind === 'ts') writeFileSync(join(folder, word!), text)
        else if (kind === 'text') checkShown(text, printed ?? '', page)
        else if (word === undefined) {
          const ran = runLines(text, folder)
          assert.is(ran.status, 0, `${page}:\n${text}\n${ran.printed}`)
          printed = ran.printed
        }
      }
    }
  }),
)

test.run()
