/** Command lines. What they name is not there, so that they end before any work. */
import { existsSync } from 'node:fs'

import fc from 'fast-check'

import { isModulePath, modulePath } from '../../../src/files/module.js'
import { explain, runProgram } from '../../../src/cli/program.js'
import { DenseclError } from '../../../src/tensor/errors.js'
import type { FuzzedReader } from '../reader.js'

// Below a file, so that not even root can make it.
const nowhere = '/dev/null/at/all'
const absent = `${nowhere}/weights.pth`

/** What a command is given at its end, where it would do something without; commander takes the last of two. */
const stops: Readonly<Record<string, readonly string[]>> = {
  pretrain: ['--data', nowhere, '--format', 'folder', '--out', nowhere, '--knn-data', nowhere],
  study: ['--images', nowhere, '--out', nowhere],
  'eval correspondence': [absent, '--data', nowhere, '--out', nowhere],
  'eval knn': [absent, '--train', nowhere, '--val', nowhere, '--out', nowhere],
  'eval linear': [absent, '--train', nowhere, '--val', nowhere, '--out', nowhere],
  'eval svm': [absent, '--data', nowhere, '--out', nowhere],
  'eval low-shot': [absent, '--data', nowhere, '--out', nowhere],
  'eval finetune': [absent, '--train', nowhere, '--val', nowhere, '--out', nowhere],
  'eval detection': [absent, '--data', nowhere, '--out', nowhere],
  'eval segmentation': [absent, '--data', nowhere, '--out', nowhere],
  export: [absent, '--out', nowhere],
  import: [absent, '--out', nowhere],
  detect: ['--weights', absent, '--out', nowhere],
  predict: ['--weights', absent],
  search: ['--weights', absent, '--out', nowhere],
  embed: ['--weights', absent, '--out', nowhere],
  match: ['--weights', absent, '--out', nowhere],
  report: [nowhere, '--out', nowhere],
  watch: [nowhere, '--port', 'none'],
  'check-data': [nowhere],
  pack: [nowhere, '--out', nowhere],
  frames: [nowhere, '--out', nowhere],
  bench: ['--precision', 'none', '--data', nowhere, '--architecture', 'none', '--model', 'none', '--kernels', 'none'],
  doctor: ['--no-such-flag'],
}

const values = fc.constantFrom(
  ...['0', '1', '-1', '1.5', '1e309', 'NaN', '', ' ', 'x', '[', '[1,2]', '[2,1]', '{}', 'null', 'true', '9e14', '99999999999', '1e-400'],
  ...[
    'auto',
    'cpu',
    'cuda',
    'cuda:99',
    'f32',
    'bf16',
    'adamw',
    'resnet',
    'densecl',
    './none.js',
    'file:x/',
    '/',
    '.',
    '__proto__',
    'constructor',
    '0x10',
    '5,5',
  ],
)
const keys = fc.constantFrom(
  ...[
    'lr',
    'epochs',
    'data',
    'format',
    'image-size',
    'imageSize',
    'batch-size',
    'workers',
    'threads',
    'device',
    'precision',
    'method',
    'backbone',
  ],
  ...[
    'backboneOptions',
    'depth',
    'crop-scale',
    'milestones',
    'schedule',
    'queue-length',
    'norm-groups',
    'preset',
    'config',
    'resume',
    'overwrite',
  ],
  ...['json', 'help', 'out', 'size', 'seeds', 'port', 'point', 'seed', 'most', 'threshold', 'k', 'temperature', 'costs', 'for', 'quality'],
  ...[
    'max-broken',
    'shard-megabytes',
    'layer',
    'peer',
    'batch',
    'model',
    'architecture',
    'check',
    'splits',
    'protocol',
    'voc-splits',
    'feature',
  ],
  ...['percent', 'labelled', 'lr', 'head-multiplier', 'choose-by', 'test-every', 'top', 'score', 'anchors', 'scales', 'style', 'force'],
  ...['hidden', 'featDim', 'num-grid', 'blur-sigma', 'jitter', 'init', '__proto__', 'constructor', 'version', 'x', ''],
)
const argument = fc.oneof(
  fc.tuple(keys, values).map(([key, value]) => [`--${key}`, value]),
  fc.tuple(keys, values).map(([key, value]) => [`--${key}=${value}`]),
  fc.tuple(keys, values).map(([key, value]) => [`${key}=${value}`]),
  keys.map((key) => [`--${key}`]),
  values.map((value) => [value]),
)
const line = fc
  .tuple(fc.constantFrom(...Object.keys(stops)), fc.array(argument, { maxLength: 5 }))
  .map(([command, args]) => [...command.split(' '), ...args.flat()])

/** Arguments one after the other with NULs between. */
const encoded = (args: readonly string[]): Buffer => Buffer.from(args.join('\0'))

export const argv: FuzzedReader = {
  file: 'fuzzed',
  names: /./,
  seeds: () => [
    ...Object.keys(stops).map((command) => encoded(command.split(' '))),
    encoded(['pretrain', '--preset', 'quick', 'lr=0.1', '--crop-scale', '[0.2, 1]', 'milestones=[1,2]']),
    encoded(['match', 'scene:3', '--point', '0.5,0.5', '--size', '64']),
    encoded(['bench', 'conv2d', '--batch', '2', '--precision', 'f32']),
    encoded(['--version']),
    encoded([]),
  ],
  words: ['\0', '=', '--', '-', ',', '[', ']', '--json\0', '__proto__', '\0--\0', 'pretrain\0', 'eval\0knn\0'],
  structured: () => line.map(encoded),
  async read(_, bytes) {
    const args = Buffer.from(bytes).toString('utf8').split('\0')
    const command = Object.keys(stops).find((name) => args.slice(0, name.split(' ').length).join(' ') === name)
    // Whatever comes behind -- is no flag.
    const before = args.includes('--') ? args.slice(0, args.indexOf('--')) : args
    // The code of a module is run, and may be any file of this machine.
    if (before.some((each) => isModulePath(each) && existsSync(modulePath(each.replace(/^[^=]*=/, ''))))) return
    try {
      await runProgram([...before, ...(stops[command ?? ''] ?? ['--no-such-flag'])])
    } catch (error) {
      if (explain(error).mistake === true) throw error
      throw error instanceof DenseclError ? error : new DenseclError('CONFIG', String(error))
    } finally {
      for (const signal of ['SIGINT', 'SIGTERM']) process.removeAllListeners(signal)
    }
  },
}
