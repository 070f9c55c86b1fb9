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
    const Moments all =
        mergeDown(Moments{count, shift[i] + mean, fmaxf(square[i] - sum[i] * mean, 0.0f)}, buffer, layout.across, MergeMoments{});
    if (part.down != 0 || !part.active) continue;
    float* out = partial + static_cast<int64_t>(part.chunk) * 2 * layout.channels + part.channel + i;
    out[0] = all.mean;
    out[layout.channels] = all.m2;
  }
}

// Chunks of equal length as deviations from the mean of the group's first: sums of d, d^2 and of the chunks' own squares. No chunk waits
// for the one before it, as it would where moments are merged pair by pair.
struct ShiftedMoments {
  static constexpr int kSums = 3;
  const float* partial;  // [groups * chunks, 2, channels]
  int64_t perGroup;      // whole chunks of a group
  int64_t chunks;        // with one that is shorter
  int channels;
  float shift = 0;
  DEVICE const float* at(int group, int64_t chunk, int channel) const {
    return partial + (group * chunks + chunk) * 2 * channels + channel;
  }
  DEVICE void start(int group, int channel) { shift = *at(group, 0, channel); }
  DEVICE void add(float (&sums)[3], int group, int64_t chunk, int channel) const {
    const float* in = at(group, chunk, channel);
    const float d = in[0] - shift;
    sums[0] += d;
    sums[1] = fmaf(d, d, sums[1]);
    sums[2] += in[channels];
  }
};

struct FinishJob {
  ShiftedMoments moments;
  int64_t chunkRows, groupRows;
  int groups;
  float eps, momentum;
  const float *gamma, *beta;
  float *mean, *invstd, *scale, *shift, *runningMean, *runningVar;

  // From the sums of a group's moments to mean, 1/deviation, scale and shift; both are its mean and variance.
  DEVICE void finish(int group, int channel, const float (&sums)[3], float (&both)[2]) const {
    const float rows = static_cast<float>(groupRows), whole = static_cast<float>(chunkRows),
                tail = static_cast<float>(groupRows - moments.perGroup * chunkRows), base = *moments.at(group, 0, channel);
    float d = whole * sums[0], square = whole * sums[1], m2 = sums[2];
    if (tail > 0) {
      const float* in = moments.at(group, moments.perGroup, channel);
      d = fmaf(tail, in[0] - base, d);
      square = fmaf(tail * (in[0] - base), in[0] - base, square);
      m2 += in[moments.channels];
    }
    const float own = base + d / rows;
    m2 += fmaxf(fmaf(-d, d / rows, square), 0.0f);
    const int to = group * moments.channels + channel;
    const float inverse = 1.0f / sqrtf(m2 / rows + eps), factor = gamma[channel] * inverse;
    mean[to] = own;
    invstd[to] = inverse;
    scale[to] = factor;
    shift[to] = fmaf(-own, factor, beta[channel]);
    both[0] = own;
    both[1] = m2 / (rows > 1 ? rows - 1 : 1);
  }
  // The running statistics, which take the mean over the groups.
  DEVICE void finished(int channel, const float (&totals)[2]) const {
    const float count = static_cast<float>(groups);
    runningMean[channel] = (1 - momentum) * runningMean[channel] + momentum * (totals[0] / count);
    runningVar[channel] = (1 - momentum) * runningVar[channel] + momentum * (totals[1] / count);
  }
};

// Scale and shift of running statistics.
__global__ void __launch_bounds__(kThreads) affineKernel(const float* gamma, const float* beta, const float* mean, const float* variance,
                                                         float eps, int channels, float* invstd, float* scale, float* shift) {
  const int channel = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (channel >= channels) return;
  invstd[channel] = 1 / sqrtf(variance[channel] + eps);
  scale[channel] = gamma[channel] * invstd[channel];
  shift[channel] = fmaf(-mean[channel], scale[channel], beta[channel]);
}

template <class T, class Y = T, class R = T>
struct ApplyJob {
  Y* y;
  const T* x;
  const R* residual;
  const float *scale, *shift;
  const float *residualScale, *residualShift;  // of a residual that is a norm too, or null
  bool relu;
};

