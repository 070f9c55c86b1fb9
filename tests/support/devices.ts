/** The device that this process tests: `simt`, `cuda:0`, or the CPU itself. tests/run.ts sets it, with the addon that has it. */
export const device = process.env.DENSECL_TEST_DEVICE ?? 'simt'
