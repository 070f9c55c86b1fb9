/** The live page of runs: that it follows them, whatever becomes of their folders, and gives nothing else; pages in a browser. */
import { spawn } from 'node:child_process'
import { appendFileSync, chmodSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { type IncomingHttpHeaders, request } from 'node:http'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { saveResult } from '../../src/run/results.js'
import { type Watch, watchRuns } from '../../src/report/watch.js'
import { metricsRow, withTrained, writeDetection, writeRun } from '../support/runFolders.js'
import { rejectsError, runCli, suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('watch')
const chromium = process.env.DENSECL_CHROMIUM ?? '/usr/bin/chromium'

interface Answer {
  status: number
  text: string
  type: string
  headers: IncomingHttpHeaders
}

const get = (url: string, headers: Record<string, string> = {}, method = 'GET'): Promise<Answer> =>
  new Promise((resolve, reject) => {
    // No connection is kept: the server behind it may be another one by then.
    const call = request(url, { method, headers, agent: false }, (response) => {
      const answer = { status: response.statusCode!, text: '', type: response.headers['content-type'] ?? '', headers: response.headers }
      response.on('data', (data: Buffer) => {
        answer.text += data.toString('latin1')
        // Events never end.
        if (answer.type === 'text/event-stream') response.destroy()
      })
      response.on('close', () => resolve(answer))
    })
    call.on('error', reject)
    call.end()
  })

/** A live page for one call; whatever happens there, it ends. */
async function withWatch(runs: string[], port: number, body: (watch: Watch) => Promise<void>, lookEvery = 30): Promise<void> {
  const watch = await watchRuns(runs, port, lookEvery)
  try {
    await body(watch)
  } finally {
    await watch.close()
  }
}

/** The events of a live page until `enough` says so. */
const events = (url: string, enough: (text: string) => boolean, meanwhile: () => void): Promise<string> =>
  new Promise((resolve, reject) => {
    let text = ''
    const call = request(`${url}events`, { agent: false }, (response) => {
      meanwhile()
      response.on('data', (data: Buffer) => {
        text += data.toString()
        if (!enough(text)) return
        call.destroy()
        resolve(text)
      })
    })
    call.on('error', (error) => (enough(text) ? undefined : reject(error)))
    call.end()
  })

test('the live page of an evaluation is sent again when a test leaves a picture, or its table appears beside it', async () => {
  await withFolder(async (folder) => {
    const own = writeDetection(folder, 10, 4)
    await withWatch([own], 0, async ({ url }) => {
      for (const change of [
        () => writeFileSync(join(own, 'pictures', 'at_000006.svg'), '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'),
        () => saveResult(folder, 'detection-voc0712-c4', { title: 'the table', columns: [], rows: [], notes: [] }, {}),
      ])
        assert.match(await events(url, (text) => text.includes('changed'), change), 'changed')
      const { text } = await get(`${url}body`)
      assert.match(text, 'the table')
      assert.is(text.match(/<img /g)!.length, 4)
    })
  })
})

test('the live page follows a run that is not there yet, is replaced, and is served again', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'run')
    let port = 0
    await withWatch([path], 0, async ({ url }) => {
      port = Number(new URL(url).port)
      assert.match((await get(url)).text, 'waiting for a run')
      const told = await events(
        url,
        (text) => text.includes('changed'),
        () => void writeRun(path, 2),
      )
      assert.match(told, 'data: hello')
      assert.match((await get(`${url}body`)).text, '2 of 20')
      renameSync(path, join(folder, 'old'))
      assert.match((await get(`${url}body`)).text, 'waiting for a run')
      writeRun(path, 7)
      assert.match((await get(`${url}body`)).text, '7 of 20')
      await rejectsError(() => watchRuns([path], port), 'WATCH', new RegExp(`port ${port} is taken`))
    })
    await withWatch([path], port, async ({ url }) => assert.match((await get(url)).text, '7 of 20'))
  })
})

