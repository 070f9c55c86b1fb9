import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { decode } from '../../src/data/decode.js'
import { pixelTensor, renderView, wholeImage } from '../../src/data/augment.js'
import { evaluation } from '../../src/nn/layers.js'
import { allTensors, disposeState } from '../../src/nn/module.js'
import { Random } from '../../src/tensor/random.js'
import type { Backbone } from '../../src/nn/backbone.js'
import { ResNet, type ResNetDepth, resnetKind } from '../../src/nn/resnet.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { concat } from '../../src/ops/concat.js'
import { reshape } from '../../src/ops/elementwise.js'
import { linear } from '../../src/ops/linear.js'
import { permute } from '../../src/ops/permute.js'
import { adaptiveAvgPool2d, avgPool2d } from '../../src/ops/pool2d.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { writeAtomic } from '../../src/files/atomic.js'
import { detectron2Name, exportTargets, storedBackbone, writeBackbone } from '../../src/weights/export.js'
import { importBackbone, readWeights } from '../../src/weights/import.js'
import { encodePth, readPth, readPthFile } from '../../src/weights/pth.js'
import { encodeSafetensors, type StoredTensor, storedFromNumbers, storedValues } from '../../src/weights/safetensors.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { hasRealData, noRealData, realData, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('weights')

const build = (depth: ResNetDepth = 18, baseChannels = 8): ResNet =>
  new ResNet({ random: new Random(5), dtype: 'f32' }, { depth, baseChannels })

function storedOf(backbone: Backbone): Map<string, StoredTensor> {
  return scope(() => storedBackbone(backbone))
}

test('what each target writes is read back the same', async () => {
  const backbone = build(50, 4)
  const tensors = storedOf(backbone)
  await withFolder((folder) => {
    for (const target of exportTargets) {
      for (const extension of ['.safetensors', '.pth']) {
        const path = join(folder, `${target}${extension}`)
        writeBackbone(path, backbone, target)
        const { backbone: loaded, report } = importBackbone(path)
        assert.equal(report.unexpected, [], path)
        const back = storedOf(loaded)
        for (const [name, tensor] of tensors)
          if (!name.endsWith('num_batches_tracked')) assert.equal(back.get(name), tensor, `${path} ${name}`)
        disposeState(loaded.state())
      }
    }
    throwsError(() => writeBackbone(join(folder, 'x.onnxx'), backbone, 'mmdet'), 'ARGUMENT', /x\.onnxx/)
  })
  disposeState(backbone.state())
})

test('a backbone that computes in bf16 computes with the weights of its file, rounded', async () => {
  const backbone = build()
  await withFolder((folder) => {
    const path = join(folder, 'backbone.safetensors')
    writeBackbone(path, backbone, 'torchvision')
    const { backbone: loaded } = importBackbone(path, { compute: 'bf16' })
    const { parameters, copies } = loaded.state()
    assert.is(copies.size, 20)
    scope(() => {
      for (const [name, copy] of copies) assert.equal(copy.data(), parameters.get(name)!.to('bf16').data(), name)
      for (const [name, value] of backbone.state().parameters) assert.equal(parameters.get(name)!.data(), value.data(), name)
    })
    disposeState(loaded.state())
  })
  disposeState(backbone.state())
})

test('a .pth has the container and the names of its target, and what tells the target how to read it', async () => {
  const backbone = build()
  const names = [...storedOf(backbone).keys()]
  await withFolder((folder) => {
    const written = Object.fromEntries(
      exportTargets.map((target) => {
        const path = join(folder, `${target}.pth`)
        writeBackbone(path, backbone, target)
        return [target, { ...readPthFile(path), bytes: readFileSync(path) }]
      }),
    )
    const { torchvision, mmdet, detectron2 } = written
    assert.equal([...torchvision!.tensors.keys()].sort(), [...names].sort())
    assert.equal([...mmdet!.tensors.keys()].sort(), names.map((name) => `state_dict.${name}`).sort())
    assert.equal(mmdet!.metadata, { author: 'densecl' })
    const counted = names.filter((name) => !name.endsWith('num_batches_tracked'))
    assert.equal([...detectron2!.tensors.keys()].sort(), counted.map((name) => `model.${detectron2Name(name)}`).sort())
    assert.equal(detectron2!.metadata, { __author__: 'densecl' })
    // A pickle's opcode of true, without which detectron2 takes names as they are.
    const key = 'matching_heuristics'
    const at = detectron2!.bytes.indexOf(key) + key.length
    assert.is(detectron2!.bytes[at], 0x88)
    assert.ok(Buffer.from(encodePth({ no: false })).includes(Buffer.from('no\x89', 'latin1')))
  })
  disposeState(backbone.state())
})

