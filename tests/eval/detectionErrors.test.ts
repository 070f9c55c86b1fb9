/** What a user meets who gives a detector what does not fit it, or a rate at which it comes apart. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { openDetector } from '../../src/detection/detectorFile.js'
import { backboneKinds } from '../../src/nn/backbones.js'
import { disposeState } from '../../src/nn/module.js'
import { resnet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import { writeBackbone } from '../../src/weights/export.js'
import { encodeSafetensors, readSafetensors, storedValues } from '../../src/weights/safetensors.js'
import { writeBoxTree } from '../support/boxTree.js'
import { runCli, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('errors of detection')

function writeWeights(path: string, depth: 18 | 34, baseChannels: number): void {
  const backbone = resnet({ depth, baseChannels })({ random: new Random(1), dtype: 'f32' })
  writeBackbone(path, backbone, 'torchvision')
  disposeState(backbone.state())
}
const small = '--device cpu --iterations 3 --batch-size 2 --scales 48 --test-scale 48 --longest 64 --anchors 16,24 --save-every 1'.split(
  ' ',
)

test('a loss that is no number names its iteration, and the state before it is kept', () =>
  withFolder((folder) => {
    const [weights, data, out] = ['weights.safetensors', 'data', 'out'].map((name) => join(folder, name)) as [string, string, string]
    writeWeights(weights, 18, 4)
    writeBoxTree(data, 2)
    const { code, err } = runCli(['eval', 'detection', weights, '--data', data, '--out', out, ...small, '--lr', '1e7'])
    assert.is(code, 1)
    const iteration = Number(/detection: the loss of iteration (\d) is not a number; try a lower --lr/.exec(err)?.[1])
    assert.ok(iteration >= 2, err)
    const { tensors, metadata } = readSafetensors(join(out, 'detection-voc0712-c4', 'state.safetensors'))
    assert.is((JSON.parse(metadata.detection!) as { iteration: number }).iteration, iteration - 1)
    assert.ok([...tensors.values()].every((tensor) => storedValues(tensor).every(Number.isFinite)))
  }))

test('weights of another network, other classes and a detector in the place of a backbone are refused in words; detect goes on', () =>
  withFolder((folder) => {
    const [data, more, out] = ['data', 'more', 'out'].map((name) => join(folder, name)) as [string, string, string]
    const weightsOf = (depth: 18 | 34, channels: number): string => {
      const path = join(folder, `r${depth}-${channels}.safetensors`)
      writeWeights(path, depth, channels)
      return path
    }
    for (const tree of [data, more]) writeBoxTree(tree, 2)
    const file = join(more, 'Annotations', 'image0.xml')
    writeFileSync(file, readFileSync(file, 'utf8').replace(/<name>\w+<\/name>/, '<name>blue</name>'))
    const evaluate = (weights: string, from: string, ...rest: string[]): ReturnType<typeof runCli> =>
      runCli(['eval', 'detection', weights, '--data', from, '--out', out, ...small, ...rest])
    const first = evaluate(weightsOf(18, 4), data)
    assert.is(first.code, 0, first.err)

    for (const [weights, from, words] of [
      [weightsOf(34, 4), data, /the network of <weights> was "ResNet-18 of 4 base channels" and is now "ResNet-34 of 4 base channels"/],
      [weightsOf(18, 8), data, /the network of <weights> was "ResNet-18 of 4 base channels" and is now "ResNet-18 of 8 base channels"/],
      [weightsOf(18, 4), more, /classes of --data was \["green","red"\] and is now \["blue","green","red"\]/],
    ] as const) {
      const { code, err } = evaluate(weights, from, '--resume')
      assert.is(code, 2, err)
      assert.match(err, words)
    }
    const detector = join(out, 'detection-voc0712-c4', 'detector.safetensors')
    const { code, err } = evaluate(detector, more, '--overwrite')
    assert.is(code, 1)
    assert.match(err, /detector\.safetensors: is a detector, .*: expected weights of a backbone, such as those that it was trained from/)

    const seen = runCli([
      'detect',
      join(more, 'JPEGImages', 'image0.png'),
      '--weights',
      detector,
      '--device',
      'cpu',
      '--out',
      join(folder, 'x'),
    ])
    assert.is(seen.code, 0, seen.err)

    // Records that say another depth or width than the tensors have.
    const { tensors, metadata } = readSafetensors(detector)
    const record = JSON.parse(metadata.detector!) as { backbone: { options: object } }
    const damaged = join(folder, 'damaged.safetensors')
    for (const [options, code_, words] of [
      [{ depth: 34, baseChannels: 4 }, 'CHECKPOINT', /damaged\.safetensors: lacks the tensor backbone\.layer1\.2/],
      [{ depth: 18, baseChannels: 8 }, 'SHAPE', /damaged\.safetensors.*backbone\.conv1\.weight/],
    ] as const) {
      const text = JSON.stringify({ ...record, backbone: { ...record.backbone, options: { ...record.backbone.options, ...options } } })
      writeFileSync(damaged, Buffer.concat(encodeSafetensors({ tensors, metadata: { detector: text } })))
      throwsError(() => openDetector(damaged, (name) => backboneKinds.get(name)), code_, words)
    }
  }))

test.run()
