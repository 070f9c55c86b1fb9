// Layer norm over the last axis. A warp takes a row, which it reads again from the caches; sums of rows are added by lines.cuh.
#include <cmath>

#include "kernel/reduce.cuh"
#include "lines.cuh"
#include "ops.h"

namespace densecl::cuda {
namespace {

constexpr int kRowsPerBlock = kThreads / kWarp;

// Calls body(channel) for the first channels of the chunks of a row that are the lane's.
template <int kWidth, class Body>
DEVICE void forLane(int channels, Body body) {
  for (int c = laneIndex() * kWidth; c < channels; c += kWarp * kWidth) body(c);
}

template <class T, int kWidth>
DEVICE void loadRow(float (&to)[kWidth], const T* from) {
  unpack(to, loadChunk<T, kWidth>(from));
}

template <class T>
struct NormalizeJob {
  T* y;
  float *mean, *invstd;
  const T* x;
  const float *weight, *bias;  // may be null
  int64_t rows;
  int channels;
  float eps;
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) normalizeRowsKernel(NormalizeJob<T> job) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + warpIndex();
  if (row >= job.rows) return;
  const T* x = job.x + row * job.channels;
  // The mean as the first value plus the mean distance to it: sums of values far from 0 would lose their last digits.
  const float base = static_cast<float>(x[0]);
  float sum = 0, square = 0, values[kWidth];
  forLane<kWidth>(job.channels, [&](int c) {
    loadRow(values, x + c);
    for (int i = 0; i < kWidth; ++i) sum += values[i] - base;
  });
  const float mean = base + warpSum(sum) / static_cast<float>(job.channels);
  forLane<kWidth>(job.channels, [&](int c) {
    loadRow(values, x + c);
    for (int i = 0; i < kWidth; ++i) square += (values[i] - mean) * (values[i] - mean);
  });
  const float invstd = 1 / sqrtf(warpSum(square) / static_cast<float>(job.channels) + job.eps);
  if (laneIndex() == 0) {
    job.mean[row] = mean;
    job.invstd[row] = invstd;
  }
  forLane<kWidth>(job.channels, [&](int c) {
    loadRow(values, x + c);
    for (int i = 0; i < kWidth; ++i) {
      values[i] = (values[i] - mean) * invstd;
      if (job.weight != nullptr) values[i] *= job.weight[c + i];
      if (job.bias != nullptr) values[i] += job.bias[c + i];
    }
    storeRounded(job.y + row * job.channels + c, values);
  });
}

template <class T>
struct DifferentiateJob {
  T* dx;
  const T *dy, *x;
  const float *weight, *mean, *invstd;  // weight may be null
  int64_t rows;
  int channels;
};

// dx = invstd * (g - mean of g - xhat * mean of (g * xhat)) with g = dy * weight
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) differentiateRowsKernel(DifferentiateJob<T> job) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + warpIndex();
  if (row >= job.rows) return;
  const int64_t first = row * job.channels;
  const float mean = job.mean[row], invstd = job.invstd[row], share = 1 / static_cast<float>(job.channels);
  float g[kWidth], x[kWidth];
  const auto read = [&](int c) {
    loadRow(g, job.dy + first + c);
    loadRow(x, job.x + first + c);
    for (int i = 0; i < kWidth; ++i) {
      if (job.weight != nullptr) g[i] *= job.weight[c + i];
      x[i] = (x[i] - mean) * invstd;
    }
  };
  float along = 0, across = 0;
  forLane<kWidth>(job.channels, [&](int c) {
    read(c);
    for (int i = 0; i < kWidth; ++i) {
      along += g[i];
      across += g[i] * x[i];
    }
  });
  along = warpSum(along) * share;
  across = warpSum(across) * share;
  forLane<kWidth>(job.channels, [&](int c) {
    read(c);
    for (int i = 0; i < kWidth; ++i) g[i] = invstd * (g[i] - along - x[i] * across);
    storeRounded(job.dx + first + c, g);
  });
}

// The lines of dweight and dbias: a row gives dy * xhat and dy.
template <class T>
struct AffineLines {
  static constexpr int kSums = 2;
  const T *dy, *x;
  const float *mean, *invstd;
  int64_t perGroup;
  int channels;
  DEVICE void start(int, int) {}
  DEVICE void add(float (&sums)[2], int, int64_t row, int channel) const {
    const int64_t at = row * channels + channel;
    const float value = static_cast<float>(dy[at]);
    sums[0] += value * ((static_cast<float>(x[at]) - mean[row]) * invstd[row]);
    sums[1] += value;
  }
};

struct AffineJob {
  float *dweight, *dbias;  // null where it is not wanted
  DEVICE void finish(int, int, const float (&sums)[2], float (&both)[2]) const {
    both[0] = sums[0];
    both[1] = sums[1];
  }
  DEVICE void finished(int channel, const float (&totals)[2]) const {
    if (dweight != nullptr) dweight[channel] = totals[0];
    if (dbias != nullptr) dbias[channel] = totals[1];
  }
};

}  // namespace

void layerNorm(const Call& call) {
  using Names = args::layerNorm;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x);
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    NormalizeJob<T> job{};
    job.y = y.data<T>();
    job.mean = call.tensor(Names::mean).data<float>();
    job.invstd = call.tensor(Names::invstd).data<float>();
    job.x = x.data<T>();
    job.weight = optionalData<float>(call.optional(Names::weight));
    job.bias = optionalData<float>(call.optional(Names::bias));
    job.rows = x.rows();
    job.channels = static_cast<int>(x.columns());
    job.eps = static_cast<float>(call.number(Names::eps));
    launch(call, normalizeRowsKernel<T, decltype(width)::value>, Grid{ceilDiv(job.rows, kRowsPerBlock)}, kThreads, 0, job);
  });
}

void layerNormBackward(const Call& call) {
  using Names = args::layerNormBackward;
  const Tensor &dy = call.tensor(Names::dy), &x = call.tensor(Names::x), *dx = call.optional(Names::dx);
  const float *mean = call.tensor(Names::mean).data<float>(), *invstd = call.tensor(Names::invstd).data<float>();
  float *dweight = optionalData<float>(call.optional(Names::dweight)), *dbias = optionalData<float>(call.optional(Names::dbias));
  const int channels = static_cast<int>(x.columns());
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    if (dx != nullptr) {
      DifferentiateJob<T> job{};
      job.dx = dx->data<T>();
      job.dy = dy.data<T>();
      job.x = x.data<T>();
      job.weight = optionalData<float>(call.optional(Names::weight));
      job.mean = mean;
      job.invstd = invstd;
      job.rows = x.rows();
      job.channels = channels;
      launch(call, differentiateRowsKernel<T, decltype(width)::value>, Grid{ceilDiv(job.rows, kRowsPerBlock)}, kThreads, 0, job);
    }
    if (dweight == nullptr && dbias == nullptr) return;
    const AffineLines<T> lines{dy.data<T>(), x.data<T>(), mean, invstd, x.rows(), channels};
    finishLines(call, FinishPlan(call, lines.perGroup, 1, channels), lines, AffineJob{dweight, dbias});
  });
}

}  // namespace densecl::cuda
