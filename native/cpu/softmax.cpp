// Ops along one axis, whose lines are compared or normalised as a whole: softmax, its logarithm, and the index of the maximum.
#include "broadcast.h"
#include "math.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

// x as [outer, n, inner]: its lines run along the middle, elements `inner` apart.
struct Lines {
  int64_t outer = 1, n, inner = 1;
  Lines(const Call& call, const Tensor& x, int64_t axis) {
    const auto rank = static_cast<int64_t>(x.shape.size());
    REQUIRE(axis < rank, "ARGUMENT", std::string(call.op) + ": there is no axis " + std::to_string(axis) + " of " + describe(x));
    n = x.shape[axis];
    for (int64_t i = 0; i < axis; ++i) outer *= x.shape[i];
    for (int64_t i = axis + 1; i < rank; ++i) inner *= x.shape[i];
  }
  int64_t count() const { return outer * inner; }
  int64_t offset(int64_t line) const { return line / inner * n * inner + line % inner; }
};

// Lines of the last axis are contiguous; others are taken kLanes at a time, so that each of their steps is a vector.
template <class T>
struct Softmax {
  T* y;
  const T *x, *dy;  // dy: backward
  int64_t n, step, lines;
  bool log;
};

constexpr int kLanes = 32;

// y = e^(x - m) / sum, or x - m - log(sum), with m the line's maximum. Sums in kLanes lanes: their order does not depend on the vectors.
template <class T>
INLINE void softmaxLineLoop(const Softmax<T>& job) {
  T largest[kLanes], sums[kLanes] = {};
  for (int l = 0; l < kLanes; ++l) largest[l] = job.x[0];
  int64_t i = 0;
  for (; i + kLanes <= job.n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) largest[l] = job.x[i + l] > largest[l] ? job.x[i + l] : largest[l];
  for (; i < job.n; ++i) largest[0] = job.x[i] > largest[0] ? job.x[i] : largest[0];
  for (int l = 1; l < kLanes; ++l) largest[0] = largest[l] > largest[0] ? largest[l] : largest[0];
  const T m = largest[0];
  for (i = 0; i + kLanes <= job.n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) {
      const T e = expOf(job.x[i + l] - m);
      job.y[i + l] = e;
      sums[l] += e;
    }
  for (; i < job.n; ++i) {
    job.y[i] = expOf(job.x[i] - m);
    sums[0] += job.y[i];
  }
  T sum{0};
  for (int l = 0; l < kLanes; ++l) sum += sums[l];
  const T shift = m + logOf(sum), inverse = T(1) / sum;
  if (job.log)
    for (i = 0; i < job.n; ++i) job.y[i] = job.x[i] - shift;
  else
    for (i = 0; i < job.n; ++i) job.y[i] *= inverse;
}

// kLines neighbouring lines at once, step by step.
template <int kLines, class T>
INLINE void softmaxNeighbours(const Softmax<T>& job) {
  T largest[kLines], sums[kLines] = {}, shift[kLines];
  for (int l = 0; l < kLines; ++l) largest[l] = job.x[l];
  for (int64_t i = 1; i < job.n; ++i) {
    const T* x = job.x + i * job.step;
    for (int l = 0; l < kLines; ++l) largest[l] = x[l] > largest[l] ? x[l] : largest[l];
  }
  for (int64_t i = 0; i < job.n; ++i) {
    const T* x = job.x + i * job.step;
    T* __restrict y = job.y + i * job.step;
    for (int l = 0; l < kLines; ++l) {
      y[l] = expOf(x[l] - largest[l]);
      sums[l] += y[l];
    }
  }
  for (int l = 0; l < kLines; ++l) shift[l] = job.log ? largest[l] + logOf(sums[l]) : T(1) / sums[l];
  for (int64_t i = 0; i < job.n; ++i) {
    const T* x = job.x + i * job.step;
    T* __restrict y = job.y + i * job.step;
    if (job.log)
      for (int l = 0; l < kLines; ++l) y[l] = x[l] - shift[l];
    else
      for (int l = 0; l < kLines; ++l) y[l] *= shift[l];
  }
}

// dx = y (dy - sum of dy y), or dy - e^y sum of dy; x is y here, and y is dx.
template <class T>
INLINE void gradientLineLoop(const Softmax<T>& job) {
  T sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= job.n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) sums[l] += job.log ? job.dy[i + l] : job.dy[i + l] * job.x[i + l];
  for (; i < job.n; ++i) sums[0] += job.log ? job.dy[i] : job.dy[i] * job.x[i];
  T sum{0};
  for (int l = 0; l < kLanes; ++l) sum += sums[l];
  if (job.log)
    for (i = 0; i < job.n; ++i) job.y[i] = job.dy[i] - expOf(job.x[i]) * sum;
  else
    for (i = 0; i < job.n; ++i) job.y[i] = job.x[i] * (job.dy[i] - sum);
}
template <int kLines, class T>
INLINE void gradientNeighbours(const Softmax<T>& job) {
  T sums[kLines] = {};
  for (int64_t i = 0; i < job.n; ++i) {
    const T *dy = job.dy + i * job.step, *y = job.x + i * job.step;
    for (int l = 0; l < kLines; ++l) sums[l] += dy[l] * (job.log ? T(1) : y[l]);
  }
  for (int64_t i = 0; i < job.n; ++i) {
    const T *dy = job.dy + i * job.step, *y = job.x + i * job.step;
    T* __restrict dx = job.y + i * job.step;
    if (job.log)
      for (int l = 0; l < kLines; ++l) dx[l] = dy[l] - expOf(y[l]) * sums[l];
    else
      for (int l = 0; l < kLines; ++l) dx[l] = y[l] * (dy[l] - sums[l]);
  }
}

