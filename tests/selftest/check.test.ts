/** The check of a device, on kernels whose instructions are broken on purpose (native/simt/faults.h), one of which never ends. */
import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

import * as assert from 'uvu/assert'

import { type PartReport } from '../../src/selftest/check.js'
import { largestError } from '../../src/selftest/compare.js'
import type { Verdict } from '../../src/selftest/verdict.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { kernelFamilyNames } from '../../src/tensor/families.js'
import { readMetrics } from '../../src/run/runLog.js'
import { variants } from '../support/devices.js'
import { cli, suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('the check of a device')
const [simt] = variants(packageRoot)
const has = simt!.missing === undefined

/** A Hopper of one multiprocessor, by which the sizes of products go, whose cache lies in `folder`. */
const environment = (folder: string, more: Record<string, string> = {}): NodeJS.ProcessEnv => ({
  ...process.env,
  ...simt!.env,
  DENSECL_CAPABILITY: '90',
  DENSECL_MULTIPROCESSORS: '1',
  DENSECL_CHECK: '1',
  XDG_CACHE_HOME: folder,
  ...more,
})

interface Ended {
  code: number | null
  out: string
  err: string
}

/** A program that comes to simt as commands do, and no more. */
const trust = pathToFileURL(join(packageRoot, 'dist', 'src', 'selftest', 'trust.js')).href
const useProgram = `import(${JSON.stringify(trust)})
  .then(({ useDevice }) => useDevice('simt'))
  .catch((error) => { console.error(error.message); process.exitCode = 1 })`
const use = (folder: string, more: Record<string, string> = {}): Promise<Ended> =>
  start(['-e', useProgram], environment(folder, more)).ended

/** A program that checks the parts that it is given, and prints the reports. */
const checkModule = pathToFileURL(join(packageRoot, 'dist', 'src', 'selftest', 'check.js')).href
const partsProgram = `const [seconds, ...parts] = process.argv.slice(1)
  import(${JSON.stringify(checkModule)})
    .then(({ checkDevice }) => checkDevice('simt', { secondsPerPart: Number(seconds), parts }))
    .then((reports) => console.log(JSON.stringify({ reports })))`

/** Node on a program, or on one of our commands. */
function start(
  args: string[],
  env: NodeJS.ProcessEnv,
): { pid: number; ended: Promise<Ended>; said: (word: string) => Promise<void>; kill: (signal: NodeJS.Signals) => void } {
  const child = spawn(process.execPath, args[0] === '-e' ? args : [cli, ...args], { env })
  let [out, err] = ['', '']
  child.stdout.on('data', (data: Buffer) => (out += data.toString()))
  child.stderr.on('data', (data: Buffer) => (err += data.toString()))
  const ended = new Promise<Ended>((resolve) => child.on('close', (code) => resolve({ code, out, err })))
  const said = async (word: string): Promise<void> => {
    for (let tries = 0; !`${out}${err}`.includes(word); ++tries) {
      if (tries > 1200) throw new Error(`"${word}" was never said: ${out}${err}`)
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
  }
  return { pid: child.pid!, ended, said, kill: (signal) => child.kill(signal) }
}

/** Where it does not matter which families there are: an Ampere has fewer. */
const ampere = { DENSECL_CAPABILITY: '80' }

type Checked = Ended & { reports: PartReport[]; bad: string[] }
const checked = async (args: string[], env: NodeJS.ProcessEnv): Promise<Checked> => {
  const ended = await start(args, env).ended
  assert.ok(ended.out.startsWith('{'), ended.err)
  const { reports } = JSON.parse(ended.out) as { reports: PartReport[] }
  return { ...ended, reports, bad: reports.filter(({ verdict }) => verdict !== 'agrees').map(({ part }) => part) }
}
/** The whole check, as users ask for it. */
const check = (folder: string, more: Record<string, string> = {}): Promise<Checked> =>
  checked(['doctor', '--check', '--device', 'simt', '--json'], environment(folder, more))
/** The check of some parts, with a fault. */
const checkParts = (folder: string, parts: readonly string[], fault: string, seconds = 60): Promise<Checked> =>
  checked(['-e', partsProgram, String(seconds), ...parts], environment(folder, { DENSECL_SIMT_FAULT: fault }))

const tiny = [
  'pretrain',
  '--data',
  'scenes:8',
  '--knn-data',
  'scenes:4',
  '--device',
  'simt',
  '--depth',
  '18',
  '--base-channels',
  '8',
  '--image-size',
  '32',
  '--batch-size',
  '4',
  '--epochs',
  '1',
  '--queue-length',
  '32',
  '--feat-dim',
  '16',
  '--hidden',
  '16',
  '--log-every',
  '1',
  '--workers',
  '1',
  '--knn-images',
  '8',
]
const lossesOf = (out: string): number[] =>
  readMetrics(join(out, 'metrics.jsonl'))
    .filter((row) => row.loss !== undefined)
    .map((row) => row.loss!)
const verdicts = (folder: string): string[] => (existsSync(join(folder, 'densecl')) ? readdirSync(join(folder, 'densecl')) : [])

const where = (name: string, body: (folder: string) => Promise<void>): void =>
  testWhere(has, simt!.missing ?? '', test, name, () => withFolder(body))

test('the measure of a difference: relative to value and typical value, infinite for NaN and for another length', () => {
  assert.is(largestError(Float32Array.of(1, 2), Float32Array.of(1, 2)), 0)
  assert.ok(Math.abs(largestError(Float32Array.of(3, 1), Float32Array.of(1, 1)) - 1) < 1e-6)
  assert.is(largestError(Float32Array.of(NaN, 1), Float32Array.of(1, 1)), Infinity)
  assert.is(largestError(Float32Array.of(1, NaN), Float32Array.of(NaN, 1)), Infinity)
  assert.is(largestError(Float32Array.of(1), Float32Array.of(1, 1)), Infinity)
})

where('healthy kernels all agree, on both kinds of GPUs', async (folder) => {
  const [hopper, older] = await Promise.all(
    [{}, ampere].map((more) => check(folder, { ...more, DENSECL_MULTIPROCESSORS: '2' })) as [Promise<Checked>, Promise<Checked>],
  )
  assert.equal([hopper.code, hopper.bad, older.code, older.bad], [0, [], 0, []])
  assert.ok(hopper.reports.some(({ part }) => part === 'wgmma.conv2d'))
  assert.not.ok(older.reports.some(({ part }) => part.startsWith('wgmma')))
  // Far from the bounds: what a healthy device computes must not be refused.
  for (const { part, finding } of hopper.reports)
    assert.ok(finding!.bound === 0 || finding!.error < 0.5 * finding!.bound, `${part}: ${finding!.error} of ${finding!.bound}`)
})

const convolutions = ['conv2d', 'conv2dBackwardInput', 'conv2dBackwardWeight']
const of = (kind: string, ...ops: string[]): string[] => ops.map((op) => `${kind}.${op}`)
const families = (kind: string): string[] => kernelFamilyNames.filter((name) => name.startsWith(`${kind}.`))
for (const [fault, kinds, expected] of [
  // Kernels of mma.sync have no instruction of Hopper (tests/simt/instructions.test.ts): those of both kinds are checked for the rest.
  ['wgmma', ['wgmma'], of('wgmma', ...convolutions, 'infoNce', 'widest', 'bulkStores')],
  ['wgmmaRegisters', ['wgmma'], of('wgmma', 'conv2d', 'conv2dBackwardWeight', 'infoNce', 'widest', 'bulkStores')],
  ['wgmmaE4m3', ['wgmma'], of('wgmma', 'conv2dE4m3', 'widest')],
  ['im2col', ['wgmma'], of('wgmma', ...convolutions, 'conv2dE4m3', 'widest', 'bulkStores')],
  ['bulkStore', ['wgmma'], of('wgmma', 'bulkStores')],
  [
    'bulkCopy,mma',
    ['mma', 'wgmma'],
    [
      ...of('mma', ...convolutions, 'infoNce', 'denseMatch', 'matmul'),
      ...of('wgmma', ...convolutions, 'conv2dE4m3', 'infoNce', 'widest', 'bulkStores'),
    ],
  ],
  [
    'ldmatrixTrans',
    ['mma', 'wgmma'],
    [...of('mma', 'conv2dBackwardInput', 'conv2dBackwardWeight', 'infoNce'), ...of('wgmma', 'conv2dBackwardWeight', 'widest')],
  ],
] as const) {
  where(`one wrong element of ${fault} is seen in the families that use it, and in no other`, async (folder) => {
    const { bad } = await checkParts(folder, kinds.flatMap(families), fault)
    assert.equal(bad, expected)
  })
}

where('a kernel that never ends is killed within its time, and the rest is checked', async (folder) => {
  const hanging = of('wgmma', 'conv2d', 'infoNce')
  const [seconds, parts] = [5, ['losses', hanging[0]!, 'fma.conv2d', hanging[1]!, 'similarity']]
  const { reports, bad } = await checkParts(folder, parts, 'wgmma:hang', seconds)
  assert.equal(
    reports.map(({ part }) => part),
    parts,
  )
  assert.equal(bad, hanging)
  for (const report of reports)
    if (bad.includes(report.part))
      assert.ok(report.verdict === 'hangs' && report.seconds >= seconds, `${report.part} ${report.verdict} after ${report.seconds} s`)
})

where(
  'a run goes on without the families that disagree, with a warning that names them, and the next run needs no check',
  async (folder) => {
    const run = async (name: string, more: Record<string, string>): Promise<Ended & { losses: number[] }> => {
      const ended = await start([...tiny, '--out', join(folder, name)], environment(folder, more)).ended
      assert.is(ended.code, 0, ended.err)
      return { ...ended, losses: lossesOf(join(folder, name)) }
    }
    const broken = { DENSECL_SIMT_FAULT: 'mma,wgmma' }
    const [healthy, first] = await Promise.all([run('healthy', { DENSECL_CHECK: '0' }), run('first', broken)])
    assert.match(first.err, /warning: mma\.conv2d disagrees with FMAs on the same operands: conv2d of x \[.*\], weight \[/)
    assert.match(first.err, /warning: mma\.conv2d .*is off by [\d.e-]+ where [\d.]+ is allowed/)
    assert.match(first.err, /computes conv2d by FMAs, .* instead; please report it/)
    assert.is([...first.err.matchAll(/warning: /g)].length, 12)
    assert.is(first.losses.length, 2)
    // What is wrong is not used: FMAs give the loss of healthy tensor cores. The second step's is another by a fifth at times, as norms
    // over four values in bf16 make much of the last bits.
    const [loss, expected] = [first.losses[0]!, healthy.losses[0]!]
    assert.ok(Math.abs(loss - expected) < 0.05 * expected, `${loss} instead of ${expected}`)
    const again = await use(folder, broken)
    assert.is(again.code, 0)
    assert.not.match(again.err, /checking/)
    assert.is([...again.err.matchAll(/warning: /g)].length, 12)
  },
)

where('where nothing can stand in for a kernel, a check ends with 1, and commands refuse the device and name it', async (folder) => {
  const broken = { ...ampere, DENSECL_SIMT_FAULT: 'shuffle' }
  const found = await check(folder, broken)
  assert.is(found.code, 1)
  assert.ok(found.bad.includes('losses'), found.bad.join(' '))
  const { code, err } = await start([...tiny, '--out', join(folder, 'run')], environment(folder, broken)).ended
  assert.is(code, 1)
  assert.match(err, /nothing can stand in/)
  assert.match(err, /losses disagrees with the CPU: crossEntropy of logits \[300,37\]/)
  assert.not.ok(existsSync(join(folder, 'run')))
})

where('DENSECL_CHECK=0 trusts the device, and other words are errors', async (folder) => {
  const trusting = await use(folder, { DENSECL_CHECK: '0', DENSECL_SIMT_FAULT: 'mma' })
  assert.equal([trusting.code, trusting.err], [0, ''])
  for (const [name, value] of [
    ['DENSECL_CHECK', 'maybe'],
    ['DENSECL_CHECK_SECONDS', '-1'],
    ['DENSECL_MULTIPROCESSORS', 'four'],
    ['DENSECL_CAPABILITY', '9.0'],
  ] as const) {
    const { code, err } = await use(folder, { [name]: value })
    assert.ok(code !== 0 && err.includes(`${name} is ${value}: expected`), err)
  }
  assert.equal(verdicts(folder), [])
})

where('a verdict that is garbage, cut off or of another driver is made again, and says why', async (folder) => {
  await check(folder, ampere)
  const [file] = verdicts(folder)
  const path = join(folder, 'densecl', file!)
  const whole = readFileSync(path, 'utf8')
  const verdict = JSON.parse(whole) as Verdict
  const other = JSON.stringify({ ...verdict, key: { ...verdict.key, driver: '470.82' } })
  for (const [text, why] of [
    ['{', /cannot be read/],
    ['[]', /holds no whole verdict/],
    ['null', /holds no whole verdict/],
    [JSON.stringify({ ...verdict, reports: verdict.reports.slice(1) }), /holds no whole verdict/],
    [
      JSON.stringify({ ...verdict, reports: verdict.reports.map((report) => ({ ...report, verdict: 'splendid' })) }),
      /holds no whole verdict/,
    ],
    [other, /the driver was 470\.82 and is none/],
  ] as const) {
    writeFileSync(path, text)
    const { out } = await start(['doctor'], environment(folder, ampere)).ended
    assert.match(out, new RegExp(`simt kernels .*to be checked again: .*${why.source}`))
  }
  const { code, err } = await use(folder, ampere)
  assert.is(code, 0)
  assert.match(err, /checking the kernels on simt/)
  assert.not.match(err, /warning/)
  assert.match(err, /again: the driver was 470\.82 and is none/)
  assert.equal((JSON.parse(readFileSync(path, 'utf8')) as Verdict).key, verdict.key)
})

where('a cache folder that cannot be written costs a check a run, no more', async (folder) => {
  // A file where the folder would be: nobody, root neither, can make it.
  writeFileSync(join(folder, 'cache'), '')
  const { code, err } = await use(join(folder, 'cache'), ampere)
  assert.is(code, 0, err)
  assert.match(err, /the verdict is not kept, so the next run checks again: .*densecl: the folder cannot be made/)
  mkdirSync(join(folder, 'other', 'densecl'), { recursive: true })
  chmodSync(join(folder, 'other', 'densecl'), 0o500)
  const closed = await start(['doctor', '--check', '--device', 'simt'], environment(join(folder, 'other'), ampere)).ended
  chmodSync(join(folder, 'other', 'densecl'), 0o700)
  assert.is(closed.code, 0, closed.err)
})

const checkers = (parent: number): string[] =>
  readdirSync('/proc').filter((pid) => {
    try {
      const args = readFileSync(join('/proc', pid, 'cmdline'), 'utf8').split('\0')
      return args[1]?.endsWith('selftest/program.js') === true && args[3] === String(parent)
    } catch {
      return false
    }
  })

for (const [signal, command] of [
  ['SIGINT', 'pretrain'],
  ['SIGTERM', 'doctor'],
  ['SIGKILL', 'pretrain'],
] as const) {
  testWhere(
    has && existsSync('/proc/self/cmdline'),
    simt!.missing ?? 'no /proc here',
    test,
    `${command} that ends by ${signal} in its check leaves no process and no verdict`,
    () =>
      withFolder(async (folder) => {
        const args = command === 'doctor' ? ['doctor', '--check', '--device', 'simt'] : [...tiny, '--out', join(folder, 'run')]
        const run = start(args, environment(folder, { DENSECL_SIMT_FAULT: 'mma:hang' }))
        await run.said('simt, ')
        for (let tries = 0; checkers(run.pid).length === 0; ++tries) {
          assert.ok(tries < 400, 'the check never began')
          await new Promise((resolve) => setTimeout(resolve, 50))
        }
        run.kill(signal)
        const { code } = await run.ended
        assert.is(code, { SIGINT: 130, SIGTERM: 143, SIGKILL: null }[signal])
        for (let tries = 0; checkers(run.pid).length > 0; ++tries) {
          assert.ok(tries < 200, 'the process that checks has outlived the one that started it')
          await new Promise((resolve) => setTimeout(resolve, 50))
        }
        assert.equal(verdicts(folder), [])
      }),
  )
}

test('a device without families refuses to avoid some, and the CPU cannot be checked', () => {
  const { status, stderr } = spawnSync(process.execPath, [cli, 'doctor', '--check', '--device', 'cpu'], { encoding: 'utf8' })
  assert.is(status, 2)
  assert.match(stderr, /--check: expected a GPU but --device is cpu/)
})

test.run()
