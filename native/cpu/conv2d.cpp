// conv2d: x [N, H, W, C], w [O, KH, KW, C], y [N, OH, OW, O]
//   y[n, oh, ow, o] = b[o] + sum over kh, kw, c of w[o, kh, kw, c] * x[n, oh*sh - ph + kh*dh, ow*sw - pw + kw*dw, c]
// numbers: stride h, w, padding h, w, dilation h, w
#include "gemm.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

struct Geometry {
  int64_t n, h, w, c, oh, ow, o, kh, kw, sh, sw, ph, pw, dh, dw;
  Geometry(const Call& call, const Tensor& x, const Tensor& weight, const Tensor& y)
      : n(x.dim(0)), h(x.dim(1)), w(x.dim(2)), c(x.dim(3)), oh(y.dim(1)), ow(y.dim(2)), o(weight.dim(0)), kh(weight.dim(1)), kw(weight.dim(2)),
        sh(call.integer(0)), sw(call.integer(1)), ph(call.integer(2)), pw(call.integer(3)), dh(call.integer(4)), dw(call.integer(5)) {}
  int64_t pixels() const { return n * oh * ow; }
  int64_t taps() const { return kh * kw; }
  // With few channels, the taps of a kernel row are one run of memory.
  bool mergeRow() const { return dw == 1 && c < 16 && kw > 1; }
};

// A row-major walk over [N, height, width] from a flat index, without a division per step.
struct Walk {
  int64_t n, y, x, height, width;
  Walk(int64_t index, int64_t height, int64_t width)
      : n(index / (height * width)), y(index / width % height), x(index % width), height(height), width(width) {}
  void next() {
    if (++x < width) return;
    x = 0;
    if (++y < height) return;
    y = 0;
    ++n;
  }
};

std::vector<int32_t> iota(int64_t count) {
  std::vector<int32_t> taps(count);
  for (int64_t i = 0; i < count; ++i) taps[i] = static_cast<int32_t>(i);
  return taps;
}

template <class T>
void forward(const Geometry& g, T* y, const T* x, const T* weight, const T* bias) {
  const bool merge = g.mergeRow();
  const int64_t taps = merge ? g.kh : g.taps(), depth = merge ? g.kw * g.c : g.c;
  Panels<T> panels(taps, depth, g.o);
  pack(panels, weight, taps * depth, depth, 1);
  const std::vector<T> zeros(depth, T{0});

  auto fillTaps = [&](int64_t first, int64_t rows, const T** table, int64_t stride, T*) {
    Walk at(first, g.oh, g.ow);
    for (int64_t i = 0; i < rows; ++i, at.next()) {
      for (int64_t kh = 0, t = 0; kh < g.kh; ++kh) {
        const int64_t ih = at.y * g.sh - g.ph + kh * g.dh;
        for (int64_t kw = 0; kw < g.kw; ++kw, ++t) {
          const int64_t iw = at.x * g.sw - g.pw + kw * g.dw;
          const bool inside = ih >= 0 && ih < g.h && iw >= 0 && iw < g.w;
          table[t * stride + i] = inside ? x + ((at.n * g.h + ih) * g.w + iw) * g.c : zeros.data();
        }
      }
    }
  };
  auto fillRows = [&](int64_t first, int64_t rows, const T** table, int64_t stride, T* scratch) {
    Walk at(first, g.oh, g.ow);
    for (int64_t i = 0; i < rows; ++i, at.next()) {
      const int64_t left = at.x * g.sw - g.pw;
      const int64_t from = std::max<int64_t>(0, left), to = std::min(g.w, left + g.kw);
      for (int64_t kh = 0; kh < g.kh; ++kh) {
        const int64_t ih = at.y * g.sh - g.ph + kh * g.dh;
        const T*& row = table[kh * stride + i];
        if (ih < 0 || ih >= g.h || to <= from) {
          row = zeros.data();
          continue;
        }
        const T* line = x + (at.n * g.h + ih) * g.w * g.c;
        if (to - from == g.kw) {
          row = line + left * g.c;
          continue;
        }
        T* copy = scratch + (i * g.kh + kh) * depth;
        std::fill(copy, copy + depth, T{0});
        std::copy(line + from * g.c, line + to * g.c, copy + (from - left) * g.c);
        row = copy;
      }
    }
  };
  auto out = [&](int64_t m) { return y + m * g.o; };
  if (merge)
    multiplyRows<T>(g.pixels(), iota(taps), panels, bias, taps * depth, fillRows, out);
  else
    multiplyRows<T>(g.pixels(), iota(taps), panels, bias, 0, fillTaps, out);
}

