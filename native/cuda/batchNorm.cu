// Batch norm over the rows of x [rows, C] in groups: statistics (or those that the convolution's epilogue left), a small
// kernel that finishes them, and one pass that applies scale, shift, residual and ReLU. Backward is a reduction with the mask
// fused, a small kernel, and one pass. Every pass is bound by memory. A thread keeps its channels and walks down rows, so the
// vectors of the channels stay in registers; partial results go to scratch memory and are merged in a fixed order.
#include <algorithm>

#include "device/norm.cuh"
#include "device/reduce.cuh"
#include "device/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kThreads = 256;

// How threads share a matrix [rows, channels]: `across` threads (a power of 2) lie along the vectors of a row, the others
// along rows. A block takes a chunk of the rows of one group and a tile of channels.
struct Layout {
  int64_t groupRows;
  int channels, groups, across, chunkRows, perGroup;
  int channelTiles(int width) const { return static_cast<int>(ceilDiv(channels, static_cast<int64_t>(across) * width)); }
  Grid grid(int width) const { return {int64_t{groups} * perGroup, channelTiles(width)}; }
};

Layout layoutOf(const Call& call, int64_t rows, int64_t channels, int64_t groups, int width) {
  Layout layout{rows / groups, static_cast<int>(channels), static_cast<int>(groups), 1, 1, 1};
  while (layout.across < kWarp && layout.across * width < channels) layout.across *= 2;
  const int64_t down = kThreads / layout.across, blocks = std::max<int64_t>(1, int64_t{8} * multiprocessors(call) / (groups * layout.channelTiles(width)));
  layout.chunkRows = static_cast<int>(std::max<int64_t>(4 * down, ceilDiv(layout.groupRows, blocks)));
  layout.perGroup = static_cast<int>(ceilDiv(layout.groupRows, layout.chunkRows));
  return layout;
}

// The calling thread's part of its block's chunk.
template <int kWidth>
struct Part {
  int group, channel, down, step;
  int64_t row, end;
  bool active;
  DEVICE explicit Part(const Layout& layout) {
    group = static_cast<int>(blockIdx.x) / layout.perGroup;
    channel = (static_cast<int>(blockIdx.y) * layout.across + static_cast<int>(threadIdx.x) % layout.across) * kWidth;
    down = static_cast<int>(threadIdx.x) / layout.across;
    step = kThreads / layout.across;
    const int64_t first = static_cast<int64_t>(static_cast<int>(blockIdx.x) % layout.perGroup) * layout.chunkRows, last = first + layout.chunkRows;
    row = group * layout.groupRows + first + down;
    end = group * layout.groupRows + (last < layout.groupRows ? last : layout.groupRows);
    active = channel < layout.channels;
  }
};

// The sum, by merge(a, b), of the values that the threads of one column of the block hold; in the thread with down == 0.
template <class V, class Merge>
DEVICE V mergeDown(V mine, V* buffer, int across, Merge merge) {
  const int t = static_cast<int>(threadIdx.x);
  for (int half = kThreads / across / 2; half > 0; half /= 2) {
    __syncthreads();
    buffer[t] = mine;
    __syncthreads();
    if (t / across < half) mine = merge(mine, buffer[t + half * across]);
  }
  return mine;
}

struct Pair {
  float first, second;
};
struct AddPairs {
  DEVICE Pair operator()(const Pair& a, const Pair& b) const { return {a.first + b.first, a.second + b.second}; }
};
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

constexpr int kColumns = 32, kLines = 8;  // of the blocks that finish statistics

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

template <class T>
struct BackwardJob {
  T *dx, *dresidual;
  const T *dy, *x;
  const T* y;                   // where ReLU let values through: y > 0,
  const float *scale, *shift;   // or x * scale + shift > 0; all null without ReLU
  const float* mean;
};

// The gradient behind the ReLU.
template <class T, int kWidth>
DEVICE Elements<T, kWidth> maskedGradient(const BackwardJob<T>& job, int64_t at) {
  auto dz = load<T, kWidth>(job.dy + at);
  if (job.y == nullptr) return dz;
  const auto y = load<T, kWidth>(job.y + at);
  for (int i = 0; i < kWidth; ++i)
    if (!(static_cast<float>(y.v[i]) > 0)) dz.v[i] = T(0.0f);
  return dz;
}

// Scale and shift of a thread's channels, for the mask.
template <class T, int kWidth>
struct Mask {
  float scale[kWidth], shift[kWidth];
  DEVICE Mask(const BackwardJob<T>& job, int at) {
    for (int i = 0; i < kWidth && job.scale != nullptr; ++i) {
      scale[i] = job.scale[at + i];
      shift[i] = job.shift[at + i];
    }
  }
  DEVICE void apply(const BackwardJob<T>& job, Elements<T, kWidth>& dz, const Elements<T, kWidth>& x) const {
    if (job.scale == nullptr) return;
    for (int i = 0; i < kWidth; ++i)
      if (!passes(x.v[i], scale[i], shift[i])) dz.v[i] = T(0.0f);
  }
};

