/** Flags of all commands with values that they do not take: wrong usage, by the name of the flag and the value. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

import type { Command } from 'commander'
import * as assert from 'uvu/assert'

import { buildProgram, explain, runProgram } from '../../src/cli/program.js'
import { ResNet } from '../../src/nn/resnet.js'
import { statePath } from '../../src/run/results.js'
import { Random } from '../../src/tensor/random.js'
import { writeBackbone } from '../../src/weights/export.js'
import { writeBoxTree } from '../support/boxTree.js'
import { runCli, suite, withFolder } from '../support/suite.js'
import { writeVocTree } from '../support/vocTree.js'

const test = suite('wrong flags')

/** What is a path, or a name within a tree: any text may be one, and what is not there is no wrong usage. */
const anyText = new Set(
  (
    '--out --data --train --val --train-split --val-split --test-split --splits --backbone --images --weights --prefix ' +
    '--labelled --classes --save --compare'
  ).split(' '),
)
/** Commands whose flags are looked at elsewhere (tests/run/optionErrors.test.ts), that are of a machine, or that want VOC2007 itself. */
const elsewhere = new Set(['pretrain', 'launch', 'study', 'watch', 'doctor', 'build', 'completion', 'help', 'svm', 'low-shot'])
/** Flags that are refused beside the protocol that a command has without them, or by a process that is started for them. */
const ofAnother = new Set(['eval detection --channels', 'bench step --layer'])

/** Commands that do something, some of which have others below them. */
const working = (command: Command, path: readonly string[] = []): [Command, string[]][] => [
  ...(command.commands.length === 0 || command.registeredArguments.length > 0 ? [[command, [...path]] as [Command, string[]]] : []),
  ...command.commands.filter((own) => !elsewhere.has(own.name())).flatMap((own) => working(own, [...path, own.name()])),
]

/** The path of the weights of a small network. */
function weightsIn(folder: string): string {
  const path = join(folder, 'weights.safetensors')
  const backbone = new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 4 })
  writeBackbone(path, backbone, 'torchvision')
  backbone.dispose()
  return path
}

/** Runs a command and takes what it says. */
async function said(args: readonly string[]): Promise<{ code: number; text: string }> {
  const { error, log } = console
  const write = process.stderr.write.bind(process.stderr)
  let text = ''
  const take = (more: unknown): boolean => ((text += `${String(more)}\n`), true)
  Object.assign(console, { error: take, log: () => undefined })
  process.stderr.write = take
  try {
    return { code: await runProgram(args), text }
  } catch (thrown) {
    const { code, text: why = '' } = explain(thrown)
    return { code, text: text + why }
  } finally {
    Object.assign(console, { error, log })
    process.stderr.write = write
  }
}

test('a value that a flag does not take is refused with 2, flag and value, in words of this package', () =>
  withFolder(async (folder) => {
    const weights = weightsIn(folder)
    const [boxes, masks, videos] = [join(folder, 'boxes'), join(folder, 'masks'), join(folder, 'videos')] as const
    writeBoxTree(boxes, 4)
    writeVocTree(masks, { train: 4, val: 2 })
    mkdirSync(videos)
    writeFileSync(join(videos, 'a.mp4'), '')
    const data: Record<string, string> = { 'eval detection': boxes, 'eval segmentation': masks }
    /** What a command, or one of its flags, wants to be given with. */
    const needs: Record<string, string[]> = {
      'eval segmentation --window': ['--frozen'],
      'eval segmentation --windows': ['--frozen'],
      'export --outputs': ['--for', 'onnx', '--out', join(folder, 'out.onnx')],
      'import --mean': ['--channels', '4', '--deviation', '1,1,1,1'],
      'import --deviation': ['--channels', '4', '--mean', '0,0,0,0'],
      'bench tune --layer': ['--model', 'sm_90'],
      pack: ['--out', join(folder, 'packed')],
      frames: ['--out', join(folder, 'frames')],
    }
    let count = 0
    for (const [command, path] of working(await buildProgram([], () => undefined))) {
      const name = path.join(' ')
      const takes = (flag: string): string =>
        flag === '--out' ? join(folder, 'out.pth') : flag === '--weights' ? weights : (data[name] ?? 'scenes:8')
      const operands = command.registeredArguments
        .filter(({ required }) => required)
        .map((argument) => (argument.name() === 'weights' ? weights : name === 'frames' ? videos : 'scene:1'))
      for (const option of command.options) {
        const flag = option.long!
        if ((!option.required && !option.optional) || anyText.has(flag) || ofAnother.has(`${name} ${flag}`)) continue
        const others = command.options.filter((each) => each.mandatory && each !== option).flatMap(({ long }) => [long!, takes(long!)])
        const args = [...path, ...operands, ...others, ...(needs[`${name} ${flag}`] ?? needs[name] ?? []), `${flag}=junk!`]
        const { code, text } = await said(args)
        assert.is(code, 2, `${args.join(' ')}: ${text}`)
        assert.ok(text.includes(flag) && text.includes('junk!'), `${args.join(' ')}: ${text}`)
        assert.not.match(text, /Invalid (input|option)|Too (small|big)|received NaN|mistake in densecl/)
        count += 1
      }
    }
    assert.ok(count > 80, `${count} flags`)
  }))

