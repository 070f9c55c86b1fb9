// Reductions along any set of axes: sums, of which means are multiples, and maxima.
#include <limits>
#include <vector>

#include "broadcast.h"
#include "isa.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

// Partial results are made in a fixed order, so they do not depend on the width of vectors or the number of threads: along a line in
// kLanes lanes, of at most kChunk elements each, and added in double.
constexpr int kLanes = 32;
constexpr int64_t kChunk = 1 << 15;

struct Sum {
  template <class T>
  static constexpr T start = T{0};
  template <class T>
  static INLINE T join(T a, T b) {
    return a + b;
  }
};
// NaN wins.
struct Maximum {
  template <class T>
  static constexpr T start = -std::numeric_limits<T>::infinity();
  template <class T>
  static INLINE T join(T a, T b) {
    const T larger = a > b ? a : b;
    return a != a ? a : larger;
  }
};

template <class T>
struct Line {
  const T* x;
  int64_t count;
  T* lanes;
};
template <class F, class T>
INLINE void lineLoop(const Line<T>& line) {
  T lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = line.lanes[l];
  int64_t i = 0;
  for (; i + kLanes <= line.count; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] = F::join(lanes[l], line.x[i + l]);
  for (int l = 0; i + l < line.count; ++l) lanes[l] = F::join(lanes[l], line.x[i + l]);
  for (int l = 0; l < kLanes; ++l) line.lanes[l] = lanes[l];
}

// rows of `width` elements, `stride` apart, into an accumulator of as many
template <class T>
struct Rows {
  const T* x;
  int64_t rows, width, stride;
  T* sums;
};
template <class F, class T>
INLINE void rowsLoop(const Rows<T>& job) {
  T* __restrict sums = job.sums;
  const int64_t width = job.width;
  int64_t r = 0;
  // Four rows at a time: the accumulator is loaded and stored once for them.
  for (; r + 4 <= job.rows; r += 4) {
    const T *a = job.x + r * job.stride, *b = a + job.stride, *c = b + job.stride, *d = c + job.stride;
    for (int64_t j = 0; j < width; ++j) {
      const T first = F::join(a[j], b[j]), second = F::join(c[j], d[j]), both = F::join(first, second);
      sums[j] = F::join(sums[j], both);
    }
  }
  for (; r < job.rows; ++r) {
    const T* a = job.x + r * job.stride;
    for (int64_t j = 0; j < width; ++j) sums[j] = F::join(sums[j], a[j]);
  }
}

#define REDUCTION(F)                                                               \
  SIMD(void, line, (F, const Line<float>& job), (F{}, job)) { lineLoop<F>(job); }  \
  SIMD(void, line, (F, const Line<double>& job), (F{}, job)) { lineLoop<F>(job); } \
  SIMD(void, rows, (F, const Rows<float>& job), (F{}, job)) { rowsLoop<F>(job); }  \
  SIMD(void, rows, (F, const Rows<double>& job), (F{}, job)) { rowsLoop<F>(job); }
REDUCTION(Sum)
REDUCTION(Maximum)

// Dimensions that are counted through together, without the innermost.
struct Axes {
  int64_t count = 1;
  std::vector<int64_t> size, stride;
  void add(int64_t length, int64_t step) {
    size.push_back(length);
    stride.push_back(step);
    count *= length;
  }
  int64_t offset(int64_t index) const {
    if (size.size() == 1) return index * stride[0];
    int64_t offset = 0;
    for (size_t i = size.size(); i-- > 0; index /= size[i]) offset += index % size[i] * stride[i];
    return offset;
  }
};

template <class F, class T>
class Reduction {
 public:
  Reduction(const Call& call, const Tensor& y, const Tensor& x, double scale) : y_(y.data<T>()), x_(x.data<T>()), scale_(scale) {
    const auto loop = stridedLoop<2>(call.op, x.shape, {&x.shape, &y.shape});
    for (int axis = 0; axis + 1 < loop.rank; ++axis)
      (loop.stride[axis][1] == 0 ? reduced_ : kept_).add(loop.size[axis], loop.stride[axis][0]);
    inner_ = loop.inner();
    if (y.size() == 0) return;
    if (loop.stride[loop.rank - 1][1] == 0)
      alongLines();
    else
      acrossRows();
  }

 private:
  void finish(int64_t output, double value) { y_[output] = static_cast<T>(value * scale_); }