// partial [chunks, 2, C]: the sums of dz and of dz (x - mean); writes dz as the gradient of the residual where there is one.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) reduceKernel(BackwardJob<T> job, float* partial, Layout layout) {
  Pair* buffer = &sharedMemory<Pair>();
  const Part<kWidth> part(layout);
  Pair sums[kWidth] = {};
  if (part.active) {
    float mean[kWidth];
    for (int i = 0; i < kWidth; ++i) mean[i] = job.mean[part.group * layout.channels + part.channel + i];
    const Mask<T, kWidth> mask(job, part.group * layout.channels + part.channel);
    for (int64_t row = part.row; row < part.end; row += part.step) {
      const int64_t at = row * layout.channels + part.channel;
      auto dz = maskedGradient<T, kWidth>(job, at);
      const auto x = load<T, kWidth>(job.x + at);
      mask.apply(job, dz, x);
      if (job.dresidual != nullptr) store(job.dresidual + at, dz);
      for (int i = 0; i < kWidth; ++i) {
        const float g = static_cast<float>(dz.v[i]);
        sums[i].first += g;
        sums[i].second += g * (static_cast<float>(x.v[i]) - mean[i]);
      }
    }
  }
  for (int i = 0; i < kWidth; ++i) {
    const Pair all = mergeDown(sums[i], buffer, layout.across, AddPairs{});
    if (part.down != 0 || !part.active) continue;
    float* out = partial + static_cast<int64_t>(blockIdx.x) * 2 * layout.channels + part.channel + i;
    out[0] = all.first;
    out[layout.channels] = all.second;
  }
}

// dgamma, dbeta, and for each group the vectors a, b, c of dx = a dz + (b (x - mean) + c): coefficients [3, G, C].
__global__ void __launch_bounds__(kColumns* kLines) finishBackwardKernel(const float* partial, int perGroup, int64_t groupRows, int groups, int channels, bool train, const float* gamma, const float* invstd, float* dgamma,
                                                                         float* dbeta, float* coefficients) {
  Pair* buffer = &sharedMemory<Pair>();
  const int column = static_cast<int>(threadIdx.x) % kColumns, line = static_cast<int>(threadIdx.x) / kColumns, channel = static_cast<int>(blockIdx.x) * kColumns + column;
  float gammaSum = 0, betaSum = 0;
  for (int g = 0; g < groups; ++g) {
    Pair mine{0, 0};
    if (channel < channels)
      for (int k = line; k < perGroup; k += kLines) {
        const float* in = partial + (static_cast<int64_t>(g) * perGroup + k) * 2 * channels + channel;
        mine = AddPairs{}(mine, Pair{in[0], in[channels]});
      }
    for (int half = kLines / 2; half > 0; half /= 2) {
      __syncthreads();
      buffer[threadIdx.x] = mine;
      __syncthreads();
      if (line < half) mine = AddPairs{}(mine, buffer[static_cast<int>(threadIdx.x) + half * kColumns]);
    }
    if (line != 0 || channel >= channels) continue;
    const int at = g * channels + channel, plane = groups * channels;
    const float inverse = invstd[at], scale = gamma[channel] * inverse, rows = static_cast<float>(groupRows);
    gammaSum += mine.second * inverse;
    betaSum += mine.first;
    coefficients[at] = scale;
    coefficients[plane + at] = train ? -scale * inverse * inverse * mine.second / rows : 0;
    coefficients[2 * plane + at] = train ? -scale * mine.first / rows : 0;
  }
  if (line != 0 || channel >= channels) return;
  dgamma[channel] = gammaSum;
  dbeta[channel] = betaSum;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) combineKernel(BackwardJob<T> job, const float* coefficients, Layout layout) {
  const Part<kWidth> part(layout);
  if (!part.active) return;
  const int plane = layout.groups * layout.channels;
  float a[kWidth], b[kWidth], c[kWidth], mean[kWidth];
  for (int i = 0; i < kWidth; ++i) {
    const int at = part.group * layout.channels + part.channel + i;
    a[i] = coefficients[at];
    b[i] = coefficients[plane + at];
    c[i] = coefficients[2 * plane + at];
    mean[i] = job.mean[at];
  }
  const Mask<T, kWidth> mask(job, part.group * layout.channels + part.channel);
  for (int64_t row = part.row; row < part.end; row += part.step) {
    const int64_t at = row * layout.channels + part.channel;
    auto dz = maskedGradient<T, kWidth>(job, at);
    const auto x = load<T, kWidth>(job.x + at);
    mask.apply(job, dz, x);
    for (int i = 0; i < kWidth; ++i) dz.v[i] = T(throughNorm(static_cast<float>(dz.v[i]), static_cast<float>(x.v[i]), mean[i], a[i], b[i], c[i]));
    store(job.dx + at, dz);
  }
}