test('it answers this machine alone, and gives nothing but the page and its pictures', async () => {
  await withTrained(async (run) => {
    await withWatch([run], 0, async (watch) => {
      assert.is((await get(watch.url, { host: 'evil.example' })).status, 403)
      assert.is((await get(`${watch.url}../config.yaml`)).status, 404)
      assert.is((await get(`${watch.url}picture/0000`)).status, 404)
      const body = (await get(`${watch.url}body`)).text
      const pictures = [...body.matchAll(/src="\/(picture\/\w+)"/g)].map(([, url]) => url!)
      assert.is(pictures.length, 7)
      const answers = await Promise.all(pictures.map((url) => get(watch.url + url)))
      assert.ok(answers.every(({ status, type, text }) => status === 200 && type === 'image/png' && text.length > 1000))
    })
  })
})

test('no state of a folder ends it: links to themselves, folders for files, without rights, gone', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'run')
    await withWatch(
      [path],
      0,
      async ({ url }) => {
        const shows = async (what: string | RegExp): Promise<void> => {
          for (let tries = 0; tries < 20; tries++) {
            for (const page of [url, `${url}body`]) {
              const { status, text } = await get(page)
              assert.is(status, 200, text)
              assert.match(text, what)
            }
          }
        }
        for (const part of ['pictures', 'eval', 'eval/knn', 'report.json', 'environment.json', 'pictures/augmentation.png']) {
          for (const harm of ['loop', 'folder', 'closed']) {
            rmSync(path, { recursive: true, force: true })
            writeRun(path, 3)
            const at = join(path, part)
            mkdirSync(join(at, '..'), { recursive: true })
            if (harm === 'loop') symlinkSync(at, at)
            else mkdirSync(at)
            if (harm === 'closed') chmodSync(at, 0)
            await shows('3 of 20')
            if (harm === 'closed') chmodSync(at, 0o700)
          }
        }
        // What cannot be read is named.
        for (const part of ['metrics.jsonl', 'config.yaml']) {
          rmSync(path, { recursive: true, force: true })
          writeRun(path, 3)
          rmSync(join(path, part))
          mkdirSync(join(path, part))
          await shows(part === 'metrics.jsonl' ? /curves are missing: .*metrics\.jsonl: cannot be read/ : 'Curves')
        }
        rmSync(path, { recursive: true, force: true })
        symlinkSync(path, path)
        await shows('waiting for a run')
        rmSync(path)
        writeRun(path, 4)
        await shows('4 of 20')
      },
      1,
    )
  })
})

test('a run that another process replaces without end is answered all the time', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'run')
    const whole = writeRun(join(folder, 'whole'), 6)
    for (const part of ['pictures', 'eval/knn']) mkdirSync(join(whole, part), { recursive: true })
    for (const name of ['pictures/augmentation.svg', 'pictures/epoch_00001-matches.svg', 'eval/knn/samples.svg'])
      writeFileSync(join(whole, name), '<svg xmlns="http://www.w3.org/2000/svg"/>')
    const replacing = spawn(
      process.execPath,
      [
        '-e',
        `const fs = require('fs'), [, whole, path] = process.argv
        for (let i = 0; ; i++) { fs.cpSync(whole, path, { recursive: true }); fs.rmSync(path, { recursive: true }) }`,
        whole,
        path,
      ],
      { stdio: 'ignore' },
    )
    const gone = new Promise((resolve) => replacing.on('exit', resolve))
    try {
      await withWatch(
        [path],
        0,
        async ({ url }) => {
          const seen = new Set<number>()
          const until = performance.now() + 2000
          while (performance.now() < until) {
            const { status, text } = await get(`${url}body`)
            assert.is(status, 200, text)
            for (const [, picture] of text.matchAll(/src="\/(picture\/\w+)"/g)) seen.add((await get(url + picture!)).status)
          }
          assert.ok([...seen].every((status) => [200, 404, 500].includes(status)))
          replacing.kill('SIGKILL')
          await gone
          rmSync(path, { recursive: true, force: true })
          writeRun(path, 9)
          assert.match((await get(`${url}body`)).text, '9 of 20')
        },
        1,
      )
    } finally {
      replacing.kill('SIGKILL')
      await gone
    }
  })
})

