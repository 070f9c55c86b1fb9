// npm run mutate [-- --count N --seed S --files GLOB --seconds T --json FILE]: how much of the code the tests hold. Breaks one place at a
// time in src (through the compiler's syntax tree) and native/cpu (by tokens of a line), builds what changed, and runs those of the
// related test files that come by the place, as V8's counters say, the nearest first. What no test notices survives. All of it happens
// in a copy, build-mutate-PID, which is removed at the end.
import { spawn, spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, setPriority } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import ts from 'typescript'

import { nativeMutants, typescriptMutants } from './mutants.mjs'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const { values: flags } = parseArgs({
  options: {
    count: { type: 'string', default: '100' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
    files: { type: 'string', default: 'src/**,native/cpu/**' },
    seconds: { type: 'string', default: '60' },
    json: { type: 'string' },
  },
})
const whole = (name, least) => {
  const value = Number(flags[name])
  if (Number.isInteger(value) && value >= least) return value
  console.error(`--${name} is ${flags[name]}: expected a whole number of at least ${least}`)
  process.exit(2)
}
const [count, seed, seconds] = [whole('count', 1), whole('seed', 0), whole('seconds', 1)]

// Words in the paths of test files, by file or folder: the longest that the path begins with. Fast ones, not all that could notice; those
// of the same name and those that are nearest by their imports are taken without a word.
const related = {
  'src/autograd': ['autograd/tape', 'ops/arithmetic.test', 'methods/step'],
  'src/data': ['data/'],
  'src/data/segmentation': ['data/segmentation', 'eval/segmentation'],
  'src/data/voc': ['data/', 'eval/svm'],
  'src/eval': ['eval/'],
  'src/files': ['train/lock', 'weights/', 'train/train'],
  'src/methods': ['methods/step', 'methods/golden', 'train/train'],
  'src/nn': ['nn/', 'weights/', 'methods/step'],
  'src/ops': ['ops/'],
  'src/optim': ['optim/', 'train/optimizers'],
  'src/report': ['report/'],
  'src/run': ['optim/', 'report/report', 'train/lock', 'train/train', 'cli/cli'],
  'src/tensor': ['tensor/', 'ops/arguments'],
  'src/train': ['train/'],
  'src/weights': ['weights/'],
  'native/cpu': ['ops/ops', 'ops/arithmetic.test', 'methods/golden'],
  'native/cpu/adam': ['optim/'],
  'native/cpu/augment': ['data/augment', 'data/pipelines'],
  'native/cpu/clip': ['optim/'],
  'native/cpu/copyStrided': ['ops/layout.test'],
  'native/cpu/gatherRows': ['ops/layout.test'],
  'native/cpu/groupedConv2d': ['ops/groupedConv2d'],
  'native/cpu/lars': ['optim/'],
  'native/cpu/layerNorm': ['ops/layerNorm', 'ops/ops'],
  'native/cpu/maps': ['ops/arithmetic.test', 'ops/ops'],
  'native/cpu/math': ['ops/arithmetic.test', 'ops/ops'],
  'native/cpu/matmul': ['ops/matmul'],
  'native/cpu/optim': ['optim/'],
  'native/cpu/updates': ['optim/'],
}

/** A list of globs (`*`, `**`); one without a star takes what begins with it. */
const wanted = flags.files.split(',').map((glob) => {
  const source = glob
    .replace(/[.+^${}()|[\]\\]/g, '\\$&')
    .replace(/\*\*\/?|\*|\?/g, (star) => (star.startsWith('**') ? '.*' : star === '*' ? '[^/]*' : '[^/]'))
  return new RegExp(`^${source}${/[*?]/.test(glob) ? '$' : ''}`)
})
const below = (folder, base = root) =>
  readdirSync(join(base, folder), { recursive: true, encoding: 'utf8' }).map((path) => `${folder}/${path}`)
const sources = [...below('src').filter((path) => /\.ts$/.test(path)), ...below('native/cpu').filter((path) => /\.(cpp|h)$/.test(path))]
  .filter((path) => path !== 'src/tensor/nativeOps.ts' && wanted.some((pattern) => pattern.test(path)))
  .sort()
if (sources.length === 0) {
  console.error(`--files is ${flags.files}: no file of src or native/cpu matches`)
  process.exit(2)
}

/** mulberry32, so that a seed gives the same mutants everywhere. */
let state = seed
function random(until) {
  state = (state + 0x6d2b79f5) | 0
  let t = Math.imul(state ^ (state >>> 15), 1 | state)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * until)
}
function shuffled(values) {
  for (let i = values.length - 1; i > 0; i--) {
    const j = random(i + 1)
    ;[values[i], values[j]] = [values[j], values[i]]
  }
  return values
}