// partial [chunks, C]: the sum of each chunk
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) sumKernel(const T* x, float* partial, Layout layout) {
  float* buffer = &sharedMemory<float>();
  const Part<kWidth> part(layout);
  float sums[kWidth] = {};
  if (part.active)
    for (int64_t row = part.row; row < part.end; row += part.step) {
      const auto values = load<T, kWidth>(x + row * layout.channels + part.channel);
      for (int i = 0; i < kWidth; ++i) sums[i] += static_cast<float>(values.v[i]);
    }
  for (int i = 0; i < kWidth; ++i) {
    const float all = mergeDown(sums[i], buffer, layout.across, [](float a, float b) { return a + b; });
    if (part.down == 0 && part.active) partial[static_cast<int64_t>(blockIdx.x) * layout.channels + part.channel + i] = all;
  }
}

__global__ void __launch_bounds__(kThreads) finishSumKernel(const float* partial, int chunks, int channels, float* out) {
  const int channel = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (channel >= channels) return;
  float sum = 0;
  for (int k = 0; k < chunks; ++k) sum += partial[static_cast<int64_t>(k) * channels + channel];
  out[channel] = sum;
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

// As on the CPU, with more tensors: scale and shift [G, C] of the mask instead of y, or null; sums [G * chunks, 2, C] of dz and
// dz (x - mean), when dy is dz already, or null; coefficients [3, G, C], which are written when dx is null.
void batchNormBackward(const Call& call) {
  const Tensor *dx = call.optional(0), &dgamma = call.t(1), &dbeta = call.t(2), *dresidual = call.optional(3), &dy = call.t(4), &x = call.t(5), *y = call.optional(6), *sums = call.optional(12);
  const int64_t groups = call.integer(0), C = x.columns();
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = layoutOf(call, x.rows(), C, groups, kWidth);
    const bool given = sums != nullptr;
    DeviceScratch<float> partial(call, given ? 0 : int64_t{layout.groups} * layout.perGroup * 2 * C), scratch(call, dx == nullptr ? 0 : 3 * groups * C);
    float* coefficients = dx == nullptr ? call.t(13).data<float>() : scratch.data();
    BackwardJob<T> job{optionalData<T>(dx), optionalData<T>(dresidual), dy.data<T>(), x.data<T>(), optionalData<T>(y), optionalData<float>(call.optional(10)), optionalData<float>(call.optional(11)), call.t(8).data<float>()};
    if (!given) launch(call, reduceKernel<T, kWidth>, layout.grid(kWidth), kThreads, kThreads * sizeof(Pair), job, partial.data(), layout);
    launch(call, finishBackwardKernel, Grid{ceilDiv(C, kColumns)}, kColumns * kLines, kColumns * kLines * sizeof(Pair), given ? sums->data<float>() : partial.data(),
           given ? static_cast<int>(sums->dim(0) / groups) : layout.perGroup, layout.groupRows, layout.groups, layout.channels, call.number(1) != 0, call.t(7).data<float>(), call.t(9).data<float>(),
           dgamma.data<float>(), dbeta.data<float>(), coefficients);
    if (dx == nullptr) return;
    if (dresidual != nullptr) {  // it is dz: reading it saves the mask
      job.dy = job.dresidual;
      job.y = nullptr;
      job.scale = nullptr;
    }
    launch(call, combineKernel<T, kWidth>, layout.grid(kWidth), kThreads, 0, job, coefficients, layout);
  });
}

void normGradient(const Call& call) {
  const Tensor &dx = call.t(0), &dz = call.t(1), &x = call.t(2);
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = layoutOf(call, x.rows(), x.columns(), call.integer(0), kWidth);
    const BackwardJob<T> job{dx.data<T>(), nullptr, dz.data<T>(), x.data<T>(), nullptr, nullptr, nullptr, call.t(3).data<float>()};
    launch(call, combineKernel<T, kWidth>, layout.grid(kWidth), kThreads, 0, job, call.t(4).data<float>(), layout);
  });
}

void sumRows(const Call& call) {
  const Tensor &out = call.t(0), &x = call.t(1);
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = layoutOf(call, x.rows(), x.columns(), 1, kWidth);
    DeviceScratch<float> partial(call, int64_t{layout.perGroup} * x.columns());
    launch(call, sumKernel<T, kWidth>, layout.grid(kWidth), kThreads, kThreads * sizeof(float), x.data<T>(), partial.data(), layout);
    launch(call, finishSumKernel, Grid{ceilDiv(x.columns(), kThreads)}, kThreads, 0, partial.data(), layout.perGroup, static_cast<int>(x.columns()), out.data<float>());
  });
}

}  // namespace densecl::cuda
