/** ONNX models against the engine: node by node with PyTorch's functions behind onnx's checker, and by onnxruntime where it is. */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import convnext from '../../examples/convnext/convnext.js'
import { imagenetDeviation, imagenetMean, pixelTensor, renderView, wholeImage } from '../../src/data/augment.js'
import type { Box } from '../../src/data/boxes.js'
import { decode, type Pixels } from '../../src/data/decode.js'
import { detect, type FoundObject } from '../../src/detection/detect.js'
import { detectorOf } from '../../src/detection/detectorShape.js'
import { publishedPyramid } from '../../src/detection/maskRcnn.js'
import { styleOf } from '../../src/detection/styles.js'
import { normalisation as imagenet, saveClassifier } from '../../src/eval/classifierFile.js'
import { testView } from '../../src/eval/detectionBatches.js'
import { saveSegmenter } from '../../src/eval/segmenterFile.js'
import { Backbone, type BackboneKind, disposeHeads } from '../../src/nn/backbone.js'
import { Classifier } from '../../src/nn/classifier.js'
import { evaluation, type NormMode } from '../../src/nn/layers.js'
import { emptyState, type State } from '../../src/nn/module.js'
import { Fcn } from '../../src/nn/fcn.js'
import { dilated8, ResNet } from '../../src/nn/resnet.js'
import { writeOnnxDetector } from '../../src/onnx/detector.js'
import { onnxOutputs, writeOnnx } from '../../src/onnx/export.js'
import { rows } from '../../src/onnx/ops.js'
import * as ops from '../../src/engine.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { writeBackbone } from '../../src/weights/export.js'
import { hasModules, otherPython, python, runPython } from '../support/python.js'
import { unsettle } from '../support/states.js'
import { hasRealData, noRealData, realData, runCli, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('ONNX')

const normalisation = { mean: imagenetMean, deviation: imagenetDeviation }
const build = { random: new Random(3), dtype: 'f32' } as const
const oracles = [
  {
    name: 'torch',
    program: python,
    here: hasModules(python, 'torch', 'onnx'),
    missing: 'PyTorch or onnx is not installed for /usr/bin/python3',
  },
  {
    name: 'onnxruntime',
    program: otherPython,
    here: hasModules(otherPython, 'onnxruntime'),
    missing: 'onnxruntime is not installed (DENSECL_PYTHON names a Python that has it)',
  },
] as const

type Outputs = Record<string, { shape: number[]; values: number[] }>

/** What a model gives for images, and for heights and widths [N, 2] of those that are smaller than their batch. */
function run(
  oracle: (typeof oracles)[number],
  model: string,
  type: 'uint8' | 'float32',
  shape: readonly number[],
  values: ArrayLike<number>,
  sizes?: readonly (readonly [number, number])[],
): Outputs {
  const input = `${model}.json`
  const inputs = {
    images: { shape, type, values: Array.from(values) },
    ...(sizes === undefined ? {} : { sizes: { shape: [sizes.length, 2], type: 'int64', values: sizes.flat() } }),
  }
  writeFileSync(input, JSON.stringify({ inputs, with: oracle.name }))
  const script = join(packageRoot, 'tests', 'onnx', 'runOnnx.py')
  const { status, stdout, stderr } = spawnSync(oracle.program, ['-B', script, model, input], { encoding: 'utf8', maxBuffer: 2 ** 28 })
  assert.is(status, 0, stderr)
  return JSON.parse(stdout) as Outputs
}

/** Normal values of a shape. */
function drawn(seed: number, shape: readonly number[]): Tensor {
  const random = new Random(seed)
  return Tensor.from(
    Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => random.normal()),
    [...shape],
  )
}

const channelsFirst = (x: Tensor): Tensor => (x.shape.length === 4 ? ops.permute(x, [0, 3, 1, 2]) : x)

