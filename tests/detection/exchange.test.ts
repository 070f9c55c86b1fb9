import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { cellAnchors } from '../../src/detection/anchors.js'
import type { Detector } from '../../src/detection/detector.js'
import { saveDetector } from '../../src/detection/detectorFile.js'
import { detectorName, holdsDetector, importDetector, writeDetector } from '../../src/detection/exchange.js'
import { FasterRcnn } from '../../src/detection/fasterRcnn.js'
import { type DetectionStyleName, detectionStyles } from '../../src/detection/styles.js'
import { backboneKinds } from '../../src/nn/backbones.js'
import { allTensors } from '../../src/nn/module.js'
import { resnet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import { readTensorFile } from '../../src/weights/import.js'
import { encodeSafetensors, storedValues } from '../../src/weights/safetensors.js'
import { runCli, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('detectors of other frameworks')

const sizes = [32, 64, 128, 256, 512]
const ratios = [0.5, 1, 2]
const kindOf = (name: string) => backboneKinds.get(name)

/** Writes a detector whose tensors all have values of their own. */
function writeOwn(path: string, style: DetectionStyleName, classes = 3): void {
  const build = { random: new Random(4), dtype: 'f32' as const }
  const backbone = resnet({ depth: 18, baseChannels: 4 })(build)
  const anchors = { sizes, ratios, stride: 16, order: detectionStyles[style].anchorOrder }
  const model = new FasterRcnn(build, backbone, { classes, anchors })
  const random = new Random(5)
  for (const [, tensor] of allTensors(model.state()))
    tensor.write(tensor.dtype === 'i32' ? Int32Array.of(7) : Float32Array.from({ length: tensor.size }, () => random.normal()))
  const names = Array.from({ length: classes }, (_, c) => `kind ${c}`)
  saveDetector(path, model, { style, classes: names, anchors: sizes, ratios, testScale: 600, longest: 1000, testRegions: 300 })
  model.dispose()
  backbone.dispose()
}

/** Reads a detector and writes it as ours. */
function readBack(path: string, out: string): ReturnType<typeof importDetector> {
  const read = importDetector(path, kindOf)
  saveDetector(out, read.model, read.record)
  return read
}

const disposed = ({ model }: { model: Detector }): void => {
  model.dispose()
  model.backbone.dispose()
}

test('to a framework and back it is the same file to the byte, in both styles, containers and frameworks', () =>
  withFolder((folder) => {
    for (const style of ['detectron2', 'mmdet'] as const) {
      const own = join(folder, `${style}.safetensors`)
      writeOwn(own, style)
      for (const target of ['mmdet', 'detectron2'] as const)
        for (const end of ['.safetensors', '.pth']) {
          const [out, back] = [join(folder, `${style}-${target}${end}`), join(folder, 'back.safetensors')]
          const read = importDetector(own, kindOf)
          writeDetector(out, read.model, read.record, target)
          assert.ok(holdsDetector(out))
          const again = readBack(out, back)
          assert.not(again.assumed)
          assert.equal(readFileSync(back), readFileSync(own))
          disposed(read)
          disposed(again)
        }
    }
  }))

test('channels of an anchor go where the framework has the same box; all names are the framework’s', () =>
  withFolder((folder) => {
    const own = join(folder, 'own.safetensors')
    writeOwn(own, 'detectron2')
    const read = importDetector(own, kindOf)
    const files = { mmdet: join(folder, 'mm.pth'), detectron2: join(folder, 'd2.pth') }
    for (const target of ['mmdet', 'detectron2'] as const) writeDetector(files[target], read.model, read.record, target)
    const tensors = { mmdet: readTensorFile(files.mmdet).tensors, detectron2: readTensorFile(files.detectron2).tensors }
    const boxes = (order: 'size' | 'ratio'): string[] => {
      const flat = cellAnchors({ sizes, ratios, stride: 16, order })
      return Array.from({ length: 15 }, (_, a) => [...flat.subarray(4 * a, 4 * a + 4)].map((value) => value.toFixed(6)).join())
    }
    const [theirs, ours] = [boxes('ratio'), boxes('size')]
    for (const [part, rows] of [
      ['rpn_head.rpn_cls.weight', 1],
      ['rpn_head.rpn_cls.bias', 1],
      ['rpn_head.rpn_reg.weight', 4],
      ['rpn_head.rpn_reg.bias', 4],
    ] as const) {
      const mm = storedValues(tensors.mmdet.get(`state_dict.${part}`)!)
      const d2 = storedValues(tensors.detectron2.get(`model.${detectorName('detectron2', part)}`)!)
      const each = d2.length / 15
      assert.is(each % rows, 0)
      theirs.forEach((box, at) => {
        const from = ours.indexOf(box)
        assert.equal(mm.subarray(at * each, (at + 1) * each), d2.subarray(from * each, (from + 1) * each))
      })
    }
    const names = new Set([...tensors.detectron2.keys()].map((name) => name.replace(/^model\./, '')))
    for (const name of [
      'backbone.stem.conv1.weight',
      'backbone.stem.conv1.norm.running_var',
      'backbone.res2.0.conv1.weight',
      'backbone.res4.0.shortcut.norm.bias',
      'proposal_generator.rpn_head.conv.bias',
      'proposal_generator.rpn_head.objectness_logits.weight',
      'proposal_generator.rpn_head.anchor_deltas.weight',
      'roi_heads.res5.1.conv2.norm.running_mean',
      'roi_heads.res5.norm.weight',
      'roi_heads.box_predictor.cls_score.weight',
      'roi_heads.box_predictor.bbox_pred.bias',
    ])
      assert.ok(names.has(name), name)
    for (const name of names) assert.match(name, /^(backbone\.(stem|res[234])|proposal_generator|roi_heads\.(res5|box_predictor))\./)
    disposed(read)
  }))

test('a file without our record is read by the published settings; one that lacks a tensor is refused with its name', () =>
  withFolder((folder) => {
    const own = join(folder, 'own.safetensors')
    writeOwn(own, 'mmdet', 20)
    const read = importDetector(own, kindOf)
    const out = join(folder, 'foreign.safetensors')
    writeDetector(out, read.model, read.record, 'detectron2')
    const { tensors } = readTensorFile(out)
    const bare = (of: typeof tensors): string => {
      writeFileSync(out, Buffer.concat(encodeSafetensors({ tensors: of, metadata: {} })))
      return out
    }
    const { model, record, assumed } = importDetector(bare(tensors), kindOf)
    assert.ok(assumed)
    assert.equal([record.style, record.testScale, record.classes[0]], ['detectron2', 800, 'aeroplane'])
    const exported = join(folder, 'again.safetensors')
    writeDetector(exported, model, record, 'detectron2')
    for (const [name, { bytes }] of readTensorFile(exported).tensors) assert.equal(bytes, tensors.get(name)!.bytes)
    const without = new Map([...tensors].filter(([name]) => name !== 'roi_heads.res5.norm.bias'))
    throwsError(
      () => importDetector(bare(without), kindOf),
      'IMPORT',
      /foreign\.safetensors: the tensor roi_heads\.res5\.norm\.bias is missing/,
    )
    disposed(read)
    disposed({ model })
  }))

test('the commands write and read detectors; torchvision gets the backbone, and is told why', () =>
  withFolder((folder) => {
    const [own, pth, back] = ['own.safetensors', 'd2.pth', 'back.safetensors'].map((name) => join(folder, name)) as [string, string, string]
    writeOwn(own, 'detectron2')
    const written = runCli(['export', own, '--for', 'detectron2', '--out', pth])
    assert.is(written.code, 0, written.err)
    assert.match(written.out, /a detector of 3 classes on ResNet-18, \d+ tensors for detectron2/)
    const read = runCli(['import', pth, '--out', back])
    assert.is(read.code, 0, read.err)
    assert.equal(readFileSync(back), readFileSync(own))
    const backbone = runCli(['export', own, '--out', join(folder, 'tv.safetensors')])
    assert.is(backbone.code, 0, backbone.err)
    assert.match(backbone.out, /torchvision has no detector of the form C4: this is the backbone alone/)
    const { tensors } = readTensorFile(join(folder, 'tv.safetensors'))
    assert.equal(
      tensors.get('layer4.1.conv2.weight')!.bytes,
      readTensorFile(own).tensors.get('roi_head.shared_head.layer4.1.conv2.weight')!.bytes,
    )
  }))

test.run()
