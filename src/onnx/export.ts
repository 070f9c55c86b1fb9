/** Networks as ONNX models: maps, pooled features or the logits of classes, for images of any size and number. */
import { writeAtomic } from '../files/atomic.js'
import type { Backbone } from '../nn/backbone.js'
import type { Classifier } from '../nn/classifier.js'
import { evaluation } from '../nn/layers.js'
import { allTensors, type State } from '../nn/module.js'
import { reshape } from '../ops/elementwise.js'
import { adaptiveAvgPool2d } from '../ops/pool2d.js'
import { softmax } from '../ops/softmax.js'
import { fail } from '../tensor/errors.js'
import { type Tensor, withDevice } from '../tensor/tensor.js'
import { Translation } from './translation.js'
import { traced } from './trace.js'

/** How a model is written. */
export interface OnnxOptions {
  /** The outputs, of those that onnxOutputs() gives. */
  outputs: readonly string[]
  /** Mean and deviation of the channels, of values in 0..1, by which the network's images are normalised. */
  normalisation: { mean: readonly number[]; deviation: readonly number[] }
  /** Takes images as bytes [N, H, W, C], 0 to 255, and normalises them itself; otherwise they are normalised floats [N, C, H, W]. */
  raw: boolean
  /** Words about the model, by name. */
  metadata: Readonly<Record<string, string>>
}

/** What is written: a backbone, or a classifier with its backbone. */
export interface OnnxNetwork {
  backbone: Backbone
  classifier?: Classifier | undefined
}

/** Maps are counted from the last, which is feature5. */
const mapName = ({ maps }: Backbone, i: number): string => `feature${5 - (maps.length - 1 - i)}`

/** The outputs that a network can have: its maps from fine to coarse and `pooled`, or `logits` and `probabilities` of a classifier. */
export const onnxOutputs = ({ backbone, classifier }: OnnxNetwork): string[] =>
  classifier === undefined ? [...backbone.maps.map((_, i) => mapName(backbone, i)), 'pooled'] : ['logits', 'probabilities']

function results({ backbone, classifier }: OnnxNetwork, images: Tensor): Map<string, Tensor> {
  if (classifier !== undefined) {
    const logits = classifier.logits(images, evaluation)
    return new Map([
      ['logits', logits],
      ['probabilities', softmax(logits)],
    ])
  }
  const maps = backbone.stages(backbone.input(images), evaluation)
  const pooled = reshape(adaptiveAvgPool2d(maps.at(-1)!, 1), [images.shape[0]!, backbone.channels])
  return new Map([...maps.map((map, i): [string, Tensor] => [mapName(backbone, i), map]), ['pooled', pooled]])
}

/** The bytes of a model, in pieces. Throws ARGUMENT for an output that there is not and an op that ONNX is not told of. */
export function encodeOnnx(network: OnnxNetwork, { outputs, normalisation, raw, metadata }: OnnxOptions): Uint8Array[] {
  const { backbone, classifier } = network
  const known = onnxOutputs(network)
  const unknown = outputs.find((name) => !known.includes(name))
  if (unknown !== undefined || outputs.length === 0)
    fail('ARGUMENT', `onnx: expected outputs among ${known.join(', ')} but received ${unknown ?? 'none'}`)
  const state: State = (classifier ?? backbone).state()
  const translation = new Translation(new Map([...allTensors(state)].map(([name, { id }]) => [id, name])))
  const { graph } = translation
  const channels = backbone.inputs
  const image = raw
    ? normalised(translation, graph.input('images', 'u8', ['batch', 'height', 'width', channels]), normalisation)
    : graph.input('images', 'f32', ['batch', channels, 'height', 'width'])
  const body = (images: Tensor): Map<string, Tensor> => {
    const all = results(network, images)
    return new Map(outputs.map((name) => [name, all.get(name)!]))
  }
  const side = (count: number): number => count * backbone.stride
  withDevice(backbone.device, () =>
    traced([2, side(2), side(3), channels], body, (trace) =>
      traced([3, side(4), side(5), channels], body, (other) => {
        for (const [name, { value, dimensions }] of translation.write(image, trace, other)) graph.output(name, value, dimensions)
      }),
    ),
  )
  const words = { mean: normalisation.mean.join(' '), deviation: normalisation.deviation.join(' '), input: raw ? 'bytes' : 'normalised' }
  return graph.encode(backbone.name, 'densecl', { ...words, ...metadata })
}

/** Bytes [N, H, W, C] as the network takes them, [N, C, H, W]. */
function normalised({ graph }: Translation, images: string, { mean, deviation }: OnnxOptions['normalisation']): string {
  const constant = (name: string, values: readonly number[]): string =>
    graph.constant(
      name,
      Float32Array.from(values, (value) => 255 * value),
      [1, values.length, 1, 1],
    )
  const floats = graph.node('Transpose', [graph.node('Cast', [images], { to: 1 })], { perm: [0, 3, 1, 2] })
  return graph.node('Div', [graph.node('Sub', [floats, constant('mean', mean)]), constant('deviation', deviation)])
}

/** Writes a model to `path`. Throws as encodeOnnx() does, and WRITE. */
export function writeOnnx(path: string, network: OnnxNetwork, options: OnnxOptions): void {
  writeAtomic(path, encodeOnnx(network, options))
}
