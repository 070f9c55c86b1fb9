/**
 * Two-stage detectors as ONNX models: an image to boxes, scores, classes and masks, with what lies between the networks - anchors,
 * proposals, suppression, regions - written as operators of the standard set. The networks are traced, the rest is written here.
 */
import { writeAtomic } from '../files/atomic.js'
import { type AnchorOptions, cellAnchors } from '../detection/anchors.js'
import { mostGrowth } from '../detection/coding.js'
import type { TestRules } from '../detection/detect.js'
import type { Detector, LevelRule, RegionPooling } from '../detection/detector.js'
import type { ProposalLimits } from '../detection/proposals.js'
import type { DetectionStyle } from '../detection/styles.js'
import { sampling } from '../detection/targets.js'
import { evaluation } from '../nn/layers.js'
import { allTensors } from '../nn/module.js'
import { type Tensor, withDevice } from '../tensor/tensor.js'
import { type ImageForm, imageInput } from './export.js'
import { elementTypes, type OnnxGraph, regionOperatorSet } from './graph.js'
import { traced } from './trace.js'
import { Translation } from './translation.js'

/** How a detector is written. */
export interface OnnxDetectorOptions extends ImageForm {
  style: Pick<DetectionStyle, 'clamp' | 'padTo'>
  limits: ProposalLimits
  rules: TestRules
  /** Words about the model, by name. */
  metadata: Readonly<Record<string, string>>
}

/** Nodes by the names of their values, in the notation of the formulas that they stand for. */
class Formulas {
  constructor(readonly graph: OnnxGraph) {}

