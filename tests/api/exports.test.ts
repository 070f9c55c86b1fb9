/** What a project that depends on the package sees: the entries of its `exports` map, their names and types, and nothing else. */
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

import type ts from 'typescript'
import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('exports')

const map = (JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as { exports: Record<string, string | { types: string }> })
  .exports
/** Name and declaration file of each entry that has types. */
const entries = Object.entries(map).flatMap(([path, target]) =>
  typeof target === 'string' ? [] : [{ name: path.replace('.', 'densecl'), file: join(packageRoot, target.types) }],
)
const fixture = join(packageRoot, 'tests', 'fixtures', 'exports.txt')

const compiler = existsSync(join(packageRoot, 'node_modules', 'typescript')) ? (await import('typescript')).default : undefined
const where = (name: string, body: () => void | Promise<void>): void =>
  testWhere(compiler !== undefined, 'typescript is not here', test, name, body)

/** The public names of each entry: what it exports, by the symbol that is exported. */
let known: ReturnType<typeof readExports> | undefined
const exported = (): ReturnType<typeof readExports> => (known ??= readExports())
function readExports(): { checker: ts.TypeChecker; symbols: Map<string, Map<string, ts.Symbol>> } {
  const { files, options } = { files: entries.map(({ file }) => file), options: { module: compiler!.ModuleKind.NodeNext, strict: true } }
  const program = compiler!.createProgram(files, { ...options, noEmit: true, skipLibCheck: true, types: ['node'] })
  const checker = program.getTypeChecker()
  const original = (symbol: ts.Symbol): ts.Symbol =>
    symbol.flags & compiler!.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol
  const symbols = entries.map(({ name, file }): [string, Map<string, ts.Symbol>] => {
    const module = checker.getSymbolAtLocation(program.getSourceFile(file)!)!
    return [name, new Map(checker.getExportsOfModule(module).map((symbol) => [symbol.name, original(symbol)]))]
  })
  return { checker, symbols: new Map(symbols) }
}

where('the names are those of tests/fixtures/exports.txt (DENSECL_WRITE_EXPORTS=1 writes it anew)', () => {
  const lines = [...exported().symbols].flatMap(([entry, symbols]) => [...symbols.keys()].sort().map((name) => `${entry} ${name}`))
  if (process.env.DENSECL_WRITE_EXPORTS !== undefined) writeFileSync(fixture, `${lines.join('\n')}\n`)
  const expected = readFileSync(fixture, 'utf8').trim().split('\n')
  const [added, removed] = [lines.filter((line) => !expected.includes(line)), expected.filter((line) => !lines.includes(line))]
  assert.equal({ added, removed }, { added: [], removed: [] })
})

where('every type of this package that a public declaration names is public too', () => {
  const { checker, symbols } = exported()
  const published = new Set([...symbols.values()].flatMap((of) => [...of.values()]))
  const missing = new Set<string>()
  const look = (node: ts.Node, owner: string): void => {
    const name = compiler!.isTypeReferenceNode(node)
      ? node.typeName
      : compiler!.isExpressionWithTypeArguments(node)
        ? node.expression
        : undefined
    let symbol = name && checker.getSymbolAtLocation(name)
    if (symbol && symbol.flags & compiler!.SymbolFlags.Alias) symbol = checker.getAliasedSymbol(symbol)
    const file = symbol?.declarations?.[0]?.getSourceFile().fileName
    const isParameter = symbol !== undefined && (symbol.flags & compiler!.SymbolFlags.TypeParameter) !== 0
    if (symbol && !isParameter && file?.startsWith(join(packageRoot, 'dist')) && !published.has(symbol))
      missing.add(`${symbol.name} (of ${owner})`)
    node.forEachChild((child) => look(child, owner))
  }
  for (const of of symbols.values())
    for (const [name, symbol] of of) for (const declaration of symbol.declarations ?? []) look(declaration, name)
  assert.equal([...missing], [])
})

