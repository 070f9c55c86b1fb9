import { runNative } from '../../tensor/native.js'
import type { BenchCase, FamilyCases } from './benchCase.js'

const product = (name: string, batch: (n: number) => number, m: number, n: number, k: number, transposeB: boolean): BenchCase => ({
  name,
  flops: (images) => 2 * batch(images) * m * n * k,
  prepare(s) {
    const [a, b] = [s.values([batch(s.batch), m, k]), s.values([batch(s.batch), ...(transposeB ? [n, k] : [k, n])])]
    const y = s.output([batch(s.batch), m, n])
    return () => runNative('matmul', { y, a, b }, { transposeA: false, transposeB })
  },
})

export const matmulCases = {
  matmul: [
    product('1024 x 1024 x 1024', () => 1, 1024, 1024, 1024, false),
    product('49 positions of 2048 channels against each other', (n) => n, 49, 49, 2048, true),
    product('12 heads of attention, 196 positions', (n) => 12 * n, 196, 196, 64, true),
    product('12 heads of attention, 196 positions, values', (n) => 12 * n, 196, 64, 196, false),
  ],
} satisfies FamilyCases
