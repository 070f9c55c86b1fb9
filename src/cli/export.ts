import { existsSync } from 'node:fs'

import { Option } from 'commander'

import { allTensors } from '../nn/module.js'
import { backboneHelp, kindOfFlag } from '../run/backbone.js'
import { fail } from '../tensor/errors.js'
import { exportTargets, type ExportTarget, writeBackbone } from '../weights/export.js'
import { importBackbone } from '../weights/import.js'
import { examples, print, type Register } from './command.js'

export const register: Register = (program, done) => {
  program
    .command('export')
    .description('write a backbone for another framework')
    .argument('<weights>', 'a checkpoint or backbone, ours or foreign')
    .addOption(new Option('--for <framework>', 'whose names and container').choices([...exportTargets]).default('torchvision'))
    .requiredOption('--out <file>', '.safetensors or .pth')
    .option('--overwrite', 'replace the file')
    .option('--backbone <module>', backboneHelp)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      examples([
        [
          'densecl export runs/r50/checkpoints/last.safetensors --out r50.pth',
          'torchvision and timm: load_state_dict(torch.load("r50.pth"), strict=False)',
        ],
        [
          'densecl export runs/r50/backbone.safetensors --for mmdet --out r50.pth',
          'mmdetection, mmsegmentation: init_cfg=dict(type="Pretrained", checkpoint="r50.pth")',
        ],
        [
          'densecl export runs/r50/backbone.safetensors --for detectron2 --out r50.pth',
          'detectron2: MODEL.WEIGHTS; RGB input, STRIDE_IN_1X1 False',
        ],
      ]),
    )
    .action(async (weights: string, flags: { for: ExportTarget; out: string; backbone?: string; overwrite?: boolean; json?: boolean }) => {
      if (existsSync(flags.out) && flags.overwrite !== true)
        return fail('WRITE', `export: ${flags.out} exists already; --overwrite replaces it`)
      const { backbone, report } = importBackbone(weights, { kind: await kindOfFlag(flags.backbone) })
      writeBackbone(flags.out, backbone, flags.for)
      const tensors = [...allTensors(backbone.state())].length
      print(
        flags.json === true,
        { out: flags.out, for: flags.for, ...report.options, tensors },
        `${backbone.name}, ${tensors} tensors for ${flags.for}: ${flags.out}`,
      )
      done(0)
    })
}
