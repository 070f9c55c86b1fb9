// Losses beside infoNce: value and gradient in one pass.
#include "meanTerms.cuh"
#include "ops.h"

namespace densecl::cuda {
namespace {

// total[0] = the weights of the rows that are not ignored; reports a label outside of the classes
__global__ void __launch_bounds__(kThreads)
    targetWeightsKernel(const int32_t* target, const float* weight, int64_t rows, int classes, int ignore, float* total, Report* report) {
  float* buffer = &sharedMemory<float>();
  float sum = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) {
    const int label = target[row];
    if (label == ignore) continue;
    if (label < 0 || label >= classes)
      fileReport(report, kTarget, label, classes);
    else
      sum += weight == nullptr ? 1.0f : weight[label];
  }
  sum = blockSum(sum, buffer);
  if (threadIdx.x == 0) *total = sum;
}

// A warp takes a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    crossEntropyKernel(float* terms, T* dlogits, const T* logits, const int32_t* target, const float* weight, const float* total,
                       int64_t rows, int classes, int ignore) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warpIndex();
  if (row >= rows) return;
  const int label = target[row];
  const T* in = logits + row * classes;
  const bool valid = label != ignore && label >= 0 && label < classes;
  const float own = !valid ? 0.0f : weight == nullptr ? 1.0f : weight[label];
  const bool used = own != 0;
  float top = -INFINITY, sum = 0;
  for (int c = laneIndex(); c < classes; c += kWarp) top = fmaxf(top, static_cast<float>(in[c]));
  top = warpMax(top);
  for (int c = laneIndex(); c < classes; c += kWarp) sum += expf(static_cast<float>(in[c]) - top);
  sum = warpSum(sum);
  if (laneIndex() == 0) terms[row] = used ? own * (logf(sum) + top - static_cast<float>(in[label])) : 0.0f;
  if (dlogits == nullptr) return;
  for (int c = laneIndex(); c < classes; c += kWarp)
    dlogits[row * classes + c] = T(used ? own * (expf(static_cast<float>(in[c]) - top) / sum - (c == label ? 1.0f : 0.0f)) / *total : 0.0f);
}

// The formulas of native/cpu/losses.cpp.
struct SmoothL1 {
  float beta;
  DEVICE void of(float x, float target, float& value, float& derivative) const {
    const float d = x - target, size = fabsf(d);
    value = size < beta ? 0.5f * d * d / beta : size - 0.5f * beta;
    derivative = size < beta ? d / beta : d > 0 ? 1.0f : d < 0 ? -1.0f : d;
  }
};
struct BinaryCrossEntropy {
  DEVICE void of(float x, float target, float& value, float& derivative) const {
    const float e = expf(-fabsf(x));
    value = fmaxf(x, 0.0f) - x * target + log1pf(e);
    derivative = (x < 0 ? e : 1.0f) / (1 + e) - target;
  }
};

template <class T>
struct PointwiseJob {
  const T *x, *target;
  const float* weight;  // or null; one for each `share` elements
  T* dx;                // or null
  float* sums;          // of each block
  int64_t count, share;
  float scale;
};

template <class Formula, class T>
__global__ void __launch_bounds__(kThreads) pointwiseLossKernel(PointwiseJob<T> job, Formula formula) {
  float sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < job.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const float weight = job.weight == nullptr ? 1.0f : job.weight[i / job.share];
    float value, derivative;
    formula.of(static_cast<float>(job.x[i]), static_cast<float>(job.target[i]), value, derivative);
    // What weighs 0 is 0, whatever stands there.
    sum += weight == 0 ? 0.0f : weight * value;
    if (job.dx != nullptr) job.dx[i] = T(weight == 0 ? 0.0f : weight * job.scale * derivative);
  }
  sum = blockSum(sum, &sharedMemory<float>());
  if (threadIdx.x == 0) job.sums[blockIdx.x] = sum;
}

// loss = scale times the sum, by one block.
__global__ void __launch_bounds__(kThreads) sumBlocksKernel(float* loss, const float* sums, int count, float scale) {
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) sum += sums[i];
  sum = blockSum(sum, &sharedMemory<float>());
  if (threadIdx.x == 0) *loss = sum * scale;
}

template <class Names, class Formula>
void pointwiseLoss(const Call& call, Names, Formula formula) {
  const Tensor &loss = call.tensor(Names::loss), *dx = call.optional(Names::dx), &x = call.tensor(Names::x),
               &target = call.tensor(Names::target), *weight = call.optional(Names::weight);
  const int64_t n = x.size(), weights = weight == nullptr ? 1 : weight->size();
  REQUIRE(weights > 0 ? n % weights == 0 : n == 0, "SHAPE",
          std::string(call.op) + ": expected a weight for each row of " + describe(x) + " but received " + describe(*weight));
  const auto scale = static_cast<float>(call.number(Names::scale));
  const Grid grid = loopGrid(call, n, kThreads);
  DeviceScratch<float> sums(call, grid.x);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const PointwiseJob<T> job{
        x.data<T>(), target.data<T>(), optionalData<float>(weight), optionalData<T>(dx), sums.data(), n, weights > 0 ? n / weights : 1,
        scale};
    launch(call, pointwiseLossKernel<Formula, T>, grid, kThreads, kThreads / kWarp * sizeof(float), job, formula);
  });
  launch(call, sumBlocksKernel, Grid{}, kThreads, kThreads / kWarp * sizeof(float), loss.data<float>(), sums.data(),
         static_cast<int>(grid.x), scale);
}

}  // namespace

void crossEntropy(const Call& call) {
  using Names = args::crossEntropy;
  const Tensor &loss = call.tensor(Names::loss), *dlogits = call.optional(Names::dlogits), &total = call.tensor(Names::total),
               &logits = call.tensor(Names::logits), &target = call.tensor(Names::target);
  const float* weight = optionalData<float>(call.optional(Names::weight));
  const int64_t R = logits.rows();
  const int classes = static_cast<int>(logits.columns()), ignore = static_cast<int>(call.integer(Names::ignoreIndex));
  DeviceScratch<float> terms(call, R);
  launch(call, targetWeightsKernel, Grid{}, kThreads, kThreads / kWarp * sizeof(float), target.data<int32_t>(), weight, R, classes, ignore,
         total.data<float>(), reportOf(call));
  dispatchFloat(call, logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, crossEntropyKernel<T>, Grid{ceilDiv(R, kThreads / kWarp)}, kThreads, 0, terms.data(), optionalData<T>(dlogits),
           logits.data<T>(), target.data<int32_t>(), weight, total.data<float>(), R, classes, ignore);
  });
  meanTerms<1>(call, terms.data(), R, total.data<float>(), loss.data<float>(), nullptr);
}

void smoothL1(const Call& call) {
  using Names = args::smoothL1;
  pointwiseLoss(call, Names{}, SmoothL1{static_cast<float>(call.number(Names::beta))});
}

void binaryCrossEntropy(const Call& call) { pointwiseLoss(call, args::binaryCrossEntropy{}, BinaryCrossEntropy{}); }

}  // namespace densecl::cuda
