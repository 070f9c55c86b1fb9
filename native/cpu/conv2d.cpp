// conv2d and its input gradient (the weight's is in conv2dWeight.cpp): x [N, H, W, C], w [O, KH, KW, C], y [N, OH, OW, O]
//   y[n, oh, ow, o] = b[o] + sum over kh, kw, c of w[o, kh, kw, c] * x[n, oh*sh - ph + kh*dh, ow*sw - pw + kw*dw, c]
#include <cmath>

#include "conv2d.h"
#include "conv2dTaps.h"
#include "gemm.h"
#include "resultNorm.h"
#include "widen.h"

namespace densecl::cpu {
namespace {

// In all of this T is what is multiplied, S what is stored.

std::vector<int32_t> iota(int64_t count) {
  std::vector<int32_t> taps(count);
  for (int64_t i = 0; i < count; ++i) taps[i] = static_cast<int32_t>(i);
  return taps;
}

// The outputs a side of Winograd's tiles by which a convolution is computed, and for which its weights are packed; or 0.
template <class T>
int64_t winogradSide(const ConvGeometry& g) {
  if constexpr (std::is_same_v<T, float>)
    if (g.isFilter3x3()) return g.filter().outputs;
  return 0;
}

// A kernel that reads long rows would read little but zeros of the few channels of a kernel's row.
template <class T>
bool byWindows(const ConvGeometry& g) {
  return g.mergeRow() && tileKernel<T>(g.o).spaced > 1;
}

// Whether packed weights are worth their memory: of more pixels than these, packing them is little beside multiplying.
bool keepsWeights(const ConvGeometry& g) { return g.pixels() < 4096 && !tapsPay(g); }

template <class T, class S>
std::unique_ptr<Panels<T>> packed(const ConvGeometry& g, const S* weight, Life life = Life::op) {
  if constexpr (std::is_same_v<T, float>) {
    if (winogradSide<T>(g) != 0) return winogradPanels<S>(g.filter(), {weight, 9 * g.c, g.c, 1}, life);
  }
  const bool merge = g.mergeRow(), windows = byWindows<T>(g);
  const int64_t taps = windows ? 1 : merge ? g.kh : g.taps(), depth = g.taps() * g.c / taps;
  auto panels = std::make_unique<Panels<T>>(taps, depth, g.o, life);
  pack(*panels, weight, taps * depth, depth, 1);
  if (windows) panels->reach = panels->depth * kWordValues<T>;
  return panels;
}

template <class T, class S>
void forward(const ConvGeometry& g, S* y, const S* x, Panels<T>& panels, const Accumulator<S>* bias, const ResultNorm<S>* norm) {
  if constexpr (std::is_same_v<T, float>) {
    if (winogradSide<T>(g) != 0) return winograd(g.filter(), y, x, panels, bias, norm);
  }
  const bool merge = g.mergeRow();
  const int64_t taps = panels.slabs, depth = panels.values;
  const std::vector<S> zeros(depth, S{0});

  auto fillWindows = [&](int64_t first, int64_t rows, const S** table, int64_t, S* scratch) {
    copyWindows(g, x, first, rows, scratch, panels.reach);
    for (int64_t i = 0; i < rows; ++i) table[i] = scratch + i * panels.reach;
  };

  auto fillTaps = [&](int64_t first, int64_t rows, const S** table, int64_t stride, S*) {
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
  auto fillRows = [&](int64_t first, int64_t rows, const S** table, int64_t stride, S* scratch) {
    Walk at(first, g.oh, g.ow);
    for (int64_t i = 0; i < rows; ++i, at.next()) {
      const int64_t left = at.x * g.sw - g.pw;
      const int64_t from = std::max<int64_t>(0, left), to = std::min(g.w, left + g.kw);
      for (int64_t kh = 0; kh < g.kh; ++kh) {
        const int64_t ih = at.y * g.sh - g.ph + kh * g.dh;
        const S*& row = table[kh * stride + i];
        if (ih < 0 || ih >= g.h || to <= from) {
          row = zeros.data();
          continue;
        }
        const S* line = x + (at.n * g.h + ih) * g.w * g.c;
        if (to - from == g.kw) {
          row = line + left * g.c;
          continue;
        }
        S* copy = scratch + (i * g.kh + kh) * depth;
        std::fill(copy, copy + depth, S{0});
        std::copy(line + from * g.c, line + to * g.c, copy + (from - left) * g.c);
        row = copy;
      }
    }
  };
  auto out = [&](int64_t m) { return y + m * g.o; };
  const Values<S> images{x, g.n * g.h * g.w * g.c};
  if (byWindows<T>(g))
    multiplyRows<T, S>(g.pixels(), iota(taps), panels, bias, norm, images, panels.reach, fillWindows, out);
  else if (merge)
    multiplyRows<T, S>(g.pixels(), iota(taps), panels, bias, norm, images, taps * depth, fillRows, out);
  else
    multiplyRows<T, S>(g.pixels(), iota(taps), panels, bias, norm, images, 0, fillTaps, out);
}

template <class S>
void convolve(const ConvGeometry& g, S* y, const S* x, const S* weight, const Accumulator<S>* bias) {
  multipliedAs<S>([&](auto factor) {
    using T = decltype(factor);
    if (tapsPay(g)) return forwardByTaps<T, S>(g, y, x, weight, bias);
    const auto panels = packed<T, S>(g, weight);
    forward<T, S>(g, y, x, *panels, bias, nullptr);
  });
}

// An output's weights as E4M3 holds them, a power of two apart.
void roundRow(bf16* out, const bf16* in, int64_t count) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::abs(static_cast<float>(in[i])));
  const int exponent = rowExponent(most);
  const float factor = powerOfTwo(-exponent), scale = powerOfTwo(exponent);
  for (int64_t i = 0; i < count; ++i) out[i] = bf16(static_cast<float>(e4m3(static_cast<float>(in[i]) * factor)) * scale);
}

// The input pixels with the same remainder modulo the stride meet the same taps: each such class is a dense product.
template <class T, class S>
void backwardInput(const ConvGeometry& g, S* dx, const S* dy, const S* weight) {
  if (tapsPay(g)) return backwardInputByTaps<T, S>(g, dx, dy, weight);
  if constexpr (std::is_same_v<T, float>) {
    // The taps of an input's pixel are those of an output's, the last one first.
    const Filter3x3 adjoint{g.n, g.oh, g.ow, g.o, g.h, g.w, g.c, 2 * g.dh - g.ph, 2 * g.dw - g.pw, g.dh, g.dw};
    if (g.isFilter3x3() && adjoint.outputs != 0) {
      const auto panels = winogradPanels<S>(adjoint, {weight + 8 * g.c, 1, -g.c, 9 * g.c});
      return winograd<S>(adjoint, dx, dy, *panels, nullptr, nullptr);
    }
  }
  Panels<T> panels(g.taps(), g.o, g.c);
  pack(panels, weight, 1, g.c, g.taps() * g.c);
  const std::vector<S> zeros(g.o, S{0});
  for (int64_t a = 0; a < std::min(g.sh, g.h); ++a) {
    for (int64_t b = 0; b < std::min(g.sw, g.w); ++b) {
      std::vector<int32_t> taps;
      for (int64_t kh = 0; kh < g.kh; ++kh)
        for (int64_t kw = 0; kw < g.kw; ++kw)
          if ((a + g.ph - kh * g.dh) % g.sh == 0 && (b + g.pw - kw * g.dw) % g.sw == 0)
            taps.push_back(static_cast<int32_t>(kh * g.kw + kw));
      const int64_t height = (g.h - a + g.sh - 1) / g.sh, width = (g.w - b + g.sw - 1) / g.sw;
      auto fill = [&](int64_t first, int64_t rows, const S** table, int64_t stride, S*) {
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
      multiplyRows<T, S>(g.n * height * width, taps, panels, nullptr, nullptr, {dy, g.n * g.oh * g.ow * g.o}, 0, fill, out);
    }
  }
}

}  // namespace

void conv2d(const Call& call) {
  using Names = args::conv2d;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &w = call.tensor(Names::weight), *b = call.optional(Names::bias);
  refuse(call, "statistics", Names::statistics);
  refuse(call, "scale", Names::scale);
  const ConvGeometry g(call, Names{}, x, w, y, "y");
  dispatchStored(call, x.dtype, [&](auto zero) {
    using S = decltype(zero);
    // The tile loads whole panels of bias: keep a padded copy.
    using A = Accumulator<S>;
    std::vector<A> bias;
    if (b != nullptr) {
      bias.assign(b->data<A>(), b->data<A>() + g.o);
      bias.resize(ceilDiv(g.o, kMaxPanel<A>) * kMaxPanel<A>);
    }
    const A* biasData = b == nullptr ? nullptr : bias.data();
    convolve<S>(g, y.data<S>(), x.data<S>(), w.data<S>(), biasData);
  });
}

// By products of bf16, of which all numbers of E4M3 are some: no faster, but what the rounding does shows.
void conv2dE4m3(const Call& call) {
  using Names = args::conv2dE4m3;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &w = call.tensor(Names::weight);
  refuse(call, "statistics", Names::statistics);
  const ConvGeometry g(call, Names{}, x, w, y, "y");
  Scratch<bf16> images(static_cast<size_t>(x.size())), weights(static_cast<size_t>(w.size()));
  parallelRange(x.size(), 1 << 15, [&](int64_t begin, int64_t end) { widen(images.data() + begin, x.data<e4m3>() + begin, end - begin); });
  const int64_t depth = g.taps() * g.c;
  parallelFor(g.o, [&](int64_t o) { roundRow(weights.data() + o * depth, w.data<bf16>() + o * depth, depth); });
  convolve<bf16>(g, y.data<bf16>(), images.data(), weights.data(), nullptr);
}

void conv2dNorm(const Call& call) {
  using Names = args::conv2dNorm;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &w = call.tensor(Names::weight),
               *residual = call.optional(Names::residual);
  REQUIRE(residual == nullptr || residual->shape == y.shape, "SHAPE",
          "conv2dNorm: expected a residual of y's shape " + describe(y) + " but received " + describe(*residual));
  const ConvGeometry g(call, Names{}, x, w, y, "y");
  const double eps = call.number(Names::eps);
  const bool relu = call.flag(Names::relu);
  dispatchStored(call, x.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Accumulator<S>;
    const A* variance = call.tensor(Names::variance).data<A>();
    std::vector<A> invstd(g.o), scale(g.o), shift(g.o);
    for (int64_t o = 0; o < g.o; ++o) invstd[o] = static_cast<A>(1 / std::sqrt(static_cast<double>(variance[o]) + eps));
    affine(g.o, call.tensor(Names::normWeight).data<A>(), call.tensor(Names::normBias).data<A>(), call.tensor(Names::mean).data<A>(),
           invstd.data(), scale.data(), shift.data());
    const ResultNorm<S> norm{scale.data(), shift.data(), y.data<S>(), residual == nullptr ? nullptr : residual->data<S>(), relu};
    multipliedAs<S>([&](auto factor) {
      using T = decltype(factor);
      if (tapsPay(g)) {
        forwardByTaps<T, S>(g, y.data<S>(), x.data<S>(), w.data<S>(), nullptr);
        return applyNorm({y.data<S>(), y.data<S>(), norm.scale, norm.shift, norm.residual, relu, g.pixels(), g.o});
      }
      // Weights of one shape are packed in one of four ways; views of other shapes share their memory.
      const int64_t side = winogradSide<T>(g), way = side != 0 ? 1 + side : g.mergeRow() ? 2 : 1;
      const std::array<int64_t, 4> form{g.o, g.kh, g.kw, way};
      const bool keeps = keepsWeights(g);
      std::shared_ptr<void> panels =
          w.storage->derived.form == form ? w.storage->derived.value : packed<T, S>(g, w.data<S>(), keeps ? Life::kept : Life::op);
      if (keeps) w.storage->derived = {form, panels};
      forward<T, S>(g, y.data<S>(), x.data<S>(), *static_cast<Panels<T>*>(panels.get()), nullptr, &norm);
    });
  });
}

