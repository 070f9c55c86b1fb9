import type { OpName } from '../../../src/ops/catalogue.js'
import { arithmeticCases } from './arithmetic.js'
import { batchNormCases } from './batchNorm.js'
import { boxesCases } from './boxes.js'
import { conv2dCases } from './conv2d.js'
import { elementwiseCases } from './elementwise.js'
import { layerNormCases } from './layerNorm.js'
import { layoutCases } from './layout.js'
import { linearCases } from './linear.js'
import { lossesCases } from './losses.js'
import { matmulCases } from './matmul.js'
import type { OpCase } from './opCase.js'
import { pool2dCases } from './pool2d.js'
import { reduceCases } from './reduce.js'
import { resizeBilinearCases } from './resizeBilinear.js'
import { roiAlignCases } from './roiAlign.js'
import { similarityCases } from './similarity.js'
import { softmaxCases } from './softmax.js'
import { topKCases } from './topK.js'
import { unaryCases } from './unary.js'

/** One description for each op of the catalogue: an op without one does not compile. */
export const opCases: Readonly<Record<OpName, OpCase>> = {
  ...arithmeticCases,
  ...batchNormCases,
  ...boxesCases,
  ...conv2dCases,
  ...elementwiseCases,
  ...layerNormCases,
  ...layoutCases,
  ...linearCases,
  ...lossesCases,
  ...matmulCases,
  ...pool2dCases,
  ...reduceCases,
  ...resizeBilinearCases,
  ...roiAlignCases,
  ...similarityCases,
  ...softmaxCases,
  ...topKCases,
  ...unaryCases,
}