const known = JSON.parse(readFileSync(join(root, 'scripts', 'equivalentMutants.json'), 'utf8'))

/** One of each file in turn, so that long files are not all there is. */
function choose() {
  const queues = shuffled(
    sources.map((file) => {
      const text = readFileSync(join(copy, file), 'utf8')
      const lines = text.split('\n')
      const found = file.endsWith('.ts') ? typescriptMutants(text) : nativeMutants(text)
      return shuffled(found.map((mutant) => ({ file, original: text, source: lines[mutant.line - 1].trim(), ...mutant })))
    }),
  )
  const chosen = []
  while (chosen.length < count && queues.some((queue) => queue.length > 0))
    for (const queue of queues) if (queue.length > 0 && chosen.length < count) chosen.push(queue.pop())
  return chosen
}

const copy = join(root, `build-mutate-${process.pid}`)
let running
function clear() {
  if (running !== undefined) kill(running)
  rmSync(copy, { recursive: true, force: true })
}
function kill(child) {
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {
    // It has ended already.
  }
}
for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
])
  process.on(signal, () => {
    clear()
    process.exit(code)
  })

function makeCopy() {
  rmSync(copy, { recursive: true, force: true })
  mkdirSync(copy)
  for (const name of readdirSync(root)) {
    if (/^(node_modules|\.git|runs|build.*)$/.test(name)) continue
    cpSync(join(root, name), join(copy, name), { recursive: true, preserveTimestamps: true })
  }
}

/** The addon of the copy, and where it is kept as it was without a mutant. */
const quick = join(copy, 'build-cpu-quick')
const [addon, intact] = ['densecl.node', 'whole.node'].map((name) => join(quick, 'Release', name))
/** Little optimised: a mutant is compiled for a few seconds of tests. */
const buildAll = () => spawnSync(process.execPath, [join(copy, 'scripts', 'native.mjs'), 'cpu', '--quick'], { cwd: copy, encoding: 'utf8' })
const buildChanged = () => spawnSync('cmake', ['--build', quick], { encoding: 'utf8' })