test('what is to be continued is not to be replaced: --resume and --overwrite are refused together, by every command with both', () =>
  withFolder(async (folder) => {
    writeFileSync(join(folder, 'config.yaml'), '')
    const program = await buildProgram([], () => undefined)
    const all = [...program.commands, ...program.commands.flatMap(({ commands }) => commands)]
    const both = all.filter(({ options }) => ['--resume', '--overwrite'].every((flag) => options.some(({ long }) => long === flag)))
    assert.ok(both.length >= 5)
    for (const command of both) {
      const path = command.parent === program ? [command.name()] : [command.parent!.name(), command.name(), 'weights']
      const needed = command.options.flatMap(({ mandatory, long }) => (mandatory ? [long!, 'x'] : []))
      const { code, text } = await said([...path, ...needed, '--out', folder, '--resume', '--overwrite'])
      assert.is(code, 2, text)
      assert.match(text, "option '--resume' cannot be used with option '--overwrite'")
    }
  }))

test('a folder without a run is not resumed, and a file in the place of the folder is named', () =>
  withFolder(async (folder) => {
    const file = join(folder, 'file')
    writeFileSync(file, '')
    for (const out of [join(folder, 'none'), folder, file, join(file, 'run')]) {
      const { code, text } = await said(['pretrain', '--out', out, '--resume'])
      assert.is(code, 1, text)
      assert.ok(text.includes(`${out} holds no run to resume`), text)
    }
    const run = ['pretrain', '--data=scenes:16', '--image-size=32', '--batch-size=8', '--device=cpu', '--queue-length=8', '--quiet']
    for (const out of [file, join(file, 'run')]) {
      const { code, text } = await said([...run, '--out', out])
      assert.is(code, 1, text)
      assert.match(text, 'the folder cannot be made')
      assert.ok(text.includes(file), text)
    }
  }))

test('eval linear looks for a state to continue, and for one in its way, before it tries learning rates', () =>
  withFolder((folder) => {
    const weights = weightsIn(folder)
    const out = join(folder, 'out')
    const linear = ['eval', 'linear', weights, '--train', 'scenes:20', '--val', 'scenes:10', '--image-size', '32', '--out', out]
    const refused = (...flags: string[]): string => {
      const { code, out, err } = runCli([...linear, '--device', 'cpu', ...flags])
      assert.is(code, 1, err)
      assert.not.match(out, /^rate/m)
      return err
    }
    assert.match(refused('--resume'), 'there is no checkpoint to resume from')
    const state = statePath(join(out, 'linear-imagenet-avgpool'))
    mkdirSync(dirname(state), { recursive: true })
    writeFileSync(state, '')
    assert.match(refused(), 'holds an evaluation already')
  }))

test('what is not there is said to be that, with what was expected in its place', () =>
  withFolder(async (folder) => {
    const weights = weightsIn(folder)
    const finetune = ['eval', 'finetune', weights, '--train', 'scenes:20', '--val', 'scenes:10', '--device', 'cpu']
    for (const [args, why] of [
      [['pretrain', '--data', 'none', '--format', 'voc'], /none does not exist below .*; expected --data to be a VOC tree/],
      [['pretrain', '--data', 'none', '--format', 'list'], /none does not exist below .*; expected --data to be a text list/],
      [[...finetune, '--labelled', 'none'], /none does not exist below .*; expected --labelled to be a text list/],
      [['eval', 'svm', weights, '--data', 'none'], /none does not exist: expected a VOC tree/],
    ] as const) {
      const { code, text } = await said(args)
      assert.is(code, 1, text)
      assert.match(text, why)
    }
  }))

test.run()
