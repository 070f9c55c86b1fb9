/** examples/convnext, a backbone that is no ResNet, is trained, continued, evaluated and exported like one. */
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import convnext, { ConvNeXt } from '../../examples/convnext/convnext.js'
import { openSource } from '../../src/data/sources.js'
import { extractFeatures, knnAccuracy } from '../../src/eval/knn.js'
import { evaluateLinear } from '../../src/eval/linear.js'
import { linearProtocols, stretched } from '../../src/eval/linearProtocols.js'
import { describeStep } from '../../src/methods/densecl/method.js'
import { DenseCL } from '../../src/methods/densecl/model.js'
import type { DenseCLConfig } from '../../src/methods/densecl/options.js'
import { denseclStep } from '../../src/methods/densecl/step.js'
import { resolveConfig } from '../../src/methods/index.js'
import { Fcn } from '../../src/nn/fcn.js'
import { evaluation } from '../../src/nn/layers.js'
import { allTensors } from '../../src/nn/module.js'
import { resnet } from '../../src/nn/resnet.js'
import { Sgd } from '../../src/optim/sgd.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { pretrain } from '../../src/train/pretrain.js'
import { storedBackbone, writeBackbone } from '../../src/weights/export.js'
import { importBackbone } from '../../src/weights/import.js'
import { readSafetensors } from '../../src/weights/safetensors.js'
import { rejectsError, runCli, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('convnext')

const path = join(packageRoot, 'dist', 'examples', 'convnext', 'convnext.js')
const small = { widths: [8, 8, 16, 16], depths: [1, 1, 1, 1] }
const build = (options: Partial<ConstructorParameters<typeof ConvNeXt>[1]> = {}, seed = 1): ConvNeXt =>
  new ConvNeXt({ random: new Random(seed), dtype: 'f32' }, { ...small, ...options })

test('maps have the channels and strides that they are said to have', () => {
  const backbone = build({ widths: [4, 8, 12, 20], inputs: 5 })
  const maps = scope(() => backbone.stages(Tensor.zeros([2, 64, 96, 5]), evaluation).map(({ shape }) => shape))
  assert.equal(
    maps,
    backbone.maps.map(({ channels, stride }) => [2, 64 / stride, 96 / stride, channels]),
  )
  assert.equal([backbone.channels, backbone.stride], [20, 32])
  scope(() => throwsError(() => backbone.input(Tensor.zeros([1, 64, 64, 3])), 'SHAPE', /ConvNeXt/, /\[N, H, W, 5\]/, /\[1, 64, 64, 3\]/))
  throwsError(() => convnext.build({ random: new Random(1), dtype: 'f32' }, { width: 8 }), 'CONFIG', /convnext/, /widths, depths, inputs/)
  throwsError(() => build({ depths: [1, 1] }), 'CONFIG', /4 widths/)
  backbone.dispose()
})

test('DenseCL trains it on views of four channels: every parameter has a gradient, and the loss of a fixed batch falls', () => {
  const model = new DenseCL({
    backbone: (parts) => new ConvNeXt(parts, { ...small, inputs: 4 }),
    neck: { hidden: 32, featDim: 16 },
    queueLength: 64,
    seed: 2,
  })
  const sgd = new Sgd(model.parameters(), { momentum: 0.9, weightDecay: 0 })
  // Two views of an image are its own pattern with noise.
  const random = new Random(3)
  const [images, shape] = [8, [8, 64, 64, 4]] as const
  const pattern = Float32Array.from({ length: images * 64 * 64 * 4 }, () => random.normal())
  const view = (): Tensor =>
    Tensor.from(
      pattern.map((value) => value + 0.3 * random.normal()),
      shape,
    )
  // The same negatives at every step: keys of the batch itself in the queue would be images that may not come close.
  const queues = [model.queue, model.denseQueue].map(({ keys }) => ({ keys, values: keys.data() }))
  const losses = scope(() => {
    const views = [view(), view()] as const
    return Array.from({ length: 30 }, (_, i) => {
      for (const { keys, values } of queues) keys.write(values)
      const result = denseclStep(model, views, { temperature: 0.2, denseWeight: 0.5, keyMomentum: 0.9, normGroups: 1 })
      const names = [...model.parameters().keys()]
      assert.is(result.gradients.length, names.length)
      result.gradients.forEach((gradient, p) => {
        const values = Array.from(gradient.data() as Float32Array)
        assert.ok(values.every(Number.isFinite), names[p])
        if (i === 0)
          assert.ok(
            values.some((value) => value !== 0),
            `${names[p]} has no gradient`,
          )
      })
      sgd.step(result.gradients, 0.05)
      const { loss } = describeStep(result.readings)
      result.dispose()
      return loss
    })
  })
  assert.ok(losses.at(-1)! < 0.7 * losses[0]!, losses.map((loss) => loss.toFixed(3)).join(' '))
  sgd.dispose()
  model.dispose()
})

test('weights go through a file and back, and no file of another backbone is taken for its own', async () => {
  const backbone = build({ inputs: 4 })
  const other = resnet({ depth: 18, baseChannels: 4 })({ random: new Random(1), dtype: 'f32' })
  await withFolder((folder) => {
    const [own, foreign, plain] = ['own.safetensors', 'resnet.safetensors', 'own.pth'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ]
    writeBackbone(own, backbone, 'torchvision')
    writeBackbone(plain, backbone, 'torchvision')
    writeBackbone(foreign, other, 'torchvision')
    const { backbone: loaded, report } = importBackbone(own, { kind: convnext })
    assert.equal(storedBackbone(loaded), storedBackbone(backbone))
    assert.equal([report.missing, report.unexpected, report.options], [[], [], { ...small, inputs: 4 }])
    assert.is(loaded.description, backbone.description)
    // PyTorch's shape of a depthwise weight.
    assert.equal(readSafetensors(own).tensors.get('stages.0.0.dwconv.weight')!.shape, [8, 1, 7, 7])
    loaded.dispose()
    throwsError(() => importBackbone(own), 'IMPORT', /kind convnext/, /--backbone/)
    throwsError(() => importBackbone(foreign, { kind: convnext }), 'IMPORT', /expected tensors of a ConvNeXt/)
    throwsError(() => importBackbone(own, { kind: { ...convnext, name: 'mine' } }), 'IMPORT', /kind mine/, /kind convnext/)
    throwsError(() => importBackbone(plain), 'IMPORT', /expected tensors of a ResNet/)
    throwsError(() => writeBackbone(own, backbone, 'detectron2'), 'ARGUMENT', /torchvision/, /ConvNeXt/, /detectron2/)
  })
  other.dispose()
  backbone.dispose()
})

test('features are extracted, and kNN, linear classifiers and a segmentation network take it', async () => {
  const backbone = build()
  const source = await openSource('scenes:24')
  const options = { imageSize: 64, workers: 1, k: 3 }
  const { dim, values } = await extractFeatures(backbone, source.items, options)
  assert.equal([dim, values.length], [16, 24 * 16])
  const share = await knnAccuracy(backbone, source.items, source.items, options)
  assert.ok(share >= 0 && share <= 1)
  await withFolder(async (folder) => {
    const weights = join(folder, 'weights.safetensors')
    writeBackbone(weights, backbone, 'torchvision')
    const of = (heads: (typeof linearProtocols)[string]['heads'], out: string) =>
      evaluateLinear(backbone, {
        protocol: { ...stretched(linearProtocols['imagenet-features']!, 1), heads, batchSize: 8, pipeline: 'centre' },
        train: source.items,
        val: source.items,
        classes: source.classes!.length,
        imageSize: 64,
        out: join(folder, out),
        quiet: true,
        workers: 1,
      })
    const { heads } = await of(['feature4', 'feature5'], 'linear')
    assert.equal(
      heads.map(({ head }) => head),
      ['feature4', 'feature5'],
    )
    await rejectsError(() => of(['feature1'], 'other'), 'CONFIG', /pooled, feature2, feature3, feature4, feature5/, /4 maps/, /feature1/)
  })
  const network = new Fcn({ random: new Random(4), dtype: 'f32' }, backbone, { classes: 3, alignCorners: false })
  scope(() => {
    const x = Tensor.zeros([1, 64, 64, 3])
    assert.equal(network.logits(x).shape, [1, 64, 64, 3])
    const { total } = network.loss(x, Tensor.zeros([1, 64, 64], 'i32'), 1)
    assert.ok(Number.isFinite(total.item()))
  })
  for (const [name, tensor] of allTensors(network.state())) if (!name.startsWith('backbone.')) tensor.dispose()
  backbone.dispose()
})

const settings = {
  data: 'scenes:32',
  knnData: 'scenes:20',
  backbone: path,
  backboneOptions: small,
  imageSize: 64,
  batchSize: 8,
  epochs: 2,
  hidden: 16,
  featDim: 8,
  queueLength: 16,
  workers: 1,
  checkpointEvery: 1,
}
const configure = (more: Partial<DenseCLConfig> = {}): DenseCLConfig =>
  resolveConfig(Object.entries({ ...settings, ...more }).map(([key, value]) => ({ key, value, from: 'test' })))

test('a run with its module continues to the bits of a whole one, and commands open what it leaves', async () => {
  await withFolder(async (folder) => {
    const [whole, broken] = [join(folder, 'whole'), join(folder, 'broken')]
    await pretrain({ config: configure(), out: whole, quiet: true })
    let asked = 0
    const { interrupted } = await pretrain({
      config: configure(),
      out: broken,
      quiet: true,
      pictures: false,
      interrupted: () => (asked += 1) > 6,
    })
    assert.ok(interrupted)
    await pretrain({ config: configure(), out: broken, quiet: true, pictures: false, resume: true })
    const weights = join(whole, 'backbone.safetensors')
    assert.equal(readSafetensors(join(broken, 'backbone.safetensors')), readSafetensors(weights))

    // The checkpoint holds the same backbone under another prefix.
    const { backbone, report } = importBackbone(join(whole, 'checkpoints', 'last.safetensors'), { kind: convnext })
    assert.is(report.prefix, 'encoder_q.0.')
    const stored = [...storedBackbone(backbone)].map(([name, { bytes }]) => [name, Buffer.from(bytes).toString('hex')])
    assert.equal(
      stored,
      [...readSafetensors(weights).tensors].map(([name, { bytes }]) => [name, Buffer.from(bytes).toString('hex')]),
    )
    backbone.dispose()

    const data = ['--train', 'scenes:16', '--val', 'scenes:8', '--image-size', '64', '--k', '1', '--workers', '1']
    const knn = runCli(['eval', 'knn', weights, '--backbone', path, ...data])
    assert.is(knn.code, 0, knn.err)
    assert.match(knn.out, /ConvNeXt of 8, 8, 16, 16 channels/)
    const unknown = runCli(['eval', 'knn', weights, ...data])
    assert.is(unknown.code, 1)
    assert.match(
      unknown.err,
      /holds a backbone of the kind convnext: expected one of resnet, or the module that has it, given as --backbone/,
    )
    const copy = join(folder, 'copy.safetensors')
    assert.is(runCli(['export', weights, '--backbone', path, '--out', copy]).code, 0)
    assert.equal(readSafetensors(copy), readSafetensors(weights))
    const picture = runCli(['match', 'scene:1', '--weights', weights, '--backbone', path, '--size', '96', '--out', join(folder, 'match')])
    assert.is(picture.code, 0, picture.err)

    await rejectsError(
      () => pretrain({ config: configure({ backboneOptions: { ...small, inputs: 4 } }), out: join(folder, 'four'), quiet: true }),
      'CONFIG',
      /3 input channels/,
      /ConvNeXt takes 4/,
    )
    await rejectsError(
      () => pretrain({ config: configure({ backbone: 'resnext' }), out: folder }),
      'CONFIG',
      /resnet or the path of a module/,
    )
    await rejectsError(() => pretrain({ config: configure({ backbone: './no.js' }), out: folder }), 'CONFIG', /no such file/)
  })
})

test.run()
