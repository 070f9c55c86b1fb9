/** A small pre-training run, for tests of the commands that read its weights. */
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { runCli } from './suite.js'

const settings = [
  'data=scenes:40',
  'knnData=scenes:20',
  'imageSize=32',
  'batchSize=8',
  'epochs=1',
  'depth=18',
  'baseChannels=4',
  'queueLength=16',
  'workers=1',
]

/** Pre-trains a ResNet-18 of 4 channels for five steps in the folder `out`, and returns the path of its backbone's weights. */
export function pretrainSmall(out: string): string {
  const { code, err } = runCli(['pretrain', '--out', out, ...settings])
  assert.is(code, 0, err)
  return join(out, 'backbone.safetensors')
}