function assertSame(found: Outputs, expected: ReadonlyMap<string, Tensor>, about: string): void {
  assert.equal(Object.keys(found), [...expected.keys()], about)
  for (const [name, tensor] of expected) {
    const { shape, values } = found[name]!
    assert.equal(shape, [...tensor.shape], `${about} ${name}`)
    const own = Float32Array.from(tensor.data())
    const magnitude = own.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
    const worst = values.reduce((most, value, i) => Math.max(most, Math.abs(value - own[i]!)), 0)
    assert.ok(worst <= 1e-4 * magnitude, `${about} ${name}: ${worst} of ${magnitude}`)
  }
}

const expectedOf = (backbone: Backbone, x: Tensor): Map<string, Tensor> => {
  const maps = backbone.stages(x, evaluation)
  const pooled = ops.reshape(ops.adaptiveAvgPool2d(maps.at(-1)!, 1), [x.shape[0]!, backbone.channels])
  const names = onnxOutputs({ backbone })
  return new Map([...maps, pooled].map((map, i) => [names[i]!, channelsFirst(map)]))
}

for (const oracle of oracles)
  testWhere(oracle.here, oracle.missing, test, `maps of backbones at several sizes are the engine's, by ${oracle.name}`, () =>
    withFolder((folder) => {
      const backbones: Backbone[] = [
        new ResNet(build, { depth: 18, baseChannels: 8 }),
        new ResNet(build, { depth: 50, baseChannels: 4, strides: [1, 2, 1, 1], dilations: [1, 1, 2, 4] }),
        convnext.build(build, { depths: [1, 1, 2, 1], widths: [8, 12, 16, 24] }),
      ]
      for (const backbone of backbones) {
        unsettle(backbone.state())
        const path = join(folder, 'x.onnx')
        const outputs = onnxOutputs({ backbone })
        writeOnnx(path, { backbone }, { outputs, normalisation, raw: false, metadata: {} })
        for (const [n, h, w] of [
          [1, 64, 96],
          [3, 41, 73],
        ] as const)
          scope(() => {
            const x = drawn(n, [n, h, w, 3])
            const found = run(oracle, path, 'float32', [n, 3, h, w], channelsFirst(x).data())
            assertSame(found, expectedOf(backbone, x), `${backbone.name} ${n}x${h}x${w}`)
          })
        backbone.dispose()
      }
    }),
  )

/** Every op that a row writes, one behind the other, on maps and on rows of numbers. */
class Medley extends Backbone {
  readonly kind: BackboneKind = { name: 'medley', build: () => new Medley() }
  readonly options = {}
  readonly name = 'medley'
  readonly description = 'medley'
  readonly maps = [{ channels: 208, stride: 2 }]
  readonly #weights = new Map<string, Tensor>()

