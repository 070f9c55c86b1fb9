/** The devices that tests run on beside the CPU: forms of the addon, each in a process of its own. */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'

/** The device that this process tests: `simt` or `cuda:0`. tests/run.ts sets it, with the addon that has it. */
export const device = process.env.DENSECL_TEST_DEVICE ?? 'simt'

/** False with shuffled threads and under the sanitizer: they look at every kernel, not at whole runs. */
export const thorough = process.env.DENSECL_SIMT_SHUFFLE === undefined && process.env.LD_PRELOAD === undefined

export interface Variant {
  name: string
  env: Record<string, string>
  /** Why it cannot run here. */
  missing?: string
}

/** `simt` as it is, with the threads of a block in shuffled order, under AddressSanitizer, and the GPU. */
export function variants(root: string): Variant[] {
  const addon = (folder: string): string => join(root, folder, 'Release', 'densecl.node')
  const built = (folder: string, command: string): { missing?: string } =>
    existsSync(addon(folder)) ? {} : { missing: `${folder} is not built: npm run ${command}` }
  const simt = { DENSECL_TEST_DEVICE: 'simt', DENSECL_ADDON: addon('build-simt') }
  return [
    { name: 'simt', env: simt, ...built('build-simt', 'build:simt') },
    { name: 'simt shuffled', env: { ...simt, DENSECL_SIMT_SHUFFLE: '1', DENSECL_TEST_RUNS: '10' }, ...built('build-simt', 'build:simt') },
    {
      name: 'simt sanitized',
      env: { ...sanitized(root), DENSECL_TEST_RUNS: '8' },
      ...built('build-simt-asan', 'build:simt -- --sanitize'),
    },
    // Kernels are what is tested: none may be left out for a verdict.
    {
      name: 'cuda:0',
      env: { DENSECL_TEST_DEVICE: 'cuda:0', DENSECL_ADDON: addon('build-cuda'), DENSECL_CHECK: '0' },
      ...missingGpu(addon('build-cuda')),
    },
  ]
}

/** Node itself is not built with AddressSanitizer, so its library must be loaded first. */
export function sanitized(root: string): Record<string, string> {
  const library = spawnSync('g++', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).stdout?.trim() ?? ''
  return {
    DENSECL_TEST_DEVICE: 'simt',
    DENSECL_ADDON: join(root, 'build-simt-asan', 'Release', 'densecl.node'),
    LD_PRELOAD: library,
    ASAN_OPTIONS: 'allocator_may_return_null=1:detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=1',
  }
}

/**
 * The CPU's ops under a sanitizer: the addon of the CPU alone, which has UndefinedBehaviorSanitizer too, else that of `simt`. Undefined
 * where neither is built.
 */
export function sanitizedCpu(root: string): Record<string, string> | undefined {
  const addon = ['build-cpu-asan', 'build-simt-asan'].map((folder) => join(root, folder, 'Release', 'densecl.node')).find(existsSync)
  return addon === undefined
    ? undefined
    : { ...sanitized(root), DENSECL_TEST_DEVICE: 'cpu', DENSECL_ADDON: addon, UBSAN_OPTIONS: 'print_stacktrace=1' }
}

function missingGpu(addon: string): { missing?: string } {
  if (!existsSync(addon)) return { missing: 'build-cuda is not built: npm run build:cuda' }
  const program = `const addon = require(${JSON.stringify(addon)}); addon.initialize(Error); addon.deviceTraits('cuda:0')`
  return spawnSync(process.execPath, ['-e', program]).status === 0 ? {} : { missing: 'no CUDA device here' }
}
