// Layer norm over the last axis of x [S..., C], with mean and variance of each row:
//   y = (x - mean) * invstd * weight + bias, invstd = 1 / sqrt(variance + eps)
#include <cmath>
#include <vector>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "isa.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

// The sum of term(i) over a row, in lanes that a vector register holds.
template <class T, class F>
INLINE T sumRow(int64_t count, F term) {
  constexpr int kLanes = 128 / static_cast<int>(sizeof(T));
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += term(i + l);
  for (int l = 0; i < count; ++i, ++l) lanes[l] += term(i);
  T sum{0};
  for (int l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

template <class T>
struct Rows {
  T *y, *mean, *invstd;
  const T *x, *weight, *bias;  // weight and bias may be null
  int64_t begin, end, channels;
  T eps;
};

template <class T>
INLINE void normalizeRowsLoop(const Rows<T>& job) {
  const int64_t C = job.channels;
  for (int64_t r = job.begin; r < job.end; ++r) {
    const T* x = job.x + r * C;
    T* __restrict y = job.y + r * C;
    // The mean as the first value plus the mean distance to it: sums of values far from 0 would lose their last digits.
    const T base = x[0];
    const T mean = base + sumRow<T>(C, [&](int64_t c) { return x[c] - base; }) / static_cast<T>(C);
    const T square = sumRow<T>(C, [&](int64_t c) { return (x[c] - mean) * (x[c] - mean); });
    const T invstd = T{1} / std::sqrt(square / static_cast<T>(C) + job.eps);
    job.mean[r] = mean;
    job.invstd[r] = invstd;
    if (job.weight == nullptr)
      for (int64_t c = 0; c < C; ++c) y[c] = (x[c] - mean) * invstd;
    else
      for (int64_t c = 0; c < C; ++c) y[c] = (x[c] - mean) * invstd * job.weight[c];
    if (job.bias != nullptr)
      for (int64_t c = 0; c < C; ++c) y[c] += job.bias[c];
  }
}
SIMD_LOOP(normalizeRows, Rows)

template <class T>
struct RowGradients {
  T *dx, *dweight, *dbias;  // dx may be null; the sums of this chunk [C]
  const T *dy, *x, *weight, *mean, *invstd;
  int64_t begin, end, channels;
};

template <class T>
INLINE void differentiateRowsLoop(const RowGradients<T>& job) {
  const int64_t C = job.channels;
  T* __restrict dweight = job.dweight;
  T* __restrict dbias = job.dbias;
  for (int64_t c = 0; c < C; ++c) dweight[c] = dbias[c] = T{0};
  for (int64_t r = job.begin; r < job.end; ++r) {
    const T *dy = job.dy + r * C, *x = job.x + r * C, *weight = job.weight, mean = job.mean[r], invstd = job.invstd[r];
    for (int64_t c = 0; c < C; ++c) {
      dweight[c] += dy[c] * ((x[c] - mean) * invstd);
      dbias[c] += dy[c];
    }
    if (job.dx == nullptr) continue;
    T* __restrict dx = job.dx + r * C;
    if (weight == nullptr)
      for (int64_t c = 0; c < C; ++c) dx[c] = dy[c];
    else
      for (int64_t c = 0; c < C; ++c) dx[c] = dy[c] * weight[c];
    const T along = sumRow<T>(C, [&](int64_t c) { return dx[c]; }) / static_cast<T>(C);
    const T across = sumRow<T>(C, [&](int64_t c) { return dx[c] * (x[c] - mean); }) * invstd * invstd / static_cast<T>(C);
    for (int64_t c = 0; c < C; ++c) dx[c] = invstd * (dx[c] - along - (x[c] - mean) * across);
  }
}
SIMD_LOOP(differentiateRows, RowGradients)

// Rows are cut into chunks that depend on shapes alone.
int64_t chunkLength(int64_t channels) { return std::max<int64_t>(16, 16384 / std::max<int64_t>(1, channels)); }

template <class T>
T* dataOf(const Tensor* tensor) {
  return tensor == nullptr ? nullptr : tensor->data<T>();
}

}  // namespace

void layerNorm(const Call& call) {
  using Names = args::layerNorm;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelRange(x.rows(), chunkLength(x.columns()), [&](int64_t begin, int64_t end) {
      normalizeRows(Rows<T>{y.data<T>(), call.tensor(Names::mean).data<T>(), call.tensor(Names::invstd).data<T>(), x.data<T>(),
                            dataOf<T>(call.optional(Names::weight)), dataOf<T>(call.optional(Names::bias)), begin, end, x.columns(),
                            static_cast<T>(call.number(Names::eps))});
    });
  });
}

// With xhat = (x - mean) * invstd and g = dy * weight:
//   dx = invstd * (g - mean of g - xhat * mean of (g * xhat)), dweight = sum over rows of dy * xhat, dbias = sum of dy
void layerNormBackward(const Call& call) {
  using Names = args::layerNormBackward;
  const Tensor &dy = call.tensor(Names::dy), &x = call.tensor(Names::x);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t C = x.columns(), rows = x.rows(), length = chunkLength(C), chunks = (rows + length - 1) / length;
    Scratch<T> partial(chunks * 2 * C);
    parallelFor(chunks, [&](int64_t k) {
      T* sums = partial.data() + k * 2 * C;
      differentiateRows(RowGradients<T>{dataOf<T>(call.optional(Names::dx)), sums, sums + C, dy.data<T>(), x.data<T>(),
                                        dataOf<T>(call.optional(Names::weight)), call.tensor(Names::mean).data<T>(),
                                        call.tensor(Names::invstd).data<T>(), k * length, std::min(rows, (k + 1) * length), C});
    });
    std::vector<double> totals(2 * C);
    for (int64_t k = 0; k < chunks; ++k)
      for (int64_t c = 0; c < 2 * C; ++c) totals[c] += partial[k * 2 * C + c];
    T *dweight = dataOf<T>(call.optional(Names::dweight)), *dbias = dataOf<T>(call.optional(Names::dbias));
    for (int64_t c = 0; c < C; ++c) {
      if (dweight != nullptr) dweight[c] = static_cast<T>(totals[c]);
      if (dbias != nullptr) dbias[c] = static_cast<T>(totals[C + c]);
    }
  });
}

}  // namespace densecl::cpu
