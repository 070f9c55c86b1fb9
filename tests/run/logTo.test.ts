/** Records of a run for other programs: tags in groups, files, and functions of the user's own, MLflow's among them. */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { delimiter, dirname, join } from 'node:path'

import * as assert from 'uvu/assert'

import { openLogTo, taggedValues, tagOf } from '../../src/run/logTo.js'
import { readMetrics } from '../../src/run/runLog.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { hasModules, otherPython } from '../support/python.js'
import { cli, rejectsError, runCli, suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('logTo')
const small = ['data=scenes:16', 'knnData=scenes:10', 'epochs=2', 'depth=18', 'baseChannels=4', 'hidden=16', 'imageSize=32', 'batchSize=8']
const args = (out: string, logTo: string): string[] => ['pretrain', '--quiet', ...small, 'queueLength=4', '--out', out, '--log-to', logTo]

interface Kept {
  run: string
  step: number
  values: Record<string, number>
}
const linesOf = (path: string): Kept[] =>
  readFileSync(path, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Kept)

test('a tag says the group and the name, and what counts rows has none', () => {
  for (const [key, tag] of Object.entries({
    loss: 'loss/total',
    lossGlobal: 'loss/global',
    lossInImage: 'loss/inImage',
    regionBox: 'loss/regionBox',
    knn: 'eval/knn',
    correspondenceNear: 'eval/correspondenceNear',
    ap50: 'eval/ap50',
    Feature5Top1: 'eval/Feature5Top1',
    imagesPerSecond: 'time/imagesPerSecond',
    decodeMilliseconds: 'time/decodeMilliseconds',
    lr: 'schedule/lr',
    memoryPeak: 'memory/memoryPeak',
    spread: 'health/spread',
    accuracyDense: 'health/accuracyDense',
  }))
    assert.is(tagOf(key), tag)
  assert.is(tagOf('globalStep'), undefined)
  assert.is(tagOf('epoch'), undefined)
})

test('a record is a line of JSON, and of CSV a line for each of its numbers, behind one head', () =>
  withFolder(async (folder) => {
    const records = [
      { run: 'a "b", c', step: 3, epoch: 0.5, values: { 'loss/total': 2.5, 'health/spread': 0.25 } },
      { run: 'a "b", c', step: 4, values: { 'loss/total': 1 } },
    ]
    for (const name of ['log.csv', 'log.jsonl']) {
      const logTo = await openLogTo(join(folder, name))
      for (const record of records) await logTo!(record)
    }
    const run = '"a ""b"", c"'
    assert.is(
      readFileSync(join(folder, 'log.csv'), 'utf8'),
      `run,step,epoch,tag,value\n${run},3,0.5,loss/total,2.5\n${run},3,0.5,health/spread,0.25\n${run},4,,loss/total,1\n`,
    )
    assert.equal(linesOf(join(folder, 'log.jsonl')), records)
  }))

test('every number of metrics.jsonl is in TensorBoard events, JSON lines and CSV, under one tag', () =>
  withFolder((folder) => {
    const [out, jsonl, csv] = ['run', 'log.jsonl', 'log.csv'].map((name) => join(folder, name)) as [string, string, string]
    for (const [run, path] of [
      [out, jsonl],
      [join(folder, 'other'), csv],
    ] as const) {
      const { code, err } = runCli(args(run, path))
      assert.is(code, 0, err)
    }
    const rows = readMetrics(join(out, 'metrics.jsonl'))
    const records = linesOf(jsonl)
    assert.is(records.length, rows.length)
    rows.forEach(({ globalStep, epoch: _, ...row }, i) => {
      assert.is(records[i]!.step, globalStep)
      assert.is(records[i]!.run, out)
      assert.equal(records[i]!.values, Object.fromEntries(Object.entries(row).map(([key, value]) => [tagOf(key)!, value])))
    })
    const events = readFileSync(
      join(
        out,
        readdirSync(out).find((name) => name.includes('tfevents'))!,
      ),
      'latin1',
    )
    for (const tag of ['loss/total', 'loss/dense', 'health/spread', 'time/stepMilliseconds', 'eval/knn', 'schedule/lr'])
      assert.match(events, tag)
    assert.not.match(events, 'globalStep')
    const [head, ...cells] = readFileSync(csv, 'utf8').trim().split('\n')
    assert.is(head, 'run,step,epoch,tag,value')
    assert.is(
      cells.length,
      records.reduce((sum, { values }) => sum + Object.keys(values).length, 0),
    )
    assert.ok(cells.every((line) => line.split(',').length === 5))
  }))

test('a function of the user is called in order, waited for, and where it throws is warned of once and the run goes on', () =>
  withFolder((folder) => {
    const [hook, kept] = [join(folder, 'hook.mjs'), join(folder, 'kept.jsonl')]
    writeFileSync(
      hook,
      `import { appendFileSync } from 'node:fs'
       export default async (record) => {
         await new Promise((resolve) => setTimeout(resolve, record.step === 0 ? 300 : 0))
         appendFileSync(${JSON.stringify(kept)}, JSON.stringify(record) + '\\n')
         if (record.step > 0) throw new Error('no room ' + record.step)
       }`,
    )
    const { code, err } = runCli(args(join(folder, 'run'), hook))
    assert.is(code, 0, err)
    const steps = linesOf(kept).map(({ step }) => step)
    assert.equal(
      steps,
      [...steps].sort((a, b) => a - b),
    )
    assert.is(steps.length, readMetrics(join(folder, 'run', 'metrics.jsonl')).length)
    assert.is(err.match(/--log-to: no room/g)!.length, 1)
  }))

test('what is no file and no function is told what there is', async () => {
  await rejectsError(() => openLogTo('wandb'), 'CONFIG', /logTo is wandb/, /examples\/logTo/, /Weights & Biases/)
  await withFolder(async (folder) => {
    writeFileSync(join(folder, 'a.mjs'), 'export default 3')
    await rejectsError(() => openLogTo(join(folder, 'a.mjs')), 'CONFIG', /expected its default export to be a function/)
    await rejectsError(() => openLogTo(join(folder, 'b.mjs')), 'CONFIG', /no such file/)
  })
})

test('the example for MLflow makes one run and logs every record by the REST API', () =>
  withFolder(async (folder) => {
    const calls: [path: string, body: { run_id?: string; metrics?: { key: string; value: number; step: number }[] }][] = []
    const server = createServer((request, response) => {
      let text = ''
      request.on('data', (part: Buffer) => (text += String(part)))
      request.on('end', () => {
        calls.push([request.url!, JSON.parse(text) as (typeof calls)[number][1]])
        response.end(JSON.stringify({ run: { info: { run_id: 'r1' } } }))
      })
    })
    await once(server.listen(0, '127.0.0.1'), 'listening')
    try {
      const uri = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
      const out = join(folder, 'run')
      const hook = join(packageRoot, 'dist', 'examples', 'logTo', 'mlflow.js')
      const child = spawn(process.execPath, [cli, ...args(out, hook)], { env: { ...process.env, MLFLOW_TRACKING_URI: uri } })
      const [code] = (await once(child, 'close')) as [number]
      assert.is(code, 0)
      const rows = readMetrics(join(out, 'metrics.jsonl'))
      assert.equal(
        calls.map(([path]) => path),
        ['/api/2.0/mlflow/runs/create', ...rows.map(() => '/api/2.0/mlflow/runs/log-batch')],
      )
      const logged = calls.slice(1).flatMap(([, { metrics, run_id: id }]) => metrics!.map((metric) => ({ ...metric, id })))
      assert.ok(logged.every(({ id }) => id === 'r1'))
      assert.equal(
        logged.filter(({ key }) => key === 'loss/total').map(({ value, step }) => [step, value]),
        rows.filter(({ loss }) => loss !== undefined).map(({ globalStep, loss }) => [globalStep, loss]),
      )
    } finally {
      server.close()
    }
  }))

testWhere(
  hasModules(otherPython, 'wandb'),
  'wandb is not installed (DENSECL_PYTHON names a Python that has it)',
  test,
  'the example for W&B gives its client every record, as the file of the client says',
  () =>
    withFolder((folder) => {
      const out = join(folder, 'run')
      const hook = join(packageRoot, 'dist', 'examples', 'logTo', 'wandb.js')
      const path = `${dirname(otherPython)}${delimiter}${process.env.PATH}`
      const environment = { ...process.env, PATH: path, WANDB_MODE: 'offline', WANDB_DIR: folder }
      const { status, stderr } = spawnSync(process.execPath, [cli, ...args(out, hook)], { env: environment, encoding: 'utf8' })
      assert.is(status, 0, stderr)
      assert.not.match(stderr, /log-to:/)
      const kept = readdirSync(join(folder, 'wandb'), { recursive: true, encoding: 'utf8' }).filter((name) =>
        /^offline-run.*\.wandb$/.test(name),
      )
      assert.is(kept.length, 1)
      const read = spawnSync(otherPython, [join(packageRoot, 'tests', 'run', 'readWandb.py'), join(folder, 'wandb', kept[0]!)], {
        encoding: 'utf8',
      })
      assert.is(read.status, 0, read.stderr)
      const own = (row: Record<string, number>): Record<string, number> =>
        Object.fromEntries(Object.entries(row).filter(([key]) => key === '_step' || key === 'epoch' || key.includes('/')))
      // Rows of one step are one in W&B.
      const expected = new Map<number, Record<string, number>>()
      for (const { globalStep = 0, epoch, ...row } of readMetrics(join(out, 'metrics.jsonl'))) {
        const finite = Object.entries({ ...taggedValues(row), epoch }).filter((entry) => Number.isFinite(entry[1]))
        expected.set(globalStep, { _step: globalStep, ...expected.get(globalStep), ...Object.fromEntries(finite) })
      }
      assert.ok(expected.size > 2)
      assert.equal((JSON.parse(read.stdout) as Record<string, number>[]).map(own), [...expected.values()])
    }),
)

test.run()
