// The sources of the CPU's addon, one a line, for binding.gyp and for seeing whether a makefile still lists them.
import { readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const files = (folder, fits) =>
  readdirSync(join(root, folder))
    .filter(fits)
    .map((name) => `${folder}/${name}`)

export const nativeSources = () => [
  ...['addon', 'core', 'cpu', 'jpeg'].flatMap((folder) => files(`native/${folder}`, (name) => name.endsWith('.cpp'))),
  // Some of its files are included by another.
  ...files('native/third_party/libjpeg-turbo', (name) => name.endsWith('.c') && !['jdcolext.c', 'jdcol565.c', 'jstdhuff.c'].includes(name)),
]

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log(nativeSources().join('\n'))
