// Batch norm over the rows of x [rows, C] in groups: statistics (or those that the convolution's epilogue left), a small
// kernel that finishes them, and one pass that applies scale, shift, residual and ReLU. Backward is a reduction with the mask
// fused, a small kernel, and one pass. Every pass is bound by memory. A thread keeps its channels and walks down rows, so the
// vectors of the channels stay in registers; partial results go to scratch memory and are merged in a fixed order.
#include <algorithm>

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

// From partial results of chunks to mean and 1/deviation of each group, and the running statistics, which take the mean over
// the groups.
__global__ void __launch_bounds__(kColumns* kLines) finishMomentsKernel(const float* partial, int64_t chunkRows, int64_t groupRows, int groups, int channels, float eps, float momentum, float* mean, float* invstd,
                                                                        float* runningMean, float* runningVar) {
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
      mean[g * channels + channel] = mine.mean;
      invstd[g * channels + channel] = 1.0f / sqrtf(mine.m2 / rows + eps);
    }
    meanSum += mine.mean / static_cast<float>(groups);
    varSum += mine.m2 / (rows > 1 ? rows - 1 : 1) / static_cast<float>(groups);
  }
  if (line != 0 || channel >= channels) return;
  runningMean[channel] = (1 - momentum) * runningMean[channel] + momentum * meanSum;
  runningVar[channel] = (1 - momentum) * runningVar[channel] + momentum * varSum;
}

template <class T>
struct ApplyJob {
  T* y;
  const T* x;
  const T* residual;
  const float *gamma, *beta, *mean, *invstd;
  bool relu;
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) applyKernel(ApplyJob<T> job, Layout layout) {
  const Part<kWidth> part(layout);
  if (!part.active) return;
  float scale[kWidth], shift[kWidth];
  for (int i = 0; i < kWidth; ++i) {
    const int channel = part.channel + i, at = part.group * layout.channels + channel;
    scale[i] = job.gamma[channel] * job.invstd[at];
    shift[i] = job.beta[channel] - job.mean[at] * scale[i];
  }
  for (int64_t row = part.row; row < part.end; row += part.step) {
    const int64_t at = row * layout.channels + part.channel;
    auto values = load<T, kWidth>(job.x + at);
    Elements<T, kWidth> residual{};
    if (job.residual != nullptr) residual = load<T, kWidth>(job.residual + at);
    for (int i = 0; i < kWidth; ++i) {
      float z = static_cast<float>(values.v[i]) * scale[i] + shift[i];
      if (job.residual != nullptr) z += static_cast<float>(residual.v[i]);
      values.v[i] = T(job.relu && z < 0 ? 0.0f : z);
    }
    store(job.y + at, values);
  }
}