  constructor() {
    super(build)
    const random = new Random(5)
    for (const [name, shape] of Object.entries({ conv: [8, 3, 3, 3], mix: [8, 8], other: [8, 8], bias: [8], row: [1, 1, 1, 8] }))
      this.#weights.set(
        name,
        Tensor.from(
          Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => random.normal() / 3),
          shape,
        ).keep(),
      )
  }

  stages(images: Tensor): Tensor[] {
    const weight = (name: string): Tensor => this.#weights.get(name)!
    return scope(() => {
      const x = ops.conv2d(images, weight('conv'), undefined, { stride: 2, padding: 1 })
      const [n, h, w, c] = x.shape as [number, number, number, number]
      const positive = ops.add(ops.abs(x), Tensor.full([1], 0.5))
      const parts = [
        ...[
          ops.exp(ops.scale(x, 0.1)),
          ops.log(positive),
          ops.sqrt(positive),
          ops.reciprocal(positive),
          ops.sigmoid(x),
          ops.tanh(x),
          ops.square(x),
        ],
        ...[
          ops.silu(x),
          ops.gelu(x),
          ops.relu(x),
          ops.pow(positive, Tensor.full([1], 1.5)),
          ops.div(x, positive),
          ops.sub(x, weight('row')),
        ],
        ...[ops.mul(x, ops.softmax(x)), ops.maximum(x, ops.logSoftmax(x, { axis: 1 })), ops.minimum(x, ops.l2Normalize(x))],
        ...[ops.layerNorm(x, weight('bias')), ops.avgPool2d(x, { kernel: 3, stride: 1, padding: 1 })],
        ...[ops.resizeBilinear(ops.maxPool2d(x, { kernel: 2 }), [5, 7]), ops.resizeBilinear(x, [2 * h, 2 * w], { alignCorners: true })].map(
          (y) => ops.mul(x, ops.mean(y, { axes: [1, 2], keepDims: true })),
        ),
        ops.mul(x, ops.reshape(ops.sum(ops.scale(x, 0.01), { axes: [1, 2] }), [n, 1, 1, c])),
        ops.reshape(ops.matmul(ops.reshape(x, [n * h * w, c]), weight('other'), { transposeB: true }), [n, h, w, c]),
        ops.reshape(ops.linear(ops.reshape(x, [n * h * w, c]), weight('mix'), weight('bias')), [n, h, w, c]),
        ops.mul(x, ops.mean(ops.upsample2d(x, 2), { axes: [1, 2], keepDims: true })),
        ops.permute(ops.concat([ops.permute(ops.concat([x, x]), [0, 3, 1, 2])], 1), [0, 2, 3, 1]),
      ]
      return [ops.concat(parts)]
    })
  }

  state(): State {
    const state = emptyState()
    for (const [name, tensor] of this.#weights) state.parameters.set(name, tensor)
    return state
  }
}

for (const oracle of oracles)
  testWhere(oracle.here, oracle.missing, test, `every op that is written is the engine's, by ${oracle.name}`, () =>
    withFolder((folder) => {
      const backbone = new Medley()
      const path = join(folder, 'medley.onnx')
      writeOnnx(path, { backbone }, { outputs: ['feature5'], normalisation, raw: false, metadata: {} })
      scope(() => {
        const x = drawn(1, [2, 24, 32, 3])
        const found = run(oracle, path, 'float32', [2, 3, 24, 32], channelsFirst(x).data())
        assertSame(found, new Map([['feature5', channelsFirst(backbone.stages(x)[0]!)]]), 'medley')
      })
      const types: Record<string, string> = {
        ...{ maxPool2d: 'MaxPool', avgPool2d: 'AveragePool', scale: 'Mul', square: 'Mul', silu: 'Sigmoid', gelu: 'Erf', linear: 'Gemm' },
        ...{ layerNorm: 'ReduceMean', l2Normalize: 'ReduceL2', resizeBilinear: 'Resize', sum: 'ReduceSum', permute: 'Transpose' },
        ...{ maximum: 'Max', minimum: 'Min', broadcastTo: 'Expand' },
      }
      const model = readFileSync(path, 'latin1').toLowerCase()
      // Convolutions and batch norms are in the networks above.
      for (const name of Object.keys(rows).filter((each) => !/conv2d|batchNorm/i.test(each)))
        assert.ok(model.includes((types[name] ?? name).toLowerCase()), name)
      backbone.dispose()
    }),
  )

