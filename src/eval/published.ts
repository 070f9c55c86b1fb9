/**
 * What DenseCL and MoCo v2 are published to reach by the protocols of this program: ResNet-50, pre-trained on ImageNet for 200 epochs,
 * in %. docs/evaluation.md has the same table beside what was measured here.
 */

/** Published numbers of one row of a table; what is absent is not published. */
export interface PublishedRow {
  densecl?: number
  mocov2?: number
  /** From random weights. */
  random?: number
}

/** Published numbers of a protocol. */
export interface PublishedResult {
  source: string
  /** Numbers by the name that the row of a result has. */
  rows: Readonly<Record<string, PublishedRow>>
}

const modelPage = "MMSelfSup's model page of DenseCL (0.x), MoCo v2 by the same protocol in MMSelfSup"
const openSelfSup = "OpenSelfSup's model zoo"

/** Rows from two lists of numbers in the order of the names. */
const pairs = (names: readonly (string | number)[], densecl: readonly number[], mocov2: readonly number[]): PublishedResult['rows'] =>
  Object.fromEntries(names.map((name, i) => [String(name), { densecl: densecl[i]!, mocov2: mocov2[i]! }]))

const features = ['feature1', 'feature2', 'feature3', 'feature4', 'feature5']

/** Published results by the name of the protocol. */
export const publishedResults: Readonly<Record<string, PublishedResult>> = {
  knn: { source: modelPage, rows: pairs([10, 20, 100, 200], [48.2, 48.5, 46.8, 45.6], [55.6, 55.7, 53.7, 52.5]) },
  'imagenet-avgpool': { source: modelPage, rows: { pooled: { densecl: 63.34, mocov2: 67.58 } } },
  'imagenet-features': {
    source: modelPage,
    rows: pairs(features, [15.86, 35.47, 49.46, 64.06, 62.95], [15.96, 34.22, 45.78, 61.11, 66.24]),
  },
  places205: { source: modelPage, rows: pairs(features, [21.32, 36.2, 43.97, 51.04, 50.45], [20.92, 35.72, 42.62, 49.79, 52.25]) },
  svm: { source: modelPage, rows: { mean: { densecl: 82.5, mocov2: 84.04 } } },
  'low-shot': {
    source: modelPage,
    rows: pairs(
      [1, 2, 4, 8, 16, 32, 64, 96],
      [42.68, 50.64, 61.74, 68.17, 72.99, 76.07, 79.19, 80.55],
      [43.14, 53.29, 65.34, 71.03, 75.42, 78.48, 80.88, 82.23],
    ),
  },
  'imagenet-1percent': { source: openSelfSup, rows: { 'top-1': { mocov2: 38.71, random: 1.56 }, 'top-5': { mocov2: 67.9, random: 4.99 } } },
  'imagenet-10percent': {
    source: openSelfSup,
    rows: { 'top-1': { mocov2: 61.64, random: 21.78 }, 'top-5': { mocov2: 84.9, random: 44.24 } },
  },
  'voc0712-c4': { source: modelPage, rows: { AP50: { densecl: 82.14, mocov2: 81.06 } } },
  'coco-fpn-1x': {
    source: `${modelPage}, which leaves DenseCL's blank`,
    rows: {
      'box AP': { mocov2: 40.2 },
      'box AP50': { mocov2: 59.7 },
      'box AP75': { mocov2: 44.2 },
      'mask AP': { mocov2: 36.1 },
      'mask AP50': { mocov2: 56.7 },
      'mask AP75': { mocov2: 38.8 },
    },
  },
  voc12aug: { source: modelPage, rows: { mean: { densecl: 69.47, mocov2: 67.55 } } },
}

/** Training and validation images and classes of the data that protocols are published on; ImageNet where none is named. */
export const publishedData: Readonly<Record<string, { train: number; val: number; classes: number }>> = {
  imagenet: { train: 1_281_167, val: 50_000, classes: 1000 },
  places205: { train: 2_448_873, val: 20_500, classes: 205 },
  voc07: { train: 5011, val: 4952, classes: 20 },
  voc12aug: { train: 10_582, val: 1449, classes: 21 },
  cityscapes: { train: 2975, val: 500, classes: 19 },
  inat18: { train: 437_513, val: 24_426, classes: 8142 },
}
