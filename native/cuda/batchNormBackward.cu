// The gradient of batch norm: a reduction with the mask fused (or the sums that an input gradient's epilogue left), a small kernel that
// finishes it, and one pass, unless whoever reads the gradient combines it. And the sum over rows, which is a bias's gradient.
#include "batchNorm.cuh"
#include "ops.h"

namespace densecl::cuda {
using namespace norm;
namespace {

template <class T>
struct BackwardJob {
  T *dx, *dresidual;
  const T *dy, *x;
  const T* y;                  // where ReLU let values through: y > 0,
  const float *scale, *shift;  // or x * scale + shift > 0; all null without ReLU
  const float* mean;
};

// A row's chunk on its way: dz, x, and y where the mask needs it.
template <class T, int kWidth>
struct Row {
  Chunk<T, kWidth> dz, x, y;
  DEVICE Row(const BackwardJob<T>& job, int64_t at) : dz(loadChunk<T, kWidth>(job.dy + at)), x(loadChunk<T, kWidth>(job.x + at)), y{} {
    if (job.y != nullptr) y = loadChunk<T, kWidth>(job.y + at);
  }
};

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
  // The gradient that passed the ReLU, and x.
  DEVICE void apply(const BackwardJob<T>& job, const Row<T, kWidth>& row, float (&dz)[kWidth], float (&x)[kWidth]) const {
    unpack(dz, row.dz);
    unpack(x, row.x);
    if (job.y != nullptr) {
      float y[kWidth];
      unpack(y, row.y);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) dz[i] = y[i] > 0 ? dz[i] : 0.0f;
    } else if (job.scale != nullptr) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) dz[i] = passes<T>(x[i], scale[i], shift[i]) ? dz[i] : 0.0f;
    }
  }
};

// body(at, row) for the thread's rows, two of which are on their way at a time.
template <class T, int kWidth, class F>
DEVICE void forRows(const BackwardJob<T>& job, const Layout& layout, const Part<kWidth>& part, F body) {
  const int64_t step = static_cast<int64_t>(part.step) * layout.channels;
  for (int64_t row = part.row, at = part.row * layout.channels + part.channel; row < part.end; row += 2 * part.step, at += 2 * step) {
    const bool two = row + part.step < part.end;
    const int64_t next = two ? at + step : at;
    const Row<T, kWidth> first(job, at), second(job, next);
    body(at, first);
    if (two) body(next, second);
  }
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
    const Mask<T, kWidth> mask(job, part.group * layout.channels + part.channel);
    forRows<T, kWidth>(job, layout, part, [&](int64_t at, const Row<T, kWidth>& row) {
      float dz[kWidth], x[kWidth];
      mask.apply(job, row, dz, x);
      if (job.dresidual != nullptr) storeRounded(job.dresidual + at, dz);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        sums[i].first += dz[i];
        sums[i].second += dz[i] * (x[i] - mean[i]);
      }
    });
  }
  for (int i = 0; i < kWidth; ++i) {
    const Pair all = mergeDown(sums[i], buffer, layout.across, AddPairs{});
    if (part.down != 0 || !part.active) continue;
    float* out = partial + static_cast<int64_t>(part.chunk) * 2 * layout.channels + part.channel + i;
    out[0] = all.first;
    out[layout.channels] = all.second;
  }
}

struct FinishBackwardJob {
  int64_t groupRows;
  int groups, channels;
  bool train;
  const float *gamma, *invstd;
  float *dgamma, *dbeta, *coefficients;

  // Of each group the vectors a, b, c of dx = a dz + (b (x - mean) + c): coefficients [3, G, C]; both are its parts of dgamma and dbeta.
  DEVICE void finish(int group, int channel, const float (&sums)[2], float (&both)[2]) const {
    const int plane = groups * channels, to = group * channels + channel;
    const float inverse = invstd[to], scale = gamma[channel] * inverse, rows = static_cast<float>(groupRows);
    both[0] = sums[1] * inverse;
    both[1] = sums[0];
    coefficients[to] = scale;
    coefficients[plane + to] = train ? -scale * inverse * inverse * sums[1] / rows : 0;
    coefficients[2 * plane + to] = train ? -scale * sums[0] / rows : 0;
  }
  DEVICE void finished(int channel, const float (&totals)[2]) const {
    dgamma[channel] = totals[0];
    dbeta[channel] = totals[1];
  }
};

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
  forRows<T, kWidth>(job, layout, part, [&](int64_t at, const Row<T, kWidth>& row) {
    float dz[kWidth], x[kWidth];
    mask.apply(job, row, dz, x);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) dz[i] = throughNorm(dz[i], x[i], mean[i], a[i], b[i], c[i]);
    storeRounded(job.dx + at, dz);
  });
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
    if (part.down == 0 && part.active) partial[static_cast<int64_t>(part.chunk) * layout.channels + part.channel + i] = all;
  }
}

}  // namespace