// The input pixels with the same remainder modulo the stride meet the same taps: each such class is a dense product.
template <class T>
void backwardInput(const Geometry& g, T* dx, const T* dy, const T* weight) {
  Panels<T> panels(g.taps(), g.o, g.c);
  pack(panels, weight, 1, g.c, g.taps() * g.c);
  const std::vector<T> zeros(g.o, T{0});
  for (int64_t a = 0; a < std::min(g.sh, g.h); ++a) {
    for (int64_t b = 0; b < std::min(g.sw, g.w); ++b) {
      std::vector<int32_t> taps;
      for (int64_t kh = 0; kh < g.kh; ++kh)
        for (int64_t kw = 0; kw < g.kw; ++kw)
          if ((a + g.ph - kh * g.dh) % g.sh == 0 && (b + g.pw - kw * g.dw) % g.sw == 0) taps.push_back(static_cast<int32_t>(kh * g.kw + kw));
      const int64_t height = (g.h - a + g.sh - 1) / g.sh, width = (g.w - b + g.sw - 1) / g.sw;
      auto fill = [&](int64_t first, int64_t rows, const T** table, int64_t stride, T*) {
        Walk at(first, height, width);
        for (int64_t i = 0; i < rows; ++i, at.next()) {
          for (size_t t = 0; t < taps.size(); ++t) {
            const int64_t top = a + at.y * g.sh + g.ph - taps[t] / g.kw * g.dh, left = b + at.x * g.sw + g.pw - taps[t] % g.kw * g.dw;
            const int64_t oh = top / g.sh, ow = left / g.sw;
            const bool inside = top >= 0 && left >= 0 && oh < g.oh && ow < g.ow;
            table[t * stride + i] = inside ? dy + ((at.n * g.oh + oh) * g.ow + ow) * g.o : zeros.data();
          }
        }
      };
      auto out = [&](int64_t m) {
        const Walk at(m, height, width);
        return dx + ((at.n * g.h + a + at.y * g.sh) * g.w + b + at.x * g.sw) * g.c;
      };
      multiplyRows<T>(g.n * height * width, taps, panels, nullptr, 0, fill, out);
    }
  }
}

// Columns j = (kh, kw, c) of the virtual im2col matrix, read in panels of kPanel for a block of pixels.
template <class T>
class ColumnReader {
 public:
  ColumnReader(const Geometry& g, const T* x) : g_(g), x_(x) {}

  // panel (pixels, kPanel) of columns first..first+kPanel
  void read(int64_t firstPixel, int64_t pixels, int64_t first, T* panel) const {
    constexpr int width = kPanel<T>;
    const int64_t columns = g_.taps() * g_.c, valid = std::min<int64_t>(width, columns - first);
    int64_t row[width], col[width], offset[width];
    for (int64_t j = 0; j < valid; ++j) {
      const int64_t tap = (first + j) / g_.c;
      row[j] = tap / g_.kw * g_.dh;
      col[j] = tap % g_.kw * g_.dw;
      offset[j] = (row[j] * g_.w + col[j]) * g_.c + (first + j) % g_.c;
    }
    const bool oneTap = valid == width && first / g_.c == (first + width - 1) / g_.c;
    Walk at(firstPixel, g_.oh, g_.ow);
    for (int64_t i = 0; i < pixels; ++i, at.next(), panel += width) {
      const int64_t top = at.y * g_.sh - g_.ph, left = at.x * g_.sw - g_.pw;
      const T* base = x_ + ((at.n * g_.h + top) * g_.w + left) * g_.c;
      const auto inside = [&](int64_t j) { return top + row[j] >= 0 && top + row[j] < g_.h && left + col[j] >= 0 && left + col[j] < g_.w; };
      if (oneTap) {
        if (inside(0))
          for (int j = 0; j < width; ++j) panel[j] = base[offset[0] + j];
        else
          for (int j = 0; j < width; ++j) panel[j] = T{0};
      } else {
        const bool interior = top >= 0 && left >= 0 && top + (g_.kh - 1) * g_.dh < g_.h && left + (g_.kw - 1) * g_.dw < g_.w;
        for (int64_t j = 0; j < valid; ++j) panel[j] = interior || inside(j) ? base[offset[j]] : T{0};
        for (int64_t j = valid; j < width; ++j) panel[j] = T{0};
      }
    }
  }

 private:
  const Geometry& g_;
  const T* x_;
};

