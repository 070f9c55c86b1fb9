// Batch norm: statistics (or those that the convolution's epilogue left), a small kernel that finishes them, and one pass that applies
// scale, shift, residual and ReLU, unless whoever reads the result does. Every pass is bound by memory.
#include "batchNorm.cuh"
#include "ops.h"

namespace densecl::cuda {
using namespace norm;
namespace {

struct MergeMoments {
  DEVICE Moments operator()(const Moments& a, const Moments& b) const { return merge(a, b); }
};

// partial [chunks, 2, C]: mean and squared deviations of each chunk. Values are shifted by the first of the thread, so that
// their squares do not cancel.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) momentsKernel(const T* x, float* partial, Layout layout) {
  Moments* buffer = &sharedMemory<Moments>();
  const Part<kWidth> part(layout);
  float shift[kWidth] = {}, sum[kWidth] = {}, square[kWidth] = {}, count = 0;
  if (part.active) {
    for (int64_t row = part.row; row < part.end; row += part.step) {
      const auto values = load<T, kWidth>(x + row * layout.channels + part.channel);
      for (int i = 0; i < kWidth; ++i) {
        const float value = static_cast<float>(values.v[i]);
        if (count == 0) shift[i] = value;
        const float d = value - shift[i];
        sum[i] += d;
        square[i] += d * d;
      }
      count += 1;
    }
  }
  for (int i = 0; i < kWidth; ++i) {
    const float mean = count > 0 ? sum[i] / count : 0;
    const Moments all = mergeDown(Moments{count, shift[i] + mean, fmaxf(square[i] - sum[i] * mean, 0.0f)}, buffer, layout.across, MergeMoments{});
    if (part.down != 0 || !part.active) continue;
    float* out = partial + static_cast<int64_t>(blockIdx.x) * 2 * layout.channels + part.channel + i;
    out[0] = all.mean;
    out[layout.channels] = all.m2;
  }
}

struct FinishJob {
  const float* partial;
  int64_t chunkRows, groupRows;
  int groups, channels;
  float eps, momentum;
  const float *gamma, *beta;
  float *mean, *invstd, *scale, *shift, *runningMean, *runningVar;
};

// From partial results of chunks to mean, 1/deviation, scale and shift of each group, and the running statistics, which take the
// mean over the groups.
__global__ void __launch_bounds__(kColumns* kLines) finishMomentsKernel(FinishJob job) {
  const auto [partial, chunkRows, groupRows, groups, channels, eps, momentum, gamma, beta, mean, invstd, scale, shift, runningMean, runningVar] = job;
  Moments* buffer = &sharedMemory<Moments>();
  const int column = static_cast<int>(threadIdx.x) % kColumns, line = static_cast<int>(threadIdx.x) / kColumns, channel = static_cast<int>(blockIdx.x) * kColumns + column;
  const int64_t perGroup = (groupRows + chunkRows - 1) / chunkRows;
  float meanSum = 0, varSum = 0;
  for (int g = 0; g < groups; ++g) {
    Moments mine{0, 0, 0};
    if (channel < channels)
      for (int64_t k = line; k < perGroup; k += kLines) {
        const int64_t rest = groupRows - k * chunkRows;
        const float* in = partial + (g * perGroup + k) * 2 * channels + channel;
        mine = merge(mine, Moments{static_cast<float>(rest < chunkRows ? rest : chunkRows), in[0], in[channels]});
      }
    for (int half = kLines / 2; half > 0; half /= 2) {
      __syncthreads();
      buffer[threadIdx.x] = mine;
      __syncthreads();
      if (line < half) mine = merge(mine, buffer[static_cast<int>(threadIdx.x) + half * kColumns]);
    }
    const float rows = static_cast<float>(groupRows);
    if (line == 0 && channel < channels) {
      const int at = g * channels + channel;
      mean[at] = mine.mean;
      invstd[at] = 1.0f / sqrtf(mine.m2 / rows + eps);
      scale[at] = gamma[channel] * invstd[at];
      shift[at] = fmaf(-mine.mean, scale[at], beta[channel]);
    }
    meanSum += mine.mean / static_cast<float>(groups);
    varSum += mine.m2 / (rows > 1 ? rows - 1 : 1) / static_cast<float>(groups);
  }
  if (line != 0 || channel >= channels) return;
  runningMean[channel] = (1 - momentum) * runningMean[channel] + momentum * meanSum;
  runningVar[channel] = (1 - momentum) * runningVar[channel] + momentum * varSum;
}

// Scale and shift of running statistics.
__global__ void __launch_bounds__(kThreads) affineKernel(const float* gamma, const float* beta, const float* mean, const float* invstd, int channels, float* scale, float* shift) {
  const int channel = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (channel >= channels) return;
  scale[channel] = gamma[channel] * invstd[channel];
  shift[channel] = fmaf(-mean[channel], scale[channel], beta[channel]);
}

template <class T>
struct ApplyJob {
  T* y;
  const T* x;
  const T* residual;
  const float *scale, *shift;
  const float *residualScale, *residualShift;  // of a residual that is a norm too, or null
  bool relu;
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) applyKernel(ApplyJob<T> job, Layout layout) {
  const Part<kWidth> part(layout);
  if (!part.active) return;
  float scale[kWidth], shift[kWidth], residualScale[kWidth] = {}, residualShift[kWidth] = {};
  for (int i = 0; i < kWidth; ++i) {
    const int at = part.group * layout.channels + part.channel + i;
    scale[i] = job.scale[at];
    shift[i] = job.shift[at];
    if (job.residualScale == nullptr) continue;
    residualScale[i] = job.residualScale[at];
    residualShift[i] = job.residualShift[at];
  }
  for (int64_t row = part.row; row < part.end; row += part.step) {
    const int64_t at = row * layout.channels + part.channel;
    auto values = load<T, kWidth>(job.x + at);
    Elements<T, kWidth> residual{};
    if (job.residual != nullptr) residual = load<T, kWidth>(job.residual + at);
    for (int i = 0; i < kWidth; ++i) {
      const float x = static_cast<float>(values.v[i]);
      if (job.residual == nullptr) {
        values.v[i] = T(normalised(x, scale[i], shift[i], job.relu));
        continue;
      }
      // A residual that is a norm is rounded as it would have been stored.
      float r = static_cast<float>(residual.v[i]);
      if (job.residualScale != nullptr) r = static_cast<float>(T(normalised(r, residualScale[i], residualShift[i], false)));
      const float z = normalised(x, scale[i], shift[i], false) + r;
      values.v[i] = T(job.relu && z < 0 ? 0.0f : z);
    }
    store(job.y + at, values);
  }
}

}  // namespace