  #op = (type: string, ...inputs: string[]): string => this.graph.node(type, inputs)
  add = (a: string, b: string): string => this.#op('Add', a, b)
  sub = (a: string, b: string): string => this.#op('Sub', a, b)
  mul = (a: string, b: string): string => this.#op('Mul', a, b)
  div = (a: string, b: string): string => this.#op('Div', a, b)
  least = (a: string, b: string): string => this.#op('Min', a, b)
  most = (a: string, b: string): string => this.#op('Max', a, b)
  exp = (a: string): string => this.#op('Exp', a)
  above = (a: string, b: string): string => this.#op('Greater', a, b)
  number = (value: number): string => this.graph.scalar(value)
  whole = (...values: number[]): string => this.graph.integers(values)
  cast = (a: string, to: keyof typeof elementTypes): string => this.graph.node('Cast', [a], { to: elementTypes[to] })
  reshape = (a: string, ...shape: number[]): string => this.#op('Reshape', a, this.whole(...shape))
  concat = (parts: readonly string[], axis: number): string => (parts.length === 1 ? parts[0]! : this.graph.node('Concat', parts, { axis }))
  gather = (a: string, index: string): string => this.graph.node('Gather', [a, index], { axis: 0 })
  /** The rows of `a` where `condition` [rows] holds. */
  where = (a: string, condition: string): string => this.graph.node('Compress', [a, condition], { axis: 0 })
  /** The size of an axis, i64 [1]. */
  size = (a: string, axis: number): string => this.slice(this.#op('Shape', a), axis, 0)
  /** One place of an axis, which stays. */
  slice = (a: string, at: number, axis: number): string => this.#op('Slice', a, this.whole(at), this.whole(at + 1), this.whole(axis))
  /** A value of the last axis, such as x1 of boxes. */
  part = (a: string, at: number): string => this.#op('Slice', a, this.whole(at), this.whole(at + 1), this.whole(-1))
  /** The `count` largest of [n], or all, in their order: values and places. */
  top(a: string, count: number): { values: string; index: string } {
    const k = this.least(this.size(a, 0), this.whole(count))
    const [values, index] = this.graph.nodes('TopK', [a, k], 2, { axis: 0 }) as [string, string]
    return { values, index }
  }

  /** Areas [..., 1] of boxes [..., 4]. */
  area(boxes: string): string {
    const [x1, y1, x2, y2] = [0, 1, 2, 3].map((at) => this.part(boxes, at)) as [string, string, string, string]
    return this.mul(this.sub(x2, x1), this.sub(y2, y1))
  }

  /** decodeBox() and clipBox() of boxes [..., 4] by deltas [..., 4]; `limits` [4] are the sides of the image. */
  moved(boxes: string, deltas: string, weights: readonly number[], clamp: DetectionStyle['clamp'], limits: string): string {
    const [x1, y1, x2, y2] = [0, 1, 2, 3].map((at) => this.part(boxes, at)) as [string, string, string, string]
    const [dx, dy, dw, dh] = weights.map((weight, at) => this.div(this.part(deltas, at), this.number(weight))) as [
      string,
      string,
      string,
      string,
    ]
    const half = this.number(0.5)
    const axis = (from: string, to: string, shift: string, growth: string): [string, string] => {
      const side = this.sub(to, from)
      const centre = this.add(this.mul(shift, side), this.add(from, this.mul(side, half)))
      const upper = this.least(growth, this.number(mostGrowth))
      const bounded = clamp === 'both' ? this.most(upper, this.number(-mostGrowth)) : upper
      const reach = this.mul(this.mul(this.exp(bounded), side), half)
      return [this.sub(centre, reach), this.add(centre, reach)]
    }
    const [left, right] = axis(x1, x2, dx, dw)
    const [top, bottom] = axis(y1, y2, dy, dh)
    return this.most(this.least(this.concat([left, top, right, bottom], -1), limits), this.number(0))
  }

  /** The places [k, 3] - set, 0, box - that suppression leaves of sets of boxes [S, n, 4] with scores [S, 1, n]. */
  suppressed(boxes: string, scores: string, most: number, overlap: number, least?: number): string {
    const limits = [this.whole(most), this.graph.constant('overlap', Float32Array.of(overlap), [1])]
    const score = least === undefined ? [] : [this.graph.constant('score', Float32Array.of(least), [1])]
    return this.graph.node('NonMaxSuppression', [boxes, scores, ...limits, ...score])
  }
}

/** The anchors [h * w * A, 4] of a map [1, C, h, w] of an image [1, C, H, W]. */
function anchorsOf(to: Formulas, options: AnchorOptions, map: string, image: string): string {
  const cell = cellAnchors(options)
  const shifts = (axis: number): string => {
    const count = to.size(map, axis)
    const [zero, one] = [0, 1].map((value) => to.graph.constant('constant', BigInt64Array.of(BigInt(value)), []))
    const places = to.cast(to.graph.node('Range', [zero!, to.graph.node('Squeeze', [count]), one!]), 'f32')
    const step = options.rounded === true ? to.cast(to.div(to.size(image, axis), count), 'f32') : to.number(options.stride)
    return to.mul(places, step)
  }
  const [down, across] = [to.reshape(shifts(2), -1, 1, 1), to.reshape(shifts(3), 1, -1, 1)]
  const zero = to.number(0)
  const [x, y] = [to.add(across, to.mul(down, zero)), to.add(down, to.mul(across, zero))]
  const origins = to.reshape(to.concat([x, y, x, y], -1), -1, 1, 4)
  return to.reshape(to.add(origins, to.graph.constant('anchors', Float32Array.from(cell), [1, cell.length / 4, 4])), -1, 4)
}

/** The proposals [k, 4] of all maps, the best first; `limits` [4] are the sides of the image. */
function proposalsOf(
  to: Formulas,
  maps: readonly { logits: string; deltas: string; anchors: string }[],
  limits: string,
  clamp: DetectionStyle['clamp'],
  { before, after, overlap }: ProposalLimits,
): string {
  const kept = maps.map(({ logits, deltas, anchors }) => {
    const { values, index } = to.top(to.reshape(logits, -1), before)
    const moves = to.gather(to.reshape(deltas, -1, 4), index)
    const boxes = to.moved(to.gather(anchors, index), moves, sampling.anchors.weights, clamp, limits)
    // What has no area behind the border is no proposal.
    const real = to.reshape(to.above(to.area(boxes), to.number(0)), -1)
    const [corners, scores] = [to.where(boxes, real), to.where(values, real)]
    const chosen = to.suppressed(to.reshape(corners, 1, -1, 4), to.reshape(scores, 1, 1, -1), after, overlap)
    const at = to.reshape(to.part(chosen, 2), -1)
    return { boxes: to.gather(corners, at), scores: to.gather(scores, at) }
  })
  if (kept.length === 1) return kept[0]!.boxes
  const { index } = to.top(
    to.concat(
      kept.map(({ scores }) => scores),
      0,
    ),
    after,
  )
  return to.gather(
    to.concat(
      kept.map(({ boxes }) => boxes),
      0,
    ),
    index,
  )
}

/** The map of each region, f64 [R]: levelsOf() in the same precision, since it steps at powers of two. */
function levelsOf(to: Formulas, boxes: string, maps: number, { canonical, rule }: { canonical: number; rule: LevelRule }): string {
  const number = (value: number): string => to.graph.constant('constant', Float64Array.of(value), [])
  const side = to.graph.node('Sqrt', [to.reshape(to.area(to.cast(boxes, 'f64')), -1)])
  const log2 = (value: string): string => to.div(to.graph.node('Log', [value]), number(Math.LN2))
  const share = to.div(side, number(canonical))
  const level = {
    detectron2: () => to.add(log2(to.add(share, number(1e-8))), number(2)),
    mmdet: () => log2(to.add(to.mul(share, number(4)), number(1e-6))),
    torchvision: () => to.add(log2(share), number(2 + 1e-6)),
  }[rule]()
  return to.most(to.least(to.graph.node('Floor', [level]), number(maps - 1)), number(0))
}

/** The bins [R, C, size, size] of regions [R, 4], each of the map that fits it. */
function pooled(to: Formulas, maps: readonly string[], boxes: string, size: number, pooling: RegionPooling): string {
  const { strides, levels, samplingRatio = 0, aligned = true } = pooling
  const align = (map: string, own: string, stride: number): string =>
    to.graph.node(
      'RoiAlign',
      [map, own, to.graph.node('Expand', [to.graph.constant('constant', BigInt64Array.of(0n), [1]), to.size(own, 0)])],
      {
        mode: 'avg',
        coordinate_transformation_mode: aligned ? 'half_pixel' : 'output_half_pixel',
        output_height: size,
        output_width: size,
        sampling_ratio: samplingRatio,
        spatial_scale: { float: 1 / stride },
      },
    )
  if (levels === undefined) return align(maps[0]!, boxes, strides[0]!)
  const level = levelsOf(to, boxes, strides.length, levels)
  const rows = strides.map((_, i) => {
    const own = to.graph.node('Equal', [level, to.graph.constant('constant', Float64Array.of(i), [])])
    return to.reshape(to.graph.node('NonZero', [own]), -1)
  })
  const bins = strides.map((stride, i) => align(maps[i]!, to.gather(boxes, rows[i]!), stride))
  // Back into the order of the regions: where each row went.
  const order = to.concat(rows, 0)
  const place = to.graph.nodes('TopK', [order, to.size(order, 0)], 2, { axis: 0, largest: 0 })[1]!
  return to.gather(to.concat(bins, 0), place)
}

/** The sides of an image [1, C, H, W] as limits of boxes, f32 [4], and the image padded below and to the right to multiples of `padTo`. */
function paddedTo(to: Formulas, image: string, padTo: number): { limits: string; padded: string } {
  const [height, width] = [to.size(image, 2), to.size(image, 3)]
  const limits = to.cast(to.concat([width, height, width, height], 0), 'f32')
  if (padTo === 1) return { limits, padded: image }
  const lacking = (side: string): string => to.graph.node('Mod', [to.graph.node('Neg', [side]), to.whole(padTo)])
  const pads = to.concat([to.whole(0, 0, 0, 0, 0, 0), lacking(height), lacking(width)], 0)
  return { limits, padded: to.graph.node('Pad', [image, pads]) }
}

/**
 * The bytes of a detector's model, in pieces: one image of any size to `boxes` [n, 4] in its pixels, `scores` [n] and `labels` [n], the
 * best first, and `masks` [n, S, S] of a detector that has them. The image is one that was resized to the size of the test already.
 */
export function encodeOnnxDetector(model: Detector, options: OnnxDetectorOptions): Uint8Array[] {
  const { style, limits: proposalLimits, rules, metadata } = options
  const { backbone, cells, pooling } = model
  const { classes } = model.options
  const translation = new Translation(new Map([...allTensors(model.state())].map(([name, { id }]) => [id, name])))
  const { graph } = translation
  const to = new Formulas(graph)
  const { image, words } = imageInput(translation, backbone.inputs, 1, options)
  const { limits, padded } = paddedTo(to, image, style.padTo)
  /** Writes what a network makes of a value, of which it is shown zeros of two shapes. */
  const written = (
    value: string,
    shapes: readonly [readonly [number, number, number, number], readonly [number, number, number, number]],
    body: (x: Tensor) => Map<string, Tensor>,
  ): ((name: string) => string) => {
    const results = withDevice(backbone.device, () =>
      traced(shapes[0], body, (trace) => traced(shapes[1], body, (other) => translation.write(value, trace, other))),
    )
    return (name) => results.get(name)!.value
  }
  // Multiples of what the coarsest map of a pyramid needs.
  const side = (count: number): number => count * 4 * backbone.stride
  const network = written(
    padded,
    [
      [2, side(2), side(3), backbone.inputs],
      [3, side(4), side(5), backbone.inputs],
    ],
    (x) => {
      const maps = model.features(x, evaluation)
      return new Map([
        ...maps.map((map, i): [string, Tensor] => [`map${i}`, map]),
        ...model.propose(maps).flatMap(({ logits, deltas }, i): [string, Tensor][] => [
          [`logits${i}`, logits],
          [`deltas${i}`, deltas],
        ]),
      ])
    },
  )
  const maps = cells.map((_, i) => network(`map${i}`))
  const proposed = cells.map((cell, i) => ({
    logits: network(`logits${i}`),
    deltas: network(`deltas${i}`),
    anchors: anchorsOf(to, cell, maps[i]!, padded),
  }))
  const regions = proposalsOf(to, proposed, limits, style.clamp, proposalLimits)

  const channels =
    cells.length === 1 ? backbone.maps.at(-2)!.channels : (model.options as { pyramid?: { channels: number } }).pyramid!.channels
  const bins = (size: number): readonly [readonly [number, number, number, number], readonly [number, number, number, number]] => [
    [2, size, size, channels],
    [3, size, size, channels],
  ]
  const head = written(pooled(to, maps, regions, pooling.bins, pooling), bins(pooling.bins), (x) => {
    const { logits, deltas } = model.classifyBins(x, evaluation)
    return new Map([
      ['logits', logits],
      ['deltas', deltas],
    ])
  })
  const probabilities = graph.node('Softmax', [head('logits')], { axis: 1 })
  const ofObjects = graph.node('Slice', [probabilities, to.whole(0), to.whole(classes), to.whole(1)])
  const moved = to.moved(
    to.reshape(regions, -1, 1, 4),
    to.reshape(head('deltas'), -1, classes, 4),
    sampling.regions.weights,
    style.clamp,
    limits,
  )
  // Each class is a set of boxes of its own.
  const [sets, scores] = [graph.node('Transpose', [moved], { perm: [1, 0, 2] }), graph.node('Transpose', [ofObjects], { perm: [1, 0] })]
  const chosen = to.suppressed(sets, to.reshape(scores, classes, 1, -1), rules.most, rules.overlap, rules.score)
  const at = graph.node('Concat', [to.part(chosen, 0), to.part(chosen, 2)], { axis: 1 })
  const best = to.top(graph.node('GatherND', [scores, at]), rules.most)
  const found = to.gather(at, best.index)
  const [boxes, labels] = [graph.node('GatherND', [sets, found]), to.reshape(to.part(found, 0), -1)]
  graph.output('boxes', boxes, ['found', 4])
  graph.output('scores', best.values, ['found'])
  graph.output('labels', labels, ['found'], 'i64')
  if (pooling.maskBins !== undefined) {
    const masks = written(
      pooled(to, maps, boxes, pooling.maskBins, pooling),
      bins(pooling.maskBins),
      (x) => new Map([['masks', model.maskBins!(x, evaluation)]]),
    )
    const own = graph.node('GatherND', [masks('masks'), to.reshape(labels, -1, 1)], { batch_dims: 1 })
    graph.output('masks', graph.node('Sigmoid', [own]), ['found', 2 * pooling.maskBins, 2 * pooling.maskBins])
  }
  return graph.encode(`${model.form} on ${backbone.name}`, 'densecl', { ...words, ...metadata }, regionOperatorSet)
}

/** Writes a detector's model to `path`. Throws as encodeOnnxDetector() does, and WRITE. */
export function writeOnnxDetector(path: string, model: Detector, options: OnnxDetectorOptions): void {
  writeAtomic(path, encodeOnnxDetector(model, options))
}
