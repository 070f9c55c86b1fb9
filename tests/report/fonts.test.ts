/** Words of pictures on a Linux without fonts: what fontconfig is told of, less the fonts of the system. */
import { spawnSync } from 'node:child_process'
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { fontsFile } from '../../src/report/svg.js'
import { suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('fonts of pictures')

/** Draws a word by writePicture() in a process of its own, which is where fontconfig reads its file; gives the columns that have ink. */
async function drawnColumns(folder: string, word: string, env: NodeJS.ProcessEnv): Promise<number> {
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="400" height="40" font-family="sans-serif"><text y="30">${word}</text></svg>`
  const path = join(folder, 'word')
  const module = JSON.stringify(pathToFileURL(join(import.meta.dirname, '..', '..', 'src', 'report', 'svg.js')))
  const program = `const { writePicture } = await import(${module}); await writePicture(${JSON.stringify(path)}, ${JSON.stringify(svg)})`
  const { status, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8', env })
  assert.equal([status, stderr], [0, ''])
  const { data, info } = await sharp(`${path}.png`).extractChannel('alpha').raw().toBuffer({ resolveWithObject: true })
  return Array.from({ length: info.width }, (_, x) => data.some((alpha, i) => i % info.width === x && alpha > 0)).filter(Boolean).length
}

testWhere(
  process.platform === 'linux',
  'fonts are found otherwise on this system',
  test,
  'where the system has no fonts every letter has a shape of its own, and nothing is complained of',
  () =>
    withFolder(async (folder) => {
      const text = readFileSync(fontsFile, 'utf8')
      const own = text.replace(/<include .*\n/, '')
      assert.not.equal(own, text)
      writeFileSync(join(folder, 'fonts.conf'), own)
      copyFileSync(join(dirname(fontsFile), 'densecl.ttf'), join(folder, 'densecl.ttf'))
      const env = { ...process.env, HOME: folder, FONTCONFIG_FILE: join(folder, 'fonts.conf') }
      // Boxes in place of letters are all of one width.
      const columns = async (word: string) => await drawnColumns(folder, word, env)
      const widths = [await columns('llll'), await columns('eeee'), await columns('WWWW')]
      assert.ok(widths[0]! > 0 && widths[0]! < widths[1]! && widths[1]! < widths[2]!, widths.join(', '))
      assert.ok((await columns('λ→ä×')) > 0)
    }),
)

test.run()
