/**
 * What a kernel's loops cost on the hardware, read off the machine code: no GPU and no disassembler needed. For sm_80 to sm_90a.
 *
 * An instruction has 128 bits: operation in bits 0 to 8, form of its operands 9 to 11, predicate 12 to 15, and what the compiler
 * schedules by: stall cycles 105 to 108, barriers it sets 110 to 115, barriers it waits for (scoreboards) 116 to 121. The cycles are a
 * lower bound for one warp: latencies of memory and of whatever a scoreboard stands for come on top. What one warp does alone, a
 * producer, takes at least that long; where four warps share a scheduler they hide each other's stalls, and the number of
 * instructions is the bound: one a cycle and scheduler.
 */
import { fail } from '../../tensor/errors.js'

export interface Instruction {
  /** Byte offset in the kernel. */
  at: number
  kind: string
  stall: number
  /** The scoreboards that it waits for, a bit each. */
  waits: number
  /** Where a branch goes. */
  target: number | undefined
  /** Whether the next instruction, or the target alone, follows. */
  falls: boolean
}

/** The counts of a stretch of code. */
export interface Work {
  instructions: number
  /** Sum of the stall cycles that the compiler wrote. */
  stalls: number
  /** Instructions that wait for a scoreboard. */
  waits: number
  /** Instructions by kind. */
  kinds: Record<string, number>
}

export interface Loop extends Work {
  /** Byte offsets of its first instruction and of the branch back. */
  from: number
  to: number
  /** Loops around it. */
  depth: number
}

/** Kinds of instructions by their bits 0 to 8: the form of the operands does not matter here. */
const kinds: Record<number, string> = {
  0x002: 'MOV',
  0x005: 'CS2R',
  0x007: 'SEL',
  0x008: 'FSEL',
  0x009: 'FMNMX',
  0x00b: 'FSETP',
  0x00c: 'ISETP',
  0x010: 'IADD3',
  0x011: 'LEA',
  0x012: 'LOP3',
  0x013: 'IABS',
  0x016: 'PRMT',
  0x017: 'IMNMX',
  0x019: 'SHF',
  0x01c: 'PLOP3',
  0x020: 'FMUL',
  0x021: 'FADD',
  0x023: 'FFMA',
  0x024: 'IMAD',
  0x025: 'IMAD',
  0x027: 'IMAD',
  0x036: 'VIADD',
  0x03b: 'LDSM',
  0x03c: 'HMMA',
  0x03e: 'F2FP',
  0x045: 'I2FP',
  0x048: 'VIMNMX',
  0x082: 'UMOV',
  0x087: 'USEL',
  0x08c: 'UISETP',
  0x090: 'UIADD3',
  0x091: 'ULEA',
  0x092: 'ULOP3',
  0x096: 'UPRMT',
  0x099: 'USHF',
  0x0a4: 'UIMAD',
  0x0a5: 'UIMAD',
  0x0b9: 'ULDC',
  0x0ca: 'R2UR',
  0x102: 'FCHK',
  0x104: 'F2F',
  0x105: 'F2I',
  0x106: 'I2F',
  0x108: 'MUFU',
  0x110: 'F2F',
  0x111: 'F2I',
  0x112: 'I2F',
  0x118: 'NOP',
  0x119: 'S2R',
  0x11a: 'DEPBAR',
  0x11d: 'BAR',
  0x141: 'BSYNC',
  0x142: 'BREAK',
  0x144: 'CALL',
  0x145: 'BSSY',
  0x147: 'BRA',
  0x148: 'WARPSYNC',
  0x149: 'BRX',
  0x14d: 'EXIT',
  0x150: 'RET',
  0x181: 'LDG',
  0x182: 'LDC',
  0x183: 'LDL',
  0x184: 'LDS',
  0x186: 'STG',
  0x187: 'STL',
  0x188: 'STS',
  0x189: 'SHFL',
  0x18e: 'RED',
  0x1a7: 'SYNCS',
  0x1a8: 'ATOMG',
  0x1ae: 'LDGSTS',
  0x1af: 'LDGDEPBAR',
  0x1b2: 'SYNCS',
  0x1b4: 'UTMALDG',
  0x1b5: 'UTMASTG',
  0x1c3: 'S2UR',
  0x1c8: 'USETMAXREG',
  0x1f0: 'HGMMA',
  0x1f3: 'QGMMA',
}