// dw[o, j] = sum over pixels of dy[pixel, o] * column j: the rows of the product are dy transposed.
template <class T>
void backwardWeight(const Geometry& g, T* dw, const T* dy, const T* x) {
  const TileKernel<T>& kernel = tileKernel<T>();
  const int64_t pixels = g.pixels(), columns = g.taps() * g.c;
  const int64_t stride = pixels + 16;  // not a power of two: the rows of a tile must not share a cache set
  Scratch<T> transposed(g.o * stride);
  parallelFor(ceilDiv(pixels, 64), [&](int64_t block) {
    const int64_t end = std::min(pixels, (block + 1) * 64);
    for (int64_t o = 0; o < g.o; o += 16)
      for (int64_t p = block * 64; p < end; ++p)
        for (int64_t j = o; j < std::min(g.o, o + 16); ++j) transposed[j * stride + p] = dy[p * g.o + j];
  });

  const int64_t panelCount = ceilDiv(columns, kPanel<T>);
  const int64_t perUnit = std::clamp<int64_t>(panelCount / (4 * threads()), 1, 4), units = ceilDiv(panelCount, perUnit);
  constexpr int64_t block = 256;  // pixels of a panel: 16 KB, half of the L1 cache
  const ColumnReader<T> reader(g, x);
  const int32_t tap = 0;
  parallelFor(units, [&](int64_t unit) {
    const int64_t firstPanel = unit * perUnit, lastPanel = std::min(panelCount, firstPanel + perUnit);
    Scratch<T> panels(perUnit * block * kPanel<T>);
    const T* rows[kMaxTileRows];
    T* outputs[kMaxTileRows];
    for (int64_t p = 0; p < pixels; p += block) {
      const int64_t depth = std::min(block, pixels - p);
      for (int64_t q = firstPanel; q < lastPanel; ++q) reader.read(p, depth, q * kPanel<T>, panels.data() + (q - firstPanel) * block * kPanel<T>);
      for (int64_t o = 0; o < g.o; o += kernel.rows) {
        const int valid = static_cast<int>(std::min<int64_t>(kernel.rows, g.o - o));
        for (int i = 0; i < kernel.rows; ++i) rows[i] = transposed.data() + std::min(g.o - 1, o + i) * stride + p;
        for (int64_t q = firstPanel; q < lastPanel; ++q) {
          const int64_t column = q * kPanel<T>;
          for (int i = 0; i < valid; ++i) outputs[i] = dw + (o + i) * columns + column;
          kernel.run({rows, kernel.rows, 1, &tap, depth, panels.data() + (q - firstPanel) * block * kPanel<T>, outputs, valid,
                      static_cast<int>(std::min<int64_t>(kPanel<T>, columns - column)), nullptr, p != 0});
        }
      }
    }
    if (pixels == 0)
      for (int64_t o = 0; o < g.o; ++o)
        for (int64_t j = firstPanel * kPanel<T>; j < std::min(columns, lastPanel * kPanel<T>); ++j) dw[o * columns + j] = T{0};
  });
}

}  // namespace

// tensors: y, x, w, b or null
void conv2d(const Call& call) {
  const Tensor &y = call.t(0), &x = call.t(1), &w = call.t(2), *b = call.optional(3);
  const Geometry g(call, x, w, y);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    // The tile loads whole panels of bias: keep a padded copy.
    std::vector<T> bias;
    if (b != nullptr) {
      bias.assign(b->data<T>(), b->data<T>() + g.o);
      bias.resize(ceilDiv(g.o, kPanel<T>) * kPanel<T>);
    }
    forward<T>(g, y.data<T>(), x.data<T>(), w.data<T>(), b == nullptr ? nullptr : bias.data());
  });
}

// tensors: dx, dy, w
void conv2dBackwardInput(const Call& call) {
  const Tensor &dx = call.t(0), &dy = call.t(1), &w = call.t(2);
  const Geometry g(call, dx, w, dy);
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    backwardInput<T>(g, dx.data<T>(), dy.data<T>(), w.data<T>());
  });
}

// tensors: dw, dy, x
void conv2dBackwardWeight(const Call& call) {
  const Tensor &dw = call.t(0), &dy = call.t(1), &x = call.t(2);
  const Geometry g(call, x, dw, dy);
  dispatchFloat(call, dw.dtype, [&](auto zero) {
    using T = decltype(zero);
    backwardWeight<T>(g, dw.data<T>(), dy.data<T>(), x.data<T>());
  });
}

}  // namespace densecl::cpu
