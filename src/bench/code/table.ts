/** The machine-code table: every kernel with its registers, spills and loops, and what changed since a table that was kept. */
import { readFileSync, writeFileSync } from 'node:fs'

import { fail } from '../../tensor/errors.js'
import { type Cubin, demangled, type Resources } from './compile.js'
import { kernelCode, type Loop, loopsOf, tellingKinds, type Work, workOf } from './sass.js'

export interface KernelRow extends Partial<Resources>, Work {
  file: string
  name: string
  loops: Loop[]
}

export interface CodeTable {
  architecture: string
  /** The compiler's version. */
  nvcc: string
  kernels: KernelRow[]
  [key: string]: unknown
}

/** The rows of compiled files, in the order of files and names. */
export function rowsOf(cubins: readonly Cubin[]): KernelRow[] {
  return cubins.flatMap(({ file, code, resources }) => {
    const kernels = kernelCode(code, file)
    const names = demangled([...kernels.keys()])
    return [...kernels]
      .map(([mangled, instructions]): KernelRow => ({
        file,
        name: names.get(mangled)!,
        ...resources.get(mangled),
        ...workOf(instructions),
        loops: loopsOf(instructions),
      }))
      .sort((a, b) => (a.name < b.name ? -1 : 1))
  })
}

const telling = (kinds: Record<string, number>): string =>
  tellingKinds.flatMap((kind) => (kinds[kind] === undefined ? [] : [`${kind} ${kinds[kind]}`])).join(', ')

/** A kernel in lines: itself, and each loop. */
export function kernelLines({
  file,
  name,
  registers,
  stack,
  spillStores = 0,
  spillLoads = 0,
  shared,
  instructions,
  kinds,
  loops,
}: KernelRow): string[] {
  const spills = spillStores + spillLoads === 0 ? 'no spills' : `SPILLS ${spillStores} bytes stored, ${spillLoads} loaded`
  const resources = registers === undefined ? '' : `${registers} registers, ${spills}, stack ${stack}, static shared memory ${shared}; `
  return [
    `${file}  ${name}`,
    `  ${resources}${instructions} instructions: ${telling(kinds)}`,
    ...loops.map((loop) => {
      const counts = `${loop.instructions} instructions, ${loop.stalls} stall cycles, ${loop.waits} scoreboard waits`
      return `  ${'  '.repeat(loop.depth)}loop ${hex(loop.from)}-${hex(loop.to)}: ${counts}; ${telling(loop.kinds)}`
    }),
  ]
}

const hex = (at: number): string => `0x${at.toString(16).padStart(5, '0')}`

interface Change {
  kernel: string
  /** What grew or went, in words. */
  text: string
  /** A loop or the spills doubled: what a caller should not let pass. */
  doubled: boolean
}

/**
 * What changed between two tables: everything that grew by more than a tenth, kernels that came and went, loops that doubled. Kernels
 * are matched by file and name, loops by their order; where their numbers differ, so that the fewest are left over and the others
 * resemble each other most.
 */
export function compareTables(before: CodeTable, now: CodeTable): Change[] {
  const key = ({ file, name }: KernelRow): string => `${file}  ${name}`
  const old = new Map(before.kernels.map((kernel) => [key(kernel), kernel]))
  const changes: Change[] = []
  for (const kernel of now.kernels) {
    const was = old.get(key(kernel))
    old.delete(key(kernel))
    const add = (text: string, doubled = false): unknown => changes.push({ kernel: key(kernel), text, doubled })
    if (was === undefined) {
      add(`is new: ${kernel.instructions} instructions, ${kernel.loops.length} loops`)
      continue
    }
    for (const [what, from, to] of [
      ['registers', was.registers, kernel.registers],
      ['stack', was.stack, kernel.stack],
      ['static shared memory', was.shared, kernel.shared],
      ['instructions', was.instructions, kernel.instructions],
    ] as const) {
      if (from !== undefined && to !== undefined && grew(from, to)) add(`${what} ${from} -> ${to} (${percent(from, to)})`)
    }
    const spills = ({ spillStores = 0, spillLoads = 0 }: KernelRow): number => spillStores + spillLoads
    if (grew(spills(was), spills(kernel)))
      add(`spilled bytes ${spills(was)} -> ${spills(kernel)} (${percent(spills(was), spills(kernel))})`, spills(kernel) >= 2 * spills(was))
    if (was.loops.length !== kernel.loops.length) add(`loops ${was.loops.length} -> ${kernel.loops.length}`)
    for (const [from, to] of aligned(was.loops, kernel.loops)) {
      const parts = (['instructions', 'stalls', 'waits'] as const).filter((part) => grew(from[part], to[part]))
      if (parts.length === 0) continue
      const doubled = to.instructions >= 2 * from.instructions || to.stalls >= 2 * from.stalls
      const words = { instructions: 'instructions', stalls: 'stall cycles', waits: 'scoreboard waits' }
      const grown = parts.map((part) => `${words[part]} ${from[part]} -> ${to[part]} (${percent(from[part], to[part])})`)
      add(`loop at ${hex(to.from)}${doubled ? ' DOUBLED' : ''}: ${grown.join(', ')}`, doubled)
    }
  }
  for (const gone of old.keys()) changes.push({ kernel: gone, text: 'is gone', doubled: false })
  return changes
}

