/** The kernels that nothing can stand in for, against the CPU: whole ops with their gradients at moderate sizes. */
import { pixelTensor, renderViews } from '../data/augment.js'
import { batchNorm } from '../ops/batchNorm.js'
import { add } from '../ops/arithmetic.js'
import { concat } from '../ops/concat.js'
import { conv2d } from '../ops/conv2d.js'
import { dropout, relu } from '../ops/elementwise.js'
import { layerNorm } from '../ops/layerNorm.js'
import { crossEntropy } from '../ops/losses.js'
import { pad } from '../ops/pad.js'
import { permute } from '../ops/permute.js'
import { avgPool2d, maxPool2d } from '../ops/pool2d.js'
import { resizeBilinear } from '../ops/resizeBilinear.js'
import { gatherRows, l2Normalize } from '../ops/similarity.js'
import { slice } from '../ops/slice.js'
import { sumRows } from '../ops/sumRows.js'
import { optimizerNames, optimizerOf } from '../optim/choose.js'
import { clipByGlobalNorm } from '../optim/clip.js'
import { checkFinite } from '../optim/sgd.js'
import { Graph } from '../tensor/graph.js'
import { native } from '../tensor/native.js'
import { type FloatDType, scope, Tensor, withDevice } from '../tensor/tensor.js'
import { compareAll, type Finding, noise, noiseTensor, type Other, type Result, resultOf, rounded, withGradients } from './compare.js'
import { detectionCases } from './detection.js'

const image = [4, 23, 21, 40]

/** Distinct values: which is the largest must not depend on rounding. */
const ranks = (device: string, shape: readonly number[]): Tensor =>
  Tensor.from(
    noise(
      shape.reduce((a, b) => a * b, 1),
      5,
    ).map((value, i) => Math.round(value * 50) + i / 2 ** 17),
    shape,
    'f32',
    device,
  )

const norm = (dtype: FloatDType): Other => ({
  shape: `batchNorm of x [${image}], ${dtype}, 2 groups, ReLU and residual`,
  run: (device) => {
    const make = (shape: readonly number[], seed: number, of = dtype): Tensor => noiseTensor(device, shape, of, seed)
    const [x, residual, weight] = [make(image, 1), make(image, 2), make([40], 3, 'f32')]
    // ReLU lets whole channels through or none: a value within rounding of zero could fall to either side.
    const bias = Tensor.from(
      Float32Array.from({ length: 40 }, (_, c) => (c % 2 === 0 ? 4 : -4)),
      [40],
    )
    return withGradients(
      (a, w, b, r) => batchNorm(a, w, b, Tensor.zeros([40]), Tensor.full([40], 1), { train: true, groups: 2, relu: true, residual: r }),
      device,
      dtype,
      x,
      weight,
      bias,
      residual,
    )
  },
  ...(dtype === 'bf16' ? { bounds: [0.02, 0.03, 0.02, 0.02, 0.02] } : {}),
})

