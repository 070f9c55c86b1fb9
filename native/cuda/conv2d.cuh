// What the three products of a convolution share: geometry, residue classes, splits, and the choice of tile, arithmetic and
// prologue.
#pragma once
#include <algorithm>
#include <numeric>
#include <type_traits>

#include "../core/convolution.h"
#include "conv2dLoaders.cuh"

namespace densecl::cuda {

using Tile128x128 = TileShape<128, 128, 2, 4>;
using Tile128x64 = TileShape<128, 64, 4, 2>;
using Tile64x64 = TileShape<64, 64, 2, 2>;

constexpr int64_t kWidestTile = 6, kBulkStoredTile = 7;  // the last of the tiles that a call may name; conv2dHopper.cu has them

// The sizes of a convolution, and what its caller wants of the kernels.
struct Geometry : Convolution<int> {
  int64_t tile;  // 0: the kernels' own rule
  bool tf32;
  template <class Names>
  Geometry(const Call& call, Names names, const Tensor& x, const Tensor& weight, const Tensor& y, const char* yName)
      : Geometry(call, Convolution(call, names, x, weight, y, yName), call.integer(Names::tile), call.flag(Names::tf32)) {}
  Geometry(const Call& call, const Convolution<int>& sizes, int64_t tile, bool tf32) : Convolution(sizes), tile(tile), tf32(tf32) {
    REQUIRE(
        tile <= kBulkStoredTile, "ARGUMENT",
        std::string(call.op) + ": expected tile to be 0 to " + std::to_string(kBulkStoredTile) + " but received " + std::to_string(tile));
    REQUIRE(h * w * c < (int64_t{1} << 31) && oh * ow * o < (int64_t{1} << 31), "SHAPE",
            std::string(call.op) + ": one image has more than 2^31 elements");
    REQUIRE(n * (h + 1) * (w + 1) < (int64_t{1} << 31), "SHAPE", std::string(call.op) + ": the images have more than 2^31 pixels");
  }
  int64_t depth() const { return taps() * c; }
};

// Calls body(Math{}, Shape{}, a, b) for the dtype, the arithmetic, the tile, and whether the left and the right operand come in whole
// vectors. Not every combination is compiled: the odd ones have one tile. `tensorCores` is the family that uses them.
template <class T, class F>
void dispatchTile(const Call& call, const Geometry& g, Family tensorCores, int64_t rows, int64_t columns, bool alignedA, bool alignedB,
                  F body) {
  // Where Hopper's kernels do not apply these stand in for tiles 4 and 5; the others have nothing that stands in.
  const bool bulk = g.tile == kBulkStoredTile;
  REQUIRE(g.tile < kWidestTile, "ARGUMENT",
          std::string(call.op) + ": expected " + (bulk ? "a forward product to channels by the 8, " : "") +
              "bf16, whole slices of 64 channels that are summed over, strides of at most 8 and a GPU of compute capability 9.0 whose " +
              (bulk ? "stores by bulk copies" : "tiles of 128x256") + " are in use, for tile " + std::to_string(g.tile) +
              ", but received " + std::to_string(g.c) + " channels to " + std::to_string(g.o) + " in " +
              (std::is_same_v<T, bf16> ? "bf16" : "f32") + " on " + call.device().name);
  const int64_t wanted = g.tile > 3 ? 0 : g.tile;
  // A tile twice as large reads half as much, as long as every multiprocessor has one.
  const bool many = ceilDiv(rows, 128) * ceilDiv(columns, 128) >= multiprocessors(call),
             some = ceilDiv(rows, 128) * ceilDiv(columns, 64) >= multiprocessors(call);
  const int64_t tile = wanted != 0 ? wanted : columns > 64 && many ? 1 : some ? 2 : 3;
  const auto arithmetic = [&](auto math) {
    const std::true_type whole;
    const std::false_type odd;
    // What only stands in is compiled for few cases.
    if constexpr (std::is_same_v<decltype(math), MathFma<bf16>>)
      return alignedA && alignedB ? body(math, Tile128x64{}, whole, whole) : body(math, Tile128x64{}, odd, odd);
    if (!alignedA && !alignedB) return body(math, Tile128x64{}, odd, odd);
    if (!alignedA) return body(math, Tile128x64{}, odd, whole);
    if (!alignedB) return body(math, Tile128x64{}, whole, odd);
    if constexpr (std::is_same_v<decltype(math), MathFma<T>>) return body(math, Tile128x64{}, whole, whole);
    if constexpr (!std::is_same_v<decltype(math), MathFma<T>>) {
      if (tile == 1) return body(math, Tile128x128{}, whole, whole);
      if (tile == 2) return body(math, Tile128x64{}, whole, whole);
      return body(math, Tile64x64{}, whole, whole);
    }
  };
  if (usable(call, tensorCores)) {
    if constexpr (std::is_same_v<T, bf16>) return arithmetic(MathBf16{});
    if constexpr (std::is_same_v<T, float>)
      if (g.tf32) return arithmetic(MathTf32{});
  }
  arithmetic(MathFma<T>{});
}

template <class T>
bool aligned(int64_t channels) {
  return channels % Vector<T>::kLength == 0;
}

// Blocks of bf16 on tensor cores that shall share a multiprocessor: two of the largest tile fit if they keep to 128 registers, three of the
// next to 80, and as many warps of the smallest. Epilogues of input gradients, tf32, FMAs and prologues need more.
template <class Math, class Prologue>
constexpr bool kShares = std::is_same_v<Math, MathBf16> && Prologue::kPlain;
template <class Math, class Prologue, class Shape>
constexpr int kBlocks = !kShares<Math, Prologue>             ? 1
                        : Shape::kM * Shape::kN >= 128 * 128 ? 2
                        : Shape::kThreads == 256             ? 3
                                                             : 6;
template <class Math, class Prologue>
constexpr int kInputBlocks = kShares<Math, Prologue> ? 2 : 1;

// Kernels with prologues exist for whole vectors, and for bf16 on tensor cores and exact f32.
template <class T, class Math, bool kAligned>
constexpr bool kPrologues = kAligned && (std::is_same_v<Math, MathBf16> || std::is_same_v<Math, MathF32>);

// The batch norm that an operand still waits for.
struct OperandNorm {
  const Tensor *scale = nullptr, *shift = nullptr;  // [G, C], or null without one
  bool relu = false;

