// Max and average pooling of x [N, H, W, C] to y [N, OH, OW, C]. Adaptive pooling is average pooling whose window of output
// i is floor(i * in / out) .. ceil((i + 1) * in / out).
#include <algorithm>
#include <limits>
#include <vector>

#include "../core/parallel.h"
#include "../core/windows.h"
#include "isa.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

struct Window {
  int64_t begin, end;  // clipped to the image
  int64_t full;        // positions before clipping to the image, but inside the padding
  int64_t first;       // where it begins before clipping, from which taps are counted
};

struct Axis {
  int64_t in, out, kernel, stride, padding;
  bool adaptive;
  Window window(int64_t i) const {
    if (adaptive) {
      const int64_t begin = i * in / out, end = ((i + 1) * in + out - 1) / out;
      return {begin, end, end - begin, begin};
    }
    const int64_t begin = i * stride - padding, end = std::min(begin + kernel, in + padding);
    return {std::max<int64_t>(0, begin), std::min(end, in), end - begin, begin};
  }
};

struct Pool {
  Axis y, x;
  int64_t n, c;
  // `outName` is what the op calls its tensor of windows.
  template <class Names>
  Pool(const Call& call, Names, const Tensor& in, const Tensor& out, const char* outName, bool adaptive = false)
      : y{in.dim(1), out.dim(1), call.integer(Names::kernelH), call.integer(Names::strideH), call.integer(Names::paddingH), adaptive},
        x{in.dim(2), out.dim(2), call.integer(Names::kernelW), call.integer(Names::strideW), call.integer(Names::paddingW), adaptive},
        n(in.dim(0)),
        c(in.dim(3)) {
    if (adaptive) return;
    requirePixels(call, y.kernel, x.kernel, y.padding, x.padding);
    requireWindows(call, outName, out, windowsAlong(y.in, y.kernel, y.stride, y.padding),
                   windowsAlong(x.in, x.kernel, x.stride, x.padding));
  }

  // body(output pixel, window of rows, window of columns) for the outputs of a row, those of all images being counted through
  template <class F>
  void forRow(int64_t row, F body) const {
    for (int64_t j = 0; j < x.out; ++j) body(row * x.out + j, y.window(row % y.out), x.window(j));
  }
  int64_t rows() const { return n * y.out; }
  int64_t pixel(int64_t image, int64_t i, int64_t j) const { return (image * y.in + i) * x.in + j; }
};

// The values of a pixel of a window, which are kept where they are better than the best so far.
template <class T>
struct Candidate {
  Accumulator<T>* best;
  int32_t* at;
  const T* in;
  int32_t tap;
  int64_t channels;
};
template <class T>
INLINE void takeLoop(const Candidate<T>& job) {
  using A = Accumulator<T>;
  // Values of their own, without which the compiler makes branches of it.
  const int32_t tap = job.tap;
  for (int64_t c = 0; c < job.channels; ++c) {
    const A value = job.in[c], old = job.best[c];
    const int32_t place = job.at[c];
    const bool better = (value > old) | (value != value);
    job.best[c] = better ? value : old;
    job.at[c] = better ? tap : place;
  }
}
SIMD_LOOP_STORED(take, Candidate)

void requireIndex(const Call& call, const Tensor& index) {
  REQUIRE(index.dtype == DType::i32 || index.dtype == DType::u8, "DTYPE",
          std::string(call.op) + ": expected index u8 or i32 but received " + describe(index));
}

}  // namespace

// The index is the tap of the window, of which the first maximum wins.
void maxPool2d(const Call& call) {
  using Names = args::maxPool2d;
  const Tensor &y = call.tensor(Names::y), *index = call.optional(Names::index), &x = call.tensor(Names::x);
  if (index != nullptr) requireIndex(call, *index);
  REQUIRE(call.optional(Names::scale) == nullptr, "ARGUMENT", "maxPool2d: expected no scale on the CPU");
  const Pool pool(call, Names{}, x, y, "y");
  dispatchStored(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    parallelFor(pool.rows(), [&](int64_t row) {
      const int64_t image = row / pool.y.out;
      std::vector<A> best(pool.c);
      std::vector<int32_t> at(pool.c);
      pool.forRow(row, [&](int64_t o, Window rows, Window columns) {
        const auto tap = [&](int64_t i, int64_t j) { return static_cast<int32_t>((i - rows.first) * pool.x.kernel + j - columns.first); };
        std::fill(best.begin(), best.end(), -std::numeric_limits<A>::infinity());
        std::fill(at.begin(), at.end(), tap(rows.begin, columns.begin));
        for (int64_t i = rows.begin; i < rows.end; ++i)
          for (int64_t j = columns.begin; j < columns.end; ++j)
            take(Candidate<T>{best.data(), at.data(), x.data<T>() + pool.pixel(image, i, j) * pool.c, tap(i, j), pool.c});
        std::transform(best.begin(), best.end(), y.data<T>() + o * pool.c, [](A value) { return T(value); });
        if (index == nullptr) return;
        if (index->dtype == DType::i32)
          std::copy(at.begin(), at.end(), index->data<int32_t>() + o * pool.c);
        else
          std::transform(at.begin(), at.end(), index->data<uint8_t>() + o * pool.c, [](int32_t t) { return static_cast<uint8_t>(t); });
      });
    });
  });
}