template <class T, int kWidth, class Y = T, class R = T>
__global__ void __launch_bounds__(kThreads) applyKernel(ApplyJob<T, Y, R> job, Layout layout) {
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
  const auto apply = [&](int64_t at, const Chunk<T, kWidth>& own, const Chunk<R, kWidth>& other) {
    float values[kWidth], residual[kWidth];
    unpack(values, own);
    if (job.residual != nullptr) unpack(residual, other);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (job.residual == nullptr) {
        values[i] = normalised(values[i], scale[i], shift[i], job.relu);
        continue;
      }
      // A residual that is a norm is rounded as it would have been stored.
      if (job.residualScale != nullptr)
        residual[i] = static_cast<float>(R(normalised(residual[i], residualScale[i], residualShift[i], false)));
      const float z = normalised(values[i], scale[i], shift[i], false) + residual[i];
      values[i] = job.relu && z < 0 ? 0.0f : z;
    }
    storeRounded(job.y + at, values);
  };
  // Two rows are on their way at a time.
  const int64_t step = static_cast<int64_t>(part.step) * layout.channels;
  for (int64_t row = part.row, at = part.row * layout.channels + part.channel; row < part.end; row += 2 * part.step, at += 2 * step) {
    const bool two = row + part.step < part.end;
    const int64_t next = two ? at + step : at;
    const auto first = loadChunk<T, kWidth>(job.x + at), second = loadChunk<T, kWidth>(job.x + next);
    Chunk<R, kWidth> firstOther{}, secondOther{};
    if (job.residual != nullptr) {
      firstOther = loadChunk<R, kWidth>(job.residual + at);
      secondOther = loadChunk<R, kWidth>(job.residual + next);
    }
    apply(at, first, firstOther);
    if (two) apply(next, second, secondOther);
  }
}

}  // namespace

void batchNormTrain(const Call& call) {
  using Names = args::batchNormTrain;
  const Tensor *y = call.optional(Names::y), &mean = call.tensor(Names::mean), &x = call.tensor(Names::x),
               *statistics = call.optional(Names::statistics), *scale = call.optional(Names::scale), *shift = call.optional(Names::shift);
  const int64_t groups = groupsOf(call, "mean", mean, x), C = x.columns();
  if (statistics != nullptr) requireChunks(call, "statistics", *statistics, ceilDiv(x.rows(), kStatisticsRows));
  // For the pass that applies them, where nobody else wants them.
  DeviceScratch<float> affine(call, scale == nullptr || shift == nullptr ? 2 * groups * C : 0);
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = reducingLayout(call, x.rows(), C, groups, kWidth), sweep = sweepingLayout(call, x.rows(), C, groups, kWidth);
    const bool given = statistics != nullptr;
    DeviceScratch<float> partial(call, given ? 0 : int64_t{layout.groups} * layout.perGroup * 2 * C);
    if (!given)
      launch(call, momentsKernel<T, kWidth>, layout.grid(), kThreads, kThreads * sizeof(Moments), x.data<T>(), partial.data(), layout);
    const int64_t chunkRows = given ? kStatisticsRows : layout.chunkRows;
    const ShiftedMoments moments{given ? statistics->data<float>() : partial.data(), layout.groupRows / chunkRows,
                                 ceilDiv(layout.groupRows, chunkRows), layout.channels};
    FinishJob finish{};
    finish.moments = moments;
    finish.chunkRows = chunkRows;
    finish.groupRows = layout.groupRows;
    finish.groups = layout.groups;
    finish.eps = static_cast<float>(call.number(Names::eps));
    finish.momentum = static_cast<float>(call.number(Names::momentum));
    finish.gamma = call.tensor(Names::weight).template data<float>();
    finish.beta = call.tensor(Names::bias).template data<float>();
    finish.mean = mean.data<float>();
    finish.invstd = call.tensor(Names::invstd).template data<float>();
    finish.scale = scale == nullptr ? affine.data() : scale->data<float>();
    finish.shift = shift == nullptr ? affine.data() + groups * C : shift->data<float>();
    finish.runningMean = call.tensor(Names::runningMean).template data<float>();
    finish.runningVar = call.tensor(Names::runningVar).template data<float>();
    finishLines(call, FinishPlan(call, moments.perGroup, layout.groups, C), moments, finish);
    if (y == nullptr) return;
    ApplyJob<T> job{};
    job.y = y->data<T>();
    job.x = x.data<T>();
    job.residual = optionalData<T>(call.optional(Names::residual));
    job.scale = finish.scale;
    job.shift = finish.shift;
    job.residualScale = optionalData<float>(call.optional(Names::residualScale));
    job.residualShift = optionalData<float>(call.optional(Names::residualShift));
    job.relu = call.flag(Names::relu);
    launch(call, applyKernel<T, kWidth>, sweep.grid(), kThreads, 0, job, sweep);
  });
}

