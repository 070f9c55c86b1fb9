import { importBackbone, storedBackbone } from '../weights/import.js'
import { writeBackbone } from '../weights/export.js'
import { examples, print, type Register } from './command.js'

export const register: Register = (program, done) => {
  program
    .command('import')
    .description("read a foreign checkpoint's backbone and say what matched")
    .argument('<weights>', '.safetensors or .pth with any of the known prefixes')
    .option('--out <file>', 'also write it as torchvision names it (.safetensors or .pth)')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      examples([
        [
          'densecl import densecl_r50_imagenet_200ep.pth --out r50.safetensors',
          'the published weights; eval, match and export take them directly too',
        ],
      ]),
    )
    .action((weights: string, flags: { out?: string; json?: boolean }) => {
      const { backbone, report } = importBackbone(weights)
      if (flags.out !== undefined) writeBackbone(flags.out, storedBackbone(backbone), 'torchvision')
      const list = (names: string[]): string =>
        names.length === 0 ? '' : `: ${names.slice(0, 6).join(', ')}${names.length > 6 ? `, and ${names.length - 6} more` : ''}`
      const text = [
        `ResNet-${report.depth} with ${report.baseChannels} base channels under the prefix "${report.prefix}"`,
        `matched    ${report.matched.length}`,
        `missing    ${report.missing.length}${list(report.missing)}`,
        `unexpected ${report.unexpected.length}${list(report.unexpected)}`,
        ...(flags.out === undefined ? [] : [`written    ${flags.out}`]),
      ]
      print(flags.json === true, { ...report, out: flags.out }, text.join('\n'))
      done(0)
    })
}
