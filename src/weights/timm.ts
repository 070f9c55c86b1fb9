/** A network as a folder that timm and the Hugging Face hub take: config.json, model.safetensors and a model card, README.md. */
import { mkdirSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'

import { writeAtomic } from '../files/atomic.js'
import type { Backbone } from '../nn/backbone.js'
import type { Classifier } from '../nn/classifier.js'
import { allTensors } from '../nn/module.js'
import { ResNet, resnetStrides } from '../nn/resnet.js'
import { fail, systemReason } from '../tensor/errors.js'
import { storedBackbone } from './export.js'
import { toStored } from './layout.js'
import { encodeSafetensors } from './safetensors.js'

/** What goes into a folder for timm: a backbone, or a classifier on it with the names of its classes. */
export interface TimmNetwork {
  backbone: Backbone
  classifier?: { model: Classifier; classes: readonly string[] } | undefined
}

/** How a network's images are made. */
export interface TimmImages {
  /** Side of the central crop in pixels, of an image whose short side is 256/224 of it. */
  size: number
  /** Of the channels, in 0..1. */
  mean: readonly number[]
  deviation: readonly number[]
}

/** The files of such a folder. */
export const timmFiles = ['config.json', 'model.safetensors', 'README.md'] as const

/** Why timm builds a backbone with other strides than it was trained with; undefined where it does not. */
export const timmCaution = (backbone: Backbone): string | undefined => {
  const { strides } = backbone.options as { strides?: readonly number[] }
  return strides === undefined
    ? undefined
    : `timm builds it with strides ${resnetStrides.join('-')}, but it was trained with ${strides.join('-')}: the tensors fit, ` +
        'the maps are coarser and of less use'
}

/** timm's name of a ResNet. Throws ARGUMENT for another kind of backbone, and for a width that no entry of timm has. */
export function timmArchitecture(backbone: Backbone): string {
  if (!(backbone instanceof ResNet))
    return fail('ARGUMENT', `export: expected a ResNet but received ${backbone.name}, which timm has no names for`)
  if (backbone.baseChannels !== 64)
    fail('ARGUMENT', `export: expected 64 base channels, as timm's ResNets have, but received ${backbone.description}`)
  return `resnet${backbone.depth}`
}

/** The description of a network in the form of timm's config.json. Throws ARGUMENT for what timm cannot build. */
export function timmConfig({ backbone, classifier }: TimmNetwork, { size, mean, deviation }: TimmImages): Record<string, unknown> {
  const classes = classifier?.classes.length ?? 0
  const grid = Math.ceil(size / 32)
  return {
    architecture: timmArchitecture(backbone),
    num_classes: classes,
    num_features: backbone.channels,
    global_pool: 'avg',
    ...(classifier === undefined ? {} : { label_names: classifier.classes }),
    ...(backbone.inputs === 3 ? {} : { model_args: { in_chans: backbone.inputs } }),
    pretrained_cfg: {
      tag: 'densecl',
      custom_load: false,
      input_size: [backbone.inputs, size, size],
      fixed_input_size: false,
      interpolation: 'bilinear',
      crop_pct: 0.875,
      crop_mode: 'center',
      mean,
      std: deviation,
      num_classes: classes,
      pool_size: [grid, grid],
      // timm makes others of RGB stems alone, and these have their channels already.
      first_conv: backbone.inputs === 3 ? 'conv1' : null,
      classifier: 'fc',
    },
  }
}

/** The model card: what it is, how it is loaded, and what it must be given. `notes` are said in it, a line each. */
function modelCard(folder: string, network: TimmNetwork, { size, mean, deviation }: TimmImages, notes: readonly string[]): string {
  const { backbone, classifier } = network
  const name = basename(resolve(folder))
  const what = backbone.description + (classifier === undefined ? '' : ` with a classifier of ${classifier.classes.length} classes`)
  const inputs = backbone.inputs === 3 ? 'RGB' : backbone.inputs === 1 ? 'grey' : `${backbone.inputs} channels`
  const task = classifier === undefined ? 'image-feature-extraction' : 'image-classification'
  const loading =
    classifier === undefined
      ? `model = timm.create_model('local-dir:${name}', pretrained=True)  # [N, ${backbone.channels}] pooled features
maps = timm.create_model('local-dir:${name}', pretrained=True, features_only=True)  # maps of strides 2 to 32
classifier = timm.create_model('local-dir:${name}', pretrained=True, num_classes=10)  # with a new last layer`
      : `model = timm.create_model('local-dir:${name}', pretrained=True)  # logits [N, ${classifier.classes.length}]`
  return `---
tags:
- ${task}
- timm
- densecl
- self-supervised
library_name: timm
pipeline_tag: ${task}
---
# ${name}

${what}, pre-trained by densecl.
${notes.map((note) => `\n${note}\n`).join('')}
## Usage

\`\`\`python
import timm

${loading}
\`\`\`

From the hub, once uploaded (\`hf upload OWNER/${name} ${name}\`), it is \`hf-hub:OWNER/${name}\`.

Images: ${inputs} in 0..1, short side ${Math.round((size * 256) / 224)}, central crop ${size},
mean ${mean.join(' ')}, deviation ${deviation.join(' ')};
\`timm.data.create_transform(**timm.data.resolve_model_data_config(model))\` makes them so.
`
}

/**
 * Writes the folder. `notes` are lines of the model card. Throws ARGUMENT for a network that timm cannot build, before anything is written,
 * and WRITE.
 */
export function writeTimmFolder(folder: string, network: TimmNetwork, images: TimmImages, notes: readonly string[] = []): void {
  const config = timmConfig(network, images)
  const { backbone, classifier } = network
  const tensors =
    classifier === undefined
      ? storedBackbone(backbone)
      : new Map([...allTensors(classifier.model.state())].map(([name, tensor]) => [name, toStored(name, tensor)]))
  const caution = timmCaution(backbone)
  const card = modelCard(folder, network, images, caution === undefined ? notes : [`**${caution}.**`, ...notes])
  try {
    mkdirSync(folder, { recursive: true })
  } catch (error) {
    fail('WRITE', `${folder}: the folder cannot be made (${systemReason(error)})`)
  }
  writeAtomic(join(folder, 'model.safetensors'), encodeSafetensors({ tensors, metadata: { format: 'pt', author: 'densecl' } }))
  writeAtomic(join(folder, 'config.json'), [Buffer.from(`${JSON.stringify(config, undefined, 2)}\n`)])
  writeAtomic(join(folder, 'README.md'), [Buffer.from(card)])
}