void batchNormEval(const Call& call) {
  using Names = args::batchNormEval;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x);
  const int64_t C = x.columns();
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = sweepingLayout(call, x.rows(), C, 1, kWidth);
    DeviceScratch<float> affine(call, 2 * C);
    const auto vector = [&](auto name) -> const float* { return call.tensor(name).template data<float>(); };
    launch(call, affineKernel, Grid{ceilDiv(C, kThreads)}, kThreads, 0, vector(Names::weight), vector(Names::bias), vector(Names::mean),
           vector(Names::variance), static_cast<float>(call.number(Names::eps)), layout.channels, call.tensor(Names::invstd).data<float>(),
           affine.data(), affine.data() + C);
    ApplyJob<T> job{};
    job.y = y.data<T>();
    job.x = x.data<T>();
    job.residual = optionalData<T>(call.optional(Names::residual));
    job.scale = affine.data();
    job.shift = affine.data() + C;
    job.relu = call.flag(Names::relu);
    launch(call, applyKernel<T, kWidth>, layout.grid(), kThreads, 0, job, layout);
  });
}

void normApply(const Call& call) {
  using Names = args::normApply;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &scale = call.tensor(Names::scale),
               &shift = call.tensor(Names::shift);
  const int64_t groups = groupsOf(call, "scale", scale, x);
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = sweepingLayout(call, x.rows(), x.columns(), groups, kWidth);
    ApplyJob<T> job{};
    job.y = y.data<T>();
    job.x = x.data<T>();
    job.scale = scale.data<float>();
    job.shift = shift.data<float>();
    job.relu = call.flag(Names::relu);
    launch(call, applyKernel<T, kWidth>, layout.grid(), kThreads, 0, job, layout);
  });
}

void normE4m3(const Call& call) {
  using Names = args::normE4m3;
  constexpr int kWidth = Vector<bf16>::kLength;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &scale = call.tensor(Names::scale),
               &shift = call.tensor(Names::shift), *residual = call.optional(Names::residual),
               *residualScale = call.optional(Names::residualScale), *residualShift = call.optional(Names::residualShift);
  const int64_t groups = groupsOf(call, "scale", scale, x);
  REQUIRE(x.columns() % kWidth == 0, "SHAPE",
          "normE4m3: expected channels by the " + std::to_string(kWidth) + " but received x " + describe(x));
  REQUIRE(residualScale == nullptr || (residualShift != nullptr && residual != nullptr && residual->dtype == DType::bf16), "ARGUMENT",
          "normE4m3: expected residualScale with residualShift and a residual of bf16");
  const auto dispatch = [&](const char* name, const Tensor* tensor, auto body) {
    if (tensor == nullptr || tensor->dtype == DType::bf16) return body(bf16{});
    REQUIRE(tensor->dtype == DType::e4m3, "DTYPE",
            std::string("normE4m3: expected ") + name + " of e4m3 or bf16 but received " + describe(*tensor));
    body(e4m3{});
  };
  dispatch("y", &y, [&](auto out) {
    dispatch("residual", residual, [&](auto added) {
      using Y = decltype(out);
      using R = decltype(added);
      const Layout layout = sweepingLayout(call, x.rows(), x.columns(), groups, kWidth);
      ApplyJob<bf16, Y, R> job{};
      job.y = y.data<Y>();
      job.x = x.data<bf16>();
      job.residual = optionalData<R>(residual);
      job.scale = scale.data<float>();
      job.shift = shift.data<float>();
      job.residualScale = optionalData<float>(residualScale);
      job.residualShift = optionalData<float>(residualShift);
      job.relu = call.flag(Names::relu);
      launch(call, applyKernel<bf16, kWidth, Y, R>, layout.grid(), kThreads, 0, job, layout);
    });
  });
}

}  // namespace densecl::cuda