  template <class Names>
  OperandNorm(const Call& call, Names, const Tensor& x)
      : scale(call.optional(Names::scale)), shift(call.optional(Names::shift)), relu(call.flag(Names::relu)) {
    if (scale == nullptr) return;
    REQUIRE(shift != nullptr, "ARGUMENT", std::string(call.op) + ": expected shift with scale");
    groupsOf(call, "scale", *scale, x);
  }
};

// The batch norm whose gradient dy still waits for.
struct OperandGradient {
  const Tensor *x = nullptr, *mean = nullptr, *coefficients = nullptr;  // x is null without one

  template <class Names>
  OperandGradient(const Call& call, Names, const Tensor& dy)
      : x(call.optional(Names::gradientX)), mean(call.optional(Names::gradientMean)), coefficients(call.optional(Names::coefficients)) {
    if (x == nullptr) return;
    REQUIRE(mean != nullptr && coefficients != nullptr, "ARGUMENT",
            std::string(call.op) + ": expected gradientMean and coefficients with gradientX");
    groupsOf(call, "gradientMean", *mean, dy);
  }
};

// Calls body(Prologue) with the batch norm, or without. `rows` has a row for every one of the product.
template <class T, class Math, bool kAligned, class F>
void withNorm(const Call& call, const OperandNorm& norm, int64_t channels, int64_t rows, F body) {
  if (norm.scale == nullptr) return body(Plain{});
  if constexpr (kPrologues<T, Math, kAligned>)
    return body(NormPrologue<T>{norm.scale->data<float>(), norm.shift->data<float>(), static_cast<int>(channels), rows / norm.scale->dim(0),
                                norm.relu});
  throw Error("INTERNAL", std::string(call.op) + ": no kernel with a prologue for these operands");
}

// The same for a gradient.
template <class T, class Math, bool kAligned, class F>
void withNormGradient(const Call& call, const OperandGradient& norm, int64_t channels, int64_t rows, F body) {
  if (norm.x == nullptr) return body(Plain{});
  const int64_t groups = norm.mean->dim(0);
  if constexpr (kPrologues<T, Math, kAligned>)
    return body(GradientPrologue<T>{norm.x->data<T>(), norm.mean->data<float>(), norm.coefficients->data<float>(),
                                    static_cast<int>(channels), static_cast<int>(groups * channels), rows / groups});
  throw Error("INTERNAL", std::string(call.op) + ": no kernel with a prologue for these operands");
}

template <class T>
Gather<T> forwardGather(const Geometry& g, const T* x) {
  return {x,
          {static_cast<int>(g.oh), g.kh, static_cast<int>(g.h), g.sh, -g.ph, g.dh},
          {static_cast<int>(g.ow), g.kw, static_cast<int>(g.w), g.sw, -g.pw, g.dw},
          static_cast<int>(g.c),
          g.pixels()};
}

// The pixels of a weight gradient, split among blocks: a block works off tiles x splits items of equal length, so a count that is a
// little over a multiple of the blocks leaves most of them idle in the last wave. src/bench/model.ts knows the rule too.
struct Splits {
  int64_t share = 0, count = 0;  // pixels of a split, a multiple of the slice

