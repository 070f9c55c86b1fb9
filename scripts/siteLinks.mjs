// Says which links of the built site (default: site) lead nowhere: files that are not there, anchors that their page does not have. What is
// elsewhere, by an address with a scheme, is not asked for. Exit code 1 where there is one.
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join, normalize, relative } from 'node:path'

const site = process.argv[2] ?? 'site'
const pages = readdirSync(site, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.html'))
  .map((name) => join(site, name))

const unescaped = (text) => text.replaceAll('&amp;', '&').replaceAll('&quot;', '"').replaceAll('&#39;', "'")
const attributes = (html, ...names) =>
  [...html.matchAll(new RegExp(` (?:${names.join('|')})="([^"]*)"`, 'g'))].map(([, value]) => unescaped(value))

const anchors = new Map(pages.map((page) => [page, new Set(attributes(readFileSync(page, 'utf8'), 'id', 'name'))]))

let [links, broken] = [0, 0]
for (const page of pages)
  for (const link of new Set(attributes(readFileSync(page, 'utf8'), 'href', 'src'))) {
    if (/^[a-z]+:/i.test(link)) continue
    const [path, anchor = ''] = decodeURI(link).split('#')
    let to = path === '' ? page : normalize(join(dirname(page), path.split('?')[0]))
    if (existsSync(to) && statSync(to).isDirectory()) to = join(to, 'index.html')
    const wrong = !existsSync(to) ? 'no such file' : anchor !== '' && anchors.get(to)?.has(anchor) === false ? 'no such anchor' : undefined
    links += 1
    if (wrong === undefined) continue
    broken += 1
    console.error(`${relative('', page)}: ${link}: ${wrong}`)
  }
if (pages.length === 0) console.error(`${site}: no pages: npm run docs builds them`)
if (pages.length === 0 || broken > 0) process.exit(1)
console.log(`${site}: ${pages.length} pages, ${links} links, all of which lead somewhere`)