test('strides that no shape tells are in the file, and a damaged record of them is refused', async () => {
  const backbone = resnetKind.build({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 4, strides: [1, 2, 1, 1] })
  await withFolder((folder) => {
    for (const [target, extension] of [
      ['torchvision', '.safetensors'],
      ['mmdet', '.pth'],
      ['detectron2', '.pth'],
    ] as const) {
      const path = join(folder, `${target}${extension}`)
      writeBackbone(path, backbone, target)
      const { backbone: loaded } = importBackbone(path)
      assert.is(loaded.stride, 8, path)
      // detectron2's form leaves counters out.
      if (target !== 'detectron2') assert.equal(storedOf(loaded), storedOf(backbone))
      loaded.dispose()
    }
    const path = join(folder, 'damaged.safetensors')
    const record = JSON.stringify({ kind: 'resnet', options: { strides: [1, 2, 'x', 1] } })
    writeAtomic(path, encodeSafetensors({ tensors: storedOf(backbone), metadata: { backbone: record } }))
    throwsError(() => importBackbone(path), 'IMPORT', /damaged\.safetensors/, /four integers/, /\[1,2,"x",1\]/)
  })
  backbone.dispose()
})

test('what others write under the name of our record is no record', async () => {
  const backbone = build()
  await withFolder((folder) => {
    const path = join(folder, 'x.safetensors')
    for (const text of ['resnet18', '{"name": "resnet18"}', '{', '{"kind": "convnext", "options": null}']) {
      writeAtomic(path, encodeSafetensors({ tensors: storedOf(backbone), metadata: { backbone: text } }))
      const { backbone: loaded } = importBackbone(path)
      assert.is(loaded.name, 'ResNet-18', text)
      loaded.dispose()
    }
  })
  backbone.dispose()
})

test("detectron2's names", () => {
  const pairs = {
    'conv1.weight': 'stem.conv1.weight',
    'bn1.bias': 'stem.conv1.norm.bias',
    'layer1.0.conv3.weight': 'res2.0.conv3.weight',
    'layer4.2.bn2.running_var': 'res5.2.conv2.norm.running_var',
    'layer2.0.downsample.0.weight': 'res3.0.shortcut.weight',
    'layer2.0.downsample.1.weight': 'res3.0.shortcut.norm.weight',
  }
  for (const [ours, theirs] of Object.entries(pairs)) assert.is(detectron2Name(ours), theirs)
})

test('nothing that matches, another architecture and missing tensors are errors that say which', async () => {
  const backbone = build()
  const tensors = storedOf(backbone)
  await withFolder((folder) => {
    const path = join(folder, 'x.safetensors')
    const save = (content: Map<string, StoredTensor>): void => writeAtomic(path, encodeSafetensors({ tensors: content, metadata: {} }))
    save(new Map([['head.weight', storedFromNumbers([1], [1], 'F32')]]))
    throwsError(() => importBackbone(path), 'IMPORT', /expected tensors of a ResNet/, /head\.weight/)
    save(new Map([...tensors].filter(([name]) => !name.startsWith('layer3.1'))))
    throwsError(() => importBackbone(path), 'IMPORT', /basic blocks 2, 2, 1, 2/)
    save(new Map([...tensors].filter(([name]) => name !== 'layer3.1.bn2.weight')))
    throwsError(() => importBackbone(path), 'IMPORT', /1 tensors of ResNet-18 are missing: layer3\.1\.bn2\.weight/)
    save(new Map([...tensors].map(([name, tensor]) => [name, name === 'bn1.weight' ? storedFromNumbers([1, 2], [2], 'F32') : tensor])))
    throwsError(() => importBackbone(path), 'SHAPE', /bn1\.weight/, /\[2\]/, /\[8\]/)
  })
  disposeState(backbone.state())
})

