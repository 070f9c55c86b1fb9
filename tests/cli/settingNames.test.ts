/** What a refusal calls a setting: its flag in a command, where it has one, and its own name in the library. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { ResNet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import { called, withSettingNames } from '../../src/tensor/settingNames.js'
import { writeBackbone } from '../../src/weights/export.js'
import { writeBoxTree } from '../support/boxTree.js'
import { runCli, suite, withFolder } from '../support/suite.js'
import { writeVocTree } from '../support/vocTree.js'

const test = suite('names of settings')

test('names hold for what is awaited inside, and for nothing else', async () => {
  const shout = withSettingNames(
    (setting) => (setting === 'lr' ? '--lr' : undefined),
    async () => {
      await new Promise(setImmediate)
      return [called('lr'), called('seed')]
    },
  )
  assert.is(called('lr'), 'lr')
  assert.equal(await shout, ['--lr', 'seed'])
})

test('a batch that leaves batch norm one value a group names the flags that give it more, before the first step', () => {
  const sizes = ['--image-size', '32', '--batch-size', '8', '--norm-groups', '8', '--base-channels', '4', '--depth', '18']
  const { code, err } = runCli(['pretrain', '--data', 'scenes:16', ...sizes, '--device', 'cpu', '--dry-run'])
  assert.is(code, 1, err)
  assert.match(err, /more than one value .* in 8 groups: take a larger --batch-size or --image-size, or fewer --norm-groups$/m)
})

test('a module that is not there, or exports nothing, is named by the flag that gave it', () =>
  withFolder((folder) => {
    const [none, empty] = [join(folder, 'none.mjs'), join(folder, 'empty.mjs')]
    writeFileSync(empty, 'export const other = 1')
    for (const flag of ['--backbone', '--log-to'])
      for (const [path, why] of [
        [none, 'there is no such file'],
        [empty, 'it has none'],
      ] as const) {
        const sizes = ['--image-size', '32', '--batch-size', '8', '--queue-length', '8', '--out', join(folder, 'out')]
        const { code, err } = runCli(['pretrain', '--data', 'scenes:16', ...sizes, '--device', 'cpu', flag, path])
        assert.is(code, 2, err)
        assert.ok(err.includes(`${flag} is ${path}: `) && err.includes(why), err)
      }
  }))

/** Flags, with the values that a training is begun with and those that it is not continued with. */
type Changes = Readonly<Record<string, readonly [began: string, now: string]>>

/** Runs `command`, and resumes it with every flag, and the weights, changed: the refusal must name all of them. */
function refusesByFlags(command: readonly string[], changes: Changes, weights?: readonly [began: string, now: string]): void {
  const withFlags = (at: 0 | 1) => [
    ...command.map((word) => (word === weights?.[0] ? weights[at] : word)),
    ...Object.entries(changes).flatMap(([flag, values]) => [flag, values[at]]),
  ]
  const begun = runCli(withFlags(0))
  assert.is(begun.code, 0, begun.err)
  const { code, err } = runCli([...withFlags(1), '--resume'])
  assert.is(code, 2, err)
  assert.match(err, /^densecl: resume: /m)
  const named = [...Object.keys(changes), ...(weights === undefined ? [] : ['the values of <weights>'])]
  for (const flag of named) assert.ok(err.includes(`${flag} was `), `${flag} in: ${err}`)
}

test('a training that is not continued with other settings names the flags that they were given by', () =>
  withFolder((folder) => {
    const both = [join(folder, 'weights.safetensors'), join(folder, 'others.safetensors')] as const
    const [weights] = both
    both.forEach((path, i) => {
      const backbone = new ResNet({ random: new Random(1 + i), dtype: 'f32' }, { depth: 18, baseChannels: 4 })
      writeBackbone(path, backbone, 'torchvision')
      backbone.dispose()
    })
    const [boxes, masks] = [join(folder, 'boxes'), join(folder, 'masks')]
    writeBoxTree(boxes, 4)
    writeVocTree(masks, { train: 4, val: 2 })
    const out = (name: string) => ['--out', join(folder, name), '--device', 'cpu', '--workers', '1']
    const labelled = ['--train', 'scenes:20', '--val', 'scenes:10', ...out('labelled')]
    const shared = { '--batch-size': ['8', '10'], '--seed': ['0', '1'], '--precision': ['f32', 'bf16'] } as const
    const refuses = (command: readonly string[], changes: Changes): void => refusesByFlags(command, changes, both)

    refuses(['eval', 'finetune', weights, ...labelled], {
      ...shared,
      '--epochs': ['1', '2'],
      '--lr': ['0.01', '0.02'],
      '--head-multiplier': ['1', '2'],
      '--image-size': ['32', '48'],
    })
    refuses(['eval', 'linear', weights, ...labelled], {
      ...shared,
      '--epochs': ['1', '2'],
      '--lr': ['0.01', '0.02'],
      '--image-size': ['32', '48'],
    })
    refuses(['eval', 'detection', weights, '--data', boxes, ...out('boxes'), '--train-split', 'train', '--val-split', 'train'], {
      ...shared,
      '--batch-size': ['2', '4'],
      '--iterations': ['1', '2'],
      '--lr': ['0.01', '0.02'],
      '--style': ['mmdet', 'detectron2'],
      '--scales': ['48', '64'],
      '--test-scale': ['48', '64'],
      '--longest': ['64', '96'],
      '--regions': ['16', '32'],
      '--test-regions': ['16', '32'],
      '--anchors': ['16', '32'],
      '--images-at-once': ['2', '4'],
    })
    refuses(['eval', 'segmentation', weights, '--data', masks, ...out('masks')], {
      ...shared,
      '--batch-size': ['2', '4'],
      '--iterations': ['1', '2'],
      '--lr': ['0.01', '0.02'],
      '--crop': ['64', '72'],
      '--scale': ['64,64', '72,72'],
    })
    const run = ['data=scenes:16', 'depth=18', 'baseChannels=4', 'queueLength=16', '--device', 'cpu', '--out', join(folder, 'run')]
    refusesByFlags(['pretrain', ...run], { ...shared, '--image-size': ['32', '64'], '--crop-scale': ['[0.2,1]', '[0.5,1]'] })
    const other = ['eval', 'finetune', weights, '--train', 'scenes:30', '--val', 'scenes:10', ...out('labelled'), '--image-size', '32']
    assert.match(runCli([...other, '--resume']).err, /images of --train was 20 and is now 30/)
  }))

test.run()