/** A convolution of stride 2, and what `after` makes of it. */
class Followed extends Backbone {
  readonly kind: BackboneKind = { name: 'followed', build: () => new Followed(this.after) }
  readonly options = {}
  readonly name = 'followed'
  readonly description = 'followed'
  readonly maps = [{ channels: 8, stride: 2 }]
  readonly #weight = Tensor.from(
    Float32Array.from({ length: 8 * 27 }, (_, i) => Math.sin(i)),
    [8, 3, 3, 3],
  ).keep()

  constructor(readonly after: (x: Tensor) => Tensor) {
    super(build)
  }

  stages(images: Tensor): Tensor[] {
    return scope(() => [this.after(ops.conv2d(images, this.#weight, undefined, { stride: 2, padding: 1 }))])
  }

  state(): State {
    const state = emptyState()
    state.parameters.set('weight', this.#weight)
    return state
  }
}

for (const oracle of oracles)
  testWhere(
    oracle.here,
    oracle.missing,
    test,
    `maps that grow, and sums over nothing, are the engine's at odd sizes, by ${oracle.name}`,
    () =>
      withFolder((folder) => {
        const halved = (x: Tensor): Tensor => ops.maxPool2d(x, { kernel: 3, stride: 2, padding: 1 })
        const networks: Record<string, (x: Tensor) => Tensor> = {
          nearest: (x) => ops.upsample2d(x, 2),
          bilinear: (x) => ops.upsample2d(x, [2, 3], 'bilinear'),
          transposed: (x) => ops.convTranspose2d(x, Tensor.full([8, 2, 2, 8], 0.1)),
          twice: (x) => ops.upsample2d(ops.upsample2d(halved(halved(x)), 2, 'bilinear'), 3),
          joined: (x) => ops.add(x, ops.upsample2d(ops.avgPool2d(x, { kernel: 2 }), 2)),
          'sum over no axis': (x) => ops.sum(x, { axes: [] }),
          'sum over an axis of one': (x) => ops.reshape(ops.sum(ops.reshape(x, [...x.shape, 1]), { axes: 4, keepDims: true }), x.shape),
        }
        for (const [name, after] of Object.entries(networks)) {
          const backbone = new Followed(after)
          const path = join(folder, 'x.onnx')
          writeOnnx(path, { backbone }, { outputs: ['feature5'], normalisation, raw: false, metadata: {} })
          // One that joins what it halved and doubled takes no odd sizes.
          for (const [n, h, w] of [name === 'joined' ? [2, 12, 20] : [1, 13, 7], [3, 8, 12]] as const)
            scope(() => {
              const x = drawn(n, [n, h, w, 3])
              const found = run(oracle, path, 'float32', [n, 3, h, w], channelsFirst(x).data())
              assertSame(found, new Map([['feature5', channelsFirst(backbone.stages(x)[0]!)]]), `${name} ${n}x${h}x${w}`)
            })
          backbone.dispose()
        }
      }),
  )

test('what a network computes from the size of its images and writes into no shape is refused', () =>
  withFolder((folder) => {
    const sizes = (x: Tensor): [number, number] => [x.shape[1]!, x.shape[2]!]
    const networks: [after: (x: Tensor) => Tensor, words: RegExp][] = [
      [(x) => ops.mul(x, 1 / (x.shape[1]! * x.shape[2]!)), /the number factor of scale not to depend on the image size but received 0\.00/],
      [(x) => ops.mul(x, ops.avgPool2d(x, { kernel: sizes(x) })), /the number kernelH of avgPool2d/],
      [
        (x) => ops.add(x, Tensor.full([1], x.shape[1]!)),
        /the constant b of add not to depend on the image size but received 33 and then 65$/,
      ],
      [(x) => ops.add(x, Tensor.zeros([...sizes(x), 1])), /the constant b of add .* received \[33,49,1\] and then \[65,113,1\]$/],
    ]
    for (const [after, words] of networks) {
      const backbone = new Followed(after)
      const written = { outputs: ['feature5'], normalisation, raw: false, metadata: {} }
      throwsError(() => writeOnnx(join(folder, 'x.onnx'), { backbone }, written), 'ARGUMENT', words)
      backbone.dispose()
    }
    assert.not(existsSync(join(folder, 'x.onnx')))
  }))

for (const oracle of oracles)
  testWhere(
    oracle.here && hasRealData,
    oracle.here ? noRealData : oracle.missing,
    test,
    `a classifier takes photographs as bytes, by ${oracle.name}`,
    () =>
      withFolder(async (folder) => {
        const model = new Classifier(build, new ResNet(build, { depth: 18, baseChannels: 8 }), 5)
        unsettle(model.state())
        const path = join(folder, 'x.onnx')
        writeOnnx(
          path,
          { backbone: model.backbone, classifier: model },
          { outputs: ['logits', 'probabilities'], normalisation, raw: true, metadata: {} },
        )
        const photos = join(realData, 'imagenette224', 'val')
        const file = join(photos, readdirSync(photos)[0]!, readdirSync(join(photos, readdirSync(photos)[0]!))[0]!)
        const image = await decode(readFileSync(file), file)
        scope(() => {
          const x = Tensor.empty([1, image.height, image.width, 3])
          renderView(x, 0, pixelTensor(image), wholeImage(image))
          const logits = model.logits(x, evaluation)
          const found = run(oracle, path, 'uint8', [1, image.height, image.width, 3], image.data)
          assertSame(
            found,
            new Map([
              ['logits', logits],
              ['probabilities', ops.softmax(logits)],
            ]),
            file,
          )
        })
        model.dispose()
        model.backbone.dispose()
      }),
  )

for (const oracle of oracles)
  testWhere(
    oracle.here,
    oracle.missing,
    test,
    `logits and labels of a segmenting network at several sizes are the engine's, by ${oracle.name}`,
    () =>
      withFolder((folder) => {
        for (const [options, alignCorners] of [
          [dilated8, false],
          [{ strides: [1, 2, 1, 1] }, true],
        ] as const) {
          const backbone = new ResNet(build, { depth: 18, baseChannels: 8, ...options })
          const model = new Fcn(build, backbone, { classes: 4, alignCorners })
          unsettle(model.state())
          const file = join(folder, 'segmenter.safetensors')
          saveSegmenter(file, model, { classes: ['a', 'b', 'c', 'd'], scale: [64, 48], crop: 48, slide: 0, outputStride: backbone.stride })
          const path = join(folder, 'x.onnx')
          const { code, err, out } = runCli(['export', file, '--for', 'onnx', '--outputs', 'logits,labels', '--out', path, '--overwrite'])
          assert.is(code, 0, err)
          assert.match(out, /FCN on ResNet-18 for onnx, outputs logits, labels/)
          for (const [n, h, w] of [
            [1, 48, 64],
            [2, 41, 73],
          ] as const)
            scope(() => {
              const x = drawn(n, [n, h, w, 3])
              const { labels, ...found } = run(oracle, path, 'float32', [n, 3, h, w], channelsFirst(x).data())
              const logits = channelsFirst(model.logits(x))
              assertSame(found, new Map([['logits', logits]]), `FCN ${n}x${h}x${w}`)
              assert.equal(labels!.shape, [n, h, w])
              const values = logits.data()
              // Two classes may be as near as the tolerance.
              const wrong = labels!.values.filter((label, at) => {
                const [image, pixel] = [Math.floor(at / (h * w)), at % (h * w)]
                const of = (c: number): number => values[(image * 4 + c) * h * w + pixel]!
                return [0, 1, 2, 3].some((c) => of(c) > of(label) + 1e-4 * Math.abs(of(c)))
              })
              assert.is(wrong.length, 0)
            })
          disposeHeads(model)
          backbone.dispose()
        }
      }),
  )

const photo = async (): Promise<{ image: Pixels; file: string }> => {
  const photos = join(realData, 'imagenette224', 'val')
  const file = join(photos, readdirSync(photos)[1]!, readdirSync(join(photos, readdirSync(photos)[1]!))[0]!)
  return { image: await decode(readFileSync(file), file), file }
}

/** Scales the weights and moves the bias of a layer so that what it gives has mean 0 and deviation `wanted` on `values`. */
function calibrate(state: State, layer: string, values: ArrayLike<number>, wanted: number): void {
  const [mean, square] = [0, 1].map((k) => Array.from(values, (v) => v ** (k + 1)).reduce((a, b) => a + b, 0) / values.length) as [
    number,
    number,
  ]
  const by = wanted / Math.sqrt(square - mean * mean)
  const [weight, bias] = ['weight', 'bias'].map((part) => state.parameters.get(`${layer}.${part}`)!) as [Tensor, Tensor]
  weight.write(Float32Array.from(weight.data(), (value) => by * value))
  bias.write(Float32Array.from(bias.data(), (value) => by * (value - mean)))
}

/** What an exported detector found in an image of its batch. */
function objectsOf({ boxes, scores, labels, masks, image }: Outputs, index: number): FoundObject[] {
  const side = masks?.shape[1] ?? 0
  return image!.values.flatMap((own, i) =>
    own !== index
      ? []
      : {
          label: labels!.values[i]!,
          score: scores!.values[i]!,
          box: boxes!.values.slice(4 * i, 4 * i + 4) as unknown as Box,
          ...(masks === undefined
            ? {}
            : { mask: { side, values: Float64Array.from(masks.values.slice(i * side ** 2, (i + 1) * side ** 2)) } }),
        },
  )
}

/** Asserts that an exported detector found in an image of its batch the same objects, in their order. */
function assertFound(outputs: Outputs, index: number, expected: readonly FoundObject[]): void {
  const found = objectsOf(outputs, index)
  const about = `image ${index}`
  assert.equal(
    found.map(({ label }) => label),
    expected.map(({ label }) => label),
    about,
  )
  const assertNear = (own: ArrayLike<number>, other: ArrayLike<number>, tolerance: number, what: string): void => {
    assert.is(own.length, other.length, what)
    for (let k = 0; k < own.length; ++k)
      assert.ok(Math.abs(own[k]! - other[k]!) <= tolerance, `${what}: ${own[k]} at ${k} instead of ${other[k]}`)
  }
  found.forEach(({ box, score, mask }, i) => {
    const { box: wanted, score: likely, mask: shape } = expected[i]!
    assertNear([score], [likely], 1e-4, `${about}, object ${i}: score`)
    assertNear(box, wanted, 0.03, `${about}, object ${i}: box`)
    assertNear(mask?.values ?? [], shape?.values ?? [], 1e-3, `${about}, object ${i}: mask`)
  })
}

const [, onnxruntime] = oracles
for (const [form, style] of [
  ['c4', 'detectron2'],
  ['c4', 'mmdet'],
  ['fpn', 'detectron2'],
  ['fpn', 'mmdet'],
] as const)
  testWhere(
    onnxruntime.here && hasRealData,
    onnxruntime.here ? noRealData : onnxruntime.missing,
    test,
    `a detector of the form ${form} in the style of ${style} finds in photographs what the engine finds, in a batch as in each`,
    () =>
      withFolder(async (folder) => {
        const { image } = await photo()
        const backbone = new ResNet(build, { depth: 18, baseChannels: 8 })
        const pyramid = {
          ...publishedPyramid,
          channels: 16,
          width: 24,
          boxConvolutions: 1,
          maskConvolutions: 1,
          levels: style,
          canonical: 96,
        }
        const model = detectorOf(build, backbone, { form, style, classes: 3, anchors: [16, 32, 64, 96, 128], pyramid })
        const state = model.state()
        const own = styleOf(style, form)
        const view = testView(image, { testScale: Math.min(image.width, image.height), longest: 4096 }, own)
        const limits = { before: 200, after: 60, overlap: 0.7 }
        const rules = { score: 0.2, overlap: 0.5, most: 40 }
        const expected = scope(() => {
          const x = Tensor.from(view.values, view.shape)
          const maps = model.features(x, evaluation)
          const joined = (part: 'logits' | 'deltas'): number[] => model.propose(maps).flatMap((each) => [...each[part].data()])
          const [logits, deltas] = [joined('logits'), joined('deltas')]
          calibrate(state, 'rpn_head.rpn_cls', logits, 2)
          calibrate(state, 'rpn_head.rpn_reg', deltas, 0.3)
          const regions = { boxes: Float64Array.of(5, 5, 90, 60, 20, 30, 200, 190, 60, 10, 110, 50), images: new Int32Array(3) }
          const head = model.classify(maps, regions, evaluation)
          calibrate(state, 'roi_head.bbox_head.fc_cls', head.logits.data(), 1)
          calibrate(state, 'roi_head.bbox_head.fc_reg', head.deltas.data(), 12)
          return detect(model, x, view.images, own, limits, rules)[0]!
        })
        const [path, sized] = [false, true].map((sizes) => {
          const file = join(folder, `detector${Number(sizes)}.onnx`)
          const options = { normalisation, raw: true, sizes, style: own, limits, rules, metadata: { classes: '["a","b","c"]' } }
          writeOnnxDetector(file, model, options)
          if (oracles[0].here) runPython('import sys, onnx; onnx.checker.check_model(onnx.load(sys.argv[1]), full_check=True)', [file])
          return file
        }) as [string, string]
        const found = run(onnxruntime, path, 'uint8', [1, image.height, image.width, 3], image.data)
        assert.ok(expected.length >= 3, `${expected.length} objects`)
        assertFound(found, 0, expected)
        assert.equal(Object.keys(found), ['boxes', 'scores', 'labels', ...(form === 'fpn' ? ['masks'] : []), 'image'])

        const turned = Uint8Array.from(image.data, (_, i) => image.data[image.data.length - 3 * (Math.floor(i / 3) + 1) + (i % 3)]!)
        const shape = [1, image.height, image.width, 3]
        const pair = run(onnxruntime, path, 'uint8', shape.with(0, 2), Buffer.concat([turned, image.data]))
        assertFound(pair, 0, objectsOf(run(onnxruntime, path, 'uint8', shape, turned), 0))
        assertFound(pair, 1, expected)

        // Of the second image a part is looked at, behind which its batch has something else.
        const part = { height: Math.round(0.3 * image.height), width: Math.round(0.4 * image.width) }
        const sizes = [image, part, image].map(({ height, width }) => [height, width] as const)
        const batch = [image.data, image.data, turned]
        const together = run(onnxruntime, sized, 'uint8', shape.with(0, 3), Buffer.concat(batch), sizes)
        batch.forEach((data, i) => {
          const alone = objectsOf(run(onnxruntime, sized, 'uint8', shape, data, [sizes[i]!]), 0)
          assert.ok(alone.length > 0, `image ${i}`)
          assertFound(together, i, alone)
        })
        assertFound(together, 0, expected)
        const [, rows, columns] = view.shape
        const cut = view.values.map((value, i) => {
          const [y, x] = [Math.floor(i / (3 * columns)), Math.floor(i / 3) % columns]
          return y < part.height && x < part.width ? value : 0
        })
        const ofPart = scope(() =>
          detect(model, Tensor.from(cut, [1, rows, columns, 3]), [{ ...part, original: part }], own, limits, rules),
        )
        assertFound(together, 1, ofPart[0]!)
        model.dispose()
        backbone.dispose()
      }),
  )

testWhere(oracles[0].here, oracles[0].missing, test, 'a model says how its images are made, what its classes are and what it needs', () =>
  withFolder((folder) => {
    const model = new Classifier(build, new ResNet(build, { depth: 18, baseChannels: 4 }), 2)
    const weights = join(folder, 'c.safetensors')
    saveClassifier(weights, model, { classes: ['cat', 'dog'], imageSize: 64, ...imagenet, protocol: 'test' })
    const said = (args: string[]): Record<string, unknown> => {
      const path = join(folder, 'm.onnx')
      const { code, err } = runCli(['export', weights, '--for', 'onnx', '--out', path, '--overwrite', ...args])
      assert.is(code, 0, err)
      const program = `
import sys, json, onnx
m = onnx.load(sys.argv[1])
onnx.checker.check_model(m, full_check=True)
side = lambda d: d.dim_param or d.dim_value
print(json.dumps({**{p.key: p.value for p in m.metadata_props}, "set": m.opset_import[0].version, "producer": m.producer_name,
  "axes": [side(d) for d in m.graph.input[0].type.tensor_type.shape.dim], "outputs": [o.name for o in m.graph.output]}))`
      return JSON.parse(runPython(program, [path])) as Record<string, unknown>
    }
    const shared = {
      mean: '0.485 0.456 0.406',
      deviation: '0.229 0.224 0.225',
      classes: '["cat","dog"]',
      imageSize: '64',
      set: 13,
      producer: 'densecl',
    }
    assert.equal(said([]), { ...shared, input: 'normalised', axes: ['batch', 3, 'height', 'width'], outputs: ['logits'] })
    assert.equal(said(['--raw', '--outputs', 'probabilities,logits']), {
      ...shared,
      input: 'bytes',
      axes: ['batch', 'height', 'width', 3],
      outputs: ['probabilities', 'logits'],
    })
    model.dispose()
    model.backbone.dispose()
  }),
)

class Sorted extends ResNet {
  override stages(x: Tensor, mode: NormMode): Tensor[] {
    return scope(() => super.stages(x, mode).map((map) => ops.topK(map, map.shape[3]!).values))
  }
}

test('what cannot be written is refused, and leaves no file', () =>
  withFolder((folder) => {
    const backbone = new ResNet(build, { depth: 18, baseChannels: 4 })
    const weights = join(folder, 'w.safetensors')
    writeBackbone(weights, backbone, 'torchvision')
    const path = join(folder, 'x.onnx')
    const options = { normalisation, raw: false, metadata: {} }
    throwsError(() => writeOnnx(path, { backbone }, { ...options, outputs: ['feature9'] }), 'ARGUMENT', /feature9/, /feature5, pooled/)
    throwsError(() => writeOnnx(path, { backbone }, { ...options, outputs: [] }), 'ARGUMENT', /none/)
    const sorted = new Sorted(build, { depth: 18, baseChannels: 4 })
    throwsError(() => writeOnnx(path, { backbone: sorted }, { ...options, outputs: ['feature5'] }), 'ARGUMENT', /the network has topK/)
    assert.not.ok(existsSync(path))
    const occupied = join(folder, 'folder.onnx')
    mkdirSync(occupied)
    for (const [args, word] of [
      [['--for', 'onnx', '--out', join(folder, 'x.pth')], /ending in \.onnx/],
      [['--for', 'onnx', '--out', folder], /ending in \.onnx/],
      [['--for', 'onnx', '--out', occupied], /folder\.onnx is a folder: expected a file/],
      [['--for', 'onnx', '--out', occupied, '--overwrite'], /folder\.onnx is a folder: expected a file/],
      [['--for', 'mmdet', '--out', join(folder, 'x.safetensors')], /ending in \.pth, which mmdet reads/],
      [['--for', 'detectron2', '--out', join(folder, 'x.safetensors')], /ending in \.pth, which detectron2 reads/],
      [['--raw', '--out', join(folder, 'x.pth')], /--raw/],
      [['--sizes', '--out', join(folder, 'x.pth')], /--sizes is of --for onnx/],
      [['--sizes', '--for', 'onnx', '--out', path], /--sizes is of detectors/],
      [['--for', 'onnx', '--outputs', 'pool', '--out', path], /pool\b/],
    ] as const) {
      const { code, err } = runCli(['export', weights, ...args])
      // What is there and not to be replaced is no wrong usage.
      assert.is(code, args.includes(occupied) ? 1 : 2, err)
      assert.match(err, word)
    }
    const said = runCli(['export', weights, '--for', 'onnx', '--out', path])
    assert.is(said.code, 0, said.err)
    assert.match(said.out, /outputs feature5, pooled/)
    assert.ok(existsSync(path))
    for (const each of [backbone, sorted]) each.dispose()
  }))

test.run()