test('a pickle is told by its protocol, of 2 to 5, a zip by its first bytes; all else is read as safetensors', async () => {
  await withFolder((folder) => {
    const path = join(folder, 'weights')
    const refusal = (...first: number[]): string => {
      writeFileSync(path, Buffer.concat([Buffer.from(first), Buffer.alloc(64, 0x2e)]))
      try {
        readWeights(path)
      } catch (error) {
        return (error as Error).message
      }
      return 'read'
    }
    for (const protocol of [2, 3, 4, 5]) assert.not.match(refusal(0x80, protocol), /safetensors/)
    assert.not.match(refusal(0x50, 0x4b, 3, 4), /safetensors/)
    for (const other of [
      [0x80, 1],
      [0x80, 6],
      [0x81, 2],
      [0x50, 0x4b, 3, 5],
    ])
      assert.match(refusal(...other), /weights: not a valid safetensors/)
  })
})

test('a pickle that names os.system is refused and not executed', async () => {
  await withFolder((folder) => {
    const touched = join(folder, 'touched')
    const evil = Buffer.from(`\x80\x02cos\nsystem\nX${String.fromCharCode(touched.length + 6)}\0\0\0touch ${touched}\x85R.`, 'latin1')
    const path = join(folder, 'evil.pth')
    const zipped = Buffer.from(encodePth(new Map()))
    for (const bytes of [evil, swapPickle(zipped, evil)]) {
      writeFileSync(path, bytes)
      throwsError(() => readPth(path), 'FORMAT', /evil\.pth/, /os\.system/, /not executed/)
    }
    assert.not.ok(existsSync(touched))
  })
})

/** A zip of one stored member data.pkl. */
function swapPickle(_: Buffer, pickle: Buffer): Buffer {
  const name = Buffer.from('archive/data.pkl')
  const local = Buffer.alloc(30)
  local.writeUInt32LE(0x04034b50, 0)
  local.writeUInt32LE(pickle.length, 18)
  local.writeUInt32LE(pickle.length, 22)
  local.writeUInt16LE(name.length, 26)
  const central = Buffer.alloc(46)
  central.writeUInt32LE(0x02014b50, 0)
  central.writeUInt32LE(pickle.length, 20)
  central.writeUInt32LE(pickle.length, 24)
  central.writeUInt16LE(name.length, 28)
  const end = Buffer.alloc(22)
  end.writeUInt32LE(0x06054b50, 0)
  end.writeUInt16LE(1, 8)
  end.writeUInt16LE(1, 10)
  end.writeUInt32LE(30 + name.length + pickle.length, 16)
  return Buffer.concat([local, name, pickle, central, name, end])
}

test('a .pth cut at every 1,000th byte is refused', async () => {
  const backbone = build(18, 4)
  const bytes = Buffer.from(encodePth({ state_dict: storedOf(backbone) }))
  await withFolder((folder) => {
    const path = join(folder, 'cut.pth')
    for (let cut = 0; cut < bytes.length; cut += 1000) {
      writeFileSync(path, bytes.subarray(0, cut))
      throwsError(() => readWeights(path), 'FORMAT', /cut\.pth/)
    }
  })
  disposeState(backbone.state())
})

interface Reference {
  state_dict_entries: number
  /** Sum and sum of magnitudes. */
  param_checksums: Record<string, [number, number]>
  logits: { image: string; logits: number[] }[]
}