/** Cases by the name of the part; each is compared with the CPU's values of the same program. */
export const others: Readonly<Record<string, readonly Other[]>> = {
  transfers: [
    {
      shape: 'write, read, startRead and startUpload of 3000001 values',
      run: (device) => {
        const values = noise(3_000_001, 1)
        const tensor = Tensor.from(values, [values.length])
        const there = Tensor.empty([values.length])
        native.pin(values, device)
        try {
          native.startUpload(there.handle, values, 0)
          native.useUpload(there.handle, 0)
          const read = there.startRead()
          native.finishUpload(there.handle, 0)
          native.release(there.handle, 0)
          return [resultOf('write', tensor), { name: 'startUpload', values: read(), dtype: 'f32' }]
        } finally {
          native.unpin(values, device)
        }
      },
      bounds: [0, 0],
    },
  ],
  elementwise: [
    {
      shape: `add, relu and concat of [${image}], f32`,
      run: (device) =>
        withGradients(
          (a, b) => concat([relu(add(a, b)), a]),
          device,
          'f32',
          noiseTensor(device, image, 'f32', 1),
          noiseTensor(device, image, 'f32', 2),
        ),
    },
    {
      shape: `conversion and dropout of [${image}], bf16`,
      run: (device) => [resultOf('y', rounded(dropout(noiseTensor(device, image, 'f32', 1), 0.3, 7), 'bf16'))],
    },
    { shape: `sumRows of [${image}], f32`, run: (device) => [resultOf('sums', sumRows(noiseTensor(device, image, 'f32', 1)))] },
  ],
  layout: [
    {
      shape: `permute of [${image}], f32`,
      run: (device) => withGradients((x) => permute(x, [0, 3, 1, 2]), device, 'f32', noiseTensor(device, image, 'f32', 1)),
      bounds: [0, 0],
    },
    {
      shape: `slice of pad of [${image}], f32`,
      run: (device) => {
        const border: [number, number][] = [
          [0, 0],
          [1, 2],
          [3, 0],
          [0, 4],
        ]
        const part = (x: Tensor): Tensor => slice(pad(x, border, 2), [undefined, [2], [undefined, undefined, -2], [8, 40]])
        return withGradients(part, device, 'f32', noiseTensor(device, image, 'f32', 1))
      },
      bounds: [0, 0],
    },
  ],
  batchNorm: [norm('f32'), norm('bf16')],
  pooling: [
    {
      shape: `maxPool2d of x [${image}], kernel 3, stride 2, padding 1, f32`,
      run: (device) => withGradients((x) => maxPool2d(x, { kernel: 3, stride: 2, padding: 1 }), device, 'f32', ranks(device, image)),
    },
    {
      shape: `avgPool2d of x [${image}], kernel 3, stride 2, padding 1, f32`,
      run: (device) =>
        withGradients((x) => avgPool2d(x, { kernel: 3, stride: 2, padding: 1 }), device, 'f32', noiseTensor(device, image, 'f32', 1)),
    },
    {
      shape: `resizeBilinear of x [${image}] to 31x17, f32`,
      run: (device) => withGradients((x) => resizeBilinear(x, [31, 17]), device, 'f32', noiseTensor(device, image, 'f32', 1)),
    },
  ],
  losses: [
    {
      shape: 'crossEntropy of logits [300,37] with weights of classes, f32',
      run: (device) =>
        withGradients(
          (x) =>
            crossEntropy(
              x,
              Tensor.from(
                Int32Array.from({ length: 300 }, (_, i) => (i % 9 === 0 ? -100 : (i * 5) % 37)),
                [300],
                'i32',
              ),
              {
                weight: Tensor.from(
                  noise(37, 2).map((value) => value + 1.5),
                  [37],
                ),
              },
            ),
          device,
          'f32',
          noiseTensor(device, [300, 37], 'f32', 1),
        ),
    },
  ],
  layerNorm: (['f32', 'bf16'] as const).map((dtype) => ({
    shape: `layerNorm of x [${image}], ${dtype}`,
    run: (device) =>
      withGradients(
        (x, weight, bias) => layerNorm(x, weight, bias),
        device,
        dtype,
        noiseTensor(device, image, dtype, 1),
        noiseTensor(device, [40], 'f32', 2),
        noiseTensor(device, [40], 'f32', 3),
      ),
    ...(dtype === 'bf16' ? { bounds: [0.02, 0.02, 0.02, 0.02] } : {}),
  })),
  groupedConv2d: [1, 5].map((channels) => ({
    shape: `conv2d of x [${image}] in groups of ${channels}, kernel 3, stride 2, padding 1, f32`,
    run: (device) =>
      withGradients(
        (x, weight, bias) => conv2d(x, weight, bias, { stride: 2, padding: 1, groups: 40 / channels }),
        device,
        'f32',
        noiseTensor(device, image, 'f32', 1),
        noiseTensor(device, [40, 3, 3, channels], 'f32', 2),
        noiseTensor(device, [40], 'f32', 3),
      ),
  })),
  detection: detectionCases,
  similarity: [
    {
      shape: 'l2Normalize of x [300,72], f32',
      run: (device) => withGradients((x) => l2Normalize(x), device, 'f32', noiseTensor(device, [300, 72], 'f32', 1)),
    },
    {
      shape: 'gatherRows of x [5,60,24], f32',
      run: (device) =>
        withGradients(
          (x) =>
            gatherRows(
              x,
              Tensor.from(
                Int32Array.from({ length: 250 }, (_, i) => (i * 7) % 60),
                [5, 50],
                'i32',
              ),
            ),
          device,
          'f32',
          noiseTensor(device, [5, 60, 24], 'f32', 1),
        ),
    },
  ],
  optimiser: optimizerNames.map((name) => ({
    shape: `${name} with an EMA target, clipping, and checkFinite, of parameters [501] and [7,33], f32`,
    run: (device: string) => {
      const sets = [1, 2, 3].map(
        (seed) =>
          new Map([
            ['a', noiseTensor(device, [501], 'f32', seed)],
            ['b', noiseTensor(device, [7, 33], 'f32', seed + 10)],
          ]),
      )
      const [parameters, following, drawn] = sets as [Map<string, Tensor>, Map<string, Tensor>, Map<string, Tensor>]
      const optimizer = optimizerOf({ optimizer: name, momentum: 0.9, weightDecay: 1e-4 }, parameters)
      const foundInf = Tensor.zeros([1], 'i32')
      for (let step = 0; step < 2; ++step) {
        const { gradients } = clipByGlobalNorm([...drawn.values()], 5)
        checkFinite(foundInf, gradients)
        optimizer.step(gradients, 0.1, { foundInf, emaTarget: { parameters: following, copies: new Map(), momentum: 0.9 } })
      }
      const results = [...parameters, ...following].map(([key, tensor]) => resultOf(key, tensor))
      optimizer.dispose()
      return results
    },
  })),
  augmentation: [
    {
      shape: 'augment of 4 views of 48x56 to 32x32, f32',
      run: () => {
        const pixels = pixelTensor({
          width: 56,
          height: 48,
          data: Uint8Array.from(noise(48 * 56 * 3, 1), (value, i) => 127 + 60 * Math.sin(i / 50) + 60 * value),
        })
        const out = Tensor.empty([4, 32, 32, 3])
        const crop = { top: 3, left: 5, height: 40, width: 45 }
        const view = { crop, adjust: [], grayscale: false, sigma: 0, flip: false }
        const views = [
          view,
          { ...view, flip: true, sigma: 1.5 },
          { ...view, grayscale: true },
          {
            ...view,
            adjust: [
              { kind: 'contrast' as const, value: 1.3 },
              { kind: 'hue' as const, value: 0.07 },
              { kind: 'saturation' as const, value: 0.7 },
            ],
          },
        ]
        renderViews(
          out,
          0,
          pixels,
          views.map((each) => ({ view: each, offset: 0, height: 48, width: 56 })),
        )
        return [resultOf('views', out)]
      },
      // Hue has jumps where two channels are equal.
      bounds: [1e-2],
    },
  ],
  graph: [
    {
      shape: 'four replays of a recorded step with batchNorm of x [64,1,1,48], f32',
      run: (device) => {
        const [x, state, weight] = [
          noiseTensor(device, [64, 1, 1, 48], 'f32', 1).keep(),
          noiseTensor(device, [64, 1, 1, 48], 'f32', 2).keep(),
          noiseTensor(device, [48], 'f32', 3).keep(),
        ]
        const [mean, variance] = [Tensor.zeros([48]).keep(), Tensor.full([48], 1).keep()]
        const graph = new Graph(device, () => batchNorm(add(x, state), weight, weight, mean, variance, { train: true, relu: true }))
        const results: Result[] = []
        for (let step = 0; step < 6; ++step) {
          state.write(noise(64 * 48, 100 + step))
          results.push(resultOf(`run ${step}`, graph.run()))
        }
        results.push(resultOf('running mean', mean))
        graph.dispose()
        for (const tensor of [x, state, weight, mean, variance]) tensor.dispose()
        return results
      },
    },
  ],
}

/** The kernels of a part, on `device` and on the CPU. */
export const checkOther = (device: string, part: string): Finding[] =>
  others[part]!.map(({ shape, run, bounds }) =>
    compareAll(
      shape,
      'the CPU',
      ...(([device, 'cpu'] as const).map((where) => scope(() => withDevice(where, () => run(where)))) as [Result[], Result[]]),
      bounds,
    ),
  )
