/** `densecl bench code`: what the compiler made of every kernel, and what a change did to it. */
import { existsSync, readFileSync } from 'node:fs'
import { basename } from 'node:path'

import { codeArchitectures, compile, mentioned, nvccVersion, sourceFiles } from '../bench/code/compile.js'
import { type CodeTable, compareTables, kernelLines, readCodeTable, rowsOf, saveCodeTable } from '../bench/code/table.js'
import { environmentRow } from '../bench/result.js'
import { fail } from '../tensor/errors.js'
import type { AddBench } from './benchShared.js'
import { examples, heedingSignals } from './command.js'

interface CodeFlags {
  architecture: string
  json?: boolean
  save?: string | undefined
  compare?: string | undefined
}

export const addCode: AddBench = (parent, done) => {
  parent
    .command('code')
    .description('what the compiler made of each kernel: registers, spills and loops, from the machine code; no GPU is needed')
    .argument('[words...]', "one word of a file's or kernel's name, or a .cubin file; all kernels when absent")
    .option('--architecture <name>', codeArchitectures.join(' or '), 'sm_90a')
    .option('--json', 'print JSON')
    .option('--save <file>', 'write the table as JSON')
    .option('--compare <file>', 'show what changed since a saved table; exit code 1 where a loop or the spills doubled')
    .addHelpText(
      'after',
      examples([
        ['densecl bench code conv2dHopper', 'registers, spills and loops of its kernels, from the machine code'],
        ['densecl bench code --compare bench/results/code-sm_90a.json', 'what grew; exit code 1 where a loop doubled'],
      ]),
    )
    .action(heedingSignals(done, async (words: string[], flags: CodeFlags) => done(await benchCode(words, flags))))
}

/** Prints the table of the kernels that a word names, of all without; the exit code is 1 where a loop or the spills doubled. */
async function benchCode(words: readonly string[], { architecture, json = false, save, compare }: CodeFlags): Promise<number> {
  if (words.length > 1) fail('CONFIG', `bench code: expected one word of a file's or kernel's name but received ${words.join(' ')}`)
  if (!(codeArchitectures as readonly string[]).includes(architecture))
    fail('CONFIG', `--architecture is ${architecture}: expected one of ${codeArchitectures.join(', ')}`)
  const before = compare === undefined ? undefined : readCodeTable(compare)
  if (before !== undefined && before.architecture !== architecture)
    fail('CONFIG', `--compare ${compare}: it is of ${before.architecture} but --architecture is ${architecture}`)
  const table = await codeTable(words[0], architecture)
  if (json) console.log(JSON.stringify(table, undefined, 2))
  else for (const kernel of table.kernels) console.log(`${kernelLines(kernel).join('\n')}\n`)
  if (save !== undefined) {
    saveCodeTable(save, table)
    if (!json) console.log(`written: ${save}`)
  }
  if (before === undefined) return 0
  // A word leaves kernels out that the saved table has.
  const named = new Set(table.kernels.map(({ file, name }) => `${file}  ${name}`))
  const changes = compareTables(
    { ...before, kernels: before.kernels.filter(({ file, name }) => words.length === 0 || named.has(`${file}  ${name}`)) },
    table,
  )
  const say = (text: string): void => (json ? console.error(text) : console.log(text))
  if (before.nvcc !== table.nvcc)
    say(`${compare} was made by nvcc ${before.nvcc}, this table by ${table.nvcc}: some of the changes may be the compiler's`)
  for (const { kernel, text } of changes) say(`${kernel}: ${text}`)
  const doubled = changes.filter((change) => change.doubled).length
  say(
    changes.length === 0
      ? `nothing grew by more than 10 % since ${compare}`
      : doubled === 0
        ? 'no loop and no spills doubled'
        : `${doubled} ${doubled === 1 ? 'loop or spill count' : 'loops or spill counts'} DOUBLED`,
  )
  return doubled === 0 ? 0 : 1
}

async function codeTable(word: string | undefined, architecture: string): Promise<CodeTable> {
  if (word?.endsWith('.cubin') === true) {
    if (!existsSync(word)) fail('FILE', `bench code: there is no file ${word}`)
    return {
      ...environmentRow(),
      bench: 'code',
      architecture,
      nvcc: 'unknown',
      kernels: rowsOf([{ file: basename(word), code: readFileSync(word), resources: new Map() }]),
    }
  }
  const holds = (name: string): boolean => word === undefined || name.toLowerCase().includes(word.toLowerCase())
  const all = sourceFiles()
  const files = all.filter((file) => holds(basename(file)))
  const { version } = nvccVersion()
  const unknown = (): never =>
    fail('CONFIG', `bench code: no file and no kernel has ${word} in its name; files are ${all.map((file) => basename(file)).join(', ')}`)
  // Before everything is compiled for a word that no source has.
  if (files.length === 0 && !mentioned(word!)) unknown()
  // A word that no file has may be one of a kernel.
  const rows = rowsOf(
    await compile(files.length > 0 ? files : all, architecture, (file) => process.stderr.isTTY && console.error(`compiled: ${file}`)),
  )
  const kernels = files.length > 0 ? rows : rows.filter(({ name }) => holds(name))
  if (kernels.length === 0) unknown()
  return { ...environmentRow(), bench: 'code', architecture, nvcc: version, kernels }
}
