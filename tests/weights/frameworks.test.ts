/** Exports for other frameworks: timm's folder by timm, and configurations to paste by what reads them. */
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'
import { parse } from 'yaml'

import { decode } from '../../src/data/decode.js'
import { imageTensor } from '../../src/data/augment.js'
import { normalisation, saveClassifier } from '../../src/eval/classifierFile.js'
import { Classifier } from '../../src/nn/classifier.js'
import { evaluation } from '../../src/nn/layers.js'
import { ResNet, type ResNetOptions } from '../../src/nn/resnet.js'
import { reshape } from '../../src/ops/elementwise.js'
import { adaptiveAvgPool2d } from '../../src/ops/pool2d.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { loadingConfiguration, torchvisionProgram } from '../../src/weights/configurations.js'
import { storedBackbone, writeBackbone } from '../../src/weights/export.js'
import { importBackbone } from '../../src/weights/import.js'
import { timmConfig, timmFiles, writeTimmFolder } from '../../src/weights/timm.js'
import { hasModules, hasTorch, noTorch, otherPython, runPython } from '../support/python.js'
import { unsettle } from '../support/states.js'
import { hasRealData, noRealData, realData, runCli, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('exports for frameworks')

const build = (options: Partial<ResNetOptions> = {}): ResNet =>
  new ResNet({ random: new Random(5), dtype: 'f32' }, { depth: 18, ...options })
/** One whose weights nobody reads. */
const blank = (options: Partial<ResNetOptions> = {}): ResNet =>
  new ResNet({ random: new Random(5), dtype: 'f32', unset: true }, { depth: 18, ...options })
const images = { size: 96, ...normalisation }

const hasTimm = hasModules(otherPython, 'timm', 'safetensors.torch')
const noTimm = 'timm is not installed (DENSECL_PYTHON names a Python that has it)'

const timmProgram = `
import sys, json, timm, torch
folder, images = sys.argv[1:3]
model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
x = torch.tensor(json.load(open(images))).reshape(1, 96, 96, 3).permute(0, 3, 1, 2)
from safetensors.torch import load_file
state = load_file(folder + "/model.safetensors")
assert set(state) == set(model.state_dict()), set(state) ^ set(model.state_dict())
other = timm.create_model("local-dir:" + folder, pretrained=True, num_classes=7)
assert torch.equal(other.conv1.weight, model.conv1.weight) and other(x).shape == (1, 7)
maps = timm.create_model("local-dir:" + folder, pretrained=True, features_only=True)
assert [each.shape[-1] for each in maps(x)] == [48, 24, 12, 6, 3]
print(json.dumps({
    "values": model(x).flatten().tolist(), "classes": model.num_classes, "names": model.pretrained_cfg.get("label_names"),
    "data": timm.data.resolve_model_data_config(model)}))
`

testWhere(
  hasTimm && hasRealData,
  hasTimm ? noRealData : noTimm,
  test,
  'timm loads the folder, all tensors of it, and gives the same features and logits on a photograph to 1e-4',
  () =>
    withFolder(async (folder) => {
      const model = new Classifier({ random: new Random(6), dtype: 'f32' }, build(), 5)
      const { backbone } = model
      unsettle(model.state())
      const wnid = join(realData, 'imagenette224', 'val', readdirSync(join(realData, 'imagenette224', 'val'))[0]!)
      const file = join(wnid, readdirSync(wnid)[0]!)
      const photo = await decode(readFileSync(file), file)
      const { pixels, features, logits } = scope(() => {
        const x = imageTensor(photo, { height: 96, width: 96 })
        const pooled = reshape(adaptiveAvgPool2d(backbone.forward(x, evaluation), 1), [backbone.channels])
        return { pixels: [...x.data()], features: [...pooled.data()], logits: [...model.logits(x, evaluation).data()] }
      })
      writeFileSync(join(folder, 'images.json'), JSON.stringify(pixels))
      const classes = ['a', 'b', 'c', 'd', 'e']
      for (const [name, expected, classifier] of [
        ['backbone', features, undefined],
        ['classifier', logits, { model, classes }],
      ] as const) {
        writeTimmFolder(join(folder, name), { backbone, classifier }, images)
        const { status, stdout, stderr } = spawnSync(otherPython, ['-c', timmProgram, join(folder, name), join(folder, 'images.json')], {
          encoding: 'utf8',
        })
        assert.is(status, 0, stderr)
        const said = JSON.parse(stdout.trim().split('\n').at(-1)!) as {
          values: number[]
          classes: number
          names: string[] | null
          data: Record<string, unknown>
        }
        const magnitude = Math.max(...expected.map(Math.abs))
        assert.is(said.values.length, expected.length)
        said.values.forEach((value, i) => assert.ok(Math.abs(value - expected[i]!) <= 1e-4 * magnitude, `${name} ${i}: ${value}`))
        assert.is(said.classes, classifier === undefined ? 0 : 5)
        assert.equal(said.names, classifier === undefined ? null : classes)
        assert.equal(said.data.input_size, [3, 96, 96])
        assert.equal([said.data.mean, said.data.std, said.data.crop_pct], [normalisation.mean, normalisation.deviation, 0.875])
      }
      model.dispose()
      backbone.dispose()
    }),
)

testWhere(hasTorch, noTorch, test, "the folder of a backbone has the names and shapes of torchvision's ResNets", () =>
  withFolder((folder) => {
    for (const depth of [18, 50] as const) {
      const backbone = blank({ depth })
      const path = join(folder, `r${depth}`)
      writeTimmFolder(path, { backbone }, images)
      const program = `
import sys, json, struct, torchvision
data = open(sys.argv[1], "rb").read()
head = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
net = torchvision.models.resnet${depth}(weights=None).state_dict()
expected = {name: list(value.shape) for name, value in net.items() if not name.startswith("fc.")}
assert {name: each["shape"] for name, each in head.items() if name != "__metadata__"} == expected`
      runPython(program, [join(path, 'model.safetensors')])
      assert.equal(readdirSync(path).sort(), [...timmFiles].sort())
      const { architecture, num_features } = JSON.parse(readFileSync(join(path, 'config.json'), 'utf8')) as Record<string, unknown>
      assert.equal([architecture, num_features], [`resnet${depth}`, backbone.channels])
      backbone.dispose()
    }
  }),
)

/** Runs the program that the command prints, then compares the last map of random images with ours, read on the standard input. */
const torchvisionRest = `
import sys, json
given = json.load(sys.stdin)
model.eval()
x = torch.tensor(given["x"]).reshape(2, 64, 64, 3).permute(0, 3, 1, 2)
with torch.no_grad():
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
y = torch.tensor(given["y"]).reshape(given["shape"]).permute(0, 3, 1, 2)
assert x.shape == y.shape, (x.shape, y.shape)
assert (x - y).abs().max() < 1e-4 * y.abs().max(), (x - y).abs().max()
`

testWhere(hasTorch, noTorch, test, 'weights of other strides give our maps in torchvision by the lines that export prints', () =>
  withFolder((folder) => {
    for (const [depth, strides] of [
      [18, [1, 2, 2, 1]],
      [18, [1, 2, 1, 1]],
      [50, [1, 1, 2, 1]],
    ] as const) {
      const backbone = build({ depth, strides })
      unsettle(backbone.state())
      const [weights, out] = [join(folder, 'w.safetensors'), join(folder, 'w.pth')]
      writeBackbone(weights, backbone, 'torchvision')
      const { code, out: said, err } = runCli(['export', weights, '--for', 'torchvision', '--out', out, '--overwrite'])
      assert.is(code, 0, err)
      const program = said.slice(said.indexOf("# torchvision's network has strides 1-2-2-2, but these weights"))
      const random = new Random(3)
      const given = scope(() => {
        const x = Tensor.from(
          Float32Array.from({ length: 2 * 64 * 64 * 3 }, () => random.normal()),
          [2, 64, 64, 3],
        )
        const y = backbone.forward(x, evaluation)
        return { x: [...x.data()], y: [...y.data()], shape: y.shape }
      })
      runPython(`${program}\n${torchvisionRest}`, [], JSON.stringify(given))
      backbone.dispose()
    }
    // Those of torchvision itself, and a network that it has not.
    for (const options of [{}, { strides: [1, 2, 1, 1], baseChannels: 16 }]) {
      const backbone = blank(options)
      assert.is(torchvisionProgram('w.pth', backbone), undefined)
      backbone.dispose()
    }
  }),
)

test('a folder for timm is read back, says what it holds, and is refused where timm has no such network', () =>
  withFolder((folder) => {
    const weights = join(folder, 'w.safetensors')
    const backbone = build({ strides: [1, 2, 1, 1] })
    writeBackbone(weights, backbone, 'torchvision')
    const out = join(folder, 'hub')
    const { code, out: said, err } = runCli(['export', weights, '--for', 'timm', '--out', out])
    assert.is(code, 0, err)
    assert.match(said, /timm builds it with strides 1-2-2-2, but it was trained with 1-2-1-1/)
    const card = readFileSync(join(out, 'README.md'), 'utf8')
    const head = parse(card.split('---')[1]!) as Record<string, unknown>
    assert.equal([head.library_name, head.pipeline_tag], ['timm', 'image-feature-extraction'])
    assert.match(card, /local-dir:hub/)
    assert.match(card, /trained with 1-2-1-1/)
    const { backbone: back } = importBackbone(join(out, 'model.safetensors'))
    assert.equal(
      scope(() => storedBackbone(back)),
      scope(() => storedBackbone(backbone)),
    )
    back.dispose()
    assert.is(runCli(['export', weights, '--for', 'timm', '--out', out]).code, 1, 'a folder is not replaced unasked')
    assert.is(runCli(['export', weights, '--for', 'timm', '--out', out, '--overwrite']).code, 0)
    for (const [path, word] of [
      [join(folder, 'x.pth'), /expected a folder/],
      [weights, /expected a folder/],
    ] as const)
      assert.match(runCli(['export', weights, '--for', 'timm', '--out', path, '--overwrite']).err, word)
    const narrow = build({ baseChannels: 8 })
    throwsError(() => writeTimmFolder(join(folder, 'narrow'), { backbone: narrow }, images), 'ARGUMENT', /64 base channels/, /8 base/)
    assert.not.ok(existsSync(join(folder, 'narrow')))
    for (const each of [narrow, backbone]) each.dispose()
  }))

test("a classifier's folder names its classes", () =>
  withFolder((folder) => {
    const model = new Classifier({ random: new Random(6), dtype: 'f32' }, build(), 2)
    const record = { classes: ['cat', 'dog'], imageSize: 64, ...normalisation, protocol: 'test' } as const
    const weights = join(folder, 'c.safetensors')
    saveClassifier(weights, model, { ...record, classes: [...record.classes] })
    const { code, err, out } = runCli(['export', weights, '--for', 'timm', '--out', join(folder, 'hub')])
    assert.is(code, 0, err)
    assert.match(out, /a classifier of 2 classes/)
    const config = JSON.parse(readFileSync(join(folder, 'hub', 'config.json'), 'utf8')) as ReturnType<typeof timmConfig>
    assert.equal([config.num_classes, config.label_names], [2, ['cat', 'dog']])
    assert.equal((config.pretrained_cfg as Record<string, unknown>).input_size, [3, 64, 64])
    const alone = runCli(['export', weights, '--for', 'mmseg', '--out', join(folder, 'seg.pth')])
    assert.match(alone.out, /for mmseg this is the backbone alone of a classifier of 2 classes/)
    model.dispose()
    model.backbone.dispose()
  }))

type Settings = Record<string, unknown> &
  Record<'backbone' | 'data_preprocessor' | 'neck' | 'decode_head' | 'auxiliary_head', Record<string, unknown>>
/** What Python makes of a configuration of mmdetection or mmsegmentation. */
const evaluated = (text: string): Settings =>
  JSON.parse(runPython('import sys, json; exec(sys.stdin.read()); print(json.dumps(model))', [], text)) as Settings

testWhere(
  hasTorch,
  noTorch,
  test,
  'the configurations of mmdetection and mmsegmentation are Python that names file, stem, widths and channels',
  () => {
    const path = '/weights/of "me".pth'
    for (const options of [
      { depth: 50 },
      { depth: 50, baseChannels: 16, strides: [1, 2, 1, 1] },
      { depth: 18, baseChannels: 32 },
    ] as const) {
      const backbone = blank(options)
      const { baseChannels = 64, depth } = options
      const widths = [1, 2, 4, 8].map((times) => times * baseChannels * (depth === 50 ? 4 : 1))
      const [det, seg] = (['mmdet', 'mmseg'] as const).map((framework) =>
        evaluated(loadingConfiguration(framework, path, backbone, normalisation)),
      ) as [Settings, Settings]
      for (const model of [det, seg]) {
        const { mean, std, bgr_to_rgb } = model.data_preprocessor
        assert.equal([mean, std, bgr_to_rgb], [[123.675, 116.28, 103.53], [58.395, 57.12, 57.375], true])
        const { type, init_cfg, norm_eval, frozen_stages, base_channels, stem_channels } = model.backbone
        assert.equal([type, model.backbone.depth, norm_eval, frozen_stages], ['ResNet', depth, false, -1])
        assert.equal(init_cfg, { type: 'Pretrained', checkpoint: path })
        assert.equal([base_channels ?? 64, stem_channels ?? 64], [baseChannels, baseChannels])
      }
      assert.equal(det.neck.in_channels, widths)
      assert.equal([seg.auxiliary_head.in_channels, seg.decode_head.in_channels], widths.slice(2))
      const own = 'strides' in options
      assert.equal(det.backbone.strides, own ? [1, 2, 1, 1] : undefined)
      assert.equal(JSON.stringify(det).includes('"featmap_strides":[4,8,8,8]'), own)
      // Dilated where the training was not at a stride of 8 already.
      assert.equal([seg.backbone.strides, seg.backbone.dilations], [[1, 2, 1, 1], own ? [1, 1, 1, 1] : [1, 1, 2, 4]])
      assert.is(seg.pretrained, null)
      backbone.dispose()
    }
  },
)

test('the configuration of detectron2 is YAML that names file, widths and channels; what it cannot build is refused', () =>
  withFolder((folder) => {
    const [deep, narrow, small] = [blank({ depth: 50 }), blank({ depth: 50, baseChannels: 16 }), build({ baseChannels: 16 })]
    const of = (backbone: ResNet) =>
      parse(loadingConfiguration('detectron2', '/a/b.pth', backbone, normalisation)) as {
        MODEL: Record<string, unknown> & { RESNETS: Record<string, unknown>; BACKBONE: Record<string, unknown> }
        INPUT: Record<string, unknown>
      }
    const { MODEL, INPUT } = of(deep)
    assert.equal([MODEL.WEIGHTS, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD], ['/a/b.pth', [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])
    assert.equal([INPUT.FORMAT, MODEL.BACKBONE.FREEZE_AT], ['RGB', 0])
    assert.equal(MODEL.RESNETS, { DEPTH: 50, STRIDE_IN_1X1: false, NORM: 'SyncBN' })
    const { STEM_OUT_CHANNELS, RES2_OUT_CHANNELS, WIDTH_PER_GROUP } = of(narrow).MODEL.RESNETS
    assert.equal([STEM_OUT_CHANNELS, RES2_OUT_CHANNELS, WIDTH_PER_GROUP], [16, 64, 16])
    throwsError(() => of(small), 'ARGUMENT', /64 base channels/, /ResNet-18/, /16/)
    const weights = join(folder, 'w.safetensors')
    writeBackbone(weights, small, 'torchvision')
    const { code, err } = runCli(['export', weights, '--for', 'detectron2', '--out', join(folder, 'd.pth')])
    assert.is(code, 1)
    assert.match(err, /64 base channels/)
    assert.not.ok(existsSync(join(folder, 'd.pth')))
    for (const each of [deep, narrow, small]) each.dispose()
  }))

test.run()
