/**
 * Two-stage detectors as ONNX models: images to boxes, scores, classes and masks, with what lies between the networks - anchors,
 * proposals, suppression, regions - written as operators of the standard set. The networks are traced, the rest is written here. What an
 * image has differs in number from one to the next: rows [N, n] have -Infinity as the score of what is not there, lists name their image.
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
  style: Pick<DetectionStyle, 'clamp' | 'padTo' | 'rescale'>
  limits: ProposalLimits
  rules: TestRules
  /** The model takes images that are smaller than their batch, at its upper left, and as `sizes` [N, 2] height and width of each. */
  sizes: boolean
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
  both = (a: string, b: string): string => this.#op('And', a, b)
  /** `a` where `condition` holds, and `b` elsewhere. */
  where = (condition: string, a: string, b: string): string => this.#op('Where', condition, a, b)
  /** `a` repeated to a shape, of numbers and of sizes i64 [1]. */
  expand = (a: string, ...shape: (number | string)[]): string => this.#op('Expand', a, this.shape(shape))
  number = (value: number): string => this.graph.scalar(value)
  whole = (...values: number[]): string => this.graph.integers(values)
  cast = (a: string, to: keyof typeof elementTypes): string => this.graph.node('Cast', [a], { to: elementTypes[to] })
  reshape = (a: string, ...shape: (number | string)[]): string => this.#op('Reshape', a, this.shape(shape))
  shape = (sides: readonly (number | string)[]): string =>
    sides.every((side) => typeof side === 'number')
      ? this.whole(...sides)
      : this.concat(
          sides.map((side) => (typeof side === 'number' ? this.whole(side) : side)),
          0,
        )
  concat = (parts: readonly string[], axis: number): string => (parts.length === 1 ? parts[0]! : this.graph.node('Concat', parts, { axis }))
  gather = (a: string, index: string): string => this.graph.node('Gather', [a, index], { axis: 0 })
  /** The rows of `a` where `condition` [rows] holds. */
  rowsOf = (a: string, condition: string): string => this.graph.node('Compress', [a, condition], { axis: 0 })
  /** What of `a` is at `places` [k, 2], of its first two axes. */
  at = (a: string, places: string): string => this.#op('GatherND', a, places)
  /** `a` with `values` at `places` [k, 2] of its first two axes. */
  put = (a: string, places: string, values: string): string => this.#op('ScatterND', a, places, values)
  /** The rows of `a` [N, n, ...] that each row of `index` [N, k] names. */
  gatherEach = (a: string, index: string): string =>
    this.graph.node('GatherND', [a, this.#op('Unsqueeze', index, this.whole(-1))], { batch_dims: 1 })
  /** The numbers from 0 to `count`, i64 [count]. */
  range(count: string): string {
    const [zero, one] = [0n, 1n].map((value) => this.graph.constant('constant', BigInt64Array.of(value), [])) as [string, string]
    return this.#op('Range', zero, this.#op('Squeeze', count), one)
  }
  /** The size of an axis, i64 [1]. */
  size = (a: string, axis: number): string => this.slice(this.#op('Shape', a), axis, 0)
  /** One place of an axis, which stays. */
  slice = (a: string, at: number, axis: number): string => this.#op('Slice', a, this.whole(at), this.whole(at + 1), this.whole(axis))
  /** A value of the last axis, such as x1 of boxes. */
  part = (a: string, at: number): string => this.#op('Slice', a, this.whole(at), this.whole(at + 1), this.whole(-1))
  /** The `count` largest of each row of [N, n], or all, in their order: values and places [N, k]. */
  top(a: string, count: number): { values: string; index: string } {
    const k = this.least(this.size(a, 1), this.whole(count))
    const [values, index] = this.graph.nodes('TopK', [a, k], 2, { axis: 1 }) as [string, string]
    return { values, index }
  }

  /** Areas [..., 1] of boxes [..., 4]. */
  area(boxes: string): string {
    const [x1, y1, x2, y2] = [0, 1, 2, 3].map((at) => this.part(boxes, at)) as [string, string, string, string]
    return this.mul(this.sub(x2, x1), this.sub(y2, y1))
  }

  /** decodeBox() and clipBox() of boxes [..., 4] by deltas [..., 4]; `limits` [..., 4] are the sides of their images. */
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

  /**
   * The scores [S, n] of what suppression leaves of sets of boxes [S, n, 4], `most` in a group, and -Infinity for what it drops. `groups`
   * [S, G, n] are the scores in groups that do not see each other, -Infinity where a box is not of a group; what is not above `least` goes.
   */
  suppressed(boxes: string, scores: string, groups: string, most: number, overlap: number, least = -mostFloat): string {
    const bounds = [overlap, least].map((value) => this.graph.constant('constant', Float32Array.of(value), [1]))
    // Set, group and box of each.
    const chosen = this.#op('NonMaxSuppression', boxes, groups, this.whole(most), ...bounds)
    const places = this.concat([this.part(chosen, 0), this.part(chosen, 2)], 1)
    return this.put(this.#op('Expand', this.number(-Infinity), this.#op('Shape', scores)), places, this.at(scores, places))
  }

  /** The `most` best of each row of scores [N, n] that are there. */
  best(scores: string, most: number): Best {
    const { values, index } = this.top(scores, most)
    const real = this.above(values, this.number(-Infinity))
    const ranks = this.graph.node('Transpose', [this.#op('NonZero', real)], { perm: [1, 0] })
    const [image, column] = [this.part(ranks, 0), this.at(index, ranks)]
    const places = this.concat([image, this.reshape(column, -1, 1)], 1)
    return { places, ranks, image: this.reshape(image, -1), column, scores: this.at(values, ranks), width: this.size(values, 1) }
  }
}

/** The largest number of 32 bits. */
const mostFloat = (2 - 2 ** -23) * 2 ** 127

/** The best of each row of scores [N, n], image after image, R in all, each image's best first. */
interface Best {
  /** Image and column of each, i64 [R, 2]; and both by themselves [R]. */
  places: string
  image: string
  column: string
  /** Image and rank within the image of each, i64 [R, 2]; the ranks end at `width`, i64 [1]. */
  ranks: string
  width: string
  /** f32 [R]. */
  scores: string
}

/** The anchors [h * w * A, 4] of a map [N, C, h, w] of images [N, C, H, W]. */
function anchorsOf(to: Formulas, options: AnchorOptions, map: string, image: string): string {
  const cell = cellAnchors(options)
  const shifts = (axis: number): string => {
    const count = to.size(map, axis)
    const places = to.cast(to.range(count), 'f32')
    const step = options.rounded === true ? to.cast(to.div(to.size(image, axis), count), 'f32') : to.number(options.stride)
    return to.mul(places, step)
  }
  const [down, across] = [to.reshape(shifts(2), -1, 1, 1), to.reshape(shifts(3), 1, -1, 1)]
  const zero = to.number(0)
  const [x, y] = [to.add(across, to.mul(down, zero)), to.add(down, to.mul(across, zero))]
  const origins = to.reshape(to.concat([x, y, x, y], -1), -1, 1, 4)
  return to.reshape(to.add(origins, to.graph.constant('anchors', Float32Array.from(cell), [1, cell.length / 4, 4])), -1, 4)
}

/** The proposals of all maps, the best of each image: boxes [R, 4]; `limits` [N, 1, 4] are the sides of the images. */
function proposalsOf(
  to: Formulas,
  maps: readonly { logits: string; deltas: string; anchors: string }[],
  limits: string,
  clamp: DetectionStyle['clamp'],
  { before, after, overlap }: ProposalLimits,
): Best & { boxes: string } {
  const candidates = maps.map(({ logits, deltas, anchors }, map) => {
    const { values, index } = to.top(logits, before)
    const boxes = to.moved(to.gather(anchors, index), to.gatherEach(deltas, index), sampling.anchors.weights, clamp, limits)
    // What has no area behind the border is no proposal.
    const real = to.above(to.area(boxes), to.number(0))
    const scores = to.where(to.reshape(real, 0, -1), values, to.number(-Infinity))
    // Maps are groups: those of other maps do not see these.
    const only = Float32Array.from(maps, (_, other) => (other === map ? 0 : -Infinity))
    const groups = to.add(to.reshape(scores, 0, 1, -1), to.graph.constant('map', only, [1, maps.length, 1]))
    return { boxes, scores, groups }
  })
  const joined = (part: 'boxes' | 'scores' | 'groups', axis: number): string =>
    to.concat(
      candidates.map((each) => each[part]),
      axis,
    )
  const boxes = joined('boxes', 1)
  const best = to.best(to.suppressed(boxes, joined('scores', 1), joined('groups', 2), after, overlap), after)
  return { ...best, boxes: to.at(boxes, best.places) }
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

/** The bins [R, C, size, size] of regions: boxes [R, 4] of the images [R], each of the map that fits it. */
function pooled(
  to: Formulas,
  maps: readonly string[],
  { boxes, image }: { boxes: string; image: string },
  size: number,
  pooling: RegionPooling,
): string {
  const { strides, levels, samplingRatio = 0, aligned = true } = pooling
  const align = (map: string, own: string, images: string, stride: number): string =>
    to.graph.node('RoiAlign', [map, own, images], {
      mode: 'avg',
      coordinate_transformation_mode: aligned ? 'half_pixel' : 'output_half_pixel',
      output_height: size,
      output_width: size,
      sampling_ratio: samplingRatio,
      spatial_scale: { float: 1 / stride },
    })
  if (levels === undefined) return align(maps[0]!, boxes, image, strides[0]!)
  const level = levelsOf(to, boxes, strides.length, levels)
  const rows = strides.map((_, i) => {
    const own = to.graph.node('Equal', [level, to.graph.constant('constant', Float64Array.of(i), [])])
    return to.reshape(to.graph.node('NonZero', [own]), -1)
  })
  const bins = strides.map((stride, i) => align(maps[i]!, to.gather(boxes, rows[i]!), to.gather(image, rows[i]!), stride))
  // Back into the order of the regions: where each row went.
  const order = to.concat(rows, 0)
  const place = to.graph.nodes('TopK', [order, to.size(order, 0)], 2, { axis: 0, largest: 0 })[1]!
  return to.gather(to.concat(bins, 0), place)
}

/** Images [N, C, H, W] as the network takes them, and their sides as limits of boxes, f32 [N, 1, 4]. */
interface Bounded {
  images: string
  limits: string
}

/** Images that fill their batch. */
function whole(to: Formulas, images: string): Bounded {
  const [height, width] = [to.size(images, 2), to.size(images, 3)]
  const corners = to.cast(to.concat([width, height, width, height], 0), 'f32')
  return { images, limits: to.expand(corners, to.size(images, 0), 1, 4) }
}

/** Images of which `sizes` [N, 2], height and width of each, are looked at, and zeros are behind that. */
function within(to: Formulas, images: string, sizes: string): Bounded {
  const [height, width] = [to.part(sizes, 0), to.part(sizes, 1)]
  const inside = to.both(
    to.above(to.reshape(height, -1, 1, 1, 1), to.reshape(to.range(to.size(images, 2)), -1, 1)),
    to.above(to.reshape(width, -1, 1, 1, 1), to.range(to.size(images, 3))),
  )
  const corners = to.cast(to.concat([width, height, width, height], 1), 'f32')
  return { images: to.where(inside, images, to.number(0)), limits: to.reshape(corners, -1, 1, 4) }
}

/** Images padded below and to the right to multiples of `padTo`. */
function padded(to: Formulas, images: string, padTo: number): string {
  if (padTo === 1) return images
  const lacking = [2, 3].map((axis) => to.graph.node('Mod', [to.graph.node('Neg', [to.size(images, axis)]), to.whole(padTo)]))
  return to.graph.node('Pad', [images, to.concat([to.whole(0, 0, 0, 0, 0, 0), ...lacking], 0)])
}

/**
 * The bytes of a detector's model, in pieces: `images` of any size and number to `boxes` [n, 4] in their pixels, `scores` [n] and `labels`
 * [n], `masks` [n, S, S] of a detector that has them, and `image` [n], which each was found in: image after image, each image's best
 * first. The images were resized to the size of the test already.
 */
export function encodeOnnxDetector(model: Detector, options: OnnxDetectorOptions): Uint8Array[] {
  const { style, limits: proposalLimits, rules, sizes, metadata } = options
  const { backbone, cells, pooling } = model
  const { classes } = model.options
  const translation = new Translation(new Map([...allTensors(model.state())].map(([name, { id }]) => [id, name])))
  const { graph } = translation
  const to = new Formulas(graph)
  const { image, words } = imageInput(translation, backbone.inputs, options)
  const { images, limits } = sizes ? within(to, image, graph.input('sizes', 'i64', ['batch', 2])) : whole(to, image)
  const ofNetwork = padded(to, images, style.padTo)
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
    ofNetwork,
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
    anchors: anchorsOf(to, cell, maps[i]!, ofNetwork),
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
    to.reshape(regions.boxes, -1, 1, 4),
    to.reshape(head('deltas'), -1, classes, 4),
    sampling.regions.weights,
    style.clamp,
    to.gather(limits, regions.image),
  )
  const placed = (values: string, elsewhere: number, ...sides: number[]): string =>
    to.put(to.expand(to.number(elsewhere), to.size(images, 0), regions.width, ...sides), regions.ranks, values)
  // Each class of an image is a set of boxes of its own.
  const byClass = (values: string, perm: readonly number[]): string => graph.node('Transpose', [values], { perm })
  const sets = to.reshape(byClass(placed(moved, 0, classes, 4), [0, 2, 1, 3]), -1, regions.width, 4)
  const scores = to.reshape(byClass(placed(ofObjects, -Infinity, classes), [0, 2, 1]), -1, regions.width)
  const left = to.suppressed(sets, scores, to.reshape(scores, -1, 1, regions.width), rules.most, rules.overlap, rules.score)
  const found = to.best(to.reshape(left, to.size(images, 0), -1), rules.most)
  const corners = to.at(to.reshape(sets, to.size(images, 0), -1, 4), found.places)
  const real = to.reshape(to.above(to.area(corners), to.number(0)), -1)
  const [boxes, scored, labels, ofImage] = [corners, found.scores, to.div(found.column, regions.width), found.image].map((each) =>
    // The styles differ in whether an object may be without area.
    style.rescale === 'before' ? each : to.rowsOf(each, real),
  ) as [string, string, string, string]
  graph.output('boxes', boxes, ['found', 4])
  graph.output('scores', scored, ['found'])
  graph.output('labels', labels, ['found'], 'i64')
  if (pooling.maskBins !== undefined) {
    const masks = written(
      pooled(to, maps, { boxes, image: ofImage }, pooling.maskBins, pooling),
      bins(pooling.maskBins),
      (x) => new Map([['masks', model.maskBins!(x, evaluation)]]),
    )
    const own = graph.node('GatherND', [masks('masks'), to.reshape(labels, -1, 1)], { batch_dims: 1 })
    graph.output('masks', graph.node('Sigmoid', [own]), ['found', 2 * pooling.maskBins, 2 * pooling.maskBins])
  }
  graph.output('image', ofImage, ['found'], 'i64')
  return graph.encode(`${model.form} on ${backbone.name}`, 'densecl', { ...words, ...metadata }, regionOperatorSet)
}

/** Writes a detector's model to `path`. Throws as encodeOnnxDetector() does, and WRITE. */
export function writeOnnxDetector(path: string, model: Detector, options: OnnxDetectorOptions): void {
  writeAtomic(path, encodeOnnxDetector(model, options))
}
