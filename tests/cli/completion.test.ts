/** `densecl completion`: what each shell offers, asked of the shells themselves, is what the program has. */
import { spawnSync } from 'node:child_process'

import type { Command } from 'commander'
import * as assert from 'uvu/assert'

import { completionScript } from '../../src/cli/completion.js'
import { buildProgram } from '../../src/cli/program.js'
import { runCli, suite, testWhere } from '../support/suite.js'

const test = suite('completion')
const program = await buildProgram([], () => undefined)

type Shell = 'bash' | 'zsh' | 'fish'

/** Runs lines of a shell with the completion that it has read, and gives the lines that they print. */
function run(shell: Shell, lines: readonly string[]): string[] {
  const { stdout, stderr } = spawnSync(shell, ['-c', [...lines].join('\n')], { encoding: 'utf8', maxBuffer: 2 ** 26 })
  assert.is(stderr, '')
  return stdout.trimEnd().split('\n')
}

/** What a shell offers for the last word of each line, sorted; file names are not asked for. */
const offers: Record<Shell, (lines: readonly string[]) => string[][]> = {
  bash: (lines) => {
    const script = completionScript('bash', program)
    const tries = lines.map(
      (line) => `COMP_WORDS=(${line.replace(/ $/, " ''")}); COMP_CWORD=$((\${#COMP_WORDS[@]} - 1)); _densecl; echo "\${COMPREPLY[*]}"`,
    )
    return run('bash', [script, ...tries]).map((row) => row.split(' ').filter(Boolean).sort())
  },
  // What zsh would do with the words that it is given is said instead: its own choice among them is left to it.
  zsh: (lines) => {
    const heard = [
      'compdef() { }',
      '_files() { }',
      'say() { local entry; for entry; do [[ $entry == $words[CURRENT]* ]] && print -rn -- "$entry "; done }',
      '_describe() { local -a described=("${(@P)@[-1]}"); say ${described%%:*} }',
      'compadd() { shift; say "$@" }',
    ]
    const tries = lines.map((line) => `words=(${line.replace(/ $/, " ''")}); CURRENT=$#words; _densecl; print`)
    return run('zsh', [...heard, completionScript('zsh', program), ...tries]).map((row) => row.split(' ').filter(Boolean).sort())
  },
  fish: (lines) => {
    const script = completionScript('fish', program)
    const tries = lines.map((line) => `complete -C '${line}' | string split -f1 \\t | string join ' '\necho ---`)
    return `${run('fish', [script, ...tries]).join('\n')}\n`
      .split(/^---\n/m)
      .slice(0, -1)
      .map((rows) => rows.split(/\s+/).filter(Boolean).sort())
  },
}

/** Every place of a command line where the program knows what may stand, and what that is. */
function places(): [line: string, words: string[]][] {
  const found: [string, string[]][] = []
  const walk = (command: Command, path: string): void => {
    const words = [
      ...command.commands.map((own) => own.name()),
      ...command.registeredArguments.flatMap(({ argChoices }) => argChoices ?? []),
    ]
    if (words.length > 0) found.push([`${path} `, words])
    found.push([`${path} --`, [...command.options.map(({ long }) => long!), '--help']])
    for (const { long, argChoices } of command.options) if (argChoices !== undefined) found.push([`${path} ${long!} `, argChoices])
    for (const own of command.commands) walk(own, `${path} ${own.name()}`)
  }
  walk(program, 'densecl')
  return found.map(([line, words]) => [line, [...words].sort()])
}

/** Lines with a word that has begun, options before it, and values that are the names of commands. */
const written: [line: string, words: string[]][] = [
  ['densecl eval k', ['knn']],
  ['densecl pretrain --optimizer ad', ['adamw']],
  ['densecl eval knn w --image-s', ['--image-size']],
  ['densecl eval knn w --train eval --image-s', ['--image-size']],
  ['densecl export w --overwrite --for tim', ['timm']],
  ['densecl completion z', ['zsh']],
]

for (const shell of ['bash', 'zsh', 'fish'] as const) {
  const there = spawnSync(shell, ['-c', 'true']).status === 0
  const where = (name: string, body: () => void): void => testWhere(there, `${shell} is not installed`, test, name, body)
  where(`${shell} offers every command, every option and every choice, as the program has them`, () => {
    const wanted = [...places(), ...written]
    assert.ok(wanted.length > 40)
    const offered = offers[shell](wanted.map(([line]) => line))
    wanted.forEach(([line, words], i) => assert.equal(offered[i], words, `${shell}: ${line}`))
  })
  where(`${shell} takes what the command prints for densecl`, () => {
    const { code, out } = runCli(['completion', shell])
    assert.is(code, 0)
    assert.is(out, completionScript(shell, program))
    const asks = { bash: ['complete -p densecl'], zsh: ['print $_comps[densecl]'], fish: ['complete -c densecl | head -1'] }[shell]
    const before = shell === 'zsh' ? ['autoload -U compinit', 'compinit -D -u'] : []
    assert.match(run(shell, [...before, out, ...asks]).join(), /densecl/)
  })
}

test.run()