/** The kinds that say what a loop is about, in the order that they are shown in. */
export const tellingKinds = [
  'HGMMA',
  'QGMMA',
  'HMMA',
  'LDSM',
  'UTMALDG',
  'UTMASTG',
  'LDGSTS',
  'LDG',
  'STG',
  'LDS',
  'STS',
  'LDL',
  'STL',
  'MUFU',
  'SHFL',
  'BAR',
  'SYNCS',
  'CALL',
  'BRA',
] as const

/** The machine code of every kernel of a cubin by its mangled name; `path` names it in errors. */
export function kernelCode(cubin: Buffer, path: string): Map<string, Instruction[]> {
  const broken = (why: string): never => fail('FILE', `${path}: expected a cubin, an ELF file of CUDA machine code, but ${why}`)
  if (cubin.length < 64 || cubin.readUInt32BE(0) !== 0x7f454c46) broken('it does not start as one')
  if (cubin[4] !== 2 || cubin[5] !== 1) broken('it is not 64 bits wide and little-endian')
  if (cubin.readUInt16LE(18) !== 190) broken(`its machine is ${cubin.readUInt16LE(18)}, not CUDA`)
  const kernels = new Map<string, Instruction[]>()
  try {
    // Files of the older form have the architecture in bits 0 to 7 of their flags, newer ones in bits 8 to 15.
    const flags = cubin.readUInt32LE(0x30)
    const architecture = ((flags >> 8) & 255) >= 50 ? (flags >> 8) & 255 : flags & 255
    const [table, size, count, names] = [
      Number(cubin.readBigUInt64LE(0x28)),
      cubin.readUInt16LE(0x3a),
      cubin.readUInt16LE(0x3c),
      cubin.readUInt16LE(0x3e),
    ]
    const section = (index: number): { name: number; offset: number; bytes: number } => {
      const at = table + index * size
      return { name: cubin.readUInt32LE(at), offset: Number(cubin.readBigUInt64LE(at + 24)), bytes: Number(cubin.readBigUInt64LE(at + 32)) }
    }
    const strings = section(names)
    for (let i = 0; i < count; ++i) {
      const { name, offset, bytes } = section(i)
      const start = strings.offset + name
      const text = cubin.toString('latin1', start, cubin.indexOf(0, start))
      if (!text.startsWith('.text.')) continue
      if (offset + bytes > cubin.length) broken(`${text} reaches beyond its end`)
      kernels.set(text.slice(6), decode(cubin.subarray(offset, offset + bytes), architecture >= 90))
    }
  } catch (error) {
    if (error instanceof RangeError) broken('a table of it reaches beyond its end')
    throw error
  }
  return kernels
}

/** The instructions of machine code; branches are encoded in 8 bits more from sm_90 on. */
export function decode(code: Buffer, hopper: boolean): Instruction[] {
  const instructions: Instruction[] = []
  for (let at = 0; at + 16 <= code.length; at += 16) {
    const [low, high] = [code.readBigUInt64LE(at), code.readBigUInt64LE(at + 8)]
    const bits = (from: number, count: number): number => Number((((high << 64n) | low) >> BigInt(from)) & ((1n << BigInt(count)) - 1n))
    const kind = kinds[bits(0, 9)] ?? `0x${bits(0, 12).toString(16)}`
    let target: number | undefined
    if (kind === 'BRA') {
      // In words of 4 bytes, from the next instruction on.
      const distance = hopper
        ? ((high & 0x3ffffn) << 38n) | ((low >> 34n) << 8n) | ((low >> 16n) & 255n)
        : ((high & 0x3ffffn) << 30n) | (low >> 34n)
      target = at + 16 + 4 * Number(BigInt.asIntN(hopper ? 56 : 48, distance))
    }
    // A branch has a second predicate and, in its form for diverged warps, one more condition.
    const always = bits(12, 4) === 7 && (kind !== 'BRA' || (bits(0, 12) === 0x947 && bits(87, 5) === 7))
    instructions.push({
      at,
      kind,
      stall: Math.max(1, bits(105, 4)),
      waits: bits(116, 6),
      target,
      falls: !(always && ['BRA', 'EXIT', 'RET', 'BRX'].includes(kind)),
    })
  }
  return instructions
}

