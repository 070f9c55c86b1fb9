import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { decode } from '../../src/data/decode.js'
import { pixelTensor, renderView, wholeImage } from '../../src/data/augment.js'
import { evaluation } from '../../src/nn/layers.js'
import { allTensors, disposeState } from '../../src/nn/module.js'
import { Random } from '../../src/nn/random.js'
import { ResNet, type ResNetDepth } from '../../src/nn/resnet.js'
import { adaptiveAvgPool2d } from '../../src/ops/pool2d.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { writeAtomic } from '../../src/weights/atomic.js'
import { detectron2Name, exportTargets, writeBackbone } from '../../src/weights/export.js'
import { backbonePrefixes, importBackbone, readWeights, storedBackbone } from '../../src/weights/import.js'
import { encodePth, readPth } from '../../src/weights/pth.js'
import { encodeSafetensors, type StoredTensor, storedFromNumbers, storedValues } from '../../src/weights/safetensors.js'
import { hasRealData, hasTorch, noRealData, noTorch, realData, runPython, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('weights')

const build = (depth: ResNetDepth = 18, baseChannels = 8): ResNet => new ResNet({ random: new Random(5), dtype: 'f32' }, { depth, baseChannels })

function storedOf(backbone: ResNet): Map<string, StoredTensor> {
  return scope(() => storedBackbone(backbone))
}

test('every prefix style and container is imported, as safetensors and as .pth, with a report', async () => {
  const backbone = build()
  const tensors = storedOf(backbone)
  await withFolder((folder) => {
    for (const prefix of backbonePrefixes) {
      const named = new Map([...tensors].map(([name, tensor]) => [prefix + name, tensor]))
      named.set('queue', storedFromNumbers([0], [1], 'F32'))
      const safetensors = join(folder, 'x.safetensors')
      writeAtomic(safetensors, encodeSafetensors({ tensors: named, metadata: {} }))
      const pth = join(folder, 'x.pth')
      writeAtomic(pth, [encodePth({ state_dict: named, author: 'test' })])
      for (const path of [safetensors, pth]) {
        const { backbone: loaded, report } = importBackbone(path)
        assert.ok(report.prefix.endsWith(prefix), `${report.prefix} ${prefix}`)
        assert.is(report.matched.length, tensors.size)
        assert.equal(report.missing, [])
        assert.equal(report.unexpected, [path === pth ? 'state_dict.queue' : 'queue'])
        assert.equal([report.depth, report.baseChannels], [18, 8])
        assert.equal(storedOf(loaded), tensors)
        disposeState(loaded.state())
      }
    }
  })
  disposeState(backbone.state())
})

test('what each target writes is read back the same', async () => {
  const backbone = build(50, 4)
  const tensors = storedOf(backbone)
  await withFolder((folder) => {
    for (const target of exportTargets) {
      for (const extension of ['.safetensors', '.pth']) {
        const path = join(folder, `${target}${extension}`)
        writeBackbone(path, tensors, target)
        const { backbone: loaded, report } = importBackbone(path)
        assert.equal(report.unexpected, [], path)
        const back = storedOf(loaded)
        for (const [name, tensor] of tensors) if (!name.endsWith('num_batches_tracked')) assert.equal(back.get(name), tensor, `${path} ${name}`)
        disposeState(loaded.state())
      }
    }
    throwsError(() => writeBackbone(join(folder, 'x.onnxx'), tensors, 'mmdet'), 'ARGUMENT', /x\.onnxx/)
  })
  disposeState(backbone.state())
})

test("detectron2's names", () => {
  const pairs = { 'conv1.weight': 'stem.conv1.weight', 'bn1.bias': 'stem.conv1.norm.bias', 'layer1.0.conv3.weight': 'res2.0.conv3.weight', 'layer4.2.bn2.running_var': 'res5.2.conv2.norm.running_var', 'layer2.0.downsample.0.weight': 'res3.0.shortcut.weight', 'layer2.0.downsample.1.weight': 'res3.0.shortcut.norm.weight' }
  for (const [ours, theirs] of Object.entries(pairs)) assert.is(detectron2Name(ours), theirs)
})

test('nothing that matches, another architecture and missing tensors are errors that say which', async () => {
  const backbone = build()
  const tensors = storedOf(backbone)
  await withFolder((folder) => {
    const path = join(folder, 'x.safetensors')
    const save = (content: Map<string, StoredTensor>): void => writeAtomic(path, encodeSafetensors({ tensors: content, metadata: {} }))
    save(new Map([['head.weight', storedFromNumbers([1], [1], 'F32')]]))
    throwsError(() => importBackbone(path), 'IMPORT', /no tensor matches/, /head\.weight/, /encoder_q/)
    save(new Map([...tensors].filter(([name]) => !name.startsWith('layer3.1'))))
    throwsError(() => importBackbone(path), 'IMPORT', /basic blocks 2, 2, 1, 2/)
    save(new Map([...tensors].filter(([name]) => name !== 'layer3.1.bn2.weight')))
    throwsError(() => importBackbone(path), 'IMPORT', /1 tensors of a ResNet are missing: layer3\.1\.bn2\.weight/)
    save(new Map([...tensors].map(([name, tensor]) => [name, name === 'bn1.weight' ? storedFromNumbers([1, 2], [2], 'F32') : tensor])))
    throwsError(() => importBackbone(path), 'SHAPE', /bn1\.weight/, /\[2\]/, /\[8\]/)
  })
  disposeState(backbone.state())
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

testWhere(hasRealData, noRealData, test, 'a real trained checkpoint in the legacy format is read; its sums agree with the reference', () => {
  const folder = join(realData, 'ckpt_resnet20_cifar10')
  const tensors = readPth(join(folder, 'resnet20-12fca82f.th'))
  const reference = JSON.parse(readFileSync(join(folder, readdirSync(folder).find((name) => name.startsWith('reference_'))!), 'utf8')) as { tensor_sums?: Record<string, number> }
  const text = JSON.stringify(reference)
  let compared = 0
  for (const [name, tensor] of tensors) {
    const sum = storedValues(tensor).reduce((total, value) => total + value, 0)
    const known = new RegExp(`"${name.replace('state_dict.', '').replaceAll('.', '\\.')}":\\s*\\{?[^}]*?(-?\\d+\\.\\d+(e-?\\d+)?)`).exec(text)
    if (known === null) continue
    assert.ok(Math.abs(sum - Number(known[1])) < 1e-3 * Math.max(1, Math.abs(sum)), `${name}: ${sum} ${known[1]}`)
    compared += 1
  }
  assert.ok(tensors.size > 90, String(tensors.size))
  assert.ok(compared > 0, text.slice(0, 500))
  throwsError(() => importBackbone(join(folder, 'resnet20-12fca82f.th')), 'IMPORT', /basic blocks 3, 3, 3, 0/)
})

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

testWhere(hasTorch && hasRealData, hasTorch ? noRealData : noTorch, test, 'the export loads in PyTorch and gives the same features on real images to 1e-4', async () => {
  const backbone = build(18, 64)
  // Running statistics as after training: not 0 and 1.
  const random = new Random(8)
  for (const [name, tensor] of allTensors(backbone.state())) if (/running|bn\d\.(weight|bias)/.test(name)) tensor.write(Float32Array.from({ length: tensor.size }, () => (/var|weight/.test(name) ? random.uniform(0.5, 2) : random.uniform(-0.3, 0.3))))
  const folders = join(realData, 'imagenette224', 'val')
  const files = readdirSync(folders).slice(0, 4).map((wnid) => join(folders, wnid, readdirSync(join(folders, wnid))[0]!))
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
      writeBackbone(path, storedOf(backbone), target)
      const theirs = JSON.parse(runPython(loadProgram, [path, target, join(folder, 'images.json')])) as number[]
      const magnitude = Math.max(...theirs.map(Math.abs))
      const worst = Math.max(...theirs.map((value, i) => Math.abs(value - features[i]!)))
      assert.is(theirs.length, features.length)
      assert.ok(worst <= 1e-4 * magnitude, `${target}: ${worst} of ${magnitude}`)
    }
  })
  disposeState(backbone.state())
})

