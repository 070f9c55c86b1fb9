import { openSource } from '../data/sources.js'
import { accuracy, extractFeatures, knnPredict } from '../eval/knn.js'
import { fail } from '../tensor/errors.js'
import { resolveDevice } from '../tensor/native.js'
import { withDevice } from '../tensor/tensor.js'
import { importBackbone } from '../weights/import.js'
import { examples, numberFlag, print, type Register } from './command.js'

export const register: Register = (program, done) => {
  const evaluate = program.command('eval').description('measure what a backbone is worth')
  evaluate
    .command('knn')
    .description('classify images by their nearest neighbours among labelled ones, on frozen features')
    .argument('<weights>', 'a checkpoint or backbone, ours or foreign (.safetensors, .pth)')
    .requiredOption('--train <data>', 'labelled images to look neighbours up in')
    .requiredOption('--val <data>', 'labelled images to classify')
    .option('--k <list>', 'neighbours, one result each', '10,20,100,200')
    .option('--temperature <value>', 'of the votes exp(similarity / T)', '0.07')
    .option('--image-size <pixels>', 'side of the central crop', '224')
    .option('--workers <count>', 'data worker threads; 0 chooses', '0')
    .option('--device <name>', 'cpu or cuda:N; auto takes a GPU where there is one', 'auto')
    .option('--json', 'print JSON')
    .addHelpText('after', examples([['densecl eval knn runs/photos/backbone.safetensors --train photos/train --val photos/val --image-size 64', 'class folders with the same classes']]))
    .action(async (weights: string, flags: { train: string; val: string; k: string; temperature: string; imageSize: string; workers: string; device: string; json?: boolean }) => {
      const ks = flags.k.split(',').map((text) => numberFlag('k', text, { least: 1, whole: true }))
      const temperature = numberFlag('temperature', flags.temperature, { least: 1e-6 })
      const options = { imageSize: numberFlag('image-size', flags.imageSize, { least: 1, whole: true }), workers: numberFlag('workers', flags.workers, { least: 0, whole: true }) }
      const bank = await openSource(flags.train, { split: 'train' })
      const queries = await openSource(flags.val, { split: 'val' })
      if (bank.classes === undefined || queries.classes === undefined) return fail('DATA', `eval knn: ${bank.classes === undefined ? flags.train : flags.val} has no labels (class folders, a list with labels, or shards with .cls)`)
      if (bank.classes.join() !== queries.classes.join()) return fail('DATA', `eval knn: the classes differ: ${bank.classes.join(', ')} in --train and ${queries.classes.join(', ')} in --val`)
      const { backbone } = withDevice(resolveDevice(flags.device), () => importBackbone(weights))
      const known = await extractFeatures(backbone, bank.items, options)
      const unknown = await extractFeatures(backbone, queries.items, options)
      const results = ks.map((k) => ({ k, accuracy: accuracy(knnPredict(known, unknown, { k, temperature }), unknown.labels) }))
      const text = results.map(({ k, accuracy: share }) => `k ${String(k).padStart(4)}   ${(100 * share).toFixed(2)} %`).join('\n')
      print(flags.json === true, { weights, train: bank.items.length, val: queries.items.length, classes: bank.classes.length, temperature, results }, `${queries.items.length} images against ${bank.items.length}, ${bank.classes.length} classes\n${text}`)
      done(0)
    })
}
