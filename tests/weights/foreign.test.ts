/** Backbones in the files of other programs: under any prefix, in a Sequential without names, among objects that are no weights. */
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { writeAtomic } from '../../src/files/atomic.js'
import type { Backbone } from '../../src/nn/backbone.js'
import { ResNet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import { scope } from '../../src/tensor/tensor.js'
import { storedBackbone } from '../../src/weights/export.js'
import { importBackbone } from '../../src/weights/import.js'
import { encodePth } from '../../src/weights/pth.js'
import { encodeSafetensors, storedFromNumbers, type StoredTensor } from '../../src/weights/safetensors.js'
import { hasModules, hasTorch, noTorch, python, runPython } from '../support/python.js'
import { runCli, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('weights of other programs')

type Stored = Map<string, StoredTensor>

/** The tensors of a small ResNet, another for each seed. */
function stored(seed: number, depth: 18 | 50 = 18): Stored {
  const backbone = new ResNet({ random: new Random(seed), dtype: 'f32' }, { depth, baseChannels: 4 })
  const tensors = scope(() => storedBackbone(backbone))
  backbone.dispose()
  return tensors
}

const renamed = (tensors: Stored, name: (own: string) => string): Stored =>
  new Map([...tensors].map(([own, tensor]) => [name(own), tensor]))

/** What a backbone holds, whose tensors are freed. */
function taken(backbone: Backbone): Stored {
  const tensors = scope(() => storedBackbone(backbone))
  backbone.dispose()
  return tensors
}

/** How MoCo v1 to v3, mmselfsup, Lightning, torch.compile, DINO, SupCon, VISSL and others name what precedes a backbone. */
const prefixes = [
  ...['', 'backbone.', 'encoder_q.0.', 'module.encoder_q.0.', 'module.encoder_q.', 'module.backbone.', 'module.', 'encoder_k.module.0.'],
  ...['encoder_k.0.', '_orig_mod.', 'module._orig_mod.', 'resnet.', 'student_backbone.model.', 'base_encoder.', 'module.base_encoder.'],
  ...['teacher.module.backbone.', 'encoder.module.', 'classy_state_dict.base_model.model.trunk._feature_blocks.'],
]

test('a backbone is found under any prefix and in any container, as safetensors and as .pth, with a report', () =>
  withFolder((folder) => {
    const tensors = stored(5)
    for (const prefix of prefixes) {
      const named = renamed(tensors, (name) => prefix + name)
      named.set('queue', storedFromNumbers([0], [1], 'F32'))
      const safetensors = join(folder, 'x.safetensors')
      writeAtomic(safetensors, encodeSafetensors({ tensors: named, metadata: {} }))
      const pth = join(folder, 'x.pth')
      writeAtomic(pth, [encodePth({ state_dict: named, author: 'test' })])
      for (const path of [safetensors, pth]) {
        const { backbone, report } = importBackbone(path)
        const container = path === pth ? 'state_dict.' : ''
        assert.is(report.prefix, container + prefix)
        assert.is(report.matched.length, tensors.size)
        assert.equal([report.missing, report.others, report.unexpected], [[], [], [`${container}queue`]])
        assert.equal(report.options, { depth: 18, baseChannels: 4 })
        assert.equal(taken(backbone), tensors)
      }
    }
  }))

test('layers of a Sequential are told by their places: lightly’s backbones', () =>
  withFolder((folder) => {
    for (const depth of [18, 50] as const) {
      const tensors = stored(6, depth)
      const places = { conv1: 0, bn1: 1, layer1: 4, layer2: 5, layer3: 6, layer4: 7 } as const
      const named = renamed(
        tensors,
        (name) => `backbone.${name.replace(/^\w+?(?=\.)/, (part) => String(places[part as keyof typeof places]))}`,
      )
      named.set('projection_head.layers.0.weight', storedFromNumbers([0], [1, 1], 'F32'))
      const path = join(folder, 'x.safetensors')
      writeAtomic(path, encodeSafetensors({ tensors: named, metadata: {} }))
      const { backbone, report } = importBackbone(path)
      assert.equal([report.prefix, report.unexpected], ['backbone.', ['projection_head.layers.0.weight']])
      assert.equal(taken(backbone), tensors)
    }
  }))

test('of several networks the one that was trained is taken, the others are named, and --prefix takes any of them', () =>
  withFolder((folder) => {
    const pairs = [
      ['module.encoder_q.', 'module.encoder_k.'],
      ['teacher.backbone.', 'student.backbone.'],
      ['online_encoder.', 'target_encoder.'],
      ['backbone.', 'backbone_momentum.'],
      ['module.base_encoder.', 'module.momentum_encoder.'],
    ] as const
    for (const [trained, copy] of pairs) {
      const [a, b] = [stored(1), stored(2)]
      // The copy first: the order in the file must not decide.
      const named = new Map([...renamed(b, (name) => copy + name), ...renamed(a, (name) => trained + name)])
      const path = join(folder, 'two.safetensors')
      writeAtomic(path, encodeSafetensors({ tensors: named, metadata: {} }))
      const { backbone, report } = importBackbone(path)
      assert.equal([report.prefix, report.others], [trained, [copy]])
      assert.equal(taken(backbone), a)
      for (const prefix of [copy, copy.slice(0, -1)]) assert.equal(taken(importBackbone(path, { prefix }).backbone), b)
      throwsError(() => importBackbone(path, { prefix: 'encoder' }), 'IMPORT', /two\.safetensors/, /"encoder"/, new RegExp(`"${copy}"`))
      const said = runCli(['import', path])
      assert.match(said.out, new RegExp(`others +"${copy}"`))
      assert.match(runCli(['import', path, '--prefix', copy, '--json']).out, new RegExp(`"prefix": "${copy}"`))
    }
    const other = renamed(stored(1), (name) => `vgg${name}`)
    const path = join(folder, 'other.safetensors')
    writeAtomic(path, encodeSafetensors({ tensors: other, metadata: {} }))
    throwsError(() => importBackbone(path), 'IMPORT', /expected tensors of a ResNet/, /such as vggconv1\.weight/)
  }))

const program = `
import sys, argparse, collections, pathlib, torch
class HistoryBuffer:
    def __init__(self): self._log_history = [1.0]; self._names = {"x": torch.ones(3)}
class Attributes(dict): pass
state = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(eval(sys.argv[2]).items())}
other = collections.defaultdict(dict); other["state"]["0"] = torch.ones(2)
settings = argparse.Namespace(lr=0.1, at=pathlib.Path("/tmp/x"), chosen={1, 2}, fixed=frozenset([3]))
torch.save({"state_dict": state, "message_hub": {"log": HistoryBuffer()}, "hyper_parameters": Attributes(a=settings),
  "dtype": torch.float32, "device": torch.device("cpu"), "args": settings, "optimizer": other, "step": 1 << 80,
  "raw": b"\\x00" * 300, "random": torch.get_rng_state()}, sys.argv[1], pickle_protocol=int(sys.argv[3]))
torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), sys.argv[1] + ".module")`

testWhere(hasTorch, noTorch, test, 'objects beside the weights are passed over and named; a module in their place is refused', () =>
  withFolder((folder) => {
    const tensors = stored(3)
    const shapes = `{${[...tensors].map(([name, { shape }]) => `"${name}": (${shape.map((d) => `${d},`).join('')})`).join(', ')}}`
    for (const protocol of ['2', '4']) {
      const path = join(folder, 'trainer.pth')
      runPython(program, [path, shapes, protocol])
      const { backbone, report } = importBackbone(path)
      assert.is(report.prefix, 'state_dict.')
      const passed = report.passedOver.join(' ')
      for (const name of ['HistoryBuffer', 'argparse.Namespace', 'pathlib', 'Attributes', 'torch.device']) assert.match(passed, name)
      const names = [...tensors.keys()].filter((name) => !name.endsWith('num_batches_tracked'))
      const values = taken(backbone)
      for (const name of names) {
        const { bytes } = values.get(name)!
        assert.is(new DataView(bytes.buffer, bytes.byteOffset).getFloat32(bytes.length - 4, true), [...tensors.keys()].indexOf(name), name)
      }
      assert.match(runCli(['import', path]).out, /passed over +.*argparse\.Namespace/)
      throwsError(() => importBackbone(`${path}.module`), 'FORMAT', /torch\.nn\.modules\.container\.Sequential/, /state_dict\(\)/)
    }
  }),
)

const arrays = `
import pickle, sys, numpy
values = {name: numpy.arange(numpy.prod(shape), dtype=dtype).reshape(shape) for name, (shape, dtype) in eval(sys.argv[2]).items()}
values["conv1.weight"] = numpy.asfortranarray(values["conv1.weight"])
values["bn1.weight"] = values["bn1.weight"].astype(numpy.float64)
other = {"words": numpy.array(["a", None], dtype=object), "big": numpy.arange(3, dtype=">f4"), "one": numpy.float32(1)}
with open(sys.argv[1], "wb") as file:
    pickle.dump({"model": values, "__author__": "MOCO", "matching_heuristics": True, **other}, file, protocol=int(sys.argv[3]))`

const hasNumpy = hasModules(python, 'numpy')

testWhere(hasNumpy, 'NumPy is not installed', test, 'a pickle of arrays, as detectron2 has them, is read under every protocol', () =>
  withFolder((folder) => {
    const tensors = stored(4)
    const shapes = [...tensors].map(
      ([name, { shape, dtype }]) => `"${name}": ((${shape.map((d) => `${d},`).join('')}), "${dtype === 'I64' ? 'int64' : 'float32'}")`,
    )
    for (const protocol of ['2', '3', '4', '5']) {
      const path = join(folder, 'zoo.pkl')
      runPython(arrays, [path, `{${shapes.join(', ')}}`, protocol])
      const { backbone, report } = importBackbone(path)
      assert.equal([report.prefix, report.matched.length, report.unexpected], ['model.', tensors.size, []])
      assert.ok(report.passedOver.includes('numpy.ndarray'), report.passedOver.join(' '))
      for (const [name, { bytes, dtype }] of taken(backbone)) {
        const values = dtype === 'F32' ? Array.from(new Float32Array(Uint8Array.from(bytes).buffer)) : []
        assert.equal(values, [...values.keys()], `${name}, protocol ${protocol}`)
      }
    }
  }),
)

test('a pickle that calls an unknown function within a dictionary does nothing', () =>
  withFolder((folder) => {
    const [path, touched] = [join(folder, 'inner.pth'), join(folder, 'touched')]
    // {'x': os.system('touch ...')}
    const command = `touch ${touched}`
    writeFileSync(
      path,
      Buffer.from(`\x80\x02}X\x01\0\0\0xcos\nsystem\nX${String.fromCharCode(command.length)}\0\0\0${command}\x85Rs.`, 'latin1'),
    )
    throwsError(() => importBackbone(path), 'IMPORT', /inner\.pth/, /passed over: os\.system/)
    assert.not.ok(existsSync(touched))
  }))

test.run()