void batchNormBackward(const Call& call) {
  using Names = args::batchNormBackward;
  const Tensor *dx = call.optional(Names::dx), *dz = call.optional(Names::dz), &dy = call.tensor(Names::dy), &x = call.tensor(Names::x),
               &mean = call.tensor(Names::mean), *sums = call.optional(Names::sums), *written = call.optional(Names::coefficients);
  REQUIRE(dx != nullptr || written != nullptr, "ARGUMENT", "batchNormBackward: expected dx or coefficients");
  const int64_t groups = groupsOf(call, "mean", mean, x), C = x.columns();
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = reducingLayout(call, x.rows(), C, groups, kWidth), sweep = sweepingLayout(call, x.rows(), C, groups, kWidth);
    const bool given = sums != nullptr;
    DeviceScratch<float> partial(call, given ? 0 : int64_t{layout.groups} * layout.perGroup * 2 * C),
        scratch(call, dx == nullptr ? 0 : 3 * groups * C);
    float* coefficients = dx == nullptr ? written->data<float>() : scratch.data();
    BackwardJob<T> job{};
    job.dx = optionalData<T>(dx);
    job.dresidual = optionalData<T>(dz);
    job.dy = dy.data<T>();
    job.x = x.data<T>();
    job.y = optionalData<T>(call.optional(Names::y));
    job.scale = optionalData<float>(call.optional(Names::scale));
    job.shift = optionalData<float>(call.optional(Names::shift));
    job.mean = mean.data<float>();
    if (!given) launch(call, reduceKernel<T, kWidth>, layout.grid(), kThreads, kThreads * sizeof(Pair), job, partial.data(), layout);
    const Planes<2> lines{given ? sums->data<float>() : partial.data(), given ? sums->dim(0) / groups : layout.perGroup, layout.channels};
    FinishBackwardJob finish{};
    finish.groupRows = layout.groupRows;
    finish.groups = layout.groups;
    finish.channels = layout.channels;
    finish.train = call.flag(Names::train);
    finish.gamma = call.tensor(Names::weight).template data<float>();
    finish.invstd = call.tensor(Names::invstd).template data<float>();
    finish.dgamma = call.tensor(Names::dweight).template data<float>();
    finish.dbeta = call.tensor(Names::dbias).template data<float>();
    finish.coefficients = coefficients;
    finishLines(call, FinishPlan(call, lines.perGroup, layout.groups, C), lines, finish);
    if (dx == nullptr) return;
    if (dz != nullptr) {  // reading it saves the mask
      job.dy = job.dresidual;
      job.y = nullptr;
      job.scale = nullptr;
    }
    launch(call, combineKernel<T, kWidth>, sweep.grid(), kThreads, 0, job, coefficients, sweep);
  });
}

void normGradient(const Call& call) {
  using Names = args::normGradient;
  const Tensor &dx = call.tensor(Names::dx), &dz = call.tensor(Names::dz), &x = call.tensor(Names::x), &mean = call.tensor(Names::mean),
               &coefficients = call.tensor(Names::coefficients);
  const int64_t groups = groupsOf(call, "mean", mean, x);
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = sweepingLayout(call, x.rows(), x.columns(), groups, kWidth);
    BackwardJob<T> job{};
    job.dx = dx.data<T>();
    job.dy = dz.data<T>();
    job.x = x.data<T>();
    job.mean = mean.data<float>();
    launch(call, combineKernel<T, kWidth>, layout.grid(), kThreads, 0, job, coefficients.data<float>(), layout);
  });
}

void sumRows(const Call& call) {
  const Tensor &out = call.tensor(args::sumRows::sum), &x = call.tensor(args::sumRows::x);
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const Layout layout = reducingLayout(call, x.rows(), x.columns(), 1, kWidth);
    DeviceScratch<float> partial(call, int64_t{layout.perGroup} * x.columns());
    launch(call, sumKernel<T, kWidth>, layout.grid(), kThreads, kThreads * sizeof(float), x.data<T>(), partial.data(), layout);
    sumLines(call, Planes<1>{partial.data(), layout.perGroup, layout.channels}, out.data<float>());
  });
}

}  // namespace densecl::cuda
