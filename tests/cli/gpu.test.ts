/**
 * bench/gpu.sh, rehearsed: what it does on a GPU, on `simt`, with an empty environment and a PATH of plain tools. Times are not looked
 * at, only that every stage runs, what is written, and what is said where something is missing.
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite('bench/gpu.sh')
const simt = existsSync(join(packageRoot, 'build-simt', 'Release', 'densecl.node'))
const noSimt = 'build-simt is not built: npm run build:simt'
const scratch = mkdtempSync(join(tmpdir(), 'densecl-gpu-'))
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }))
/** Made by the first rehearsal, used by all. */
const kit = join(scratch, 'kit')
/** Another PyTorch than the system's, where one is named. */
const peer: Record<string, string> = process.env.DENSECL_PYTHON === undefined ? {} : { DENSECL_PYTHON: process.env.DENSECL_PYTHON }
const stages = ['light', 'big', 'steps', 'learn', 'sanitize', 'tune', 'ops', 'data', 'study']

interface Row {
  stage: string
  part: string
  result: string
  code: string
  seconds: string
  why: string
}

/** Runs the script with nothing of this environment but a PATH that has Node, which it must find its way without. */
function gpu(
  name: string,
  args: string[],
  env: Record<string, string> = {},
): { code: number | null; err: string; out: string; rows: Row[] } {
  const out = join(scratch, name)
  const { status, stdout, stderr } = spawnSync('/bin/bash', [join(packageRoot, 'bench', 'gpu.sh'), ...args], {
    encoding: 'utf8',
    env: { PATH: `${dirname(process.execPath)}:/usr/bin:/bin`, KIT: kit, OUT: out, ...peer, ...env },
    maxBuffer: 2 ** 26,
  })
  const summary = join(out, 'summary.tsv')
  const [header, ...lines] = existsSync(summary) ? readFileSync(summary, 'utf8').trim().split('\n') : ['']
  if (header !== '') assert.is(header, 'stage\tpart\tresult\tcode\tseconds\twhy')
  return {
    code: status,
    err: stderr,
    out: stdout,
    rows: lines.map(
      (line) =>
        Object.fromEntries(
          ['stage', 'part', 'result', 'code', 'seconds', 'why'].map((key, i) => [key, line.split('\t')[i] ?? '']),
        ) as unknown as Row,
    ),
  }
}
const where = (rows: Row[], stage: string): Row[] => rows.filter((row) => row.stage === stage)
const said = (rows: Row[]): string => rows.map((row) => Object.values(row).join(' ')).join('\n')

testWhere(simt, noSimt, test, 'every stage runs from a bundle on simt; rows, exit codes and seconds are kept', () => {
  const { code, rows, out, err } = gpu('all', ['--rehearse'])
  const folder = join(scratch, 'all')
  const text = `${said(rows)}\n${out.slice(-6000)}${err}`
  for (const stage of ['machine', ...stages])
    assert.ok(
      where(rows, stage).some(({ result }) => result === 'ok'),
      `${stage} did nothing\n${text}`,
    )
  for (const { stage, part, result, code: partCode, seconds, why } of rows) {
    assert.match(seconds, /^\d+$/)
    if (result === 'ok') assert.is(partCode, '0')
    else
      assert.match(
        `${stage} ${part} ${result}: ${why}`,
        /skipped: no (compute-sanitizer|ncu) on the PATH|skipped: .*PyTorch|skipped: no nvJPEG/,
        text,
      )
  }
  assert.is(code, 0, text)
  assert.is(where(rows, 'sanitize').filter(({ why }) => why === 'no compute-sanitizer on the PATH').length, 5)
  // Few files, so that all of them come back from where they are made.
  assert.equal(readdirSync(folder).sort(), ['report.txt', 'results.tgz', 'summary.tsv'])
  assert.match(readFileSync(join(folder, 'report.txt'), 'utf8'), /commit [0-9a-f]{7,}\+?,/)
  const unpacked = join(scratch, 'unpacked')
  mkdirSync(unpacked)
  assert.is(spawnSync('tar', ['-C', unpacked, '-xzf', join(folder, 'results.tgz')]).status, 0)
  const kept = readdirSync(join(unpacked, 'results'))
  for (const { stage, part, result, why } of rows)
    if (result === 'ok' && why === '')
      assert.ok(kept.includes(`${stage}-${part}.txt`), `${stage}-${part}.txt is not among ${kept.join(' ')}`)
  const jsonLines = (name: string) =>
    readFileSync(join(unpacked, 'results', name), 'utf8')
      .trim()
      .split('\n')
      .map(
        (line) => JSON.parse(line) as { side: string; batch: number; seconds: number; run_seconds: number; loss: number; error?: string },
      )
  const turns = jsonLines('steps-turns.jsonl')
  assert.equal(
    turns.filter(({ side }) => side === 'densecl').map(({ batch }) => batch),
    [4, 2],
  )
  for (const { seconds, run_seconds: run, loss, error } of turns)
    assert.ok(error === undefined && seconds > 0 && run > 0 && Number.isFinite(loss))
  const ops = JSON.parse(readFileSync(join(unpacked, 'results', 'ops-conv2d.json'), 'utf8')) as { commit: string; rows: unknown[] }
  assert.is(ops.rows.length, 3)
  assert.not.equal(ops.commit, 'unknown')
  assert.is((JSON.parse(readFileSync(join(unpacked, 'results', 'tune-tiles.json'), 'utf8')) as { entries: unknown[] }).entries.length, 3)
  assert.match(
    readFileSync(join(unpacked, 'results', 'steps-profile.txt'), 'utf8'),
    /a step of batch 2: .* ms without marks[\s\S]*\nconv2d +48 calls/,
  )
})

