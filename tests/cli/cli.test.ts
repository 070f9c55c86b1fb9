import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { loaded, LoadError } from '../../src/cli/loading.js'
import { buildProgram, explain } from '../../src/cli/program.js'
import { packageRoot, packageVersion } from '../../src/tensor/addon.js'
import { densecl } from '../../src/methods/densecl/method.js'
import { presets } from '../../src/methods/densecl/presets.js'
import { optionsOf, resolveConfig } from '../../src/methods/index.js'
import { sectionTitles } from '../../src/run/config.js'
import { kebabCase, sectionOf } from '../../src/run/options.js'
import { cli, runCli, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('cli')
const setting = (key: string, value: unknown) => ({ key, value, from: 'test' })

testWhere(
  process.platform !== 'win32',
  'on Windows npm makes a script that calls node',
  test,
  'the command can be run by its name, as npx does',
  () => {
    assert.is(statSync(cli).mode & 0o111, 0o111)
    assert.match(spawnSync(cli, ['--version'], { encoding: 'utf8' }).stdout, /^\d+\.\d+/)
  },
)

test('a file of densecl that is not there is named with what may be wrong, and is no mistake to report', async () => {
  const missing = './nowhere.js' as string
  const error = await loaded<unknown>(() => import(missing)).catch((reason: unknown) => reason)
  assert.instance(error, LoadError)
  const { code, text, mistake } = explain(error)
  assert.equal([code, mistake], [1, undefined])
  assert.match(text!, /nowhere\.js[^]*installed whole/)
})

test('help: every command, every option of pretrain, examples', () => {
  const top = runCli(['--help'])
  assert.is(top.code, 0)
  for (const command of ['pretrain', 'eval', 'export', 'import', 'match', 'check-data', 'doctor']) assert.match(top.out, command)
  const { out } = runCli(['pretrain', '--help'])
  for (const key of Object.keys(optionsOf(densecl))) assert.match(out, `--${kebabCase(key)} `)
  for (const name of Object.keys(presets)) assert.match(out, name)
  for (const command of [['eval', 'knn'], ['export'], ['import'], ['match'], ['check-data']])
    assert.match(runCli([...command, '--help']).out, /Examples:/)
})

test('a command loaded alone is what it is among all', async () => {
  const build = (...args: string[]) => buildProgram(args, () => undefined)
  const all = (await build()).commands.filter((command) => command.name() !== 'completion')
  assert.is(all.length, 19)
  for (const command of all) {
    const alone = (await build(command.name())).commands
    assert.equal(
      alone.map((each) => each.helpInformation()),
      [command.helpInformation()],
    )
  }
})

test('help: options of pretrain in groups by purpose, each in one, with choices', () => {
  const { out } = runCli(['pretrain', '--help'])
  const headings = [...Object.values(sectionTitles), 'Method densecl, dense contrastive learning']
  const places = headings.map((heading) => out.indexOf(`\n${heading}`))
  assert.ok(places.every((place) => place > 0))
  assert.equal(
    places,
    [...places].sort((a, b) => a - b),
  )
  for (const [key, row] of Object.entries(optionsOf(densecl))) {
    const section = sectionOf(row)
    assert.is(section === undefined, key === 'method', `${key} is in a section`)
    const place = out.indexOf(`\n  --${kebabCase(key)} `)
    const within = places.filter((start) => start < place).length - 1
    if (section !== undefined) assert.is(headings[within], sectionTitles[section] ?? headings.at(-1), key)
  }
  assert.match(out.replace(/\s+/g, ' '), /--optimizer <value> .{0,60}\(choices: sgd, adamw, lars; default: sgd\)/)
})

test('wrong keys and values are answered with name, value, expectation and the nearest right key', async () => {
  throwsError(() => resolveConfig([setting('batchsize', 8)]), 'CONFIG', /unknown option batchsize/, /did you mean batchSize/)
  throwsError(() => resolveConfig([setting('lr', 'nan')]), 'CONFIG', /lr is "nan": expected a number above 0/)
  throwsError(() => resolveConfig([setting('lr', NaN)]), 'CONFIG', /lr/, /NaN/)
  throwsError(() => resolveConfig([setting('depth', 19)]), 'CONFIG', /depth is 19/, /50/)
  throwsError(() => resolveConfig([setting('batchSize', 10), setting('normGroups', 3)]), 'CONFIG', /divisor of batchSize 10/)
  throwsError(() => resolveConfig([setting('cropScale', [0.9, 0.1])]), 'CONFIG', /cropScale/)
  await withFolder((folder) => {
    const file = join(folder, 'run.yaml')
    writeFileSync(file, '# a run\nepochs: 5\n\nmomentun: 0.9\nlr: fast\n')
    const { code, err } = runCli(['pretrain', '--config', file, '--out', join(folder, 'run')])
    assert.is(code, 2)
    assert.match(err, /run\.yaml line 4: unknown option momentun \(did you mean momentum\?\)/)
    assert.match(err, /run\.yaml line 5: lr is "fast"/)
    writeFileSync(file, 'a: [1\n')
    assert.match(runCli(['pretrain', '--config', file]).err, /run\.yaml/)
  })
})

test('wrong usage is exit code 2 and a sentence, failure is 1, neither is a stack trace', async () => {
  await withFolder((folder) => {
    mkdirSync(join(folder, 'photos'))
    const cases: [string[], number, RegExp][] = [
      [['pretrain', '--batchsize', '8'], 2, /unknown option '--batchsize'[\s\S]*--batch-size/],
      [['pretrian'], 2, /unknown command 'pretrian'[\s\S]*pretrain/],
      [['pretrain', '--preset', 'densecl_resnet50'], 2, /preset densecl_resnet50 does not exist \(did you mean densecl_resnet50_8xb32/],
      [['pretrain', 'lr'], 2, /lr: expected key=value/],
      [['pretrain', 'lr=NaN', '--out', join(folder, 'x')], 2, /^densecl: lr=NaN: expected a number above 0$/m],
      [['pretrain', '--data', 'x', '--batch-size', '.5', '--hue', 'red'], 2, /^--hue is red: expected a number in 0\.\.0\.5$/m],
      [['pretrain', '--data', 'x', '--batch-size', '.5'], 2, /^densecl: --batch-size is \.5: expected an integer of at least 1$/m],
      [['pretrain', '--preset', 'small', '--data', join(folder, 'none'), '--out', join(folder, 'x')], 1, /none does not exist/],
      [['check-data', join(folder, 'none')], 1, /none does not exist; expected a folder of images, or scenes/],
      [['check-data', join(folder, 'fotos')], 1, /fotos does not exist \(did you mean \S*[/\\]photos\?\)/],
      [['pretrain', '--data', 'nowhere'], 1, /nowhere does not exist below (\/|[A-Z]:).*; expected --data to be a folder of images/],
      [['pretrain', '--data', 'scenes:40', '--knn-data', 'nowhere'], 1, /nowhere .*; expected --knn-data to be a folder of images/],
      [
        ['pretrain', '--set', 'optimizer.momentun=0.8', '--data', 'scenes'],
        2,
        /unknown option optimizer\.momentun \(did you mean momentum\?\)/,
      ],
      [['bench', 'nosuch'], 2, /no op nosuch; densecl bench --help/],
      [['import', join(folder, 'none.pth')], 1, /none\.pth: cannot be read/],
      [['export', 'x'], 2, /--out/],
      [['pack', 'scenes:4'], 2, /--out is missing/],
      [['bench', 'data', '--data', 'scenes:4', '--batch', '8'], 2, /--batch is 8/],
      [['bench', '--device', 'cpu', 'growth'], 2, /expected --device behind growth/],
      [['bench', 'growth', '--device', 'cpu'], 2, /unknown option '--device'/],
      [['doctor', '--device', 'cpu'], 2, /--device is cpu: expected --check with it/],
      [
        ['bench', 'tune', '--model', 'sm_90', '--device', 'cpu'],
        2,
        /'--model <architecture>' cannot be used with option '--device <name>'/,
      ],
      [['match', 'x.jpg', '--weights', join(folder, 'none')], 1, /cannot be read/],
      [['eval', 'knn', 'x', '--train', 'scenes:20', '--val', 'scenes:10', '--k', 'many'], 2, /--k is many/],
    ]
    for (const [args, code, message] of cases) {
      const result = runCli(args)
      assert.is(result.code, code, `${args.join(' ')}: ${result.err}`)
      assert.match(result.err, message)
      assert.not.match(result.err, /\n {4}at /)
    }
  })
})

test('pretrain without data trains preset quick on built-in pictures, and says so; settings win over it', async () => {
  await withFolder((folder) => {
    const dry = (...args: string[]): string => {
      const { code, out, err } = runCli([
        'pretrain',
        '--dry-run',
        'epochs=1',
        'imageSize=32',
        'batchSize=4',
        '--set',
        'baseChannels=4',
        ...args,
      ])
      assert.is(code, 0, err)
      return out
    }
    const quick = dry()
    assert.match(quick, /^start {3}no --data and no --preset: preset quick, on pictures that are made here; --data FOLDER/)
    for (const line of [/^data: scenes:2048$/m, /^depth: 18$/m, /^imageSize: 32$/m, /^baseChannels: 4$/m]) assert.match(quick, line)
    assert.not.match(dry('data=scenes:64', 'depth=18', 'queueLength=16'), /^start/m)
    const out = join(folder, 'run')
    const small = ['depth=18', 'baseChannels=4', 'imageSize=32', 'batchSize=8', 'epochs=1', 'queueLength=16', 'data.data=scenes:32']
    const { code, out: printed, err } = runCli(['pretrain', '--quiet', '--out', out, ...small])
    assert.is(code, 0, err)
    assert.is(printed, `${join(out, 'backbone.safetensors')}\n`)
    assert.match(err, /^warning the run has 4 steps in all/)
  })
})

test('from pretrain to every other command, with JSON', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const small = [
      '--data',
      'scenes:40',
      '--knn-data',
      'scenes:20',
      '--image-size',
      '32',
      '--batch-size',
      '8',
      '--epochs',
      '1',
      '--depth',
      '18',
      '--base-channels',
      '4',
      '--queue-length',
      '16',
    ]
    const trained = runCli(['pretrain', '--out', out, '--json', ...small])
    assert.is(trained.code, 0, trained.err)
    const result = JSON.parse(trained.out) as { globalStep: number; files: Record<string, string> }
    assert.is(result.globalStep, 5)
    const backbone = result.files.backbone!

    const knn = JSON.parse(
      runCli(['eval', 'knn', backbone, '--train', 'scenes:40', '--val', 'scenes:20', '--k', '1,5', '--image-size', '32', '--json']).out,
    ) as { results: { k: number; accuracy: number }[] }
    assert.equal(
      knn.results.map(({ k }) => k),
      [1, 5],
    )
    assert.ok(knn.results.every(({ accuracy }) => accuracy >= 0 && accuracy <= 1))

    const exported = runCli(['export', result.files.checkpoint!, '--for', 'mmdet', '--out', join(folder, 'mm.pth'), '--json'])
    assert.is((JSON.parse(exported.out) as { depth: number }).depth, 18)
    assert.is(runCli(['export', backbone, '--out', join(folder, 'mm.pth')]).code, 1, 'an existing file is not replaced unasked')
    const imported = JSON.parse(runCli(['import', join(folder, 'mm.pth'), '--json']).out) as { matched: string[]; prefix: string }
    assert.is(imported.prefix, 'state_dict.')
    assert.ok(imported.matched.length >= 100)

    const match = JSON.parse(
      runCli(['match', 'scene:3', '--weights', backbone, '--out', join(folder, 'm'), '--size', '128', '--json']).out,
    ) as { picture: string; grid: number[]; matches: { similarity: number }[] }
    assert.equal(match.grid, [4, 4])
    const { width, height } = await sharp(readFileSync(match.picture)).metadata()
    assert.ok(width > 600 && height > 300)
    assert.is(match.picture, join(folder, 'm.png'))

    mkdirSync(join(folder, 'photos'))
    writeFileSync(join(folder, 'photos', 'bad.jpg'), 'x')
    writeFileSync(
      join(folder, 'photos', 'thin.png'),
      await sharp({ create: { width: 400, height: 10, channels: 3, background: '#123' } })
        .png()
        .toBuffer(),
    )
    const checked = runCli(['check-data', join(folder, 'photos'), '--json'])
    assert.is(checked.code, 1)
    const report = JSON.parse(checked.out) as { images: number; broken: { name: string }[]; odd: string[] }
    assert.is(report.images, 2)
    assert.match(report.broken[0]!.name, /bad\.jpg/)
    assert.match(report.odd[0]!, /thin\.png 400x10/)

    const packed = JSON.parse(runCli(['pack', 'scenes:8', '--out', join(folder, 'packed'), '--json']).out) as {
      images: number
      shards: string[]
    }
    assert.is(packed.images, 8)
    const loading = JSON.parse(
      runCli([
        'bench',
        'data',
        '--device',
        'cpu',
        '--data',
        join(folder, 'packed'),
        '--batch',
        '4',
        '--image-size',
        '32',
        '--seconds',
        '0.2',
        '--workers',
        '1',
        '--json',
      ]).out,
    ) as { rows: { imagesPerSecond: number }[] }
    assert.ok(loading.rows[0]!.imagesPerSecond > 0)

    const doctor = JSON.parse(runCli(['doctor', '--json']).out) as { addon: string }
    assert.match(doctor.addon, /densecl\.node/)
  })
})

