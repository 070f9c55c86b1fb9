import { copyFileSync, cpSync, mkdirSync, readFileSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'

import * as assert from 'uvu/assert'

import { addonCandidates, cudaPackage, loadAddon, packageRoot, packageVersion } from '../../src/tensor/addon.js'
import { addonPath, type native } from '../../src/tensor/native.js'
import { suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('addon')
/** A folder for one call. Windows removes no library that a process has loaded: what is left of it there is the system's to clean up. */
const withFolderOfAddons: typeof withFolder = (body) => withFolder(body, { mayStay: process.platform === 'win32' })
const none = (): undefined => undefined
const withoutChoice = <T>(body: () => T): T => {
  const chosen = process.env.DENSECL_ADDON
  delete process.env.DENSECL_ADDON
  try {
    return body()
  } finally {
    if (chosen !== undefined) process.env.DENSECL_ADDON = chosen
  }
}

test('candidates: what was compiled, the newer first; the CUDA package; prebuilt ones', async () => {
  await withFolder((root) => {
    writeFileSync(join(root, 'package.json'), '{}')
    const put = (path: string, seconds: number): void => {
      mkdirSync(dirname(join(root, path)), { recursive: true })
      writeFileSync(join(root, path), '')
      utimesSync(join(root, path), seconds, seconds)
    }
    const order = (): string[] => withoutChoice(() => addonCandidates(root).map((path) => relative(root, path)))
    const [plain, cuda] = ['build', 'build-cuda'].map((folder) => join(folder, 'Release', 'densecl.node')) as [string, string]
    const rest = order().slice(2)
    assert.equal(order().slice(0, 2), [cuda, plain])
    assert.equal(rest[0], join('node_modules', cudaPackage, 'densecl.node'))
    assert.ok(rest.length > 1 && rest.slice(1).every((path) => path.startsWith(join('prebuilds', `${process.platform}-${process.arch}`))))
    put(plain, 1000)
    assert.equal(order(), [plain, cuda, ...rest])
    put(cuda, 2000)
    assert.equal(order(), [cuda, plain, ...rest])
    put(join('node_modules', cudaPackage, 'package.json'), 1)
    put(rest[0]!, 1)
    assert.equal(order(), [cuda, plain, ...rest])
    process.env.DENSECL_ADDON ??= addonPath()
    assert.equal(addonCandidates(root), [resolve(process.env.DENSECL_ADDON)])
  })
})

test('an addon that is damaged, of another version or of other sources is passed over with the reason', async () => {
  await withFolderOfAddons((folder) => {
    const file = (name: string, bytes: Buffer | string): string => {
      writeFileSync(join(folder, name), bytes)
      return join(folder, name)
    }
    const whole = readFileSync(addonPath())
    const text = file('text.node', 'not a library')
    const cut = file('cut.node', whole.subarray(0, whole.length >> 1))
    // The version is a text of its own in the file.
    const at = whole.lastIndexOf(`\0${packageVersion}\0`)
    assert.ok(at > 0)
    const older = Buffer.from(whole)
    older.write('0.0.0', at + 1)
    const old = file('old.node', older)
    const sound = file('sound.node', whole)
    const taken = loadAddon<typeof native>(none, [join(folder, 'absent.node'), text, cut, old, sound])
    assert.is(taken.path, sound)
    assert.equal(
      taken.refused.map(({ path }) => path),
      [text, cut, old],
    )
    // Other systems' own loaders say it in their words.
    if (process.platform === 'linux') assert.is(taken.refused[1]!.why, 'it is cut off')
    assert.match(taken.refused[2]!.why, `it is of densecl 0.0.0, this package is ${packageVersion}`)
    const words = [/no native addon for this system/, /absent\.node: is not there/, /old\.node: it is of densecl 0\.0\.0/]
    throwsError(() => loadAddon(none, [join(folder, 'absent.node'), text, old]), 'ADDON', ...words)
    throwsError(
      () => loadAddon(() => 'it has other ops', [sound]),
      'ADDON',
      /sound\.node: it has other ops/,
      /run: npm run|unset DENSECL_ADDON/,
    )
  })
})

test('two copies of the package compute in one process, each with an addon of its own', async () => {
  await withFolderOfAddons(async (folder) => {
    cpSync(join(packageRoot, 'dist', 'src'), join(folder, 'dist', 'src'), { recursive: true })
    copyFileSync(join(packageRoot, 'package.json'), join(folder, 'package.json'))
    symlinkSync(join(packageRoot, 'node_modules'), join(folder, 'node_modules'), 'junction')
    mkdirSync(join(folder, 'build', 'Release'), { recursive: true })
    copyFileSync(addonPath(), join(folder, 'build', 'Release', 'densecl.node'))
    const [ours, theirs] = (await Promise.all(
      [packageRoot, folder].map((root) => import(pathToFileURL(join(root, 'dist', 'src', 'engine.js')).href)),
    )) as [typeof import('../../src/engine.js'), typeof import('../../src/engine.js')]
    const theirNative = (await import(pathToFileURL(join(folder, 'dist', 'src', 'tensor', 'native.js')).href)) as { addonPath(): string }
    withoutChoice(() => assert.is(theirNative.addonPath(), join(folder, 'build', 'Release', 'densecl.node')))
    const values = [ours, theirs].map(({ add, scope, Tensor }) => scope(() => [...add(Tensor.from([1, 2]), Tensor.from([3, 4])).data()]))
    assert.equal(values, [
      [4, 6],
      [4, 6],
    ])
    theirs.scope(() => {
      const other = theirs.Tensor.from([1])
      throwsError(() => ours.relu(other), 'ARGUMENT', /expected x to be a tensor but received one of another copy of densecl/)
      throwsError(() => ours.add(1, other), 'ARGUMENT', /expected b to be a tensor or a number .* of another copy of densecl/)
    })
  })
})

test.run()