test('what cannot be run is refused before anything is done', () => {
  const typo = gpu('typo', ['ligth', 'big'])
  assert.is(typo.code, 2)
  assert.match(typo.err, /there is no stage ligth[\s\S]*1 light, 2 big, 3 steps, 4 learn, 5 sanitize, 6 tune, 7 ops, 8 data, 9 study/)
  assert.not.ok(existsSync(join(scratch, 'typo')))
  const budget = gpu('budget', ['1'], { BUDGET: '10m' })
  assert.is(budget.code, 2)
  assert.match(budget.err, /BUDGET is 10m: expected a whole number/)
  const empty = gpu('empty', ['1'], { KIT: join(scratch, 'nothing') })
  assert.is(empty.code, 2)
  assert.match(empty.err, /no bundle in .*nothing[\s\S]*densecl\.tar\.gz/)
  const torn = join(scratch, 'torn')
  mkdirSync(torn)
  writeFileSync(join(torn, 'densecl.tar.gz'), 'torn')
  const broken = gpu('broken', ['1'], { KIT: torn, WORK: join(scratch, 'torn-work') })
  assert.is(broken.code, 2)
  assert.match(broken.err, /densecl\.tar\.gz cannot be unpacked/)
})

testWhere(simt, noSimt, test, 'a machine without a GPU gets no number and no success', () => {
  const work = join(scratch, 'work')
  const { code, rows } = gpu('none', ['steps', '4'], {
    WORK: work,
    DENSECL_ADDON: join(work, 'densecl', 'build-simt', 'Release', 'densecl.node'),
  })
  assert.is(code, 1)
  assert.equal(
    rows.map(({ stage, result }) => `${stage} ${result}`),
    ['machine ok', 'steps refused', 'learn refused'],
  )
  for (const { why } of rows.slice(1)) assert.match(why, /there is no cuda:0/)
})

testWhere(simt, noSimt, test, 'without images their stages are skipped by name, and the exit code says so', () => {
  renameSync(join(kit, 'images'), join(kit, 'elsewhere'))
  try {
    const { code, rows } = gpu('no-images', ['--rehearse', 'learn', '8', 'study'], { DENSECL_COMMIT: 'given123' })
    assert.is(code, 1, said(rows))
    assert.match(readFileSync(join(scratch, 'no-images', 'report.txt'), 'utf8'), /commit given123,/)
    assert.equal(
      rows.slice(1).map(({ stage, result }) => `${stage} ${result}`),
      ['learn skipped', 'data skipped', 'study skipped'],
    )
    for (const { why } of rows.slice(1)) assert.match(why, /no images: .*images\/train/)
  } finally {
    renameSync(join(kit, 'elsewhere'), join(kit, 'images'))
  }
})

