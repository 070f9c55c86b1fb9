/** The page of runs: what it shows, and that it shows it as text. */
import { appendFileSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { saveResult } from '../../src/run/results.js'
import { curvePoints, runCharts } from '../../src/report/charts.js'
import { embedPictures, page, pageBody } from '../../src/report/page.js'
import { viewRun } from '../../src/report/runView.js'
import { metricsRow, withTrained, writeDetection, writeRun } from '../support/runFolders.js'
import { runCli, suite, withFolder } from '../support/suite.js'

const test = suite('page')

test('the report holds all of a run, needs nothing else, and shows text as text', async () => {
  await withTrained(async (run) => {
    saveResult(join(run, 'eval'), 'knn', { title: 'kNN <accuracy>', columns: ['k', 'top-1'], rows: [[20, '31.00']], notes: ['a note'] }, {})
    const reported = runCli(['report', run, '--json'])
    assert.is(reported.code, 0, reported.err)
    const view = (await viewRun(run))!
    assert.equal(
      view.epochs.map(({ epoch }) => epoch),
      [0, 1, 2],
    )
    assert.ok(view.finished && view.augmentation !== undefined && view.tables.length === 1)
    const html = page('a run', pageBody([view], [], await embedPictures([view])))
    for (const part of [
      'Curves',
      'Augmentation',
      'Matches over the epochs',
      'Dense features as colours',
      'Evaluation',
      'Configuration',
      'Environment',
      'Learning rate',
      'Throughput',
      'guessing',
      '31.00',
      'a note',
    ])
      assert.match(html, part)
    assert.match(html, 'kNN &lt;accuracy&gt;')
    // Links to elsewhere: none but the namespace of SVG.
    assert.equal(
      [...html.matchAll(/https?:\/\/[^"'\s<)]+/g)].map(([url]) => url).filter((url) => !url.startsWith('http://www.w3.org/')),
      [],
    )
    assert.is([...html.matchAll(/<img [^>]*src="data:image/g)].length, [...html.matchAll(/<img /g)].length)
    assert.is(html.match(/<img /g)!.length, 7)
  })
})

test('a run that has just begun, has broken lines or numbers that are none, and two runs beside each other', async () => {
  await withFolder(async (folder) => {
    assert.is(await viewRun(join(folder, 'none')), undefined)
    const empty = join(folder, 'empty')
    mkdirSync(empty)
    writeFileSync(join(empty, 'config.yaml'), 'epochs: 3\n')
    assert.match(
      pageBody([(await viewRun(empty))!], [], () => ''),
      'not finished',
    )
    const [a, b] = [writeRun(join(folder, 'a'), 3), writeRun(join(folder, 'b'), 5)]
    appendFileSync(join(a, 'metrics.jsonl'), `${metricsRow(4, { loss: null })}{"globalStep": 50, "ep`)
    const runs = [(await viewRun(a))!, (await viewRun(b))!]
    const body = pageBody(runs, [join(folder, 'none')], () => '')
    assert.not.match(body, /NaN|undefined|Infinity/)
    assert.match(body, /waiting for a run in .*none/)
    assert.match(body, '&lt;b&gt;photos&lt;/b&gt;')
    assert.not.match(body, '<b>photos')
    // What never changed is a sentence, and no chart.
    const alone = pageBody([runs[1]!], [], () => '')
    assert.match(alone, /The same all along: [^<]*Queue 100 % filled/)
    assert.not.match(alone, '>Queue</text>')
    // One colour a run: as many lines in each chart as runs.
    for (const svg of runCharts(runs)) assert.is(svg.match(/<path /g)!.length, 2)
    const { code, err } = runCli(['report', join(folder, 'none')])
    assert.is(code, 1)
    assert.match(err, /none holds no run/)
  })
})

test('a detection is shown by itself, among results and in its run, on its way and at its end', async () => {
  await withFolder(async (folder) => {
    const run = writeRun(join(folder, 'run'), 2)
    const results = join(run, 'eval')
    const own = writeDetection(results, 10, 4)
    for (const path of [own, results, run]) {
      const view = (await viewRun(path))!
      assert.is(view.pretrained, path === run)
      const body = pageBody([view], [], await embedPictures([view]))
      for (const part of [
        'not finished',
        '4 of 10',
        '43.21 %',
        '3s',
        'anchor boxes',
        'regions',
        'Average precision',
        'Throughput',
        '&lt;b&gt;raccoon',
      ])
        assert.match(body, part)
      for (const part of ['<b>raccoon', 'NaN', 'undefined']) assert.not.match(body, part)
      assert.is(body.match(/<img /g)!.length, 3)
      assert.is(body.includes('Environment'), path === run)
    }
    const table = { title: 'Detection in %', columns: ['class', 'AP50'], rows: [['raccoon', '98.76']], notes: [] }
    saveResult(results, 'detection-voc0712-c4', table, {})
    for (const path of [own, results, run]) {
      const view = (await viewRun(path))!
      const body = pageBody([view], [], await embedPictures([view]))
      assert.not.match(body.slice(body.indexOf('<h2>Detection')), 'not finished')
      assert.is(body.split('98.76').length, 2)
    }
    // Two of a kind beside each other: a line each.
    writeDetection(join(folder, 'other', 'eval'), 10, 6)
    const both = [(await viewRun(results))!, (await viewRun(join(folder, 'other', 'eval', 'detection-voc0712-c4')))!]
    const charts = [...pageBody(both, [], await embedPictures(both)).matchAll(/<svg [^>]*>.*?<\/svg>/gs)].map(([svg]) => svg)
    assert.is(charts.length, 4)
    for (const svg of charts) assert.is(svg.match(/<path /g)!.length, 2)
    const { code, out } = runCli(['report', own, '--json', '--out', join(folder, 'page.html')])
    assert.is(code, 0)
    assert.is((JSON.parse(out) as { file: string }).file, join(folder, 'page.html'))
  })
})

test('long curves are drawn by means of stretches', () => {
  const rows = Array.from({ length: 20_000 }, (_, i) => ({ globalStep: i, epoch: i / 100, loss: i % 2 }))
  const points = curvePoints(rows, 'loss')
  assert.is(points.length, 500)
  for (const { y } of points) assert.is(y, 0.5)
  assert.ok(points[0]!.x < 0.3 && points.at(-1)!.x > 199.7)
})

test.run()