/** Test files of the copy that reach `file` by imports, in the order of their distance; those of native code by the table alone. */
const imports = new Map()
function importsOf(path) {
  if (!imports.has(path)) {
    const text = readFileSync(join(copy, 'dist', path), 'utf8')
    const found = [...text.matchAll(/(?:from|import\()\s*['"](\.[^'"]+\.js)['"]/g)].map(([, to]) => join(dirname(path), to))
    imports.set(
      path,
      found.filter((to) => existsSync(join(copy, 'dist', to))),
    )
  }
  return imports.get(path)
}
function distance(from, to) {
  const seen = new Map([[from, 0]])
  for (const path of seen.keys()) {
    if (path === to) return seen.get(path)
    for (const next of importsOf(path)) if (!seen.has(next)) seen.set(next, seen.get(path) + 1)
  }
  return Infinity
}
/** The ops that a file of native code defines, with the place of each call of one: `runNative('conv2d'` in dist/src. */
function callsOf(file) {
  const ops = [...readFileSync(join(copy, file), 'utf8').matchAll(/^void (\w+)\(const Call& call\) \{/gm)].map(([, name]) => name)
  const call = new RegExp(`'(${ops.join('|')})'`, 'g')
  if (ops.length === 0) return []
  return ['src/ops', 'src/optim', 'src/data', 'src/nn'].flatMap((folder) =>
    below(folder, join(copy, 'dist'))
      .filter((path) => path.endsWith('.js'))
      .flatMap((path) => [...readFileSync(join(copy, 'dist', path), 'utf8').matchAll(call)].map(({ index }) => ({ path, offset: index }))),
  )
}
/** Test files that may notice a change of `file`, the nearest first. */
function testsOf(file) {
  const prefix = Object.keys(related)
    .filter((start) => file.startsWith(start))
    .sort((a, b) => b.length - a.length)[0]
  const words = related[prefix] ?? []
  const base = basename(file).replace(/\.\w+$/, '')
  const targets = file.endsWith('.ts') ? [file.replace(/\.ts$/, '.js')] : callsOf(file).map(({ path }) => path)
  // A test that starts the command line reaches all of it without an import.
  const starts = (test) => (/runCli|spawn/.test(readFileSync(join(copy, 'dist', test), 'utf8')) ? 20 : Infinity)
  return below('tests', join(copy, 'dist'))
    .filter((path) => path.endsWith('.test.js') && !path.endsWith('devices.test.js'))
    .map((test) => {
      const far = Math.min(...targets.map((target) => distance(test, target)), starts(test))
      const [namesake, named] = [basename(test, '.test.js') === base, words.some((word) => test.includes(`tests/${word}`))]
      return { test, far: namesake ? 0 : far, near: namesake || far <= 1 || (named && (far < Infinity || targets.length === 0)) }
    })
    .sort((a, b) => a.far - b.far)
    .filter(({ near, far }, i) => near || (far < Infinity && i < 10))
    .map(({ test }) => test)
}

/** Runs a test file until it ends, fails in one test, or has taken `limit` milliseconds: whether it passed, and the time. */
function runTest(test, limit, more = {}) {
  return new Promise((resolve) => {
    const before = performance.now()
    const quickly = { DENSECL_TEST_RUNS: '10', DENSECL_FUZZ_SECONDS: '2' }
    // A mutant may write and remove where it should not: what it finds by name lies in the copy.
    const scratch = join(copy, 'scratch')
    mkdirSync(scratch, { recursive: true })
    const inside = { HOME: scratch, TMPDIR: scratch, XDG_CACHE_HOME: scratch, DENSECL_ADDON: addon }
    const env = { ...process.env, NO_COLOR: '1', FORCE_COLOR: '0', ...quickly, ...inside, ...more }
    const child = spawn(process.execPath, [join(copy, 'dist', test)], {
      env,
      cwd: scratch,
      detached: true,
      stdio: ['ignore', 'pipe', 'ignore'],
    })
    running = child
    let [output, how] = ['', undefined]
    child.stdout.on('data', (data) => {
      output += data
      if (!output.includes('✘')) return
      how = 'failed'
      kill(child)
    })
    const timer = setTimeout(() => {
      how = 'hung'
      kill(child)
    }, limit)
    child.on('close', (code) => {
      clearTimeout(timer)
      running = undefined
      rmSync(scratch, { recursive: true, force: true })
      resolve({ passed: code === 0 && how === undefined, how: how ?? 'failed', took: performance.now() - before })
    })
  })
}

const coverageFolder = join(copy, 'coverage')
/** Of each file of dist/src what ran in a process of a test: lists of V8's functions, each with ranges, the outer ones first. */
function readCoverage() {
  const byFile = new Map()
  const start = `file://${join(copy, 'dist')}/`
  for (const name of existsSync(coverageFolder) ? readdirSync(coverageFolder) : []) {
    let result = []
    try {
      ;({ result } = JSON.parse(readFileSync(join(coverageFolder, name), 'utf8')))
    } catch {
      // Of a process that was killed while it wrote.
    }
    for (const { url, functions } of result) {
      if (!url.startsWith(`${start}src/`)) continue
      const path = url.slice(start.length)
      byFile.set(path, [...(byFile.get(path) ?? []), functions])
    }
  }
  rmSync(coverageFolder, { recursive: true, force: true })
  return byFile
}
/** Whether what is at `offset` of a file ran: the innermost range around it says so. */
const ran = (coverage, { path, offset }) =>
  (coverage.get(path) ?? []).some((functions) => {
    let innermost
    for (const { ranges } of functions)
      for (const range of ranges)
        if (range.startOffset <= offset && offset < range.endOffset)
          if (innermost === undefined || range.endOffset - range.startOffset <= innermost.endOffset - innermost.startOffset)
            innermost = range
    return innermost !== undefined && innermost.count > 0
  })

const baselines = new Map()
/** How a test file does in the copy as it is: its time and what it runs, undefined where it fails or takes too long. */
async function baseline(test) {
  if (!baselines.has(test)) {
    const { passed, how, took } = await runTest(test, 1000 * seconds, { NODE_V8_COVERAGE: coverageFolder })
    const left = how === 'hung' ? `left out, as it takes more than ${seconds} s` : 'left out, as it fails without a mutant'
    console.log(`${test}: ${passed ? `${(took / 1000).toFixed(1)} s` : left}`)
    const coverage = readCoverage()
    baselines.set(test, passed ? { took, coverage } : undefined)
  }
  return baselines.get(test)
}

const compilerOptions = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext }
/** Under a name that nothing imports: by the compiler's own, module.ts, an import of ./module.js would be of the file itself. */
const compiled = (text) => ts.transpileModule(text, { compilerOptions, fileName: 'mutant.ts', reportDiagnostics: true })

/** A mutant's code in the copy: where it is of TypeScript, where its own code begins in that of the compiler; undefined for no mutant. */
function prepare({ file, original, start, end, text }) {
  const broken = original.slice(0, start) + text + original.slice(end)
  if (!file.endsWith('.ts')) return { broken, places: callsOf(file) }
  const [before, after] = [compiled(original).outputText, compiled(broken)]
  if (after.diagnostics.length > 0 || after.outputText === before) return undefined
  let offset = 0
  while (before[offset] === after.outputText[offset]) ++offset
  return { broken: after.outputText, places: [{ path: file.replace(/\.ts$/, '.js'), offset }] }
}

/** Puts a mutant into the copy; undefined where it does not compile. Returns how the copy is made whole again. */
function apply({ file, original }, broken) {
  if (file.endsWith('.ts')) {
    const path = join(copy, 'dist', file.replace(/\.ts$/, '.js'))
    const before = readFileSync(path)
    writeFileSync(path, broken)
    return () => writeFileSync(path, before)
  }
  const path = join(copy, file)
  writeFileSync(path, broken)
  const restore = () => {
    writeFileSync(path, original)
    cpSync(intact, addon)
  }
  if (buildChanged().status === 0) return restore
  restore()
  return undefined
}

async function judge(mutant) {
  if (known.some(({ file, source, change }) => file === mutant.file && source === mutant.source && change === mutant.change))
    return { fate: 'equivalent', by: '' }
  const prepared = prepare(mutant)
  if (prepared === undefined) return { fate: 'no mutant', by: 'does not compile' }
  const { broken, places } = prepared
  const tests = testsOf(mutant.file)
  const tried = []
  let restore
  try {
    for (const test of tests) {
      // Without the mutant: it is put in when a test is found that comes by its place.
      if (!baselines.has(test)) {
        restore?.()
        restore = undefined
      }
      const found = await baseline(test)
      if (found === undefined || (places.length > 0 && !places.some((place) => ran(found.coverage, place)))) continue
      restore ??= apply(mutant, broken)
      if (restore === undefined) return { fate: 'no mutant', by: 'does not compile' }
      const { passed, how } = await runTest(test, 3 * found.took + 10_000)
      if (!passed) return { fate: 'killed', by: `${basename(test, '.test.js')}${how === 'hung' ? ', which did not end' : ''}` }
      tried.push(basename(test, '.test.js'))
    }
    if (tried.length > 0) return { fate: 'survived', by: tried.join(', ') }
    return { fate: 'untested', by: `none of ${tests.length} related tests comes by` }
  } finally {
    restore?.()
  }
}

async function main() {
  setPriority(10)
  makeCopy()
  const chosen = choose()
  console.log(`${chosen.length} mutants of ${sources.length} files, --seed ${seed}; ${availableParallelism()} cores`)
  if (chosen.some(({ file }) => file.startsWith('native/'))) {
    const { status, stdout, stderr } = buildAll()
    if (status !== 0) throw new Error(`the addon of the copy cannot be built\n${stdout}${stderr}`)
  } else cpSync(join(root, 'build', 'Release', 'densecl.node'), addon)
  cpSync(addon, intact)
  // As this compiler writes it, so that places in it are those of the mutants.
  for (const file of new Set(chosen.map((mutant) => mutant.file)))
    if (file.endsWith('.ts')) {
      const text = readFileSync(join(copy, file), 'utf8')
      writeFileSync(join(copy, 'dist', file.replace(/\.ts$/, '.js')), compiled(text).outputText)
    }
  const results = []
  for (const [i, mutant] of chosen.entries()) {
    const { fate, by } = await judge(mutant)
    const { file, line, change, source } = mutant
    results.push({ file, line, change, source, fate, by })
    console.log(`${i + 1} ${fate} ${file}:${line}: ${change} (${by})`)
    if (flags.json !== undefined) writeFileSync(flags.json, `${JSON.stringify({ seed, results }, null, 1)}\n`)
  }
  const counted = results.filter(({ fate }) => fate === 'killed' || fate === 'survived')
  console.log('\nfile: killed of all')
  for (const file of sources) {
    const own = counted.filter((result) => result.file === file)
    if (own.length > 0) console.log(`${file}: ${own.filter(({ fate }) => fate === 'killed').length} of ${own.length}`)
  }
  console.log('\nsurvived')
  for (const { file, line, change, source } of counted.filter(({ fate }) => fate === 'survived'))
    console.log(`${file}:${line}: ${change}\n    ${source}`)
  const killed = counted.filter(({ fate }) => fate === 'killed').length
  const equivalent = results.filter(({ fate }) => fate === 'equivalent').length
  const share = ((100 * killed) / Math.max(1, counted.length)).toFixed(1)
  const others = results.length - counted.length - equivalent
  console.log(
    `\n${killed} of ${counted.length} killed (${share} %); ${equivalent} are known to be equivalent, ` +
      `${others} did not compile or are where no related test comes by`,
  )
}

try {
  await main()
} finally {
  clear()
}