testWhere(
  simt,
  noSimt,
  test,
  'what a sanitizer finds fails the part; one that hangs is killed for certain, and what is left has no time',
  () => {
    const tools = join(scratch, 'tools')
    mkdirSync(tools)
    const sanitizer = join(tools, 'compute-sanitizer')
    // A stand-in: nothing to find in memcheck, something in synccheck, a hang that no SIGTERM ends in racecheck.
    writeFileSync(
      sanitizer,
      `#!/bin/sh
[ "$1 $3 $4" = '--tool --error-exitcode 9' ] || exit 3
case $2 in
  memcheck) shift 4; exec "$@";;
  synccheck) echo 'ERROR SUMMARY: 1 error'; exit 9;;
  *) trap '' TERM; while :; do sleep 1; done;;
esac
`,
    )
    chmodSync(sanitizer, 0o755)
    const { code, rows } = gpu('sanitizer', ['--rehearse', 'sanitize'], { REHEARSAL_TOOLS: tools, BUDGET: '50' })
    assert.is(code, 1, said(rows))
    const found = (name: string): Row => {
      const row = rows.find(({ part }) => part === name)
      assert.ok(row, `no row ${name}\n${said(rows)}`)
      return row
    }
    assert.is(found('memcheck').result, 'ok', said(rows))
    assert.equal([found('synccheck').result, found('synccheck').code, found('synccheck').why], ['failed', '9', 'ERROR SUMMARY: 1 error'])
    assert.is(found('racecheck').result, 'killed')
    assert.match(found('initcheck').why, /no time is left/)
  },
)

testWhere(simt, noSimt, test, 'a test file that takes too long is killed, its output is printed, and it has failed', () => {
  const { status, stdout } = spawnSync(process.execPath, [join(packageRoot, 'dist', 'tests', 'run.js'), 'ops/devices'], {
    encoding: 'utf8',
    env: { ...process.env, DENSECL_TEST_DEVICE: 'simt', DENSECL_TEST_SECONDS: '5', DENSECL_TEST_RUNS: '20000' },
  })
  assert.is(status, 1)
  assert.match(stdout, /FAIL ops on simt[\s\S]*add on simt[\s\S]*killed after 5 s \(DENSECL_TEST_SECONDS\)[\s\S]*0 passed, 1 failed/)
  for (const [name, value, code] of [
    ['DENSECL_TEST_SECONDS', 'soon', 2],
    ['DENSECL_TEST_JOBS', '0', 2],
    ['DENSECL_TEST_DEVICE', 'tpu', 2],
  ] as const) {
    const refused = spawnSync(process.execPath, [join(packageRoot, 'dist', 'tests', 'run.js'), 'ops/devices'], {
      encoding: 'utf8',
      env: { ...process.env, [name]: value },
    })
    assert.is(refused.status, code)
    assert.match(refused.stderr, new RegExp(`${name} is ${value}: expected`))
  }
})

test('steps: a side that fails is a row, and no other device speaks for the one that was asked for', () => {
  const bench = (...args: string[]) =>
    spawnSync(process.execPath, [join(packageRoot, 'dist', 'bench', 'run.js'), 'steps', ...args], {
      encoding: 'utf8',
      env: { ...process.env, DENSECL_PYTHON: '/bin/false', DENSECL_RESULTS: scratch },
    })
  const file = join(scratch, 'rows.jsonl')
  assert.is(bench('--device', 'cpu', '--sides', 'nchw', '--rounds', '1', '--rows', file).status, 1)
  const rows = readFileSync(file, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { case: string; side: string; error: string })
  assert.equal(
    rows.map(({ case: name, side, error }) => [name, side, error]),
    ['resnet18-64px-batch32-queue4096', 'resnet50-224px-batch8-queue4096'].map((name) => [name, 'nchw', 'exit code 1: no message']),
  )
  for (const [args, message] of [
    [['--device', 'cuda:7'], /--device is cuda:7: expected one of/],
    [['--sides', 'jax'], /--sides has jax: expected some of densecl/],
    [['--rounds', 'two'], /--rounds is two/],
    [['lodaing'], /there is no bench lodaing: expected some of data, steps/],
  ] as const) {
    const { status, stderr } = bench(...args)
    assert.is(status, 2)
    assert.match(stderr, message)
  }
})

test.run()