// As on the CPU, with more tensors: statistics [ceil(rows / 64), 2, C] from conv2d or null, then scale and shift [G, C], which are
// written, and scale and shift of the residual or null. y is null when others will apply scale and shift.
void batchNormTrain(const Call& call) {
  const Tensor *y = call.optional(0), &mean = call.t(1), &x = call.t(5), *statistics = call.optional(9);
  const int64_t groups = call.integer(0), C = x.columns();
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = layoutOf(call, x.rows(), C, groups, kWidth);
    const bool given = statistics != nullptr;
    DeviceScratch<float> partial(call, given ? 0 : int64_t{layout.groups} * layout.perGroup * 2 * C);
    if (!given) launch(call, momentsKernel<T, kWidth>, layout.grid(kWidth), kThreads, kThreads * sizeof(Moments), x.data<T>(), partial.data(), layout);
    const FinishJob finish{given ? statistics->data<float>() : partial.data(), given ? kStatisticsRows : layout.chunkRows, layout.groupRows, layout.groups, layout.channels,
                           static_cast<float>(call.number(1)), static_cast<float>(call.number(2)), call.t(6).data<float>(), call.t(7).data<float>(), mean.data<float>(), call.t(2).data<float>(),
                           call.t(10).data<float>(), call.t(11).data<float>(), call.t(3).data<float>(), call.t(4).data<float>()};
    launch(call, finishMomentsKernel, Grid{ceilDiv(C, kColumns)}, kColumns * kLines, kColumns * kLines * sizeof(Moments), finish);
    if (y == nullptr) return;
    const ApplyJob<T> job{y->data<T>(), x.data<T>(), optionalData<T>(call.optional(8)), finish.scale, finish.shift, optionalData<float>(call.optional(12)), optionalData<float>(call.optional(13)), call.number(3) != 0};
    launch(call, applyKernel<T, kWidth>, layout.grid(kWidth), kThreads, 0, job, layout);
  });
}

void batchNormEval(const Call& call) {
  const Tensor &y = call.t(0), &x = call.t(1);
  const int64_t C = x.columns();
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = layoutOf(call, x.rows(), C, 1, kWidth);
    DeviceScratch<float> affine(call, 2 * C);
    launch(call, affineKernel, Grid{ceilDiv(C, kThreads)}, kThreads, 0, call.t(2).data<float>(), call.t(3).data<float>(), call.t(4).data<float>(), call.t(5).data<float>(), layout.channels, affine.data(), affine.data() + C);
    const ApplyJob<T> job{y.data<T>(), x.data<T>(), optionalData<T>(call.optional(6)), affine.data(), affine.data() + C, nullptr, nullptr, call.number(0) != 0};
    launch(call, applyKernel<T, kWidth>, layout.grid(kWidth), kThreads, 0, job, layout);
  });
}

void normApply(const Call& call) {
  const Tensor &y = call.t(0), &x = call.t(1);
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = layoutOf(call, x.rows(), x.columns(), call.integer(0), kWidth);
    const ApplyJob<T> job{y.data<T>(), x.data<T>(), nullptr, call.t(2).data<float>(), call.t(3).data<float>(), nullptr, nullptr, call.number(1) != 0};
    launch(call, applyKernel<T, kWidth>, layout.grid(kWidth), kThreads, 0, job, layout);
  });
}

}  // namespace densecl::cuda
