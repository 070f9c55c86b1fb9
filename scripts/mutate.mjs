// npm run mutate [-- --count N --seed S --files GLOB --seconds T --json FILE]: how much of the code the tests hold. Breaks one place at a
// time in src (through the compiler's syntax tree) and native/cpu (by tokens of a line), builds what changed, and runs the test files
// that are related to it. What no test notices survives. All of it happens in a copy, build-mutate-PID, which is removed at the end.
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

// Words in the paths of test files, by file or folder: the longest that the path begins with. Fast ones, not all that could notice.
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
function testsOf(file) {
  const prefix = Object.keys(related)
    .filter((start) => file.startsWith(start))
    .sort((a, b) => b.length - a.length)[0]
  const words = related[prefix] ?? []
  const all = below('tests', join(copy, 'dist'))
  const tests = all.filter(
    (path) => path.endsWith('.test.js') && !path.endsWith('devices.test.js') && words.some((word) => path.includes(`tests/${word}`)),
  )
  if (!file.endsWith('.ts')) return tests
  const target = file.replace(/\.ts$/, '.js')
  // A test that starts the command line reaches all of it without an import.
  const reach = (test) =>
    Math.min(distance(test, target), /runCli|spawn/.test(readFileSync(join(copy, 'dist', test), 'utf8')) ? 20 : Infinity)
  return tests
    .map((test) => ({ test, far: reach(test) }))
    .filter(({ far }) => far < Infinity)
    .sort((a, b) => a.far - b.far)
    .map(({ test }) => test)
}

/** Runs a test file until it ends, fails in one test, or has taken `limit` milliseconds: whether it passed, and the time. */
function runTest(test, limit) {
  return new Promise((resolve) => {
    const before = performance.now()
    const quickly = { DENSECL_TEST_RUNS: '10', DENSECL_FUZZ_SECONDS: '2' }
    // A mutant may write and remove where it should not: what it finds by name lies in the copy.
    const scratch = join(copy, 'scratch')
    mkdirSync(scratch, { recursive: true })
    const inside = { HOME: scratch, TMPDIR: scratch, XDG_CACHE_HOME: scratch, DENSECL_ADDON: addon }
    const env = { ...process.env, NO_COLOR: '1', FORCE_COLOR: '0', ...quickly, ...inside }
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

const baselines = new Map()
/** The tests of a file that pass in the copy as it is and are fast enough, the nearest first, with their times. */
async function usable(file) {
  const found = []
  for (const test of testsOf(file)) {
    if (!baselines.has(test)) {
      const { passed, how, took } = await runTest(test, 1000 * seconds)
      const left = how === 'hung' ? `left out, as it takes more than ${seconds} s` : 'left out, as it fails without a mutant'
      console.log(`${test}: ${passed ? `${(took / 1000).toFixed(1)} s` : left}`)
      baselines.set(test, passed ? took : undefined)
    }
    const took = baselines.get(test)
    if (took !== undefined) found.push({ test, took })
  }
  return found
}

const compilerOptions = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext }

/** Puts a mutant into the copy; undefined, or why it is none. Returns how the copy is made whole again. */
function apply({ file, original, start, end, text }) {
  const broken = original.slice(0, start) + text + original.slice(end)
  if (file.endsWith('.ts')) {
    const path = join(copy, 'dist', file.replace(/\.ts$/, '.js'))
    const before = readFileSync(path)
    const { outputText, diagnostics } = ts.transpileModule(broken, { compilerOptions, reportDiagnostics: true })
    if (diagnostics.length > 0) return { problem: 'does not compile' }
    writeFileSync(path, outputText)
    return { restore: () => writeFileSync(path, before) }
  }
  const path = join(copy, file)
  writeFileSync(path, broken)
  const restore = () => {
    writeFileSync(path, original)
    cpSync(intact, addon)
  }
  if (buildChanged().status === 0) return { restore }
  restore()
  return { problem: 'does not compile' }
}

async function judge(mutant) {
  if (known.some(({ file, source, change }) => file === mutant.file && source === mutant.source && change === mutant.change))
    return { fate: 'equivalent', by: '' }
  const tests = await usable(mutant.file)
  if (tests.length === 0) return { fate: 'untested', by: 'no test that is related is fast enough' }
  const { problem, restore } = apply(mutant)
  if (problem !== undefined) return { fate: 'no mutant', by: problem }
  try {
    for (const { test, took } of tests) {
      const { passed, how } = await runTest(test, 3 * took + 10_000)
      if (!passed) return { fate: 'killed', by: `${basename(test, '.test.js')}${how === 'hung' ? ', which did not end' : ''}` }
    }
    return { fate: 'survived', by: tests.map(({ test }) => basename(test, '.test.js')).join(', ') }
  } finally {
    restore()
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
      `${others} did not compile or have no fast test`,
  )
}

try {
  await main()
} finally {
  clear()
}
