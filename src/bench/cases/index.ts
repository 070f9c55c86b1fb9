/**
 * What `densecl bench` measures: for each op of the catalogue its native calls at the shapes of ResNet-50 and DenseCL, with the
 * floating-point operations they must do and the bytes they must move, each input read once and each output written once.
 */
import type { OpName } from '../../ops/catalogue.js'
import { arithmeticCases } from './arithmetic.js'
import { batchNormCases } from './batchNorm.js'
import type { BenchCases } from './benchCase.js'
import { convNextCases } from './convNext.js'
import { boxesCases } from './boxes.js'
import { conv2dCases } from './conv2d.js'
import { elementwiseCases } from './elementwise.js'
import { layoutCases } from './layout.js'
import { linearCases } from './linear.js'
import { lossesCases } from './losses.js'
import { matmulCases } from './matmul.js'
import { pool2dCases } from './pool2d.js'
import { reduceCases } from './reduce.js'
import { resizeBilinearCases } from './resizeBilinear.js'
import { roiAlignCases } from './roiAlign.js'
import { similarityCases } from './similarity.js'
import { softmaxCases } from './softmax.js'
import { topKCases } from './topK.js'
import { unaryCases } from './unary.js'

export const benchCases: Readonly<Record<OpName, BenchCases>> = {
  ...arithmeticCases,
  ...batchNormCases,
  ...boxesCases,
  ...conv2dCases,
  ...convNextCases,
  ...elementwiseCases,
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
