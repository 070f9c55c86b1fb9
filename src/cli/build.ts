import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

import { cudaPackage, isClone, packageRoot } from '../tensor/addon.js'
import { examples, type Register } from './command.js'

export const register: Register = (program, done) => {
  program
    .command('build')
    .description('compile the addon of this package, where none was prebuilt or for CUDA; needs CMake and g++ or clang, or nvcc')
    .option('--cuda', 'with the CUDA backend: needs the CUDA toolkit, 12.0 or later')
    .addHelpText(
      'after',
      examples([
        ['npx densecl build', 'on a system without a prebuilt addon; doctor says which is in use'],
        ['npx densecl build --cuda', `instead of installing ${cudaPackage}; DENSECL_ARCHITECTURES="80-real" builds for one GPU`],
      ]),
    )
    .action((flags: { cuda?: boolean }) => {
      const script = (name: string, ...words: string[]): string[] => [join(packageRoot, 'scripts', name), ...words]
      // A clone's own addon is node-gyp's.
      const build =
        flags.cuda === true
          ? script('native.mjs', 'cuda')
          : isClone
            ? script('install.mjs', '--force')
            : script('native.mjs', 'cpu', '--into', 'build')
      console.log('compiling the addon; this takes some minutes')
      const { status } = spawnSync(process.execPath, build, { stdio: 'inherit' })
      done(status === 0 ? 0 : 1)
    })
}