size_t keptBytes(const Call& call, const Tensor*& holder) {
  if (static_cast<OpIndex>(call.index) != OpIndex::conv2dNorm) return 0;
  using Names = args::conv2dNorm;
  holder = &call.tensor(Names::weight);
  const ConvGeometry g(call, Names{}, call.tensor(Names::x), *holder, call.tensor(Names::y), "y");
  if (!keepsWeights(g)) return 0;
  size_t bytes = 0;
  dispatchStored(call, holder->dtype, [&](auto zero) {
    multipliedAs<decltype(zero)>([&](auto factor) {
      const int64_t side = winogradSide<decltype(factor)>(g);
      bytes = static_cast<size_t>(g.o * g.c * (side == 0 ? g.taps() : winogradPoints(side))) * sizeof(factor);
    });
  });
  return bytes;
}

void conv2dBackwardInput(const Call& call) {
  using Names = args::conv2dBackwardInput;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy), &w = call.tensor(Names::weight);
  refuse(call, "add", Names::add);
  refuse(call, "x", Names::x);
  refuse(call, "gradientX", Names::gradientX);
  const ConvGeometry g(call, Names{}, dx, w, dy, "dy");
  dispatchStored(call, dx.dtype, [&](auto zero) {
    using S = decltype(zero);
    multipliedAs<S>([&](auto factor) { backwardInput<decltype(factor), S>(g, dx.data<S>(), dy.data<S>(), w.data<S>()); });
  });
}

}  // namespace densecl::cpu