const grew = (from: number, to: number): boolean => to > 1.1 * from
const percent = (from: number, to: number): string => (from === 0 ? 'from none' : `+${((100 * to) / from - 100).toFixed(0)} %`)

/** Pairs in order, as many as the shorter list has, with the least sum of the logarithms of their ratios. */
function aligned(a: readonly Loop[], b: readonly Loop[]): [Loop, Loop][] {
  if (a.length > b.length) return aligned(b, a).map(([x, y]) => [y, x])
  const cost = (x: Loop, y: Loop): number => Math.abs(Math.log(x.instructions / y.instructions)) + Math.abs(Math.log(x.stalls / y.stalls))
  const most = b.length - a.length
  // least[i][k]: of the first i of a and the first i + k of b.
  const least = Array.from({ length: a.length + 1 }, () => new Float64Array(most + 1))
  for (let i = 1; i <= a.length; ++i)
    for (let k = 0; k <= most; ++k) {
      const paired = least[i - 1]![k]! + cost(a[i - 1]!, b[i + k - 1]!)
      least[i]![k] = k > 0 ? Math.min(paired, least[i]![k - 1]!) : paired
    }
  const pairs: [Loop, Loop][] = []
  for (let i = a.length, k = most; i > 0;) {
    if (k > 0 && least[i]![k] === least[i]![k - 1]) --k
    else {
      pairs.unshift([a[i - 1]!, b[i + k - 1]!])
      --i
    }
  }
  return pairs
}

/** A kernel a line, of the kinds of instructions those that say what a loop is about. */
export function saveCodeTable(path: string, { kernels, ...head }: CodeTable): void {
  const known: readonly string[] = tellingKinds
  const short = <W extends Work>(work: W): W => ({
    ...work,
    kinds: Object.fromEntries(Object.entries(work.kinds).filter(([kind]) => known.includes(kind))),
  })
  const lines = kernels.map((kernel) => `    ${JSON.stringify({ ...short(kernel), loops: kernel.loops.map(short) })}`).join(',\n')
  writeFileSync(path, `${JSON.stringify(head, undefined, 2).slice(0, -2)},\n  "kernels": [\n${lines}\n  ]\n}\n`)
}

export function readCodeTable(path: string): CodeTable {
  let table: Partial<CodeTable>
  try {
    table = JSON.parse(readFileSync(path, 'utf8')) as Partial<CodeTable>
  } catch (error) {
    return fail(
      'FILE',
      `${path}: expected a table that bench code --save wrote (${error instanceof Error ? error.message : String(error)})`,
    )
  }
  const whole = (kernel: Partial<KernelRow> | null): boolean =>
    typeof kernel?.name === 'string' && typeof kernel.instructions === 'number' && Array.isArray(kernel.loops)
  if (typeof table?.architecture !== 'string' || !Array.isArray(table.kernels) || !table.kernels.every(whole))
    fail('FILE', `${path}: expected a table that bench code --save wrote, but it has no kernels with their loops`)
  return table as CodeTable
}