/** What an SVG could do that is opened by itself: all of it would mark the document. */
const hostileSvg = `<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30" onload="document.documentElement.dataset.ran = 'onload'">
<script>document.documentElement.dataset.ran = 'script'</script><rect width="40" height="30" fill="red"/>
<foreignObject width="9" height="9"><body xmlns="http://www.w3.org/1999/xhtml">
<img src="x" onerror="top.ran = 'foreign'"/></body></foreignObject>
<image href="/body" width="5" height="5"/></svg>`

const directives = (headers: IncomingHttpHeaders): Map<string, string> =>
  new Map(
    String(headers['content-security-policy'])
      .split('; ')
      .map((directive): [string, string] => [directive.split(' ')[0]!, directive.split(' ').slice(1).join(' ')]),
  )

test('every answer forbids what it does not need', async () => {
  await withFolder(async (folder) => {
    const run = writeRun(join(folder, 'run'), 2)
    mkdirSync(join(run, 'pictures'))
    writeFileSync(join(run, 'pictures', 'augmentation.svg'), hostileSvg)
    await withWatch([run], 0, async ({ url }) => {
      const page = await get(url)
      const picture = /src="\/(picture\/\w+)"/.exec(page.text)![1]!
      const others = [
        await get(`${url}body`),
        await get(`${url}events`),
        await get(url + picture),
        await get(`${url}nothing`),
        await get(url, { host: 'evil.example' }),
        await get(url, {}, 'POST'),
      ]
      assert.equal(
        others.map(({ status }) => status),
        [200, 200, 200, 404, 403, 403],
      )
      assert.is(others[2]!.type, 'image/svg+xml')
      for (const { headers } of [page, ...others]) {
        assert.is(headers['x-content-type-options'], 'nosniff')
        assert.is(headers['referrer-policy'], 'no-referrer')
        assert.is(headers['cross-origin-resource-policy'], 'same-origin')
        const policy = directives(headers)
        assert.is(policy.get('default-src'), "'none'")
        assert.is(policy.get('frame-ancestors'), "'none'")
        assert.not.match(String(headers['content-security-policy']), /unsafe|https?:|\*/)
      }
      for (const { headers } of others) {
        const policy = directives(headers)
        assert.is(policy.get('sandbox'), '') // neither scripts nor an origin
        assert.equal([...policy.keys()].sort(), ['default-src', 'frame-ancestors', 'img-src', 'sandbox'])
      }
      const policy = directives(page.headers)
      for (const kind of ['script-src', 'style-src']) assert.match(policy.get(kind)!, /^'sha256-[\w+/]{43}='$/)
      for (const kind of ['base-uri', 'form-action']) assert.is(policy.get(kind), "'none'")
    })
    const { file } = JSON.parse(runCli(['report', run, '--json']).out) as { file: string }
    const content = /<meta http-equiv="Content-Security-Policy" content="([^"]*)">/.exec(readFileSync(file, 'utf8'))![1]
    const policy = directives({ 'content-security-policy': content })
    assert.equal([...policy.keys()].sort(), ['base-uri', 'default-src', 'form-action', 'img-src', 'style-src'])
    assert.equal([policy.get('default-src'), policy.get('img-src')], ["'none'", 'data:'])
  })
})

