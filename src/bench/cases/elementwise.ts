import { runNative } from '../../tensor/native.js'
import { type FamilyCases, map, mapSize } from './benchCase.js'

export const elementwiseCases = {
  dropout: [
    {
      name: '56x56x256',
      flops: (n) => n * mapSize,
      prepare(s) {
        const tensors = { y: s.output(map(s.batch)), x: s.values(map(s.batch)) }
        return () => runNative('dropout', tensors, { probability: 0.5, seed: 7, image: 1, channels: 1 })
      },
    },
  ],
  relu: [
    {
      name: '56x56x256',
      flops: (n) => n * mapSize,
      prepare(s) {
        const tensors = { y: s.output(map(s.batch)), x: s.values(map(s.batch)) }
        return () => runNative('relu', tensors)
      },
      peer: { op: 'relu', numbers: (n) => [...map(n)] },
    },
  ],
  reshape: 'it moves nothing',
  scale: [
    {
      name: '56x56x256',
      flops: (n) => n * mapSize,
      prepare(s) {
        const tensors = { y: s.output(map(s.batch)), x: s.values(map(s.batch)) }
        return () => runNative('scale', tensors, { number: 0.5 })
      },
    },
  ],
} satisfies FamilyCases