testWhere(hasTorch, noTorch, test, 'what torch.save writes is read: both formats, views, halves, parameters', async () => {
  await withFolder((folder) => {
    const program = `
import sys, torch
from collections import OrderedDict
x = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
content = {"state_dict": OrderedDict(a=x, view=x.permute(2, 0, 1)[1:], half=torch.tensor([1.5, -2.0]).half(), bf=torch.tensor([3.0]).bfloat16(), p=torch.nn.Parameter(torch.ones(2)), n=torch.tensor(7)), "epoch": 3, "meta": {"text": "x" * 300, "list": [1, 2.5, None, True]}}
torch.save(content, sys.argv[1])
torch.save(content, sys.argv[2], _use_new_zipfile_serialization=False)`
    const paths = [join(folder, 'zip.pth'), join(folder, 'legacy.pth')]
    runPython(program, paths)
    for (const path of paths) {
      const tensors = readPth(path)
      assert.equal([...tensors.keys()].sort(), ['a', 'bf', 'half', 'n', 'p', 'view'].map((name) => `state_dict.${name}`))
      const values = (name: string): number[] => [...storedValues(tensors.get(`state_dict.${name}`)!)]
      assert.equal(values('a'), Array.from({ length: 24 }, (_, i) => i))
      assert.equal(tensors.get('state_dict.view')!.shape, [3, 2, 3])
      assert.equal(values('view').slice(0, 6), [1, 5, 9, 13, 17, 21])
      assert.equal([...values('half'), ...values('bf'), ...values('p'), ...values('n')], [1.5, -2, 3, 1, 1, 7])
    }
  })
})

test.run()
