// What the compiler does not see: mistakes with types (typescript-eslint), and the layout of src, which `mayImport` states.
import eslint from '@eslint/js'
import { defineConfig } from 'eslint/config'
import tseslint from 'typescript-eslint'
import { local } from './scripts/lintRules.mjs'

// Each folder of src and those that it may import: the floors of the house from the ground up (docs/architecture.md).
const mayImport = {
  tensor: [],
  files: ['tensor'],
  distributed: ['tensor'],
  autograd: ['tensor'],
  ops: ['tensor', 'distributed', 'autograd'],
  nn: ['tensor', 'distributed', 'autograd', 'ops'],
  optim: ['tensor', 'autograd', 'ops'],
  data: ['tensor', 'files'],
  weights: ['tensor', 'files', 'ops', 'nn'],
  onnx: ['tensor', 'files', 'autograd', 'ops', 'nn', 'detection'],
  run: ['tensor', 'files', 'nn', 'optim', 'data'],
  methods: ['tensor', 'files', 'distributed', 'autograd', 'ops', 'nn', 'optim', 'data', 'run'],
  eval: ['tensor', 'files', 'distributed', 'autograd', 'ops', 'nn', 'optim', 'data', 'detection', 'weights', 'run'],
  detection: ['tensor', 'autograd', 'ops', 'nn', 'data', 'weights'],
  report: ['tensor', 'files', 'ops', 'nn', 'data', 'methods', 'run', 'eval'],
  selftest: ['tensor', 'files', 'autograd', 'ops', 'nn', 'optim', 'data', 'detection'],
  train: [
    'tensor',
    'files',
    'distributed',
    'autograd',
    'ops',
    'nn',
    'optim',
    'data',
    'weights',
    'methods',
    'run',
    'eval',
    'report',
    'selftest',
  ],
  study: ['tensor', 'files', 'nn', 'data', 'weights', 'run', 'methods', 'eval', 'report', 'selftest', 'train'],
  bench: [
    'tensor',
    'files',
    'distributed',
    'autograd',
    'ops',
    'nn',
    'optim',
    'data',
    'detection',
    'run',
    'methods',
    'eval',
    'report',
    'train',
  ],
  cli: [
    'tensor',
    'files',
    'distributed',
    'ops',
    'nn',
    'data',
    'weights',
    'onnx',
    'methods',
    'run',
    'eval',
    'report',
    'selftest',
    'train',
    'study',
    'bench',
    'detection',
  ],
}

export default defineConfig(
  { ignores: ['dist/', 'build*/', 'runs/', 'docs/', 'site/', 'src/tensor/nativeOps.ts'] },
  { linterOptions: { reportUnusedDisableDirectives: 'error' }, plugins: { local } },
  eslint.configs.recommended,
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.strictTypeChecked, tseslint.configs.stylisticTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      // Numeric loops index arrays whose bounds they know; noUncheckedIndexedAccess asks for a `!` that says so.
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/no-confusing-non-null-assertion': 'off',
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true, allowArray: true }],
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true, ignoreVoidReturningFunctions: true }],
      '@typescript-eslint/no-unused-vars': [
        'error',
        { argsIgnorePattern: '^_', varsIgnorePattern: '^_', destructuredArrayIgnorePattern: '^_' },
      ],
      '@typescript-eslint/no-empty-function': 'off',
      '@typescript-eslint/no-dynamic-delete': 'off', // of process.env
      // What comes from a file or another process is checked, although its type is a promise.
      '@typescript-eslint/no-unnecessary-condition': 'off',
      '@typescript-eslint/prefer-promise-reject-errors': ['error', { allowThrowingUnknown: true }],
    },
  },
  { files: ['src/**/*.ts'], rules: { 'local/layout': ['error', { mayImport }], 'local/spread': 'error' } },
  {
    files: ['**/*.mjs', '**/*.js'],
    languageOptions: {
      globals: Object.fromEntries(
        ['process', 'console', 'URL', 'Buffer', 'setTimeout', 'clearTimeout', 'performance'].map((name) => [name, 'readonly']),
      ),
    },
  },
)
