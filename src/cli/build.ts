import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

import { cudaPackage, isClone, packageRoot } from '../tensor/addon.js'
import { fail } from '../tensor/errors.js'
import { examples, type Register } from './command.js'

export const register: Register = (program, done) => {
  program
    .command('build')
    .description('compile the addon of this package, where none was prebuilt or for CUDA; needs CMake and g++ or clang, or nvcc')
    .option('--cuda', 'with the CUDA backend: needs the CUDA toolkit, 12.0 or later')
    .option('--mpi', 'with MPI, for several processes on CPUs: needs Open MPI or MPICH; the form beside the one that is in use')
    .addHelpText(
      'after',
      examples([
        ['npx densecl build', 'on a system without a prebuilt addon; doctor says which is in use'],
        ['npx densecl build --cuda', `instead of installing ${cudaPackage}; DENSECL_ARCHITECTURES="80-real" builds for one GPU`],
      ]),
    )
    .action((flags: { cuda?: boolean; mpi?: boolean }) => {
      if (flags.cuda === true && flags.mpi === true) fail('CONFIG', 'build: expected --cuda or --mpi, one at a time')
      const script = (name: string, ...words: string[]): string[] => [join(packageRoot, 'scripts', name), ...words]
      // A clone's own addon is node-gyp's.
      const build =
        flags.cuda === true
          ? script('native.mjs', 'cuda')
          : flags.mpi === true
            ? script('native.mjs', 'mpi')
            : isClone
              ? script('install.mjs', '--force')
              : script('native.mjs', 'cpu', '--into', 'build')
      console.log('compiling the addon; this takes some minutes')
      const { status } = spawnSync(process.execPath, build, { stdio: 'inherit' })
      done(status === 0 ? 0 : 1)
    })
}
