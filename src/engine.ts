/**
 * `densecl/engine`: tensors, gradients, ops, layers and optimisers.
 * @module densecl/engine
 * @group Reference
 */
export { DenseclError } from './tensor/errors.js'
export {
  type ComputeOptions,
  type ComputeSettings,
  currentCompute,
  type FusionLevel,
  type KernelChoice,
  type Kernels,
  type Precision,
  withCompute,
} from './tensor/compute.js'
export { Graph } from './tensor/graph.js'
export { type MemoryStats, type RecordedStep, resolveDevice } from './tensor/native.js'
export { Random } from './tensor/random.js'
export { devices, memory, resetPeakMemory, setMemoryLimit, setThreads, synchronize, threads, trimMemory } from './tensor/runtime.js'
export {
  currentDevice,
  type DType,
  type FloatDType,
  leakedTensors,
  type NestedNumbers,
  scope,
  type Shape,
  Tensor,
  type TypedArray,
  withDevice,
} from './tensor/tensor.js'
export { type DeviceKind, deviceTraits, type DeviceTraits } from './tensor/traits.js'

export { type BackwardContext, defineOp, type Inputs, type Op, type Recorded } from './autograd/op.js'
export { apply, type GradientReady, noGrad, Tape, valueAndGradients } from './autograd/tape.js'

export { batchNorm, type BatchNormOptions } from './ops/batchNorm.js'
export { conv2d } from './ops/conv2d.js'
export {
  add,
  div,
  equal,
  greater,
  greaterEqual,
  less,
  lessEqual,
  maximum,
  minimum,
  mul,
  neg,
  notEqual,
  pow,
  sub,
  where,
} from './ops/arithmetic.js'
export { type Operand } from './ops/broadcast.js'
export { matmul, type MatmulOptions } from './ops/matmul.js'
export { max, mean, type ReduceOptions, sum, type SumOptions, variance } from './ops/reduce.js'
export { argmax, type AxisOptions, logSoftmax, softmax } from './ops/softmax.js'
export { abs, exp, gelu, log, reciprocal, sigmoid, silu, sqrt, square, tanh } from './ops/unary.js'
export { dropout, relu, reshape, scale } from './ops/elementwise.js'
export { boxIou, type BoxWeights, clipBoxes, decodeBoxes, type DecodeOptions, encodeBoxes } from './ops/boxes.js'
export { concat, stack } from './ops/concat.js'
export { convTranspose2d } from './ops/convTranspose2d.js'
export { broadcastTo, expandDims, squeeze } from './ops/broadcastTo.js'
export { gather, oneHot, scatterAdd } from './ops/gather.js'
export { layerNorm } from './ops/layerNorm.js'
export { linear } from './ops/linear.js'
export {
  binaryCrossEntropy,
  crossEntropy,
  type CrossEntropyOptions,
  infoNce,
  type InfoNceResult,
  type PointwiseLossOptions,
  smoothL1,
} from './ops/losses.js'
export { type Kept, nms } from './ops/nms.js'
export { type Conv2dOptions, type PerAxis } from './ops/windows.js'
export { pad } from './ops/pad.js'
export { permute, transpose } from './ops/permute.js'
export { adaptiveAvgPool2d, avgPool2d, maxPool2d, type Pool2dOptions } from './ops/pool2d.js'
export { resizeBilinear } from './ops/resizeBilinear.js'
export { pasteMasks } from './ops/pasteMasks.js'
export { roiAlign, type RoiAlignOptions } from './ops/roiAlign.js'
export { denseMatch, gatherRows, l2Normalize, permuteBatch } from './ops/similarity.js'
export { slice, type SliceRange } from './ops/slice.js'
export { type Ordered, sort, topK } from './ops/topK.js'
export { upsample2d } from './ops/upsample2d.js'

export { Backbone, type BackboneBuilder, type BackboneKind, type BackboneLayout, knownOptions, type MapShape } from './nn/backbone.js'
export { Fcn, type FcnOptions } from './nn/fcn.js'
export {
  BatchNorm2d,
  type Build,
  Conv2d,
  convNorm,
  evaluation,
  type Fill,
  frameworkDefault,
  type Initialization,
  kaimingNormal,
  LayerNorm,
  Linear,
  type NormMode,
  training,
  zeros,
} from './nn/layers.js'
export { allTensors, disposeState, emptyState, include, type Module, refreshCopies, type State, stateOf } from './nn/module.js'
export { dilated8, ResNet, resnet, type ResNetDepth, type ResNetOptions } from './nn/resnet.js'

export { Adam, AdamW, type AdamOptions, type AdaptiveMoments } from './optim/adam.js'
export { optimizerNames, optimizerOf, type OptimizerChoice, type OptimizerName } from './optim/choose.js'
export { clipByGlobalNorm, clipByValue } from './optim/clip.js'
export { Lars, type LarsOptions } from './optim/lars.js'
export {
  type EmaTarget,
  matricesAndKernels,
  Optimizer,
  type ParameterFilter,
  type UpdateOptions,
  type UpdateTensors,
} from './optim/optimizer.js'
export { learningRate, type Schedule } from './optim/schedule.js'
export { checkFinite, Sgd, type SgdOptions } from './optim/sgd.js'