template <class T>
struct BackwardJob {
  T *dx, *dresidual;
  const T *dy, *x, *y;  // y is null without ReLU
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

// partial [chunks, 2, C]: the sums of dz and of dz (x - mean); writes dz as the gradient of the residual where there is one.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) reduceKernel(BackwardJob<T> job, float* partial, Layout layout) {
  Pair* buffer = &sharedMemory<Pair>();
  const Part<kWidth> part(layout);
  Pair sums[kWidth] = {};
  if (part.active) {
    float mean[kWidth];
    for (int i = 0; i < kWidth; ++i) mean[i] = job.mean[part.group * layout.channels + part.channel + i];
    for (int64_t row = part.row; row < part.end; row += part.step) {
      const int64_t at = row * layout.channels + part.channel;
      const auto dz = maskedGradient<T, kWidth>(job, at), x = load<T, kWidth>(job.x + at);
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
  for (int64_t row = part.row; row < part.end; row += part.step) {
    const int64_t at = row * layout.channels + part.channel;
    auto dz = maskedGradient<T, kWidth>(job, at);
    const auto x = load<T, kWidth>(job.x + at);
    for (int i = 0; i < kWidth; ++i) dz.v[i] = T(a[i] * static_cast<float>(dz.v[i]) + (b[i] * (static_cast<float>(x.v[i]) - mean[i]) + c[i]));
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

// As on the CPU, with a last tensor: statistics [ceil(rows / 64), 2, C] from conv2d, or null
void batchNormTrain(const Call& call) {
  const Tensor &y = call.t(0), &mean = call.t(1), &invstd = call.t(2), &x = call.t(5), *statistics = call.optional(9);
  const int64_t groups = call.integer(0), C = x.columns();
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = layoutOf(call, x.rows(), C, groups, kWidth);
    const bool given = statistics != nullptr;
    DeviceScratch<float> partial(call, given ? 0 : int64_t{layout.groups} * layout.perGroup * 2 * C);
    if (!given) launch(call, momentsKernel<T, kWidth>, layout.grid(kWidth), kThreads, kThreads * sizeof(Moments), x.data<T>(), partial.data(), layout);
    launch(call, finishMomentsKernel, Grid{ceilDiv(C, kColumns)}, kColumns * kLines, kColumns * kLines * sizeof(Moments), given ? statistics->data<float>() : partial.data(),
           given ? kStatisticsRows : layout.chunkRows, layout.groupRows, static_cast<int>(groups), static_cast<int>(C), static_cast<float>(call.number(1)), static_cast<float>(call.number(2)),
           mean.data<float>(), invstd.data<float>(), call.t(3).data<float>(), call.t(4).data<float>());
    const ApplyJob<T> job{y.data<T>(), x.data<T>(), optionalData<T>(call.optional(8)), call.t(6).data<float>(), call.t(7).data<float>(), mean.data<float>(), invstd.data<float>(), call.number(3) != 0};
    launch(call, applyKernel<T, kWidth>, layout.grid(kWidth), kThreads, 0, job, layout);
  });
}

void batchNormEval(const Call& call) {
  const Tensor &y = call.t(0), &x = call.t(1);
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = layoutOf(call, x.rows(), x.columns(), 1, kWidth);
    const ApplyJob<T> job{y.data<T>(), x.data<T>(), optionalData<T>(call.optional(6)), call.t(2).data<float>(), call.t(3).data<float>(), call.t(4).data<float>(), call.t(5).data<float>(), call.number(0) != 0};
    launch(call, applyKernel<T, kWidth>, layout.grid(kWidth), kThreads, 0, job, layout);
  });
}

void batchNormBackward(const Call& call) {
  const Tensor &dx = call.t(0), &dgamma = call.t(1), &dbeta = call.t(2), *dresidual = call.optional(3), &dy = call.t(4), &x = call.t(5), *y = call.optional(6);
  const int64_t groups = call.integer(0), C = x.columns();
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = layoutOf(call, x.rows(), C, groups, kWidth);
    DeviceScratch<float> partial(call, int64_t{layout.groups} * layout.perGroup * 2 * C), coefficients(call, 3 * groups * C);
    BackwardJob<T> job{dx.data<T>(), optionalData<T>(dresidual), dy.data<T>(), x.data<T>(), optionalData<T>(y), call.t(8).data<float>()};
    launch(call, reduceKernel<T, kWidth>, layout.grid(kWidth), kThreads, kThreads * sizeof(Pair), job, partial.data(), layout);
    launch(call, finishBackwardKernel, Grid{ceilDiv(C, kColumns)}, kColumns * kLines, kColumns * kLines * sizeof(Pair), partial.data(), layout.perGroup, layout.groupRows, static_cast<int>(groups),
           static_cast<int>(C), call.number(1) != 0, call.t(7).data<float>(), call.t(9).data<float>(), dgamma.data<float>(), dbeta.data<float>(), coefficients.data());
    if (dresidual != nullptr) {  // it is dz: reading it saves the mask
      job.dy = job.dresidual;
      job.y = nullptr;
    }
    launch(call, combineKernel<T, kWidth>, layout.grid(kWidth), kThreads, 0, job, coefficients.data(), layout);
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
