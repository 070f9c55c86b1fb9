/** `densecl completion`: what a shell offers for the words of a command line, read off the program itself. */
import { Argument, type Command, type Option } from 'commander'

import { examples, type Register } from './command.js'

/** A command as a shell completes it; the path of the program itself is empty. */
interface Completed {
  /** Names from the program on, such as eval knn. */
  path: string
  subcommands: Described[]
  flags: (Described & { takesValue: boolean; choices: readonly string[] })[]
  /** The values of its arguments, where they are few. */
  words: readonly string[]
}

interface Described {
  name: string
  describe: string
}

/** The first sentence of a description, without what shells take for their own. */
const brief = (text: string): string =>
  text
    .split(/[;:(\n]/)[0]!
    .replace(/['"`\\$[\]]/g, '')
    .trim()

function completed(command: Command, path = ''): Completed[] {
  const subcommands = command.commands.map((own) => ({ name: own.name(), describe: brief(own.description()) }))
  const flag = ({ long, description, required, optional, argChoices }: Option) => ({
    name: long!,
    describe: brief(description),
    takesValue: required || optional,
    choices: argChoices ?? [],
  })
  const help = { name: '--help', describe: 'display help for command', takesValue: false, choices: [] }
  return [
    {
      path,
      subcommands,
      flags: [...command.options.filter(({ long, hidden }) => long !== undefined && !hidden).map(flag), help],
      words: command.registeredArguments.flatMap(({ argChoices }) => argChoices ?? []),
    },
    ...command.commands.flatMap((own) => completed(own, `${path} ${own.name()}`.trim())),
  ]
}

const names = (all: readonly Described[]): string => all.map(({ name }) => name).join(' ')

/** The lines of a shell's `case` that lead from a path and a word to the path of the command that it names. */
const steps = (all: readonly Completed[]): string =>
  all.flatMap(({ path, subcommands }) => subcommands.map(({ name }) => `"${path}/${name}"`)).join('|')

function bash(all: readonly Completed[]): string {
  const values = all.flatMap(({ path, flags }) =>
    flags
      .filter(({ takesValue }) => takesValue)
      .map(
        ({ name, choices }) =>
          `    "${path}/${name}") words='${choices.join(' ')}'; COMPREPLY=($(compgen -W "$words" -- "$cur")); return ;;`,
      ),
  )
  const offers = all.map(
    ({ path, subcommands, flags, words }) =>
      `    "${path}") flags='${names(flags)}' words='${[names(subcommands), ...words].join(' ').trim()}' ;;`,
  )
  return `# densecl completion bash
_densecl() {
  local cur=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD - 1]} path= flags= words= i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; ++i)); do
    case "$path/\${COMP_WORDS[i]}" in
      ${steps(all)}) path="\${path:+$path }\${COMP_WORDS[i]}" ;;
    esac
  done
  case "$path/$before" in
${values.join('\n')}
  esac
  case "$path" in
${offers.join('\n')}
  esac
  case "$cur" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$cur")) ;;
    *) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
  esac
}
complete -o default -F _densecl densecl
`
}

function zsh(all: readonly Completed[]): string {
  const described = (items: readonly Described[]): string => items.map(({ name, describe }) => `'${name}:${describe}'`).join(' ')
  const values = all.flatMap(({ path, flags }) =>
    flags
      .filter(({ takesValue }) => takesValue)
      .map(
        ({ name, choices }) => `    "${path}/${name}") ${choices.length === 0 ? '_files' : `compadd -- ${choices.join(' ')}`}; return ;;`,
      ),
  )
  const offers = all.map(
    ({ path, subcommands, flags, words }) =>
      `    "${path}") flags=(${described(flags)}) words_of=(${[described(subcommands), ...words].join(' ').trim()}) ;;`,
  )
  return `#compdef densecl
# densecl completion zsh
_densecl() {
  local command_path= i
  local -a flags words_of
  for ((i = 2; i < CURRENT; ++i)); do
    case "$command_path/\${words[i]}" in
      ${steps(all)}) command_path="\${command_path:+$command_path }\${words[i]}" ;;
    esac
  done
  case "$command_path/\${words[CURRENT - 1]}" in
${values.join('\n')}
  esac
  case "$command_path" in
${offers.join('\n')}
  esac
  if [[ \${words[CURRENT]} == -* ]]; then
    _describe -o option flags
  else
    ((\${#words_of})) && _describe command words_of || _files
  fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _densecl "$@"; else compdef _densecl densecl; fi
`
}

function fish(all: readonly Completed[]): string {
  const quoted = (text: string): string => `'${text}'`
  const lines = all.flatMap(({ path, subcommands, flags, words }) => {
    const when = `-n '__densecl_at "${path}"'`
    return [
      ...subcommands.map(({ name, describe }) => `complete -c densecl ${when} -f -a ${name} -d ${quoted(describe)}`),
      ...words.map((word) => `complete -c densecl ${when} -f -a ${word}`),
      ...flags.map(({ name, describe, takesValue, choices }) => {
        const value = !takesValue ? '' : choices.length === 0 ? ' -r' : ` -x -a ${quoted(choices.join(' '))}`
        return `complete -c densecl ${when} -l ${name.slice(2)}${value} -d ${quoted(describe)}`
      }),
    ]
  })
  const known = all.flatMap(({ path, subcommands }) => subcommands.map(({ name }) => quoted(`${path}/${name}`)))
  return `# densecl completion fish
function __densecl_at
  set -l at ''
  for word in (commandline -opc)[2..]
    if contains -- "$at/$word" ${known.join(' ')}
      set at (string trim -- "$at $word")
    end
  end
  test "$at" = "$argv[1]"
end
${lines.join('\n')}
`
}

const shells = { bash, zsh, fish } as const

/** The completion of a shell for all commands of `program`. */
export const completionScript = (shell: keyof typeof shells, program: Command): string => shells[shell](completed(program))

export const register: Register = (program, done) => {
  program
    .command('completion')
    .description('print what makes a shell complete commands, options and their values')
    .addArgument(new Argument('<shell>', 'the shell').choices(Object.keys(shells)))
    .addHelpText(
      'after',
      examples([
        ['source <(densecl completion bash)', 'now; the same line in ~/.bashrc for every shell'],
        ['source <(densecl completion zsh)', 'the same in ~/.zshrc, behind compinit'],
        ['densecl completion fish > ~/.config/fish/completions/densecl.fish', 'fish reads it by itself'],
      ]),
    )
    .action((shell: keyof typeof shells) => {
      process.stdout.write(completionScript(shell, program))
      done(0)
    })
}
