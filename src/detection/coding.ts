/** How a box is written as a move of another (Girshick et al., arXiv:1311.2524), and read back. */
import { type Box, boxHeight, boxWidth } from '../data/boxes.js'

/** Weights of the four deltas of a box: shifts of the centre, logarithms of the ratios of the sides. */
export type DeltaWeights = readonly [x: number, y: number, width: number, height: number]

/** Of the logarithm by which a side grows: 1000 pixels of 16. */
export const mostGrowth = Math.log(1000 / 16)

/** How far a box must be moved and scaled to become `target`: shifts over its sides and logarithms of ratios, times the weights. */
export function encodeBox(box: Box, target: Box, weights: DeltaWeights): [number, number, number, number] {
  const [width, height, toWidth, toHeight] = [boxWidth(box), boxHeight(box), boxWidth(target), boxHeight(target)]
  return [
    (weights[0] * (target[0] + toWidth / 2 - box[0] - width / 2)) / width,
    (weights[1] * (target[1] + toHeight / 2 - box[1] - height / 2)) / height,
    weights[2] * Math.log(toWidth / width),
    weights[3] * Math.log(toHeight / height),
  ]
}

/** The box that deltas make of another. Growth is bounded, for mmdetection's `both` also shrinking. */
export function decodeBox(box: Box, deltas: ArrayLike<number>, weights: DeltaWeights, clamp: 'upper' | 'both'): Box {
  const [width, height] = [boxWidth(box), boxHeight(box)]
  const side = (delta: number): number => Math.exp(Math.max(clamp === 'both' ? -mostGrowth : -Infinity, Math.min(delta, mostGrowth)))
  const x = (deltas[0]! / weights[0]) * width + box[0] + width / 2
  const y = (deltas[1]! / weights[1]) * height + box[1] + height / 2
  const [w, h] = [side(deltas[2]! / weights[2]) * width, side(deltas[3]! / weights[3]) * height]
  return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
}

/** What of a box lies in an image; without area where nothing does. */
export function clipBox(box: Box, { height, width }: { height: number; width: number }): Box {
  const clip = (value: number, limit: number): number => Math.min(limit, Math.max(0, value))
  return [clip(box[0], width), clip(box[1], height), clip(box[2], width), clip(box[3], height)]
}
