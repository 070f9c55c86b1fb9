import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { cellAnchors } from '../../src/detection/anchors.js'
import type { Detector, DetectorForm } from '../../src/detection/detector.js'
import { type DetectorRecord, recordKey, saveDetector } from '../../src/detection/detectorFile.js'
import { detectorName } from '../../src/detection/detectorNames.js'
import { holdsDetector, importDetector, writeDetector } from '../../src/detection/exchange.js'
import { detectorOf } from '../../src/detection/detectorShape.js'
import { publishedPyramid } from '../../src/detection/maskRcnn.js'
import type { DetectionStyleName } from '../../src/detection/styles.js'
import { backboneKinds } from '../../src/nn/backbones.js'
import { allTensors } from '../../src/nn/module.js'
import { resnet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import { readTensorFile } from '../../src/weights/import.js'
import { encodeSafetensors, storedValues } from '../../src/weights/safetensors.js'
import { saveState } from '../../src/weights/state.js'
import { runCli, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('detectors of other frameworks')

const sizes = [32, 64, 128, 256, 512]
const ratios = [0.5, 1, 2]
const kindOf = (name: string) => backboneKinds.get(name)

/** Writes a detector whose tensors all have values of their own. */
function writeOwn(path: string, style: DetectionStyleName, classes = 3, form: DetectorForm = 'c4'): void {
  const build = { random: new Random(4), dtype: 'f32' as const }
  const backbone = resnet({ depth: 18, baseChannels: 4 })(build)
  const pyramid = { ...publishedPyramid, channels: 4, width: 6, levels: style }
  const model = detectorOf(build, backbone, { form, style, classes, pyramid })
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
    for (const [style, form] of [
      ['detectron2', 'c4'],
      ['mmdet', 'c4'],
      ['detectron2', 'fpn'],
    ] as const) {
      const own = join(folder, `${style}-${form}.safetensors`)
      writeOwn(own, style, 3, form)
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

test('a detector on a pyramid has the names and layouts of either framework, and its sizes are read off the shapes', () =>
  withFolder((folder) => {
    const own = join(folder, 'own.safetensors')
    writeOwn(own, 'mmdet', 3, 'fpn')
    const read = importDetector(own, kindOf)
    for (const target of ['mmdet', 'detectron2'] as const) {
      const out = join(folder, `${target}.safetensors`)
      writeDetector(out, read.model, read.record, target)
      const { tensors } = readTensorFile(out)
      const shapes: Record<string, number[]> =
        target === 'mmdet'
          ? {
              'backbone.layer4.1.bn2.running_var': [32],
              'neck.lateral_convs.3.conv.weight': [4, 32, 1, 1],
              'neck.fpn_convs.0.bn.weight': [4],
              'roi_head.bbox_head.shared_fcs.0.weight': [6, 196],
              'roi_head.mask_head.convs.3.conv.weight': [4, 4, 3, 3],
              'roi_head.mask_head.upsample.weight': [4, 4, 2, 2],
              'roi_head.mask_head.conv_logits.bias': [3],
            }
          : {
              'backbone.bottom_up.res5.1.conv2.norm.running_var': [32],
              'backbone.bottom_up.stem.conv1.weight': [4, 3, 7, 7],
              'backbone.fpn_lateral5.weight': [4, 32, 1, 1],
              'backbone.fpn_output2.norm.weight': [4],
              'roi_heads.box_head.conv4.norm.bias': [4],
              'roi_heads.box_head.fc1.weight': [6, 196],
              'roi_heads.mask_head.mask_fcn4.weight': [4, 4, 3, 3],
              'roi_heads.mask_head.deconv.weight': [4, 4, 2, 2],
              'roi_heads.mask_head.predictor.bias': [3],
            }
      for (const [name, shape] of Object.entries(shapes)) assert.equal(tensors.get(name)?.shape, shape, name)
      const bare = join(folder, 'bare.safetensors')
      writeFileSync(bare, Buffer.concat(encodeSafetensors({ tensors, metadata: {} })))
      const foreign = importDetector(bare, kindOf)
      assert.ok(foreign.assumed)
      const { channels, width, boxConvolutions, boxLinears, maskConvolutions, norm } = foreign.record.pyramid!
      assert.equal([channels, width, boxConvolutions, boxLinears, maskConvolutions, norm], [4, 6, 4, 1, 4, true])
      const [first, second] = [allTensors(read.model.state()), new Map(allTensors(foreign.model.state()))]
      for (const [name, tensor] of first) assert.equal(tensor.data(), second.get(name)!.data(), name)
      disposed(foreign)
    }
    disposed(read)
  }))

test('a record of absurd sizes is refused with a sentence before anything is built', () =>
  withFolder((folder) => {
    const own = join(folder, 'own.safetensors')
    writeOwn(own, 'mmdet', 3, 'fpn')
    const { model, record } = importDetector(own, kindOf)
    const refused = (change: (record: DetectorRecord) => object, code: string, words: RegExp): void => {
      const path = join(folder, 'absurd.safetensors')
      saveState(path, allTensors(model.state()), recordKey, { ...record, ...change(record) })
      throwsError(() => importDetector(path, kindOf), code, words)
    }
    refused(() => ({ testScale: 1e9 }), 'FORMAT', /absurd\.safetensors: its record of the detector: testScale/)
    refused(() => ({ longest: 1e9 }), 'FORMAT', /longest/)
    refused(() => ({ testRegions: 1e9 }), 'FORMAT', /testRegions/)
    refused(({ pyramid }) => ({ pyramid: { ...pyramid, channels: 8192 } }), 'SHAPE', /the file has \[4,32,1,1\]|the file has \[4/)
    refused(() => ({ backbone: { kind: 'resnet', options: { depth: 18, baseChannels: 60_000 } } }), 'SHAPE', /backbone\.conv1\.weight/)
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
