// Ops along one axis, whose lines are compared or normalised as a whole: softmax, its logarithm, and the index of the maximum. A warp
// takes a line.
#include "kernel/reduce.cuh"
#include "kernel/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kLinesPerBlock = kThreads / kWarp;

// x as [outer, n, inner]: lines run along the middle.
struct Lines {
  int64_t outer = 1, n = 0, inner = 1;
  int64_t count() const { return outer * inner; }
  Grid grid() const { return {ceilDiv(outer * inner, kLinesPerBlock)}; }
  // The first element of the calling warp's line; -1 beyond the last.
  DEVICE int64_t first() const {
    const int64_t line = static_cast<int64_t>(blockIdx.x) * kLinesPerBlock + warpIndex();
    return line < outer * inner ? line / inner * n * inner + line % inner : -1;
  }
};

Lines linesOf(const Call& call, const Tensor& x, int64_t axis) {
  const auto rank = static_cast<int64_t>(x.shape.size());
  REQUIRE(axis < rank, "ARGUMENT", std::string(call.op) + ": there is no axis " + std::to_string(axis) + " of " + describe(x));
  Lines lines;
  lines.n = x.shape[static_cast<size_t>(axis)];
  for (int64_t i = 0; i < rank; ++i)
    if (i != axis) (i < axis ? lines.outer : lines.inner) *= x.shape[static_cast<size_t>(i)];
  return lines;
}

// y = e^(x - m) / sum, or x - m - log(sum), with m the line's maximum
template <class T>
__global__ void __launch_bounds__(kThreads) softmaxKernel(T* y, const T* x, Lines lines, bool log) {
  const int64_t first = lines.first();
  if (first < 0) return;
  float largest = -INFINITY, sum = 0;
  for (int64_t i = laneIndex(); i < lines.n; i += kWarp) largest = fmaxf(largest, static_cast<float>(x[first + i * lines.inner]));
  largest = warpMax(largest);
  for (int64_t i = laneIndex(); i < lines.n; i += kWarp) sum += expf(static_cast<float>(x[first + i * lines.inner]) - largest);
  sum = warpSum(sum);
  const float shift = largest + logf(sum), inverse = 1 / sum;
  for (int64_t i = laneIndex(); i < lines.n; i += kWarp) {
    const float value = static_cast<float>(x[first + i * lines.inner]);
    y[first + i * lines.inner] = T(log ? value - shift : expf(value - largest) * inverse);
  }
}

// dx = y (dy - sum of dy y), or dy - e^y sum of dy
template <class T>
__global__ void __launch_bounds__(kThreads) softmaxBackwardKernel(T* dx, const T* dy, const T* y, Lines lines, bool log) {
  const int64_t first = lines.first();
  if (first < 0) return;
  float sum = 0;
  for (int64_t i = laneIndex(); i < lines.n; i += kWarp) {
    const int64_t at = first + i * lines.inner;
    sum += static_cast<float>(dy[at]) * (log ? 1.0f : static_cast<float>(y[at]));
  }
  sum = warpSum(sum);
  for (int64_t i = laneIndex(); i < lines.n; i += kWarp) {
    const int64_t at = first + i * lines.inner;
    const float value = static_cast<float>(y[at]), gradient = static_cast<float>(dy[at]);
    dx[at] = T(log ? gradient - expf(value) * sum : value * (gradient - sum));
  }
}

// Whether value a at index i is before value b at index j: larger, or NaN, or equal and of a lower index.
DEVICE bool wins(float a, int64_t i, float b, int64_t j) {
  if (a != a || b != b) return a != a && (b == b || i < j);
  return a > b || (a == b && i < j);
}

// The lowest index of a maximum, or the first NaN's.
template <class T>
__global__ void __launch_bounds__(kThreads) argmaxKernel(int32_t* index, const T* x, Lines lines) {
  const int64_t first = lines.first();
  if (first < 0) return;
  // Lanes beyond the line start with its first element, which they cannot win with.
  int where = laneIndex() < lines.n ? laneIndex() : 0;
  float best = static_cast<float>(x[first + where * lines.inner]);
  for (int64_t i = laneIndex() + kWarp; i < lines.n; i += kWarp) {
    const float value = static_cast<float>(x[first + i * lines.inner]);
    if (wins(value, i, best, where)) {
      best = value;
      where = static_cast<int>(i);
    }
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const float otherBest = shuffleXor(best, mask);
    const int other = shuffleXor(where, mask);
    if (wins(otherBest, other, best, where)) {
      best = otherBest;
      where = other;
    }
  }
  if (laneIndex() == 0) index[static_cast<int64_t>(blockIdx.x) * kLinesPerBlock + warpIndex()] = where;
}

}  // namespace

void softmax(const Call& call) {
  using args::softmax;
  const Tensor &y = call.tensor(softmax::y), &x = call.tensor(softmax::x);
  const Lines lines = linesOf(call, x, call.integer(softmax::axis));
  dispatchFloat(call, y.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, softmaxKernel<T>, lines.grid(), kThreads, 0, y.data<T>(), x.data<T>(), lines, call.flag(softmax::log));
  });
}

void softmaxBackward(const Call& call) {
  using args::softmaxBackward;
  const Tensor &dx = call.tensor(softmaxBackward::dx), &dy = call.tensor(softmaxBackward::dy), &y = call.tensor(softmaxBackward::y);
  const Lines lines = linesOf(call, y, call.integer(softmaxBackward::axis));
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, softmaxBackwardKernel<T>, lines.grid(), kThreads, 0, dx.data<T>(), dy.data<T>(), y.data<T>(), lines,
           call.flag(softmaxBackward::log));
  });
}

void argmax(const Call& call) {
  using args::argmax;
  const Tensor &index = call.tensor(argmax::index), &x = call.tensor(argmax::x);
  const Lines lines = linesOf(call, x, call.integer(argmax::axis));
  REQUIRE(index.size() == lines.count(), "SHAPE",
          "argmax: expected index of " + std::to_string(lines.count()) + " elements but received " + describe(index));
  REQUIRE(lines.n > 0 || lines.count() == 0, "SHAPE", "argmax: expected at least one element along the axis of " + describe(x));
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, argmaxKernel<T>, lines.grid(), kThreads, 0, index.data<int32_t>(), x.data<T>(), lines);
  });
}

}  // namespace densecl::cuda