export function workOf(instructions: readonly Instruction[]): Work {
  const counts: Record<string, number> = {}
  for (const { kind } of instructions) counts[kind] = (counts[kind] ?? 0) + 1
  return {
    instructions: instructions.length,
    stalls: instructions.reduce((sum, { stall }) => sum + stall, 0),
    waits: instructions.filter(({ waits }) => waits !== 0).length,
    kinds: counts,
  }
}

/**
 * The loops, in the order of their first instructions: branches back to an instruction that every way to the branch passes. (A branch
 * back from code that was moved behind the end, a slow path, is none.) What stands between the two is counted, inner loops included,
 * code that was moved away not.
 */
export function loopsOf(instructions: readonly Instruction[]): Loop[] {
  const passes = dominators(instructions)
  const ends = new Map<number, number>()
  for (const [i, { at, target }] of instructions.entries()) {
    // A branch to itself is what the compiler puts behind the end.
    if (target === undefined || target < 0 || target >= at) continue
    if (passes(target / 16, i)) ends.set(target, Math.max(ends.get(target) ?? 0, at))
  }
  const ranges = [...ends].sort((a, b) => a[0] - b[0] || b[1] - a[1])
  return ranges.map(([from, to]) => {
    const depth = ranges.filter(([begin, end]) => begin <= from && end >= to && (begin !== from || end !== to)).length
    return { from, to, depth, ...workOf(instructions.slice(from / 16, to / 16 + 1)) }
  })
}

/** Whether every way from the kernel's entry to instruction `to` passes instruction `from` (K. Cooper, T. Harvey, K. Kennedy, 2001). */
function dominators(instructions: readonly Instruction[]): (from: number, to: number) => boolean {
  const count = instructions.length
  const next = (i: number): number[] => {
    const { target, falls } = instructions[i]!
    const ways = falls && i + 1 < count ? [i + 1] : []
    if (target !== undefined && target >= 0 && target % 16 === 0 && target / 16 < count) ways.push(target / 16)
    return ways
  }
  // Behind a virtual entry: the first instruction, subroutines, and what else no branch leads to.
  const entry = count
  const before: number[][] = Array.from({ length: count + 1 }, () => [])
  const order: number[] = []
  const seen = new Uint8Array(count)
  const walk = (root: number): void => {
    before[root]!.push(entry)
    if (seen[root] !== 0) return
    seen[root] = 1
    const stack = [{ at: root, ways: next(root) }]
    while (stack.length > 0) {
      const top = stack.at(-1)!
      const to = top.ways.pop()
      if (to === undefined) {
        order.push(top.at)
        stack.pop()
      } else {
        before[to]!.push(top.at)
        if (seen[to] !== 0) continue
        seen[to] = 1
        stack.push({ at: to, ways: next(to) })
      }
    }
  }
  for (let i = 0; i < count; ++i) if (seen[i] === 0) walk(i)
  const rank = new Int32Array(count + 1)
  order.forEach((i, at) => (rank[i] = at))
  rank[entry] = count
  const above = new Int32Array(count + 1).fill(-1)
  above[entry] = entry
  for (let changed = true; changed;) {
    changed = false
    for (const i of [...order].reverse()) {
      let found = -1
      for (const from of before[i]!) {
        if (above[from] === -1) continue
        let [a, b] = [from, found === -1 ? from : found]
        while (a !== b) {
          while (rank[a]! < rank[b]!) a = above[a]!
          while (rank[b]! < rank[a]!) b = above[b]!
        }
        found = a
      }
      if (found !== above[i]) {
        above[i] = found
        changed = true
      }
    }
  }
  return (from, to) => {
    for (let i = to; i !== entry; i = above[i]!) if (i === from) return true
    return false
  }
}
