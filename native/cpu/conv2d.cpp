// conv2d: x [N, H, W, C], w [O, KH, KW, C], y [N, OH, OW, O]
//   y[n, oh, ow, o] = b[o] + sum over kh, kw, c of w[o, kh, kw, c] * x[n, oh*sh - ph + kh*dh, ow*sw - pw + kw*dw, c]
#include "../core/convolution.h"
#include "gemm.h"
#include "ops.h"
#include "winograd.h"

namespace densecl::cpu {
namespace {

struct Geometry : Convolution<int64_t> {
  using Convolution::Convolution;
  // As a filter that Winograd's transforms can take.
  bool isFilter3x3() const { return kh == 3 && kw == 3 && sh == 1 && sw == 1 && dh == 1 && dw == 1 && ph <= 2 && pw <= 2; }
  Filter3x3 filter() const { return {n, h, w, c, oh, ow, o, ph, pw}; }
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
  if constexpr (std::is_same_v<T, float>) {
    if (g.isFilter3x3() && winogradPays(g.filter())) return winograd(g.filter(), y, x, {weight, 9 * g.c, g.c, 1}, bias);
  }
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
  if constexpr (std::is_same_v<T, float>) {
    // The taps of an input's pixel are those of an output's, the last one first.
    const Filter3x3 adjoint{g.n, g.oh, g.ow, g.o, g.h, g.w, g.c, 2 - g.ph, 2 - g.pw};
    if (g.isFilter3x3() && winogradPays(adjoint)) return winograd(adjoint, dx, dy, {weight + 8 * g.c, 1, -g.c, 9 * g.c}, nullptr);
  }
  Panels<T> panels(g.taps(), g.o, g.c);
  pack(panels, weight, 1, g.c, g.taps() * g.c);
  const std::vector<T> zeros(g.o, T{0});
  for (int64_t a = 0; a < std::min(g.sh, g.h); ++a) {
    for (int64_t b = 0; b < std::min(g.sw, g.w); ++b) {
      std::vector<int32_t> taps;
      for (int64_t kh = 0; kh < g.kh; ++kh)
        for (int64_t kw = 0; kw < g.kw; ++kw)
          if ((a + g.ph - kh * g.dh) % g.sh == 0 && (b + g.pw - kw * g.dw) % g.sw == 0)
            taps.push_back(static_cast<int32_t>(kh * g.kw + kw));
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

// Columns j = (kh, kw, c) of the virtual im2col matrix, copied into a panel for a block of pixels.
template <class T>
class ColumnReader {
 public:
  // Columns first.. of a panel of `width`; what lies behind the last column is zero.
  ColumnReader(const Geometry& g, const T* x, int64_t first, int64_t width) : g_(g), x_(x), width_(width) {
    const int64_t last = std::min(first + width, g.taps() * g.c);
    for (int64_t j = first; j < last;) {
      const int64_t tap = j / g.c, channel = j % g.c, row = tap / g.kw * g.dh, column = tap % g.kw * g.dw;
      const int64_t length = std::min(g.c - channel, last - j);
      runs_.push_back({row, column, (row * g.w + column) * g.c + channel, length});
      j += length;
    }
    zeros_ = width - std::max<int64_t>(last - first, 0);
  }

  // panel (pixels, width)
  void read(int64_t firstPixel, int64_t pixels, T* panel) const {
    Walk at(firstPixel, g_.oh, g_.ow);
    for (int64_t i = 0; i < pixels; ++i, at.next()) {
      const int64_t top = at.y * g_.sh - g_.ph, left = at.x * g_.sw - g_.pw;
      const T* base = x_ + ((at.n * g_.h + top) * g_.w + left) * g_.c;
      for (const Run& run : runs_) {
        const bool inside = top + run.row >= 0 && top + run.row < g_.h && left + run.column >= 0 && left + run.column < g_.w;
        if (inside)
          std::copy_n(base + run.offset, run.length, panel);
        else
          std::fill_n(panel, run.length, T{0});
        panel += run.length;
      }
      std::fill_n(panel, zeros_, T{0});
      panel += zeros_;
    }
  }

 private:
  // Channels of one tap, which lie side by side.
  struct Run {
    int64_t row, column, offset, length;
  };
  const Geometry& g_;
  const T* x_;
  int64_t width_, zeros_;
  std::vector<Run> runs_;
};

// strips[s][pixel][i] = dy[pixel][s * rows + i], the last strip filled with zeros.
template <class T, int Rows>
void copyStripsOf(T* strips, const T* dy, int64_t pixels, int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p, dy += channels) {
    int64_t o = 0;
    T* out = strips + p * Rows;
    for (; o + Rows <= channels; o += Rows, out += pixels * Rows)
      for (int i = 0; i < Rows; ++i) out[i] = dy[o + i];
    if (o < channels)
      for (int i = 0; i < Rows; ++i) out[i] = o + i < channels ? dy[o + i] : T{0};
  }
}
template <class T>
void copyStrips(T* strips, const T* dy, int64_t pixels, int64_t channels, int rows) {
  switch (rows) {
    case 2: return copyStripsOf<T, 2>(strips, dy, pixels, channels);
    case 6: return copyStripsOf<T, 6>(strips, dy, pixels, channels);
    default: return copyStripsOf<T, 12>(strips, dy, pixels, channels);
  }
}

// Pixels of a block: a panel of them stays in the L1 cache, their strips of dy in the L2 cache.
constexpr int64_t kBlock = 96;

// dw[o, j] = sum over pixels of dy[pixel, o] * column j. Work is split by columns, or also by pixels where columns are few; the split
// depends on shapes alone and partial sums are added in order, so the bits do not depend on threads.
template <class T>
void backwardWeight(const Geometry& g, T* dw, const T* dy, const T* x) {
  if constexpr (std::is_same_v<T, float>) {
    if (g.isFilter3x3() && winogradPays(g.filter())) return winogradWeight(g.filter(), dw, dy, x);
  }
  const int64_t pixels = g.pixels(), columns = g.taps() * g.c;
  const TileKernel<T>& kernel = tileKernel<T>(columns);
  const int64_t blocks = ceilDiv(pixels, kBlock), panelCount = ceilDiv(columns, kernel.columns);
  const int64_t groups = ceilDiv(panelCount, std::max<int64_t>(1, 256 / kernel.columns));
  const int64_t chunks = std::clamp<int64_t>(std::min(blocks, 16 / groups), 1, 8);
  Scratch<T> partial(chunks > 1 ? chunks * g.o * columns : 0);
  const int32_t tap = 0;
  parallelFor(chunks * groups, [&](int64_t unit) {
    const int64_t chunk = unit / groups, group = unit % groups;
    const int64_t firstPanel = panelCount * group / groups, lastPanel = panelCount * (group + 1) / groups;
    T* target = chunks > 1 ? partial.data() + chunk * g.o * columns : dw;
    const int64_t strips = ceilDiv(g.o, kernel.rows);
    Scratch<T> panel(kBlock * kernel.columns), strip(strips * kBlock * kernel.rows);
    const T* rows[kMaxTileRows];
    T* outputs[kMaxTileRows];
    std::vector<ColumnReader<T>> readers;
    for (int64_t q = firstPanel; q < lastPanel; ++q) readers.emplace_back(g, x, q * kernel.columns, kernel.columns);
    const int64_t firstBlock = blocks * chunk / chunks, lastBlock = blocks * (chunk + 1) / chunks;
    for (int64_t b = firstBlock; b < lastBlock; ++b) {
      const int64_t depth = std::min(kBlock, pixels - b * kBlock);
      copyStrips(strip.data(), dy + b * kBlock * g.o, depth, g.o, kernel.rows);
      for (int64_t q = firstPanel; q < lastPanel; ++q) {
        const int64_t column = q * kernel.columns;
        const int width = static_cast<int>(std::min<int64_t>(kernel.columns, columns - column));
        readers[q - firstPanel].read(b * kBlock, depth, panel.data());
        for (int64_t o = 0, s = 0; o < g.o; o += kernel.rows, ++s) {
          const int valid = static_cast<int>(std::min<int64_t>(kernel.rows, g.o - o));
          for (int i = 0; i < kernel.rows; ++i) rows[i] = strip.data() + s * depth * kernel.rows + i;
          for (int i = 0; i < valid; ++i) outputs[i] = target + (o + i) * columns + column;
          kernel.run({rows, kernel.rows, kernel.rows, 1, &tap, depth, panel.data(), outputs, valid, width, nullptr, b != firstBlock});
        }
      }
    }
  });
  if (chunks > 1 || blocks == 0)
    parallelRange(g.o * columns, 1 << 12, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T sum{0};
        for (int64_t c = 0; c < chunks && blocks > 0; ++c) sum += partial[c * g.o * columns + i];
        dw[i] = sum;
      }
    });
}

// What only kernels of a GPU read or write.
template <class Name>
void refuse(const Call& call, const char* name, Name at) {
  REQUIRE(call.optional(at) == nullptr, "ARGUMENT", std::string(call.op) + ": expected no " + name + " on the CPU");
}

}  // namespace

void conv2d(const Call& call) {
  using Names = args::conv2d;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &w = call.tensor(Names::weight), *b = call.optional(Names::bias);
  refuse(call, "statistics", Names::statistics);
  refuse(call, "scale", Names::scale);
  const Geometry g(call, Names{}, x, w, y, "y");
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    // The tile loads whole panels of bias: keep a padded copy.
    std::vector<T> bias;
    if (b != nullptr) {
      bias.assign(b->data<T>(), b->data<T>() + g.o);
      bias.resize(ceilDiv(g.o, kMaxPanel<T>) * kMaxPanel<T>);
    }
    forward<T>(g, y.data<T>(), x.data<T>(), w.data<T>(), b == nullptr ? nullptr : bias.data());
  });
}

void conv2dBackwardInput(const Call& call) {
  using Names = args::conv2dBackwardInput;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy), &w = call.tensor(Names::weight);
  refuse(call, "add", Names::add);
  refuse(call, "x", Names::x);
  refuse(call, "gradientX", Names::gradientX);
  const Geometry g(call, Names{}, dx, w, dy, "dy");
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    backwardInput<T>(g, dx.data<T>(), dy.data<T>(), w.data<T>());
  });
}

void conv2dBackwardWeight(const Call& call) {
  using Names = args::conv2dBackwardWeight;
  const Tensor &dw = call.tensor(Names::dweight), &dy = call.tensor(Names::dy), &x = call.tensor(Names::x);
  refuse(call, "scale", Names::scale);
  refuse(call, "gradientX", Names::gradientX);
  const Geometry g(call, Names{}, x, dw, dy, "dy");
  dispatchFloat(call, dw.dtype, [&](auto zero) {
    using T = decltype(zero);
    backwardWeight<T>(g, dw.data<T>(), dy.data<T>(), x.data<T>());
  });
}

}  // namespace densecl::cpu