test('bench: rows with units, compared with a saved result, and mistakes named', async () => {
  await withFolder((folder) => {
    const saved = join(folder, 'before.json')
    const first = runCli(['bench', 'relu', 'conv2d', '--layer', '56x56', '--batch', '1', '--json', '--save', saved])
    assert.is(first.code, 0, first.err)
    const { rows, ceilings } = JSON.parse(readFileSync(saved, 'utf8')) as {
      rows: { op: string; milliseconds: number; gigabytesPerSecond: number; floor: number }[]
      ceilings: { gigabytesPerSecond: number }
    }
    assert.equal(
      rows.map(({ op }) => op),
      ['relu'],
    )
    // Two maps of 56 * 56 * 256 floats in the time measured.
    const [{ milliseconds, gigabytesPerSecond, floor }] = rows as [(typeof rows)[number]]
    assert.ok(Math.abs(gigabytesPerSecond * milliseconds * 1e6 - 2 * 56 * 56 * 256 * 4) < 1)
    assert.ok(Math.abs(floor - gigabytesPerSecond / ceilings.gigabytesPerSecond) < 1e-9)
    assert.match(runCli(['bench', 'relu', '--batch', '1', '--compare', saved]).out, /before ms {2}change[\s\S]*relu 56x56x256 .*%/)
    // A row is marked by its own noise, a change by that of both.
    const result = JSON.parse(readFileSync(saved, 'utf8')) as { rows: { milliseconds: number; noise: number }[] }
    const again = (noise: number, factor: number): string => {
      writeFileSync(
        saved,
        JSON.stringify({ ...result, rows: result.rows.map((row) => ({ ...row, noise, milliseconds: row.milliseconds * factor })) }),
      )
      return runCli(['bench', 'relu', '--batch', '1', '--layer', '56x56x256', '--compare', saved]).out
    }
    assert.match(again(1000, 100), /relu 56x56x256 .*-\d+%~[\s\S]*^~ behind a change: no larger than the noise/m)
    assert.match(again(0, 1e6), /relu 56x56x256 .*-100%\n/)
    writeFileSync(saved, JSON.stringify(result))
    for (const [args, code, words] of [
      [['convolve'], 2, /no op convolve \(did you mean conv2d/],
      [['relu', '--layer', 'nothing'], 2, /nothing/],
      [['relu', '--device', 'cuda:9'], 1, /cuda:9/],
      [['relu', '--precision', 'tf32', '--device', 'cpu'], 2, /tf32.*f32 or bf16 on cpu/],
      [['relu', '--compare', join(folder, 'none.json')], 1, /none\.json/],
      [['relu', '--batch', '2', '--compare', saved], 2, /its batch is 1 but this one is 2/],
      [['relu', '--compare', join(packageRoot, 'package.json')], 1, /expected a result that bench --save wrote, but/],
    ] as const) {
      const { code: actual, err } = runCli(['bench', ...args])
      assert.is(actual, code, err)
      assert.match(err, words)
    }
  })
})

test('a device that is not there is one sentence with the remedy', () => {
  const { code, err } = runCli(['pretrain', '--preset', 'quick', '--device', 'cuda:9', '--out', '/nowhere/run'])
  assert.is(code, 1)
  assert.match(err, /device cuda:9 (cannot be used|does not exist): .*(densecl doctor|driver|GPU|cuda:0)/)
})

test('without an addon doctor says what was looked for and what helps; what needs none goes on', async () => {
  const env = { DENSECL_ADDON: '/nowhere/densecl.node' }
  const { code, out, err } = runCli(['doctor'], { env })
  assert.is(code, 1)
  assert.match(out, /^densecl +\d[\s\S]*^addon +none$/m)
  assert.match(err, /no native addon for this system[\s\S]*[/\\]nowhere[/\\]densecl\.node: is not there\n {2}unset DENSECL_ADDON/)
  assert.is(runCli(['--help'], { env }).code, 0)
  assert.is(runCli(['--version'], { env }).out.trim(), packageVersion)
  await withFolder((folder) => {
    writeFileSync(join(folder, 'metrics.jsonl'), '')
    const report = runCli(['report', folder], { env })
    assert.is(report.code, 0, report.err)
    assert.ok(existsSync(join(folder, 'report.html')))
  })
  assert.match(runCli(['eval', 'knn', '/nowhere.pth', '--train', 'scenes:8', '--val', 'scenes:8'], { env }).err, /nowhere|no native addon/)
})

test('a missing compiler is one sentence with the remedy', () => {
  const { status, stderr } = spawnSync(process.execPath, [join(packageRoot, 'scripts', 'install.mjs')], {
    encoding: 'utf8',
    env: { ...process.env, CXX: 'no-such-compiler' },
  })
  assert.is(status, 1)
  assert.match(stderr, /no-such-compiler was not found[\s\S]*apt-get install g\+\+[\s\S]*npm run build:native/)
  assert.not.match(stderr, /\n {4}at /)
})

test.run()