/** The CIFAR ResNet-20 of the checkpoint, from our ops: 3 stages of 3 blocks, shortcuts by subsampling and zero channels. */
function resnet20(tensors: Map<string, StoredTensor>, x: Tensor): Tensor {
  const get = (name: string): Tensor => {
    const stored = tensors.get(`state_dict.module.${name}`)!
    const values = Tensor.from(storedValues(stored), stored.shape)
    return stored.shape.length === 4 ? permute(values, [0, 2, 3, 1]) : values
  }
  const norm = (y: Tensor, name: string, options: { relu?: boolean; residual?: Tensor } = {}): Tensor =>
    batchNorm(y, get(`${name}.weight`), get(`${name}.bias`), get(`${name}.running_mean`), get(`${name}.running_var`), {
      train: false,
      ...options,
    })
  let y = norm(conv2d(x, get('conv1.weight'), undefined, { padding: 1 }), 'bn1', { relu: true })
  for (const stage of [1, 2, 3]) {
    for (const block of [0, 1, 2]) {
      const name = `layer${stage}.${block}`
      const stride = stage > 1 && block === 0 ? 2 : 1
      let shortcut = y
      if (stride === 2) {
        const half = avgPool2d(y, { kernel: 1, stride: 2 })
        const zeros = Tensor.zeros([...half.shape.slice(0, 3), half.shape[3]! / 2])
        shortcut = concat([zeros, half, zeros])
      }
      const inner = norm(conv2d(y, get(`${name}.conv1.weight`), undefined, { stride, padding: 1 }), `${name}.bn1`, { relu: true })
      y = norm(conv2d(inner, get(`${name}.conv2.weight`), undefined, { padding: 1 }), `${name}.bn2`, { relu: true, residual: shortcut })
    }
  }
  return linear(reshape(adaptiveAvgPool2d(y, 1), [x.shape[0]!, 64]), get('linear.weight'), get('linear.bias'))
}

testWhere(
  hasRealData,
  noRealData,
  test,
  'a real trained checkpoint in the legacy format is read: checksums of its tensors, and its logits on real images',
  async () => {
    const folder = join(realData, 'ckpt_resnet20_cifar10')
    const path = join(folder, 'resnet20-12fca82f.th')
    const tensors = readPth(path)
    const reference = JSON.parse(readFileSync(join(folder, 'reference_resnet20-12fca82f.th.json'), 'utf8')) as Reference
    assert.is(tensors.size, reference.state_dict_entries)
    const checked = Object.entries(reference.param_checksums)
    assert.ok(checked.length > 0)
    for (const [name, [sum, magnitude]] of checked) {
      const values = storedValues(tensors.get(`state_dict.${name}`)!)
      assert.ok(Math.abs(values.reduce((total, v) => total + v, 0) - sum) < 1e-4 * Math.max(1, magnitude), name)
      assert.ok(Math.abs(values.reduce((total, v) => total + Math.abs(v), 0) - magnitude) < 1e-4 * Math.max(1, magnitude), name)
    }
    assert.is(reference.logits.length, 10)
    for (const { image, logits: expected } of reference.logits) {
      // libvips decodes with the accurate DCT, as the reference did; the training decoder's fast one differs by up to 4 of 255.
      const { data, info } = await sharp(join(folder, image)).raw().toBuffer({ resolveWithObject: true })
      const pixels = { width: info.width, height: info.height, data }
      const logits = scope(() => {
        const x = Tensor.empty([1, 32, 32, 3])
        renderView(x, 0, pixelTensor(pixels), wholeImage(pixels))
        return resnet20(tensors, x).data()
      })
      expected.forEach((value, i) =>
        assert.ok(
          Math.abs(logits[i]! - value) < 1e-3 * Math.max(1, ...expected.map(Math.abs)),
          `${image}: logit ${i} is ${logits[i]}, PyTorch has ${value}`,
        ),
      )
    }
    throwsError(() => importBackbone(path), 'IMPORT', /basic blocks 3, 3, 3, 0/)
  },
)

const loadProgram = `
import sys, json, torch, torchvision
path, mode, images = sys.argv[1:4]
state = torch.load(path)
strict = torch.load(path, weights_only=True)
net = torchvision.models.resnet18(weights=None)
state = state["state_dict"] if mode == "mmdet" else state
missing = net.load_state_dict(state, strict=False)
assert missing.missing_keys == ["fc.weight", "fc.bias"] and not missing.unexpected_keys, missing
net.eval(); net.fc = torch.nn.Identity()
x = torch.tensor(json.load(open(images))).reshape(-1, 64, 64, 3).permute(0, 3, 1, 2)
print(json.dumps(net(x).flatten().tolist()))
`

