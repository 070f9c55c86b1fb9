// Max and average pooling of x [N, H, W, C] to y [N, OH, OW, C]. Adaptive pooling is average pooling whose window of output
// i is floor(i * in / out) .. ceil((i + 1) * in / out).
#include <algorithm>
#include <limits>

#include "../core/parallel.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

struct Window {
  int64_t begin, end;  // clipped to the image
  int64_t full;        // positions before clipping to the image, but inside the padding
};

struct Axis {
  int64_t in, out, kernel, stride, padding;
  bool adaptive;
  Window window(int64_t i) const {
    if (adaptive) {
      const int64_t begin = i * in / out, end = ((i + 1) * in + out - 1) / out;
      return {begin, end, end - begin};
    }
    const int64_t begin = i * stride - padding, end = std::min(begin + kernel, in + padding);
    return {std::max<int64_t>(0, begin), std::min(end, in), end - begin};
  }
};

// numbers: kernel h, w, stride h, w, padding h, w, then for average pooling: count padding, adaptive
struct Pool {
  Axis y, x;
  int64_t n, c;
  Pool(const Call& call, const Tensor& in, const Tensor& out, bool adaptive)
      : y{in.dim(1), out.dim(1), call.integer(0), call.integer(2), call.integer(4), adaptive},
        x{in.dim(2), out.dim(2), call.integer(1), call.integer(3), call.integer(5), adaptive},
        n(in.dim(0)),
        c(in.dim(3)) {}

  // body(output pixel, window of rows, window of columns, image) for the outputs of one image
  template <class F>
  void forEach(int64_t image, F body) const {
    for (int64_t i = 0; i < y.out; ++i)
      for (int64_t j = 0; j < x.out; ++j) body((image * y.out + i) * x.out + j, y.window(i), x.window(j), image);
  }
  int64_t pixel(int64_t image, int64_t i, int64_t j) const { return (image * y.in + i) * x.in + j; }
};

}  // namespace

// tensors: y, index i32 of y's shape (row * W + column in the image; the first maximum wins), x
void maxPool2d(const Call& call) {
  const Tensor &y = call.t(0), &index = call.t(1), &x = call.t(2);
  const Pool pool(call, x, y, false);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelFor(pool.n, [&](int64_t image) {
      pool.forEach(image, [&](int64_t o, Window rows, Window columns, int64_t) {
        T* out = y.data<T>() + o * pool.c;
        int32_t* at = index.data<int32_t>() + o * pool.c;
        for (int64_t c = 0; c < pool.c; ++c) {
          out[c] = -std::numeric_limits<T>::infinity();
          at[c] = static_cast<int32_t>(rows.begin * pool.x.in + columns.begin);
        }
        for (int64_t i = rows.begin; i < rows.end; ++i)
          for (int64_t j = columns.begin; j < columns.end; ++j) {
            const T* in = x.data<T>() + pool.pixel(image, i, j) * pool.c;
            const int32_t position = static_cast<int32_t>(i * pool.x.in + j);
            for (int64_t c = 0; c < pool.c; ++c) {
              const bool better = in[c] > out[c] || in[c] != in[c];
              out[c] = better ? in[c] : out[c];
              at[c] = better ? position : at[c];
            }
          }
      });
    });
  });
}

// tensors: dx, dy, index; numbers as forward (the gathering form of other devices needs them)
void maxPool2dBackward(const Call& call) {
  const Tensor &dx = call.t(0), &dy = call.t(1), &index = call.t(2);
  const int64_t n = dx.dim(0), in = dx.dim(1) * dx.dim(2), out = dy.dim(1) * dy.dim(2), channels = dx.dim(3);
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelFor(n, [&](int64_t image) {
      T* target = dx.data<T>() + image * in * channels;
      std::fill_n(target, in * channels, T{0});
      const T* source = dy.data<T>() + image * out * channels;
      const int32_t* at = index.data<int32_t>() + image * out * channels;
      for (int64_t o = 0; o < out; ++o, source += channels, at += channels)
        for (int64_t c = 0; c < channels; ++c) target[at[c] * channels + c] += source[c];
    });
  });
}

// tensors: y, x
void avgPool2d(const Call& call) {
  const Tensor &y = call.t(0), &x = call.t(1);
  const Pool pool(call, x, y, call.number(7) != 0);
  const bool countPadding = call.number(6) != 0;
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelFor(pool.n, [&](int64_t image) {
      pool.forEach(image, [&](int64_t o, Window rows, Window columns, int64_t) {
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

// tensors: dx, dy
void avgPool2dBackward(const Call& call) {
  const Tensor &dx = call.t(0), &dy = call.t(1);
  const Pool pool(call, dx, dy, call.number(7) != 0);
  const bool countPadding = call.number(6) != 0;
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelFor(pool.n, [&](int64_t image) {
      std::fill_n(dx.data<T>() + pool.pixel(image, 0, 0) * pool.c, pool.y.in * pool.x.in * pool.c, T{0});
      pool.forEach(image, [&](int64_t o, Window rows, Window columns, int64_t) {
        const T* in = dy.data<T>() + o * pool.c;
        const int64_t count = countPadding ? rows.full * columns.full : (rows.end - rows.begin) * (columns.end - columns.begin);
        const T scale = T{1} / static_cast<T>(count);
        for (int64_t i = rows.begin; i < rows.end; ++i)
          for (int64_t j = columns.begin; j < columns.end; ++j) {
            T* out = dx.data<T>() + pool.pixel(image, i, j) * pool.c;
            for (int64_t c = 0; c < pool.c; ++c) out[c] += in[c] * scale;
          }
      });
    });
  });
}

}  // namespace densecl::cpu
