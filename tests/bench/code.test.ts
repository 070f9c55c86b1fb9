/** The machine-code table: instruction words and ELF files made here, tables made here, and one kernel that nvcc compiles. */
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { compile, demangled, resourcesOf } from '../../src/bench/code/compile.js'
import { decode, kernelCode, type Loop, loopsOf } from '../../src/bench/code/sass.js'
import {
  type CodeTable,
  compareTables,
  type KernelRow,
  kernelLines,
  readCodeTable,
  rowsOf,
  saveCodeTable,
} from '../../src/bench/code/table.js'
import { rejectsError, runCli, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('machine code')

interface Word {
  opcode: number
  predicate?: number
  stall?: number
  waits?: number
  /** Of a branch: instructions from the next one on. */
  jump?: number
}

/** An instruction in the layout of sm_90, whose branches have 8 more bits, or of those before. */
function encode({ opcode, predicate = 7, stall = 1, waits = 0, jump }: Word, hopper: boolean): Buffer {
  let low = BigInt(opcode) | (BigInt(predicate) << 12n)
  let high = (BigInt(stall) << 41n) | (BigInt(waits) << 52n) | (7n << 23n)
  if (jump !== undefined) {
    const words = BigInt.asUintN(hopper ? 56 : 48, BigInt(4 * jump))
    const upper = hopper ? words >> 8n : words
    low |= (upper & 0x3fffffffn) << 34n
    if (hopper) low |= (words & 255n) << 16n
    high |= upper >> 30n
  }
  const bytes = Buffer.alloc(16)
  bytes.writeBigUInt64LE(BigInt.asUintN(64, low), 0)
  bytes.writeBigUInt64LE(high, 8)
  return bytes
}
const codeOf = (words: readonly Word[], hopper = true): Buffer => Buffer.concat(words.map((word) => encode(word, hopper)))

const [LDG, FADD, HGMMA, QGMMA, BRA, EXIT, NOP] = [0x981, 0x221, 0x9f0, 0x9f3, 0x947, 0x94d, 0x918]

/** A cubin with one kernel. */
function elf(name: string, code: Buffer, architecture = 90): Buffer {
  const strings = Buffer.from(`\0.shstrtab\0.text.${name}\0`, 'latin1')
  const header = Buffer.alloc(64)
  header.writeUInt32BE(0x7f454c46, 0)
  header.set([2, 1, 1], 4)
  header.writeUInt16LE(190, 18)
  const table = 64 + strings.length + code.length
  header.writeBigUInt64LE(BigInt(table), 0x28)
  header.writeUInt32LE(architecture << 8, 0x30)
  header.writeUInt16LE(64, 0x3a)
  header.writeUInt16LE(3, 0x3c)
  header.writeUInt16LE(1, 0x3e)
  const section = (nameAt: number, offset: number, bytes: number): Buffer => {
    const entry = Buffer.alloc(64)
    entry.writeUInt32LE(nameAt, 0)
    entry.writeBigUInt64LE(BigInt(offset), 24)
    entry.writeBigUInt64LE(BigInt(bytes), 32)
    return entry
  }
  return Buffer.concat([
    header,
    strings,
    code,
    section(0, 0, 0),
    section(1, 64, strings.length),
    section(11, 64 + strings.length, code.length),
  ])
}

test('instructions are read as they were written: kind, stall, scoreboards, and branches of both layouts', () => {
  const word = fc.record({
    opcode: fc.constantFrom(LDG, FADD, HGMMA, QGMMA, NOP),
    predicate: fc.integer({ min: 0, max: 15 }),
    stall: fc.integer({ min: 1, max: 15 }),
    waits: fc.integer({ min: 0, max: 63 }),
  })
  fc.assert(
    fc.property(
      fc.array(word, { minLength: 1, maxLength: 20 }),
      fc.integer({ min: -100_000, max: 100_000 }),
      fc.boolean(),
      (words, jump, hopper) => {
        const branch = { opcode: BRA, predicate: 0, stall: 5, waits: 3, jump }
        const read = decode(codeOf([...words, branch], hopper), hopper)
        const kinds: Record<number, string> = { [LDG]: 'LDG', [FADD]: 'FADD', [HGMMA]: 'HGMMA', [QGMMA]: 'QGMMA', [NOP]: 'NOP' }
        for (const [i, { opcode, stall, waits }] of words.entries()) {
          const { kind, stall: cycles, waits: mask, target } = read[i]!
          assert.equal([kind, cycles, mask, target], [kinds[opcode], stall, waits, undefined])
        }
        assert.equal(read.at(-1), {
          at: 16 * words.length,
          kind: 'BRA',
          stall: 5,
          waits: 3,
          target: 16 * (words.length + 1 + jump),
          falls: true,
        })
      },
    ),
  )
})

test('a loop is what lies between a branch back and its target, with inner ones in it; a way back from moved code is none', () => {
  const words: Word[] = [
    { opcode: NOP },
    { opcode: LDG, stall: 2 }, //          1: outer
    { opcode: FADD, stall: 4, waits: 1 }, // 2: inner
    { opcode: BRA, predicate: 0, jump: 5 }, // 3: to the slow path, 9
    { opcode: FADD, stall: 4 }, //         4: where that returns
    { opcode: BRA, predicate: 0, stall: 5, jump: -4 }, // 5: inner, to 2
    { opcode: HGMMA, stall: 3 }, //        6
    { opcode: BRA, predicate: 8, stall: 5, jump: -7 }, // 7: outer, to 1
    { opcode: EXIT }, //                   8
    { opcode: FADD, stall: 9 }, //         9: slow path
    { opcode: BRA, jump: -7 }, //          10: to 4
    { opcode: BRA, jump: -1 }, //          11: behind the end, to itself
  ]
  const loops = loopsOf(decode(codeOf(words), true))
  assert.equal(
    loops.map(({ from, to, depth, instructions, stalls, waits }) => [from / 16, to / 16, depth, instructions, stalls, waits]),
    [
      [1, 7, 0, 7, 2 + 4 + 1 + 4 + 5 + 3 + 5, 1],
      [2, 5, 1, 4, 4 + 1 + 4 + 5, 1],
    ],
  )
  assert.equal(loops[1]!.kinds, { FADD: 2, BRA: 2 })
  // Two branches back to one place are one loop.
  const twice = loopsOf(
    decode(
      codeOf([
        { opcode: FADD },
        { opcode: BRA, predicate: 0, jump: -2 },
        { opcode: FADD },
        { opcode: BRA, predicate: 0, jump: -4 },
        { opcode: EXIT },
      ]),
      true,
    ),
  )
  assert.equal(
    twice.map(({ from, to }) => [from / 16, to / 16]),
    [[0, 3]],
  )
})

test('a cubin gives its kernels by name; other files are refused with what is wrong', () => {
  const code = codeOf([{ opcode: FADD }, { opcode: BRA, predicate: 0, jump: -2 }, { opcode: EXIT }])
  const kernels = kernelCode(elf('_Z3sumPf', code), 'k.cubin')
  assert.equal(
    [...kernels].map(([name, instructions]) => [name, instructions.map(({ kind }) => kind)]),
    [['_Z3sumPf', ['FADD', 'BRA', 'EXIT']]],
  )
  // Before sm_90 a branch has no lower bits.
  const older = codeOf([{ opcode: FADD }, { opcode: BRA, predicate: 0, jump: -2 }, { opcode: EXIT }], false)
  assert.is(loopsOf(kernelCode(elf('k', older, 80), 'k.cubin').get('k')!).length, 1)
  const good = elf('k', code)
  throwsError(
    () => kernelCode(Buffer.from('no ELF file, but longer than the header of one would be, by far'), 'x.cubin'),
    'FILE',
    /x\.cubin/,
    /does not start as one/,
  )
  throwsError(() => kernelCode(good.subarray(0, 40), 'x.cubin'), 'FILE', /x\.cubin/)
  throwsError(() => kernelCode(good.subarray(0, good.length - 40), 'x.cubin'), 'FILE', /beyond its end/)
  const foreign = Buffer.from(good)
  foreign.writeUInt16LE(62, 18)
  throwsError(() => kernelCode(foreign, 'x.cubin'), 'FILE', /machine is 62/)
})

test('resources are those of kernels, not of the subroutines they call', () => {
  const log = [
    "ptxas info    : Compiling entry function '_Z1aPf' for 'sm_90a'",
    'ptxas info    : Function properties for _Z1aPf',
    '    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads',
    'ptxas info    : Used 168 registers, used 2 barriers, 540 bytes smem',
    'ptxas info    : Function properties for $__internal_0_$__cuda_sm20_div_s64',
    '    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads',
    "ptxas info    : Compiling entry function '_Z1bPf' for 'sm_90a'",
    'ptxas info    : Function properties for _Z1bPf',
    '    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads',
    'ptxas info    : Used 32 registers, used 0 barriers',
  ].join('\n')
  assert.equal(
    resourcesOf(log),
    new Map([
      ['_Z1aPf', { registers: 168, stack: 8, spillStores: 12, spillLoads: 16, shared: 540 }],
      ['_Z1bPf', { registers: 32, stack: 0, spillStores: 0, spillLoads: 0, shared: 0 }],
    ]),
  )
})

const loop = (instructions: number, stalls = 3 * instructions): Loop => ({
  from: 0,
  to: 16,
  depth: 0,
  instructions,
  stalls,
  waits: 1,
  kinds: {},
})
const kernel = (name: string, loops: Loop[], more: Partial<KernelRow> = {}): KernelRow => ({
  file: 'a.cu',
  name,
  registers: 32,
  stack: 0,
  spillStores: 0,
  spillLoads: 0,
  shared: 0,
  instructions: 500,
  stalls: 900,
  waits: 9,
  kinds: {},
  loops,
  ...more,
})
const table = (...kernels: KernelRow[]): CodeTable => ({ architecture: 'sm_90a', nvcc: 'V13.0.1', kernels })

test('comparing says what grew by more than a tenth, and what doubled', () => {
  const before = table(
    kernel('same', [loop(10), loop(100)]),
    kernel('slower', [loop(10), loop(100)]),
    kernel('spills', [loop(10)], { spillStores: 16, spillLoads: 16 }),
    kernel('gone', []),
  )
  assert.equal(compareTables(before, before), [])
  const now = table(
    kernel('same', [loop(11), loop(109)], { registers: 35, instructions: 549 }),
    kernel('slower', [loop(12), loop(100, 600)], { registers: 40 }),
    kernel('spills', [loop(10)], { spillStores: 40, spillLoads: 40 }),
    kernel('new', [loop(5)]),
  )
  assert.equal(
    compareTables(before, now).map(({ kernel: name, text, doubled }) => [name, text, doubled]),
    [
      ['a.cu  slower', 'registers 32 -> 40 (+25 %)', false],
      ['a.cu  slower', 'loop at 0x00000: instructions 10 -> 12 (+20 %), stall cycles 30 -> 36 (+20 %)', false],
      ['a.cu  slower', 'loop at 0x00000 DOUBLED: stall cycles 300 -> 600 (+100 %)', true],
      ['a.cu  spills', 'spilled bytes 32 -> 80 (+150 %)', true],
      ['a.cu  new', 'is new: 500 instructions, 1 loops', false],
      ['a.cu  gone', 'is gone', false],
    ],
  )
  // Either count alone.
  for (const to of [loop(20, 30), loop(10, 60)])
    assert.equal(
      compareTables(table(kernel('k', [loop(10, 30)])), table(kernel('k', [to]))).map(({ doubled }) => doubled),
      [true],
    )
  // From no spills to some is more than double.
  assert.ok(compareTables(table(kernel('k', [])), table(kernel('k', [], { spillLoads: 4 }))).some(({ doubled }) => doubled))
})

test('a loop that comes or goes leaves the others matched; one that doubled is seen wherever it stands', () => {
  const sizes = fc.uniqueArray(fc.constantFrom(4, 13, 40, 130, 400, 1300), { minLength: 2, maxLength: 6 })
  fc.assert(
    fc.property(sizes, fc.nat(), fc.boolean(), (all, pick, comes) => {
      const at = pick % all.length
      const [more, fewer] = [all.map((size) => loop(size)), all.filter((_, i) => i !== at).map((size) => loop(size))]
      const [was, is] = comes ? [fewer, more] : [more, fewer]
      const changes = compareTables(table(kernel('k', was)), table(kernel('k', is)))
      assert.equal(
        changes.map(({ text }) => text),
        [`loops ${was.length} -> ${is.length}`],
      )
      const doubled = compareTables(
        table(kernel('k', more)),
        table(
          kernel(
            'k',
            all.map((size, i) => loop(i === at ? 2 * size : size)),
          ),
        ),
      )
      assert.equal(
        doubled.map((change) => change.doubled),
        [true],
      )
    }),
  )
})

test('tables are kept, read again, and compared by the command, whose exit code tells of doubled loops', async () => {
  await withFolder((folder) => {
    const path = join(folder, 'table.json')
    const whole = table(kernel('k', [loop(10)]))
    saveCodeTable(path, whole)
    assert.equal(readCodeTable(path), whole)
    // Of kinds, those that say something are kept.
    saveCodeTable(path, table(kernel('k', [{ ...loop(10), kinds: { LDG: 2, IMAD: 8 } }], { kinds: { HGMMA: 4, MOV: 9 } })))
    assert.equal(readCodeTable(path), table(kernel('k', [{ ...loop(10), kinds: { LDG: 2 } }], { kinds: { HGMMA: 4 } })))
    const cubin = join(folder, 'k.cubin')
    const body = (length: number): Word[] => [
      ...Array.from({ length }, () => ({ opcode: FADD })),
      { opcode: BRA, predicate: 0, jump: -length - 1 },
      { opcode: EXIT },
    ]
    writeFileSync(cubin, elf('_Z3sumPf', codeOf(body(8))))
    assert.is(runCli(['bench', 'code', cubin, '--save', path]).code, 0)
    const same = runCli(['bench', 'code', cubin, '--compare', path])
    assert.is(same.code, 0)
    assert.match(same.out, /nothing grew by more than 10 %/)
    assert.match(same.out, /loop 0x00000-0x00080: 9 instructions, 9 stall cycles/)
    writeFileSync(cubin, elf('_Z3sumPf', codeOf(body(20))))
    const doubled = runCli(['bench', 'code', cubin, '--compare', path])
    assert.is(doubled.code, 1)
    assert.match(doubled.out, /sum: loop at 0x00000 DOUBLED: instructions 9 -> 21/)
    assert.is(
      (JSON.parse(runCli(['bench', 'code', cubin, '--json', '--compare', path]).out) as CodeTable).kernels[0]!.loops[0]!.instructions,
      21,
    )

    const refused = (...args: string[]): string => {
      const { code, err } = runCli(['bench', 'code', ...args], { env: { CUDACXX: join(folder, 'no-nvcc') } })
      assert.ok(code === 1 || code === 2)
      return err
    }
    assert.match(refused(), /no-nvcc does not run.*CUDA toolkit/)
    assert.match(refused('--architecture', 'sm_70'), /sm_70.*sm_80/)
    assert.match(refused('a', 'b'), /one word.*a b/)
    assert.match(refused(join(folder, 'absent.cubin')), /no file .*absent\.cubin/)
    assert.match(refused(cubin, '--compare', join(folder, 'absent.json')), /absent\.json/)
    for (const garbage of ['{', '{}', '[]', 'null', '{"architecture": "sm_90a", "kernels": [{"name": "k"}]}']) {
      writeFileSync(path, garbage)
      assert.match(refused(cubin, '--compare', path), /table\.json: expected a table that bench code --save wrote/)
    }
    saveCodeTable(path, { ...whole, architecture: 'sm_80' })
    assert.match(refused(cubin, '--compare', path), /sm_80.*sm_90a/)
    writeFileSync(cubin, 'garbage')
    assert.match(refused(cubin), /k\.cubin: expected a cubin/)
  })
})

const nvcc = spawnSync(process.env.CUDACXX ?? 'nvcc', ['--version'], { encoding: 'utf8' }).status === 0

testWhere(nvcc, 'nvcc is not here', test, 'a kernel is compiled, its loop found, and taken from the cache the second time', async () => {
  const outer = { XDG_CACHE_HOME: process.env.XDG_CACHE_HOME, CUDACXX: process.env.CUDACXX }
  await withFolder(async (folder) => {
    // Notes each call.
    const [calls, wrapper, source] = [join(folder, 'calls'), join(folder, 'nvcc.sh'), join(folder, 'tiny.cu')]
    writeFileSync(wrapper, `#!/bin/sh\necho "$@" >> '${calls}'\nexec '${outer.CUDACXX ?? 'nvcc'}' "$@"\n`)
    chmodSync(wrapper, 0o755)
    mkdirSync(join(folder, 'cache'))
    Object.assign(process.env, { XDG_CACHE_HOME: join(folder, 'cache'), CUDACXX: wrapper })
    try {
      writeFileSync(
        source,
        `
namespace { __global__ void sumKernel(float* out, const float* in, int count) {
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < count; ++i) sum += __expf(in[i]);
  *out = sum;
} }
void* use() { return (void*)sumKernel; }
`,
      )
      for (const architecture of ['sm_80', 'sm_90a']) {
        const [row, ...others] = rowsOf(await compile([source], architecture))
        assert.is(others.length, 0)
        assert.is(row!.file, 'tiny.cu')
        assert.ok(row!.registers! > 4 && row!.spillStores === 0)
        const reading = row!.loops.filter(({ kinds }) => kinds.LDG === 1 && kinds.MUFU === 1)
        assert.is(reading.length, 1, kernelLines(row!).join('\n'))
        assert.ok(reading[0]!.waits >= 1 && reading[0]!.stalls >= reading[0]!.instructions)
        if (demangled(['_Z1aPf']).get('_Z1aPf') === 'a') assert.is(row!.name, 'sumKernel')
      }
      const compiled = (): number =>
        readFileSync(calls, 'utf8')
          .split('\n')
          .filter((line) => line.includes('-cubin')).length
      assert.is(compiled(), 2)
      await compile([source], 'sm_80')
      assert.is(compiled(), 2)
      writeFileSync(source, 'int a = ;\n')
      await rejectsError(() => compile([source], 'sm_80'), 'TOOL', /tiny\.cu/, /expected an expression/)
    } finally {
      for (const [name, value] of Object.entries(outer)) {
        if (value === undefined) delete process.env[name]
        else process.env[name] = value
      }
    }
  })
  const { code, err } = runCli(['bench', 'code', 'noSuchKernel'])
  assert.is(code, 2)
  assert.match(err, /noSuchKernel in its name; files are .*conv2d\.cu/)
})

test.run()