  // The innermost dimension is reduced: each output has `reduced_.count` lines.
  void alongLines() {
    const int64_t length = reduced_.count * inner_, chunks = std::max<int64_t>(1, (length + kChunk - 1) / kChunk);
    if (chunks == 1) {
      parallelRange(kept_.count, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, length)), [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) finish(k, part(k, 0, length));
      });
      return;
    }
    std::vector<double> parts(kept_.count * chunks);
    parallelFor(kept_.count * chunks, [&](int64_t unit) {
      const int64_t chunk = unit % chunks;
      parts[unit] = part(unit / chunks, chunk * kChunk, std::min(length, (chunk + 1) * kChunk));
    });
    for (int64_t k = 0; k < kept_.count; ++k) {
      double total = parts[k * chunks];
      for (int64_t c = 1; c < chunks; ++c) total = F::join(total, parts[k * chunks + c]);
      finish(k, total);
    }
  }

  // Elements [begin, end) of the lines of output k.
  double part(int64_t k, int64_t begin, int64_t end) const {
    T lanes[kLanes];
    std::fill_n(lanes, kLanes, F::template start<T>);
    const T* base = x_ + kept_.offset(k);
    for (int64_t at = begin; at < end;) {
      const int64_t first = at % inner_, count = std::min(inner_ - first, end - at);
      line(F{}, Line<T>{base + reduced_.offset(at / inner_) + first, count, lanes});
      at += count;
    }
    double total = lanes[0];
    for (int l = 1; l < kLanes; ++l) total = F::join(total, static_cast<double>(lanes[l]));
    return total;
  }

  // The innermost dimension is kept: rows are added. A unit is a chunk of the rows of some columns of one outer output.
  void acrossRows() {
    constexpr int64_t kColumns = 1024, kWidth = 64;
    // Short rows that lie one after another are taken as rows of several.
    const bool packs = reduced_.size.size() == 1 && reduced_.stride[0] == inner_ && inner_ < kWidth;
    const int64_t together = packs ? std::min(kWidth / inner_, std::max<int64_t>(1, reduced_.count)) : 1, width = inner_ * together;
    const int64_t columns = std::min(width, kColumns), blocks = (width + columns - 1) / columns;
    const int64_t perChunk = std::max<int64_t>(16, kChunk / columns), full = reduced_.count / together,
                  chunks = std::max<int64_t>(1, (full + perChunk - 1) / perChunk);
    std::vector<T> parts(kept_.count * chunks * width, F::template start<T>);
    parallelFor(kept_.count * chunks * blocks, [&](int64_t unit) {
      const int64_t block = unit % blocks, chunk = unit / blocks % chunks, k = unit / blocks / chunks, first = block * columns;
      const T* base = x_ + kept_.offset(k) + first;
      Rows<T> job{base, 0, std::min(columns, width - first), 0, parts.data() + (k * chunks + chunk) * width + first};
      const int64_t begin = chunk * perChunk, end = std::min(full, begin + perChunk);
      if (reduced_.size.size() == 1) {
        job.stride = reduced_.stride[0] * together;
        job.x = base + begin * job.stride;
        job.rows = end - begin;
        rows(F{}, job);
      } else {
        for (int64_t r = begin; r < end; ++r) {
          job.x = base + reduced_.offset(r);
          job.rows = 1;
          rows(F{}, job);
        }
      }
    });
    // Rows beyond the last that several make up.
    for (int64_t k = 0; together > 1 && k < kept_.count; ++k)
      rows(F{}, Rows<T>{x_ + kept_.offset(k) + full * width, reduced_.count - full * together, inner_, inner_,
                        parts.data() + k * chunks * width});
    parallelRange(kept_.count * inner_, std::max<int64_t>(1, kGrain / (chunks * together)), [&](int64_t begin, int64_t end) {
      for (int64_t output = begin; output < end; ++output) {
        const T* own = parts.data() + output / inner_ * chunks * width + output % inner_;
        double total = F::template start<double>;
        for (int64_t c = 0; c < chunks; ++c)
          for (int64_t i = 0; i < together; ++i) total = F::join(total, static_cast<double>(own[c * width + i * inner_]));
        finish(output, total);
      }
    });
  }

  T* y_;
  const T* x_;
  double scale_;
  int64_t inner_;
  Axes kept_, reduced_;
};

}  // namespace

void reduce(const Call& call) {
  using args::reduce;
  const Tensor &y = call.tensor(reduce::y), &x = call.tensor(reduce::x);
  REQUIRE(y.dtype == x.dtype, "DTYPE", std::string("reduce: expected y of dtype ") + dtypeName(x.dtype) + " but received " + describe(y));
  REQUIRE(!call.flag(reduce::maximum) || x.size() > 0 || y.size() == 0, "SHAPE",
          "reduce: expected at least one element for each maximum y " + describe(y) + " but received x " + describe(x));
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (call.flag(reduce::maximum))
      Reduction<Maximum, T>(call, y, x, call.number(reduce::scale));
    else
      Reduction<Sum, T>(call, y, x, call.number(reduce::scale));
  });
}

}  // namespace densecl::cpu