testWhere(existsSync(chromium), `there is no ${chromium}`, test, 'in a browser nothing of a run is executed', async () => {
  const { chromium: browserType } = await import('playwright-core')
  await withFolder(async (folder) => {
    const run = writeRun(join(folder, 'run'), 2)
    mkdirSync(join(run, 'pictures'))
    writeFileSync(join(run, 'pictures', 'augmentation.svg'), hostileSvg)
    const browser = await browserType.launch({ executablePath: chromium, args: ['--no-sandbox', '--disable-gpu'] })
    try {
      await withWatch([run], 0, async ({ url }) => {
        const shown = await browser.newPage()
        const problems: string[] = []
        shown.on('console', (message) => problems.push(message.text()))
        await shown.goto(url)
        await shown.waitForSelector('text=live,')
        await shown.waitForFunction('document.images.length === 1 && document.images[0].naturalWidth === 40')
        assert.equal(problems, [])
        assert.is(await shown.evaluate('window.ran'), undefined)
        // Even if text of a run were taken for markup.
        const markup = `<img src='x' onerror='window.ran = 1'><style>main { visibility: hidden }</style><form action='/body'><input></form>`
        const refused = shown.waitForEvent('console', (message) => message.text().includes('inline event handler'))
        await shown.evaluate(`main.innerHTML = ${JSON.stringify(markup)}`)
        await refused
        assert.equal(await shown.evaluate(`[window.ran, getComputedStyle(main).visibility]`), [undefined, 'visible'])

        const picture = /src="\/(picture\/\w+)"/.exec((await get(url)).text)![1]!
        await shown.goto(url + picture)
        assert.equal(
          await shown.evaluate(`[document.documentElement.localName, document.documentElement.dataset.ran, window.ran, self.origin]`),
          ['svg', undefined, undefined, 'null'],
        )
      })
    } finally {
      await browser.close()
    }
  })
})

testWhere(
  existsSync(chromium),
  `there is no ${chromium}`,
  test,
  'a browser shows it, by day and by night, narrow and wide, and follows it live',
  async () => {
    const { chromium: browserType } = await import('playwright-core')
    await withTrained(async (run) => {
      const { file } = JSON.parse(runCli(['report', run, '--json']).out) as { file: string }
      const browser = await browserType.launch({ executablePath: chromium, args: ['--no-sandbox', '--disable-gpu'] })
      try {
        for (const colorScheme of ['light', 'dark'] as const) {
          for (const width of [400, 1500]) {
            const shown = await browser.newPage({ colorScheme, viewport: { width, height: 900 } })
            const problems: string[] = []
            shown.on('console', (message) => problems.push(message.text()))
            shown.on('pageerror', (error) => problems.push(error.message))
            await shown.goto(`file://${file}`)
            const seen = (await shown.evaluate<unknown>(`({
            ground: getComputedStyle(document.body).backgroundColor,
            ink: getComputedStyle(document.querySelector('.card svg text')).fill,
            broken: [...document.images].filter((image) => image.naturalWidth === 0).length,
            images: document.images.length,
            wide: document.documentElement.scrollWidth > innerWidth + 1,
          })`)) as { ground: string; ink: string; broken: number; images: number; wide: boolean }
            const light = (colour: string): number =>
              colour
                .match(/\d+/g)!
                .slice(0, 3)
                .reduce((sum, value) => sum + Number(value), 0) / 3
            assert.equal([problems, seen.broken, seen.images, seen.wide], [[], 0, 7, false], `${colorScheme} ${width}`)
            assert.is(light(seen.ground) > 128, colorScheme === 'light')
            assert.ok(Math.abs(light(seen.ground) - light(seen.ink)) > 120)
            await shown.close()
          }
        }
        const live = await browser.newPage()
        const problems: string[] = []
        live.on('console', (message) => problems.push(message.text()))
        live.on('pageerror', (error) => problems.push(error.message))
        let port = 0
        await withWatch([run], 0, async ({ url }) => {
          port = Number(new URL(url).port)
          await live.goto(url)
          await live.waitForSelector('text=2 of 2')
          appendFileSync(join(run, 'metrics.jsonl'), metricsRow(7))
          await live.waitForSelector('text=7 of 2')
          await live.waitForSelector('text=live,')
          await live.waitForFunction('document.images.length === 7 && [...document.images].every((image) => image.naturalWidth > 0)')
          assert.is(await live.evaluate(`getComputedStyle(document.querySelector('.card')).borderRadius`), '8px')
          assert.equal(problems, [])
        })
        await live.waitForSelector('text=no answer')
        appendFileSync(join(run, 'metrics.jsonl'), metricsRow(8))
        await withWatch([run], port, async () => {
          await live.waitForSelector('text=8 of 2')
        })
      } finally {
        await browser.close()
      }
    })
  },
)

test.run()
