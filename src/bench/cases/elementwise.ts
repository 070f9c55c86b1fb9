import { runPositional } from '../../tensor/native.js'
import { type FamilyCases, map, mapSize } from './benchCase.js'

export const elementwiseCases = {
  concat: [
    {
      name: 'two maps of 256 channels',
      flops: () => 0,
      prepare(s) {
        const tensors = [s.output([s.batch, 56, 56, 512]), s.values(map(s.batch)), s.values(map(s.batch))]
        return () => runPositional('concat', tensors)
      },
    },
  ],
  dropout: [
    {
      name: '56x56x256',
      flops: (n) => n * mapSize,
      prepare(s) {
        const tensors = [s.output(map(s.batch)), s.values(map(s.batch))]
        return () => runPositional('dropout', tensors, [0.5, 7, 1, 1])
      },
    },
  ],
  relu: [
    {
      name: '56x56x256',
      flops: (n) => n * mapSize,
      prepare(s) {
        const tensors = [s.output(map(s.batch)), s.values(map(s.batch))]
        return () => runPositional('relu', tensors)
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
        const tensors = [s.output(map(s.batch)), s.values(map(s.batch)), undefined]
        return () => runPositional('scale', tensors, [0.5])
      },
    },
  ],
} satisfies FamilyCases