void maxPool2dBackward(const Call& call) {
  using Names = args::maxPool2dBackward;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy), &index = call.tensor(Names::index);
  requireIndex(call, index);
  const Pool pool(call, Names{}, dx, dy, "dy");
  const int64_t channels = pool.c, taps = pool.y.kernel * pool.x.kernel;
  const auto passBack = [&](auto zero, const auto* indices) {
    using T = decltype(zero);
    parallelFor(pool.n, [&](int64_t image) {
      std::fill_n(dx.data<T>() + pool.pixel(image, 0, 0) * channels, pool.y.in * pool.x.in * channels, T{0});
      std::vector<T*> targets(taps);
      const auto add = [&](int64_t o, Window rows, Window columns) {
        std::fill(targets.begin(), targets.end(), nullptr);
        for (int64_t i = rows.begin; i < rows.end; ++i)
          for (int64_t j = columns.begin; j < columns.end; ++j)
            targets[(i - rows.first) * pool.x.kernel + j - columns.first] = dx.data<T>() + pool.pixel(image, i, j) * channels;
        const T* source = dy.data<T>() + o * channels;
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t tap = indices[o * channels + c];
          REQUIRE(tap >= 0 && tap < taps && targets[tap] != nullptr, "RANGE",
                  "maxPool2dBackward: index " + std::to_string(tap) + " is no tap of its window in the image");
          targets[tap][c] += source[c];
        }
      };
      for (int64_t i = 0; i < pool.y.out; ++i) pool.forRow(image * pool.y.out + i, add);
    });
  };
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    if (index.dtype == DType::i32)
      passBack(zero, index.data<int32_t>());
    else
      passBack(zero, index.data<uint8_t>());
  });
}

void avgPool2d(const Call& call) {
  using Names = args::avgPool2d;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x);
  const Pool pool(call, Names{}, x, y, "y", call.flag(Names::adaptive));
  const bool countPadding = call.flag(Names::countPadding);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelFor(pool.rows(), [&](int64_t row) {
      const int64_t image = row / pool.y.out;
      pool.forRow(row, [&](int64_t o, Window rows, Window columns) {
        T* out = y.data<T>() + o * pool.c;
        std::fill_n(out, pool.c, T{0});
        for (int64_t i = rows.begin; i < rows.end; ++i)
          for (int64_t j = columns.begin; j < columns.end; ++j) {
            const T* in = x.data<T>() + pool.pixel(image, i, j) * pool.c;
            for (int64_t c = 0; c < pool.c; ++c) out[c] += in[c];
          }
        const int64_t count = countPadding ? rows.full * columns.full : (rows.end - rows.begin) * (columns.end - columns.begin);
        const T scale = T{1} / static_cast<T>(count);
        for (int64_t c = 0; c < pool.c; ++c) out[c] *= scale;
      });
    });
  });
}

void avgPool2dBackward(const Call& call) {
  using Names = args::avgPool2dBackward;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy);
  const Pool pool(call, Names{}, dx, dy, "dy", call.flag(Names::adaptive));
  const bool countPadding = call.flag(Names::countPadding);
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelFor(pool.n, [&](int64_t image) {
      std::fill_n(dx.data<T>() + pool.pixel(image, 0, 0) * pool.c, pool.y.in * pool.x.in * pool.c, T{0});
      const auto spread = [&](int64_t o, Window rows, Window columns) {
        const T* in = dy.data<T>() + o * pool.c;
        const int64_t count = countPadding ? rows.full * columns.full : (rows.end - rows.begin) * (columns.end - columns.begin);
        const T scale = T{1} / static_cast<T>(count);
        for (int64_t i = rows.begin; i < rows.end; ++i)
          for (int64_t j = columns.begin; j < columns.end; ++j) {
            T* out = dx.data<T>() + pool.pixel(image, i, j) * pool.c;
            for (int64_t c = 0; c < pool.c; ++c) out[c] += in[c] * scale;
          }
      };
      for (int64_t i = 0; i < pool.y.out; ++i) pool.forRow(image * pool.y.out + i, spread);
    });
  });
}

}  // namespace densecl::cpu
