/** The site of `npm run docs`: what looks for links that lead nowhere finds them, and the workflows name scripts that there are. */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'
import { parse } from 'yaml'

import { packageRoot } from '../../src/tensor/addon.js'
import { suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('site')
const links = join(packageRoot, 'scripts', 'siteLinks.mjs')
const workflows = join(packageRoot, '.github', 'workflows')

testWhere(existsSync(links), 'this is no checkout', test, 'links of a site that lead nowhere are named, each with its page', () =>
  withFolder((folder) => {
    const look = () => spawnSync(process.execPath, [links, folder], { encoding: 'utf8' })
    const write = (name: string, html: string): void => writeFileSync(join(folder, name), html)
    assert.match(look().stderr, /no pages/)
    mkdirSync(join(folder, 'docs'))
    write('a&b.png', '')
    write(
      'index.html',
      '<h2 id="there"><a href="#there">a</a><a href="docs/page.html#part">b</a><a href="https://elsewhere.example/x">c</a>',
    )
    write('docs/page.html', '<a id="part" href="../index.html?x=1#there"></a><a href="../"></a><img src="../a&amp;b.png">')
    const sound = look()
    assert.is(sound.status, 0, sound.stderr)
    assert.match(sound.stdout, /2 pages, 5 links/)
    write('docs/broken.html', '<a href="gone.html"></a><a href="page.html#gone"></a><img src="gone.png"><a href="#gone"></a>')
    const broken = look()
    assert.is(broken.status, 1)
    assert.equal(
      broken.stderr
        .trim()
        .split('\n')
        .map((line) => line.replace(/^.*docs.broken\.html: /, '')),
      ['gone.html: no such file', 'page.html#gone: no such anchor', 'gone.png: no such file', '#gone: no such anchor'],
    )
  }),
)

testWhere(existsSync(workflows), 'this is no checkout', test, 'workflows are YAML, and what they run is here', () => {
  const { scripts } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as { scripts: Record<string, string> }
  interface Job {
    needs?: string | string[]
    steps: { run?: string; uses?: string }[]
  }
  for (const name of readdirSync(workflows)) {
    const { jobs } = parse(readFileSync(join(workflows, name), 'utf8')) as { jobs: Record<string, Job> }
    for (const [key, { needs = [], steps }] of Object.entries(jobs)) {
      for (const other of [needs].flat()) assert.ok(other in jobs, `${name}: ${key} needs ${other}`)
      for (const { run = '', uses } of steps) {
        assert.ok(run !== '' || /^actions\/[\w-]+@v\d+$/.test(uses ?? ''), `${name}: ${key} has a step that does nothing`)
        for (const [, script] of run.matchAll(/npm run (?:--\S+ )*([\w:]+)/g)) assert.ok(script! in scripts, `${name}: npm run ${script}`)
        for (const [, file] of run.matchAll(/node (scripts\/\S+)/g)) assert.ok(existsSync(join(packageRoot, file!)), `${name}: ${file}`)
      }
    }
  }
})

test.run()