  // `wanted` is a count, 0 for the rule's; `blocks` run at a time; `results` are the values of dw, of which each split leaves a partial
  // sum.
  Splits(int64_t wanted, int64_t pixels, int64_t tiles, int64_t blocks, int64_t slice, int64_t results) {
    const int64_t most = std::max<int64_t>(1, pixels / (16 * slice));
    if (wanted > 0) {
      split(pixels, std::min(wanted, most), slice);
      return;
    }
    // In slices of one block: those of the longest multiprocessor, four of ramp an item, and the partial sums at a slice a mebibyte.
    const auto cost = [&](int64_t waves) {
      return static_cast<double>(waves * (share / slice + 4)) + (count > 1 ? static_cast<double>(2 * count * results * 4) / (1 << 20) : 0);
    };
    Splits best = *this;
    double least = 0;
    bool filled = false;
    for (int64_t n = 1; n <= most && n <= 4 * blocks; ++n) {
      split(pixels, n, slice);
      if (count != n) continue;
      const int64_t waves = ceilDiv(tiles * n, blocks);
      // Nine tenths of the machine busy come first.
      const bool fills = 10 * tiles * pixels >= 9 * waves * blocks * share;
      if (best.count > 0 && filled && !fills) continue;
      if (best.count > 0 && filled == fills && cost(waves) >= least) continue;
      best = *this;
      least = cost(waves);
      filled = fills;
    }
    *this = best;
  }