/** A project with the package in its node_modules, and TypeScript that uses all entries. */
function project(folder: string): string {
  mkdirSync(join(folder, 'node_modules', '@types'), { recursive: true })
  symlinkSync(packageRoot, join(folder, 'node_modules', 'densecl'), 'junction')
  symlinkSync(join(packageRoot, 'node_modules', '@types', 'node'), join(folder, 'node_modules', '@types', 'node'), 'junction')
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
  const main = join(folder, 'main.ts')
  writeFileSync(
    main,
    `import { type Config, DenseCL, resolveConfig } from 'densecl'
import { type Source, epochOrder, openSource } from 'densecl/data'
import { type Build, apply, Conv2d, defineOp, memory, Random, scale, scope, setThreads, Tape, Tensor, threads } from 'densecl/engine'

const double = defineOp<{ x: Tensor }>({
  name: 'double',
  forward: ({ x }) => ({ outputs: [scale(x, 2)] }),
  backward: ({ grad }) => ({ x: scale(grad, 2) }),
})
const before: number = memory().live
const gradient: number = scope(() => {
  const x = Tensor.from([3], [1])
  const tape = new Tape().watch([x])
  const y = tape.record(() => apply(double, { x }, {})[0]!)
  return tape.backward(y, [x])[0]!.item()
})
const build: Build = { random: new Random(1), dtype: 'f32' }
const layer = new Conv2d(build, 3, 4, 3, {
  fill: (random, shape) => Float64Array.from({ length: shape.reduce((a, b) => a * b) }, () => random.normal()),
})
const shape: readonly number[] = layer.weight.shape
layer.weight.dispose()
setThreads(1)
const config: Config = resolveConfig([{ key: 'epochs', value: 3, from: 'here' }])
const source: Source = await openSource('scenes:7')
const more = [config.epochs, source.items.length, epochOrder(1, 0, 5).length, typeof DenseCL]
console.log([gradient, shape.join('x'), threads(), memory().live - before, ...more].join(' '))
`,
  )
  return main
}

where('a project that depends on the package compiles strictly, the declarations of the package too, and runs', () =>
  withFolder((folder) => {
    const main = project(folder)
    const { ModuleKind, ModuleResolutionKind, ScriptTarget } = compiler!
    for (const options of [
      { module: ModuleKind.Node16, moduleResolution: ModuleResolutionKind.Node16, skipLibCheck: false },
      { module: ModuleKind.ESNext, moduleResolution: ModuleResolutionKind.Bundler, skipLibCheck: true },
    ]) {
      const strict = { strict: true, exactOptionalPropertyTypes: true, target: ScriptTarget.ES2022, types: ['node'] }
      const program = compiler!.createProgram([main], {
        ...options,
        ...strict,
        outDir: folder,
        typeRoots: [join(folder, 'node_modules', '@types')],
      })
      const problems = compiler!
        .getPreEmitDiagnostics(program)
        .map(({ file, messageText }) => `${file?.fileName}: ${compiler!.flattenDiagnosticMessageText(messageText, ' ')}`)
      assert.equal(problems, [])
      program.emit()
    }
    assert.is(execFileSync(process.execPath, ['main.js'], { cwd: folder, encoding: 'utf8' }).trim(), '2 4x3x3x3 1 0 3 7 5 function')
  }),
)

test('a path that is no entry is refused, and the entries can be required where Node requires modules', () =>
  withFolder((folder) => {
    project(folder)
    const run = (program: string): string => spawnSync(process.execPath, ['-e', program], { cwd: folder, encoding: 'utf8' }).stdout.trim()
    for (const path of ['densecl/dist/src/tensor/native.js', 'densecl/tensor/native', 'densecl/src/engine.js'])
      assert.is(
        run(`import('${path}').then(() => console.log('loaded'), (error) => console.log(error.code))`),
        'ERR_PACKAGE_PATH_NOT_EXPORTED',
      )
    if ((process.features as { require_module?: boolean }).require_module === true)
      assert.is(run(`console.log(typeof require('densecl').pretrain, typeof require('densecl/engine').Tensor)`), 'function function')
    else console.log('SKIP require: this Node does not require modules')
  }))

test('neither the addon nor what only ops of this package use is public', async () => {
  for (const { file } of entries) {
    const names = Object.keys((await import(pathToFileURL(file.replace(/\.d\.ts$/, '.js')).href)) as object)
    for (const name of ['native', 'runNative', 'runNamed', 'observe', 'conv2dForNorm', 'onEveryRun', 'rehearse'])
      assert.not.ok(names.includes(name), `${name} of ${file}`)
  }
})

test.run()