// kLanes lines where there are as many: their loops have a fixed length, and are vectors.
template <class T>
INLINE void softmaxAcrossLoop(const Softmax<T>& job) {
  Softmax<T> rest = job;
  if (job.lines == kLanes) return softmaxNeighbours<kLanes>(job);
  for (; rest.lines > 0; --rest.lines, ++rest.x, ++rest.y) softmaxNeighbours<1>(rest);
}
template <class T>
INLINE void gradientAcrossLoop(const Softmax<T>& job) {
  Softmax<T> rest = job;
  if (job.lines == kLanes) return gradientNeighbours<kLanes>(job);
  for (; rest.lines > 0; --rest.lines, ++rest.x, ++rest.y, ++rest.dy) gradientNeighbours<1>(rest);
}
SIMD_LOOP(softmaxLine, Softmax)
SIMD_LOOP(softmaxAcross, Softmax)
SIMD_LOOP(gradientLine, Softmax)
SIMD_LOOP(gradientAcross, Softmax)

template <class T, class Line, class Across>
void runLines(const Lines& lines, const Softmax<T>& all, Line line, Across across) {
  if (lines.n == 0) return;
  const int64_t together = lines.inner == 1 ? 1 : kLanes, perOuter = (lines.inner + together - 1) / together;
  const int64_t grain = std::max<int64_t>(1, kGrain / (lines.n * together));
  parallelRange(lines.outer * perOuter, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % perOuter * together, offset = unit / perOuter * lines.n * lines.inner + first;
      Softmax<T> job = all;
      job.y += offset;
      job.x += offset;
      if (job.dy != nullptr) job.dy += offset;
      job.lines = std::min(together, lines.inner - first);
      if (lines.inner == 1)
        line(job);
      else
        across(job);
    }
  });
}

}  // namespace

void softmax(const Call& call) {
  using args::softmax;
  const Tensor &y = call.tensor(softmax::y), &x = call.tensor(softmax::x);
  const Lines lines(call, x, call.integer(softmax::axis));
  dispatchFloat(call, y.dtype, [&](auto zero) {
    using T = decltype(zero);
    runLines(
        lines, Softmax<T>{y.data<T>(), x.data<T>(), nullptr, lines.n, lines.inner, 0, call.flag(softmax::log)},
        [](const auto& job) { softmaxLine(job); }, [](const auto& job) { softmaxAcross(job); });
  });
}

void softmaxBackward(const Call& call) {
  using args::softmaxBackward;
  const Tensor &dx = call.tensor(softmaxBackward::dx), &dy = call.tensor(softmaxBackward::dy), &y = call.tensor(softmaxBackward::y);
  const Lines lines(call, y, call.integer(softmaxBackward::axis));
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    runLines(
        lines, Softmax<T>{dx.data<T>(), y.data<T>(), dy.data<T>(), lines.n, lines.inner, 0, call.flag(softmaxBackward::log)},
        [](const auto& job) { gradientLine(job); }, [](const auto& job) { gradientAcross(job); });
  });
}

// The lowest index of a maximum, or the first NaN's.
void argmax(const Call& call) {
  using args::argmax;
  const Tensor &index = call.tensor(argmax::index), &x = call.tensor(argmax::x);
  const Lines lines(call, x, call.integer(argmax::axis));
  REQUIRE(index.size() == lines.count(), "SHAPE",
          "argmax: expected index of " + std::to_string(lines.count()) + " elements but received " + describe(index));
  REQUIRE(lines.n > 0 || lines.count() == 0, "SHAPE", "argmax: expected at least one element along the axis of " + describe(x));
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelRange(lines.count(), std::max<int64_t>(1, kGrain / std::max<int64_t>(1, lines.n)), [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        const T* at = x.data<T>() + lines.offset(line);
        T best = at[0];
        int64_t where = 0;
        for (int64_t i = 1; i < lines.n && best == best; ++i) {
          const T value = at[i * lines.inner];
          if (value > best || value != value) {
            best = value;
            where = i;
          }
        }
        index.data<int32_t>()[line] = static_cast<int32_t>(where);
      }
    });
  });
}

}  // namespace densecl::cpu