 private:
  void split(int64_t pixels, int64_t n, int64_t slice) {
    share = ceilDiv(ceilDiv(pixels, n), slice) * slice;
    count = std::max<int64_t>(1, ceilDiv(pixels, std::max<int64_t>(1, share)));
  }
};

// A convolution of few channels (the stem) as one of kernel width 1: the taps of a row of the kernel, kw * c elements that lie one after
// another, become channels, rounded up, for each column of the output. Its operands are then copied in chunks of 16 bytes; element by
// element they cost more than the products. Where Hopper's kernels may be taken, the taps of as many rows as the stride has lie side by
// side, if that fills most of a slice: rows of the unfolded images are then as far apart as those of the output.
template <class T>
bool unfolds(const Geometry& g) {
  return !aligned<T>(g.c) && g.kw * g.c <= 64;
}
struct Unfolding {
  static constexpr int kSlice = 64;
  int rows = 1, width;  // rows of the kernel side by side, channels of each
  Geometry geometry;
  Unfolding(const Geometry& g, int vector, bool slices) : width(static_cast<int>(ceilDiv(g.kw * g.c, vector) * vector)), geometry(g) {
    const int64_t together = g.sh * g.kw * g.c;
    if (slices && (g.sh == 1 || g.dh == 1) && kSlice % (g.sh * vector) == 0 && g.kw * g.c * g.sh <= kSlice && 2 * together > kSlice) {
      rows = g.sh;
      width = kSlice / rows;
    }
    geometry.c = rows * width;
    geometry.w = g.ow;
    geometry.kw = geometry.sw = geometry.dw = 1;
    geometry.pw = 0;
    if (rows == 1) return;
    geometry.kh = static_cast<int>(ceilDiv(g.kh, rows));
    geometry.h = g.oh + geometry.kh - 1;
    geometry.sh = 1;
    geometry.ph = 0;
  }
  int64_t images() const { return geometry.n * geometry.h * geometry.w * geometry.c; }
};
// How a product is unfolded for the device; `family` is its on Hopper.
template <class T>
Unfolding unfolding(const Call& call, const Geometry& g, Family family) {
  return {g, Vector<T>::kLength, std::is_same_v<T, bf16> && usable(call, family) && (g.tile == 0 || g.tile > 3)};
}
template <class T>
void unfoldImages(const Call& call, const Geometry& g, const Unfolding& to, const T* x, T* out);
// From [blocks, lines, width] to other lines and another width: weights (filled up with zeros) and their gradients.
struct Lines {
  int64_t lines, width;
};
template <class T>
void copyLines(const Call& call, const T* from, Lines fromLines, T* to, Lines toLines, int64_t blocks);

// out [count] = the sum of partial [splits, count], in the order of the splits
void sumSplits(const Call& call, float* out, const float* partial, int64_t count, int64_t splits);

// The taps of one axis that input positions a, a + stride, ... meet: first, first + step, ...
struct ClassTaps {
  int first = 0, step = 1, count = 0;
  ClassTaps(int a, int stride, int padding, int dilation, int kernel) {
    step = stride / std::gcd(stride, dilation);
    for (first = 0; first < kernel && (a + padding - first * dilation) % stride != 0; ++first) {
    }
    count = first < kernel ? (kernel - first + step - 1) / step : 0;
  }
};

// The input pixels (y, x) with y % stride == a and x % stride == b, and the product that gives their gradient.
template <class T>
struct PixelClass {
  Gather<T> dy;
  TransposedWeights<T> weights;
  PixelClass(const Geometry& g, const Tensor& gradient, const Tensor& w, int a, int b) {
    const ClassTaps ty(a, g.sh, g.ph, g.dh, g.kh), tx(b, g.sw, g.pw, g.dw, g.kw);
    const int rowsY = static_cast<int>(ceilDiv(g.h - a, g.sh)), rowsX = static_cast<int>(ceilDiv(g.w - b, g.sw));
    // Without a tap the sums are empty; an axis of one tap then stands in, as the walk divides by it.
    const int tapsY = tx.count == 0 ? 0 : ty.count, tapsX = std::max(1, tx.count);
    dy = {gradient.data<T>(),
          {rowsY, tapsY, static_cast<int>(g.oh), 1, (a + g.ph - ty.first * g.dh) / g.sh, -ty.step * g.dh / g.sh},
          {rowsX, tapsX, static_cast<int>(g.ow), 1, (b + g.pw - tx.first * g.dw) / g.sw, -tx.step * g.dw / g.sw},
          static_cast<int>(g.o),
          g.n * rowsY * rowsX};
    weights.weights = w.data<T>();
    weights.o = static_cast<int>(g.o);
    weights.kh = g.kh;
    weights.kw = g.kw;
    weights.c = static_cast<int>(g.c);
    weights.firstY = ty.first;
    weights.stepY = ty.step;
    weights.firstX = tx.first;
    weights.stepX = tx.step;
    weights.tapsY = tapsY;
    weights.tapsX = tapsX;
  }
  ClassPixels where(const Geometry& g, int a, int b) const {
    return {dy.y.rows, dy.x.rows, static_cast<int>(g.h), static_cast<int>(g.w), a, b, g.sh, g.sw};
  }
};

}  // namespace densecl::cuda
