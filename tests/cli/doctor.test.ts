/** What doctor says of what is optional is what using it would find. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { runCli, suite, withFolder } from '../support/suite.js'

const test = suite('doctor')

/** Environment in which the package sharp is what `source` says, as a module. */
function withSharp(folder: string, source: string): NodeJS.ProcessEnv {
  const resolve = `export const resolve = (name, context, next) =>
    name === 'sharp' ? { url: ${JSON.stringify(`data:text/javascript,${source}`)}, shortCircuit: true } : next(name, context)`
  const hook = join(folder, 'hook.mjs')
  writeFileSync(
    hook,
    `import { register } from 'node:module'\nregister(${JSON.stringify(`data:text/javascript,${encodeURIComponent(resolve)}`)})\n`,
  )
  return { NODE_OPTIONS: `${process.env.NODE_OPTIONS ?? ''} --import ${pathToFileURL(hook).href}` }
}

/** What the package says where its library for this system is missing, and what Node says where the package is. */
const broken = `throw new Error('Could not load the sharp module using the linux-x64 runtime%5CnPossible solutions: ...')`
const notFound = (name: string) =>
  `throw Object.assign(new Error("Cannot find package '${name}' imported from x"), { code: 'ERR_MODULE_NOT_FOUND' })`

test('doctor decodes what libvips is for, and says why it cannot; JPEGs are read all the same, a turned one too', () =>
  withFolder(async (folder) => {
    const images = join(folder, 'images')
    mkdirSync(images)
    const pixels = sharp({ create: { width: 40, height: 30, channels: 3, background: '#c84' } })
    await pixels.clone().jpeg().withMetadata({ orientation: 6 }).toFile(join(images, 'turned.jpg'))
    await pixels.clone().png().toFile(join(images, 'plain.png'))
    for (const [source, why] of [
      [
        broken,
        /which cannot be loaded \(Could not load the sharp module using the linux-x64 runtime\); run: npm install --include=optional/,
      ],
      [notFound('@img/colour'), /which cannot be loaded \(Cannot find package '@img\/colour'.*; run: npm install --include=optional/],
      [notFound('sharp'), /which is not installed; run: npm install sharp/],
    ] as const) {
      const env = withSharp(folder, source)
      const doctor = runCli(['doctor', '--json'], { env })
      assert.is(doctor.code, 0, doctor.err)
      assert.match((JSON.parse(doctor.out) as { otherImages: string }).otherImages, why)
      const checked = runCli(['check-data', images], { env })
      assert.is(checked.code, 1, checked.err)
      assert.match(checked.out + checked.err, /plain\.png: this format needs the package sharp/)
      assert.not.match(checked.out + checked.err, /turned\.jpg: /)
    }
    const whole = runCli(['doctor', '--json'])
    assert.is((JSON.parse(whole.out) as { otherImages: string }).otherImages, 'libvips (sharp)')
    assert.is(runCli(['check-data', images]).code, 0)
  }))

test('without an addon nothing is said to decode JPEGs', () => {
  const { code, out } = runCli(['doctor', '--json'], { env: { DENSECL_ADDON: '/nonexistent/densecl.node' } })
  assert.is(code, 1)
  assert.match((JSON.parse(out) as { jpeg: string }).jpeg, /^none/)
})

test.run()
