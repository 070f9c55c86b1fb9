/** Networks as ONNX models: maps, pooled features, the logits of classes or of every pixel, for images of any size and number. */
import { noGrad } from '../autograd/tape.js'
import { writeAtomic } from '../files/atomic.js'
import type { Backbone } from '../nn/backbone.js'
import type { Classifier } from '../nn/classifier.js'
import type { Fcn } from '../nn/fcn.js'
import { evaluation } from '../nn/layers.js'
import { allTensors, type State } from '../nn/module.js'
import { reshape } from '../ops/elementwise.js'
import { adaptiveAvgPool2d } from '../ops/pool2d.js'
import { softmax } from '../ops/softmax.js'
import { fail } from '../tensor/errors.js'
import { scope, type Shape, Tensor, withDevice } from '../tensor/tensor.js'
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

/** How a model takes its images. */
export type ImageForm = Pick<OnnxOptions, 'normalisation' | 'raw'>

/** What is written: a backbone, or a classifier or a segmenting network with its backbone. */
export interface OnnxNetwork {
  backbone: Backbone
  classifier?: Classifier | undefined
  segmenter?: Fcn | undefined
}

/** Maps are counted from the last, which is feature5. */
const mapName = ({ maps }: Backbone, i: number): string => `feature${5 - (maps.length - 1 - i)}`

/**
 * The outputs that a network can have: its maps from fine to coarse and `pooled`; `logits` and `probabilities` of a classifier; `logits`
 * [N, classes, H, W] and `labels` [N, H, W] of a segmenting network.
 */
export function onnxOutputs({ backbone, classifier, segmenter }: OnnxNetwork): string[] {
  if (classifier !== undefined) return ['logits', 'probabilities']
  if (segmenter !== undefined) return ['logits', 'labels']
  return [...backbone.maps.map((_, i) => mapName(backbone, i)), 'pooled']
}

function results({ backbone, classifier, segmenter }: OnnxNetwork, images: Tensor): Map<string, Tensor> {
  if (classifier !== undefined) {
    const logits = classifier.logits(images, evaluation)
    return new Map([
      ['logits', logits],
      ['probabilities', softmax(logits)],
    ])
  }
  if (segmenter !== undefined) return new Map([['logits', segmenter.logits(backbone.input(images))]])
  const maps = backbone.stages(backbone.input(images), evaluation)
  const pooled = reshape(adaptiveAvgPool2d(maps.at(-1)!, 1), [images.shape[0]!, backbone.channels])
  return new Map([...maps.map((map, i): [string, Tensor] => [mapName(backbone, i), map]), ['pooled', pooled]])
}

/** The input of a model, its images as the network takes them, [N, C, H, W], and words that say how a caller makes them. */
export function imageInput(
  { graph }: Translation,
  channels: number,
  { normalisation, raw }: ImageForm,
): { image: string; words: Record<string, string> } {
  const { mean, deviation } = normalisation
  const words = { mean: mean.join(' '), deviation: deviation.join(' '), input: raw ? 'bytes' : 'normalised' }
  if (!raw) return { image: graph.input('images', 'f32', ['batch', channels, 'height', 'width']), words }
  const images = graph.input('images', 'u8', ['batch', 'height', 'width', channels])
  const constant = (name: string, values: readonly number[]): string =>
    graph.constant(
      name,
      Float32Array.from(values, (value) => 255 * value),
      [1, values.length, 1, 1],
    )
  const floats = graph.node('Transpose', [graph.node('Cast', [images], { to: 1 })], { perm: [0, 3, 1, 2] })
  const image = graph.node('Div', [graph.node('Sub', [floats, constant('mean', mean)]), constant('deviation', deviation)])
  return { image, words }
}

/** Whether a network takes images of a shape: some take none whose sides their stride does not divide. */
function takes(body: (images: Tensor) => unknown, shape: Shape): boolean {
  try {
    noGrad(() => scope(() => void body(Tensor.zeros(shape))))
    return true
  } catch {
    return false
  }
}

/** The bytes of a model, in pieces. Throws ARGUMENT for an output that there is not and an op that ONNX is not told of. */
export function encodeOnnx(network: OnnxNetwork, { outputs, metadata, ...form }: OnnxOptions): Uint8Array[] {
  const { backbone, classifier, segmenter } = network
  const known = onnxOutputs(network)
  const unknown = outputs.find((name) => !known.includes(name))
  if (unknown !== undefined || outputs.length === 0)
    fail('ARGUMENT', `onnx: expected outputs among ${known.join(', ')} but received ${unknown ?? 'none'}`)
  const state: State = (classifier ?? segmenter ?? backbone).state()
  const translation = new Translation(new Map([...allTensors(state)].map(([name, { id }]) => [id, name])))
  const { graph } = translation
  const channels = backbone.inputs
  const { image, words } = imageInput(translation, channels, form)
  // The class of a pixel is no op of the engine.
  const labelled = segmenter !== undefined && outputs.includes('labels')
  const body = (images: Tensor): Map<string, Tensor> => {
    const all = results(network, images)
    return new Map((labelled ? ['logits'] : outputs).map((name) => [name, all.get(name)!]))
  }
  withDevice(backbone.device, () => {
    // Maps within a network may be coarser than its last one.
    const unit = backbone.stride * Math.ceil(32 / backbone.stride)
    // Where strides divide the sides, a map that is halved and doubled again is as large as it was, as with other images it is not.
    const odd = Number(takes(body, [1, 2 * unit + 1, 3 * unit + 1, channels]))
    const side = (count: number): number => count * unit + odd
    traced([2, side(2), side(3), channels], body, (trace) =>
      traced([5, side(4), side(7), channels], body, (other) => {
        const written = translation.write(image, trace, other)
        for (const name of outputs) {
          const { value, dimensions } = written.get(name === 'labels' ? 'logits' : name)!
          if (labelled && name === 'labels')
            graph.output(name, graph.node('ArgMax', [value], { axis: 1, keepdims: 0 }), dimensions.toSpliced(1, 1), 'i64')
          else graph.output(name, value, dimensions)
        }
      }),
    )
  })
  return graph.encode(backbone.name, 'densecl', { ...words, ...metadata })
}

/** Writes a model to `path`. Throws as encodeOnnx() does, and WRITE. */
export function writeOnnx(path: string, network: OnnxNetwork, options: OnnxOptions): void {
  writeAtomic(path, encodeOnnx(network, options))
}