testWhere(
  hasTorch && hasRealData,
  hasTorch ? noRealData : noTorch,
  test,
  'the export loads in PyTorch and gives the same features on real images to 1e-4',
  async () => {
    const backbone = build(18, 64)
    // Running statistics as after training: not 0 and 1.
    const random = new Random(8)
    for (const [name, tensor] of allTensors(backbone.state()))
      if (/running|bn\d\.(weight|bias)/.test(name))
        tensor.write(
          Float32Array.from({ length: tensor.size }, () => (/var|weight/.test(name) ? random.uniform(0.5, 2) : random.uniform(-0.3, 0.3))),
        )
    const folders = join(realData, 'imagenette224', 'val')
    const files = readdirSync(folders)
      .slice(0, 4)
      .map((wnid) => join(folders, wnid, readdirSync(join(folders, wnid))[0]!))
    const images = await Promise.all(files.map(async (file) => decode(readFileSync(file), file)))
    const { pixels, features } = scope(() => {
      const x = Tensor.empty([images.length, 64, 64, 3])
      images.forEach((image, i) => renderView(x, i, pixelTensor(image), wholeImage(image)))
      return { pixels: [...x.data()], features: [...adaptiveAvgPool2d(backbone.forward(x, evaluation), 1).data()] }
    })
    await withFolder((folder) => {
      writeFileSync(join(folder, 'images.json'), JSON.stringify(pixels))
      for (const target of ['torchvision', 'mmdet'] as const) {
        const path = join(folder, `${target}.pth`)
        writeBackbone(path, backbone, target)
        const theirs = JSON.parse(runPython(loadProgram, [path, target, join(folder, 'images.json')])) as number[]
        const magnitude = Math.max(...theirs.map(Math.abs))
        const worst = Math.max(...theirs.map((value, i) => Math.abs(value - features[i]!)))
        assert.is(theirs.length, features.length)
        assert.ok(worst <= 1e-4 * magnitude, `${target}: ${worst} of ${magnitude}`)
      }
    })
    disposeState(backbone.state())
  },
)

testWhere(hasTorch, noTorch, test, 'what torch.save writes is read: both formats, views, halves, parameters', async () => {
  await withFolder((folder) => {
    const program = `
import sys, torch
from collections import OrderedDict
x = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
state = OrderedDict(a=x, view=x.permute(2, 0, 1)[1:], half=torch.tensor([1.5, -2.0]).half(), bf=torch.tensor([3.0]).bfloat16())
state.update(p=torch.nn.Parameter(torch.ones(2)), n=torch.tensor(7))
content = {"state_dict": state, "epoch": 3, "meta": {"text": "x" * 300, "list": [1, 2.5, None, True]}}
torch.save(content, sys.argv[1])
torch.save(content, sys.argv[2], _use_new_zipfile_serialization=False)`
    const paths = [join(folder, 'zip.pth'), join(folder, 'legacy.pth')]
    runPython(program, paths)
    for (const path of paths) {
      const tensors = readPth(path)
      assert.equal(
        [...tensors.keys()].sort(),
        ['a', 'bf', 'half', 'n', 'p', 'view'].map((name) => `state_dict.${name}`),
      )
      const values = (name: string): number[] => [...storedValues(tensors.get(`state_dict.${name}`)!)]
      assert.equal(
        values('a'),
        Array.from({ length: 24 }, (_, i) => i),
      )
      assert.equal(tensors.get('state_dict.view')!.shape, [3, 2, 3])
      assert.equal(values('view').slice(0, 6), [1, 5, 9, 13, 17, 21])
      assert.equal([...values('half'), ...values('bf'), ...values('p'), ...values('n')], [1.5, -2, 3, 1, 1, 7])
    }
  })
})

test.run()
