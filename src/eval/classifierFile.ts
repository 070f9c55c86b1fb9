/** A classifier in one file: torchvision's names where it is a ResNet, and what is needed to build it again and to use it. */
import { z } from 'zod'

import { imagenetDeviation, imagenetMean } from '../data/augment.js'
import type { Backbone, BackboneKind } from '../nn/backbone.js'
import { Classifier } from '../nn/classifier.js'
import { allTensors } from '../nn/module.js'
import { fail } from '../tensor/errors.js'
import { firstIssue } from '../tensor/issues.js'
import { Random } from '../tensor/random.js'
import type { FloatDType } from '../tensor/tensor.js'
import { backboneMetadata, writeTensors } from '../weights/export.js'
import { importBackbone, readTensorFile } from '../weights/import.js'
import { loadStored, toStored } from '../weights/layout.js'
import type { StoredTensor, TensorFile } from '../weights/safetensors.js'
import { checkWhole, saveState } from '../weights/state.js'

/** What a file says of its classifier. */
export interface ClassifierRecord {
  /** Names of the classes, in the order of the logits. */
  classes: string[]
  /** Side of the central crop in pixels, of an image whose short side is 256/224 of it. */
  imageSize: number
  /** Subtracted from the channels of pixels in 0..1, and what the difference is divided by: ImageNet's, as everywhere here. */
  mean: [number, number, number]
  deviation: [number, number, number]
  /** What it was trained by, in words. */
  protocol: string
}

const channels = (values: readonly [number, number, number]) => z.tuple([z.literal(values[0]), z.literal(values[1]), z.literal(values[2])])
const classifierRecord: z.ZodType<ClassifierRecord> = z.object({
  classes: z.array(z.string()).min(2),
  imageSize: z.int().min(1).max(8192),
  mean: channels(imagenetMean),
  deviation: channels(imagenetDeviation),
  protocol: z.string(),
})

/** The key of the record in a file's metadata. */
export const classifierKey = 'densecl_classifier'

/** What every network here is trained and tested with. */
export const normalisation = { mean: [...imagenetMean], deviation: [...imagenetDeviation] } satisfies Partial<ClassifierRecord>

/** Writes a classifier as `densecl predict` takes it. */
export function saveClassifier(path: string, model: Classifier, record: ClassifierRecord): void {
  saveState(path, allTensors(model.state()), classifierKey, record, backboneMetadata(model.backbone))
}

/**
 * Writes a classifier for torchvision: .safetensors, or .pth, a plain dictionary for load_state_dict, which has no room for the record.
 */
export function writeClassifier(path: string, model: Classifier, record: ClassifierRecord): void {
  const tensors = new Map([...allTensors(model.state())].map(([name, tensor]) => [name, toStored(name, tensor)]))
  const metadata = { [classifierKey]: JSON.stringify(record), ...backboneMetadata(model.backbone) }
  writeTensors(path, tensors, metadata, () => tensors)
}

/** The head of a classifier under the names of torchvision or of mmpretrain, within a container or alone. */
function headOf({ tensors }: Pick<TensorFile, 'tensors'>): { weight: StoredTensor; bias: StoredTensor } | undefined {
  for (const container of ['', 'state_dict.', 'model.'])
    for (const [sign, head] of [
      ['conv1.weight', 'fc.'],
      ['backbone.conv1.weight', 'head.fc.'],
    ] as const) {
      const [weight, bias] = ['weight', 'bias'].map((part) => tensors.get(`${container}${head}${part}`))
      if (tensors.has(container + sign) && weight?.shape.length === 2 && bias?.shape.length === 1) return { weight, bias }
    }
  return undefined
}

/** Whether a file holds a classifier: one of ours, or a ResNet of others with its last layer. */
export function holdsClassifier(path: string): boolean {
  const file = readTensorFile(path)
  return file.metadata[classifierKey] !== undefined || headOf(file) !== undefined
}

/**
 * The classifier of a file on the current device, and its record: ours, or a ResNet of others with its last layer, of which the published
 * settings and numbers as names are assumed. `compute` is the dtype of the backbone's activations, f32 when absent. Throws FORMAT, IMPORT,
 * FILE.
 */
export function importClassifier(
  path: string,
  kind?: BackboneKind,
  compute?: FloatDType,
): { model: Classifier; record: ClassifierRecord; assumed: boolean } {
  const file = readTensorFile(path)
  checkWhole(path, file)
  const said = file.metadata[classifierKey]
  const head =
    said === undefined
      ? headOf(file)
      : {
          weight: file.tensors.get('fc.weight') ?? missing(path, 'fc.weight'),
          bias: file.tensors.get('fc.bias') ?? missing(path, 'fc.bias'),
        }
  if (head === undefined)
    return fail(
      'FORMAT',
      `${path}: is no classifier, which has fc.weight and fc.bias beside its backbone: expected classifier.safetensors of densecl eval ` +
        'finetune, or a ResNet of torchvision with its last layer',
    )
  const record = said === undefined ? assumedRecord(head.bias.shape[0]!) : readClassifierRecord(path, said)
  if (record.classes.length !== head.bias.shape[0])
    fail('FORMAT', `${path}: its record names ${record.classes.length} classes but its last layer has ${head.bias.shape[0]}`)
  const { backbone } = importBackbone(path, { kind, compute })
  return { model: withHead(path, backbone, head), record, assumed: said === undefined }
}

const missing = (path: string, name: string): never => fail('FORMAT', `${path}: its classifier lacks the tensor ${name}`)

/** The backbone with a head of a file. Nothing of both is left where they do not fit. */
function withHead(path: string, backbone: Backbone, { weight, bias }: { weight: StoredTensor; bias: StoredTensor }): Classifier {
  let model: Classifier | undefined
  try {
    model = new Classifier({ random: new Random(0), dtype: 'f32' }, backbone, bias.shape[0]!)
    loadStored(path, 'fc.weight', model.fc.weight, weight)
    loadStored(path, 'fc.bias', model.fc.bias, bias)
    return model
  } catch (error) {
    model?.dispose()
    backbone.dispose()
    throw error
  }
}

const assumedRecord = (classes: number): ClassifierRecord => ({
  classes: Array.from({ length: classes }, (_, c) => `class ${c}`),
  imageSize: 224,
  ...normalisation,
  protocol: 'not said',
})

/** The record that a text holds. Throws FORMAT. */
function readClassifierRecord(path: string, text: string): ClassifierRecord {
  let read: unknown
  try {
    read = JSON.parse(text)
  } catch (error) {
    return fail('FORMAT', `${path}: its record of the classifier is not JSON (${error instanceof Error ? error.message : String(error)})`)
  }
  const { data, error } = classifierRecord.safeParse(read)
  return data ?? fail('FORMAT', `${path}: its record of the classifier: ${firstIssue(error)}`)
}
