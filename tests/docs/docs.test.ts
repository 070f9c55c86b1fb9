/** Documents and code name each other: links lead somewhere, headings that comments cite exist, and the reference tables are whole. */
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite('docs')

/** Files below a folder of the repository, by the end of their names. */
function filesBelow(folder: string, ...ends: string[]): string[] {
  return readdirSync(join(packageRoot, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => ends.some((end) => name.endsWith(end)))
    .map((name) => join(packageRoot, folder, name))
}
const text = (path: string): string => readFileSync(path, 'utf8')
const nameOf = (path: string): string => relative(packageRoot, path)

const present = existsSync(join(packageRoot, 'docs')) && existsSync(join(packageRoot, 'src'))
const where = (name: string, body: () => void): void => testWhere(present, 'this is no checkout', test, name, body)

const documents = (): string[] =>
  [...filesBelow('docs', '.md'), ...pages].filter(existsSync)
const pages = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'].map((name) => join(packageRoot, name))
const sources = (): string[] => [
  ...['src', 'tests', 'bench'].flatMap((folder) => filesBelow(folder, '.ts', '.py', '.sh')),
  ...filesBelow('native', '.cpp', '.h', '.cu', '.cuh', '.def'),
  ...filesBelow('scripts', '.mjs'),
]

const outsideFences = (markdown: string): string => markdown.replace(/^ *```[\s\S]*?^ *```/gm, '')
const headings = (path: string): string[] => [...outsideFences(text(path)).matchAll(/^#+ (.+)$/gm)].map(([, title]) => title!.trim())
/** As GitHub makes them of headings. */
const anchor = (title: string): string =>
  title
    .toLowerCase()
    .replace(/[^\p{L}\p{N}\s_-]/gu, '')
    .replaceAll(' ', '-')

where('links between documents, and from them to files, lead somewhere', () => {
  let links = 0
  for (const path of documents()) {
    for (const [, target] of outsideFences(text(path)).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target!)) continue
      const [file = '', section] = target!.split('#')
      const to = file === '' ? path : join(dirname(path), file)
      assert.ok(existsSync(to), `${nameOf(path)}: ${target} does not exist`)
      if (section !== undefined) assert.ok(headings(to).map(anchor).includes(section), `${nameOf(path)}: ${target} has no such heading`)
      links += 1
    }
  }
  assert.ok(links > 20, `only ${links} links were found`)
})

where('documents and headings that comments cite exist', () => {
  let cited = 0
  for (const path of sources()) {
    // Comments break lines: a citation may be on two.
    const joined = text(path).replace(/\n\s*(\/\/|\*|#) ?/g, ' ')
    for (const [, document, heading] of joined.matchAll(/(docs\/\w+\.md)(?:, ([A-Z][\w ]*[\w]))?/g)) {
      const at = join(packageRoot, document!)
      assert.ok(existsSync(at), `${nameOf(path)}: ${document} does not exist`)
      if (heading !== undefined)
        assert.ok(
          headings(at).some((title) => heading === title || heading.startsWith(`${title} `)),
          `${nameOf(path)}: ${document} has no heading ${heading}`,
        )
      cited += 1
    }
  }
  assert.ok(cited > 20, `only ${cited} citations were found`)
})

where('files and folders that documents name exist', () => {
  let named = 0
  for (const path of documents()) {
    for (const [, file] of text(path).matchAll(/`((?:src|native|tests|bench|scripts|docs|examples)\/[\w./-]+)`/g)) {
      assert.ok(existsSync(join(packageRoot, file!)), `${nameOf(path)}: ${file} does not exist`)
      named += 1
    }
  }
  assert.ok(named > 20, `only ${named} files were found`)
})

where('files that comments of native code name exist', () => {
  for (const path of filesBelow('native', '.cpp', '.h', '.cu', '.cuh', '.def'))
    for (const [, file] of text(path).matchAll(/\b((?:src|native|tests|scripts)\/[\w/-]+\.(?:ts|mjs|cpp|h|cuh|cu|def))\b/g))
      assert.ok(existsSync(join(packageRoot, file!)), `${nameOf(path)}: ${file} does not exist`)
})

/** The first words in code of the rows of a table under a heading of docs/errors.md. */
function rows(heading: string): string[] {
  const errors = text(join(packageRoot, 'docs', 'errors.md'))
  const from = errors.indexOf(`\n## ${heading}\n`)
  const end = errors.indexOf('\n## ', from + 1)
  const table = errors.slice(from, end < 0 ? undefined : end)
  return [...table.matchAll(/^\| (`.+?) \|/gm)].flatMap(([, cell]) => [...cell!.matchAll(/`(\w+)`/g)].map(([, word]) => word!))
}

const difference = (these: Iterable<string>, those: Iterable<string>): string[] => {
  const known = new Set(those)
  return [...new Set(these)].filter((each) => !known.has(each)).sort()
}

where('docs/errors.md has every code that is thrown, and no other', () => {
  const thrown = [
    ...filesBelow('src', '.ts').flatMap((path) => [...text(path).matchAll(/\b(?:fail|DenseclError)\(\s*'([A-Z][A-Z_]+)'/g)]),
    ...filesBelow('native', '.cpp', '.h', '.cu', '.cuh').flatMap((path) => [
      ...text(path).matchAll(/"((?!DENSECL_|MALLOC_)[A-Z][A-Z_]{2,})"/g),
    ]),
  ].map(([, code]) => code!)
  assert.equal(difference(thrown, rows('Error codes')), [], 'codes without a row')
  assert.equal(difference(rows('Error codes'), thrown), [], 'rows of codes that nothing throws')
})

where('docs/errors.md has every variable that is read, and no other', () => {
  const reading = /process\.env\.(\w+)|(?:getenv\(|bounded\([^"]*, |fromEnvironment\(|variable: )["'](\w+)["']|\$\{(DENSECL_\w+)/g
  const read = sources()
    .flatMap((path) => [...text(path).matchAll(reading)].map(([, a, b, c]) => (a ?? b ?? c)!))
    .filter((name) => /^(DENSECL_|XDG_|CXX$|CUDACXX$|MPICXX$)/.test(name))
  // What launchers set is looked up by the names of a table.
  for (const [, name] of text(join(packageRoot, 'src', 'distributed', 'launcher.ts')).matchAll(/'(DENSECL_\w+)'/g)) read.push(name!)
  assert.equal(difference(read, rows('Environment variables')), [], 'variables without a row')
  assert.equal(difference(rows('Environment variables'), read), [], 'rows of variables that nothing reads')
})

const inGit = existsSync(join(packageRoot, '.git'))
testWhere(inGit, 'this is no checkout', test, 'nothing that is kept in git names what a clone does not have', () => {
  const kept = execFileSync('git', ['ls-files', '*.ts', '*.md', '*.cpp', '*.h', '*.cu', '*.cuh', '*.def', '*.mjs', '*.py', '*.sh'], {
    cwd: packageRoot,
    encoding: 'utf8',
  })
  for (const name of kept.split('\n')) {
    if (name === '' || name === 'tests/docs/docs.test.ts' || !existsSync(join(packageRoot, name))) continue
    assert.not.match(text(join(packageRoot, name)), /densecl-spec|detection-spec/, `${name} cites what is not here`)
  }
})

test.run()
