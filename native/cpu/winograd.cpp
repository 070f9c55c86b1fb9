#include "winograd.h"

#include <cstdlib>
#include <cstring>
#include <limits>

#include "gemm.h"

namespace densecl::cpu {
namespace {

constexpr int64_t kPoints = 16;  // of a transformed tile, 4x4
constexpr int64_t kLanes = 16;   // channels come in multiples of them, so that no loop over channels has a tail
// What a point has lies a cache line further from the next point's than it must: at powers of two, the sixteen that are written or read
// together would drive each other out of one set of a cache.
constexpr int64_t kApart = 16;

// B^T x B for channels `first` to `last`: out[point * stride + channel - first]. Pixels are those of a 4x4 tile.
struct InputJob {
  const float* const* pixels;
  int64_t first, last;
  float* out;
  int64_t stride;
};
INLINE void inputLoop(const InputJob& job) {
  const int64_t count = job.last - job.first;
  const float* x[kPoints];
  float* out[kPoints];
  for (int64_t i = 0; i < kPoints; ++i) {
    x[i] = job.pixels[i] + job.first;
    out[i] = job.out + i * job.stride;
  }
#pragma GCC ivdep
  for (int64_t c = 0; c < count; ++c) {
    float t[4][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const float a = x[j][c], b = x[4 + j][c], d = x[8 + j][c], e = x[12 + j][c];
      t[0][j] = a - d;
      t[1][j] = b + d;
      t[2][j] = d - b;
      t[3][j] = b - e;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      out[4 * i][c] = t[i][0] - t[i][2];
      out[4 * i + 1][c] = t[i][1] + t[i][2];
      out[4 * i + 2][c] = t[i][2] - t[i][1];
      out[4 * i + 3][c] = t[i][1] - t[i][3];
    }
  }
}
SIMD(void, transformInput, (const InputJob& job), (job)) { inputLoop(job); }

// A^T m A, for `count` channels of m[point * stride + channel], to the four pixels of an output tile: plus bias, or normalised.
struct OutputJob {
  const float* m;
  int64_t stride, count;
  float* const* pixels;
  const float* bias;                       // or null
  const float* scale = nullptr;            // of a norm, whose shift is the bias; or null
  const float* const* residual = nullptr;  // of the norm, four pixels; or null
  bool relu = false;
};
template <bool Biased, bool Norms, bool Adds>
INLINE void outputLoop(const OutputJob& job) {
  const float* m[kPoints];
  for (int64_t i = 0; i < kPoints; ++i) m[i] = job.m + i * job.stride;
  const float low = job.relu ? 0 : -std::numeric_limits<float>::infinity();
#pragma GCC ivdep
  for (int64_t c = 0; c < job.count; ++c) {
    float t[2][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      t[0][j] = m[j][c] + m[4 + j][c] + m[8 + j][c];
      t[1][j] = m[4 + j][c] - m[8 + j][c] - m[12 + j][c];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const float* row = t[i / 2];
      float y = i % 2 == 0 ? row[0] + row[1] + row[2] : row[1] - row[2] - row[3];
      if (Norms) y *= job.scale[c];
      if (Biased) y += job.bias[c];
      if (Adds) y += job.residual[i][c];
      job.pixels[i][c] = Norms && y < low ? low : y;
    }
  }
}
SIMD(void, transformOutput, (const OutputJob& job), (job)) {
  if (job.residual != nullptr) return outputLoop<true, true, true>(job);
  if (job.scale != nullptr) return outputLoop<true, true, false>(job);
  job.bias != nullptr ? outputLoop<true, false, false>(job) : outputLoop<false, false, false>(job);
}

// A dy A^T: out[point * stride + channel]. Pixels are the four of a tile.
struct GradientJob {
  const float* const* pixels;
  int64_t count;
  float* out;
  int64_t stride;
};
INLINE void gradientLoop(const GradientJob& job) {
  const float *p = job.pixels[0], *q = job.pixels[1], *r = job.pixels[2], *s = job.pixels[3];
  float* out[kPoints];
  for (int64_t i = 0; i < kPoints; ++i) out[i] = job.out + i * job.stride;
#pragma GCC ivdep
  for (int64_t c = 0; c < job.count; ++c) {
    const float left[4] = {p[c], p[c] + r[c], p[c] - r[c], -r[c]}, right[4] = {q[c], q[c] + s[c], q[c] - s[c], -s[c]};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      out[4 * i][c] = left[i];
      out[4 * i + 1][c] = left[i] + right[i];
      out[4 * i + 2][c] = left[i] - right[i];
      out[4 * i + 3][c] = -right[i];
    }
  }
}
SIMD(void, transformGradient, (const GradientJob& job), (job)) { gradientLoop(job); }

// G w G^T of kLanes columns: taps[tap * tapStride + lane] to out[point * stride + lane].
struct WeightJob {
  const float* taps;
  int64_t tapStride;
  float* out;
  int64_t stride;
};
INLINE void weightLoop(const WeightJob& job) {
#pragma GCC ivdep
  for (int64_t c = 0; c < kLanes; ++c) {
    float t[4][3];
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      const float a = job.taps[j * job.tapStride + c], b = job.taps[(3 + j) * job.tapStride + c], d = job.taps[(6 + j) * job.tapStride + c];
      t[0][j] = a;
      t[1][j] = 0.5f * (a + d + b);
      t[2][j] = 0.5f * (a + d - b);
      t[3][j] = d;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const float a = t[i][0], b = t[i][1], d = t[i][2];
      job.out[4 * i * job.stride + c] = a;
      job.out[(4 * i + 1) * job.stride + c] = 0.5f * (a + d + b);
      job.out[(4 * i + 2) * job.stride + c] = 0.5f * (a + d - b);
      job.out[(4 * i + 3) * job.stride + c] = d;
    }
  }
}
struct WeightsJob {
  const float* taps;  // (9, depth, kLanes)
  int64_t depth;
  float* out;  // rows of `width` from one depth to the next
  int64_t width, stride;
};
SIMD(void, transformWeights, (const WeightsJob& job), (job)) {
  for (int64_t k = 0; k < job.depth; ++k) weightLoop({job.taps + k * kLanes, job.depth * kLanes, job.out + k * job.width, job.stride});
}

// G^T u G: u[point * stride + channel] to out[tap * count + channel].
struct BackJob {
  const float* u;
  int64_t stride, count;
  float* out;
};
INLINE void backLoop(const BackJob& job) {
  const float* u[kPoints];
  for (int64_t i = 0; i < kPoints; ++i) u[i] = job.u + i * job.stride;
#pragma GCC ivdep
  for (int64_t c = 0; c < job.count; ++c) {
    float t[3][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const float half = 0.5f * (u[4 + j][c] + u[8 + j][c]);
      t[0][j] = u[j][c] + half;
      t[1][j] = 0.5f * (u[4 + j][c] - u[8 + j][c]);
      t[2][j] = half + u[12 + j][c];
    }
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const float half = 0.5f * (t[i][1] + t[i][2]);
      job.out[3 * i * job.count + c] = t[i][0] + half;
      job.out[(3 * i + 1) * job.count + c] = 0.5f * (t[i][1] - t[i][2]);
      job.out[(3 * i + 2) * job.count + c] = half + t[i][3];
    }
  }
}
SIMD(void, transformBack, (const BackJob& job), (job)) { backLoop(job); }

// The tiles of two by two outputs of all images, in order.
struct Tiles {
  explicit Tiles(const Filter3x3& f) : f(f), rows(ceilDiv(f.oh, 2)), columns(ceilDiv(f.ow, 2)), count(f.n * rows * columns) {}
  const Filter3x3& f;
  int64_t rows, columns, count;

  // The pixels of x that a tile reads; what is outside of the image is `zeros`.
  void inputs(int64_t tile, const float* x, const float* zeros, const float** pixels) const {
    const int64_t n = tile / (rows * columns), top = tile / columns % rows * 2 - f.ph, left = tile % columns * 2 - f.pw;
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t j = 0; j < 4; ++j) {
        const bool inside = top + i >= 0 && top + i < f.h && left + j >= 0 && left + j < f.w;
        pixels[4 * i + j] = inside ? x + ((n * f.h + top + i) * f.w + left + j) * f.c : zeros;
      }
  }
  // The pixels of y that a tile is; what is outside of the image is `other`.
  template <class Pointer>
  void outputs(int64_t tile, Pointer y, Pointer other, Pointer* pixels) const {
    const int64_t n = tile / (rows * columns), top = tile / columns % rows * 2, left = tile % columns * 2;
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t j = 0; j < 2; ++j)
        pixels[2 * i + j] = top + i < f.oh && left + j < f.ow ? y + ((n * f.oh + top + i) * f.ow + left + j) * f.o : other;
  }
};

void packWeights(Panels<float>& panels, const Weight3x3& weight) {
  parallelFor(panels.count, [&](int64_t index) {
    constexpr int64_t slice = 32;
    alignas(64) float taps[9 * slice * kLanes];
    for (int64_t j0 = 0; j0 < panels.width; j0 += kLanes)
      for (int64_t k0 = 0; k0 < panels.depth; k0 += slice) {
        const int64_t first = index * panels.width + j0, depth = std::min(slice, panels.depth - k0);
        const int64_t valid = std::clamp<int64_t>(panels.columns - first, 0, kLanes);
        for (int64_t tap = 0; tap < 9; ++tap)
          copyColumns<float, kLanes>(taps + tap * depth * kLanes, kLanes,
                                     weight.data + first * weight.outStride + tap * weight.tapStride + k0 * weight.inStride, valid,
                                     weight.outStride, depth, weight.inStride);
        transformWeights({taps, depth, panels.panel(index) + k0 * panels.width + j0, panels.width, panels.depth * panels.width});
      }
  });
}

bool allowed() {
  static const bool value = [] {
    const char* text = std::getenv("DENSECL_WINOGRAD");
    return text == nullptr || std::strcmp(text, "0") != 0;
  }();
  return value;
}

}  // namespace

bool winogradPays(const Filter3x3& f) {
  const int64_t computed = 4 * ceilDiv(f.oh, 2) * ceilDiv(f.ow, 2);
  return allowed() && f.c % kLanes == 0 && f.o % kLanes == 0 && f.c >= 32 && f.o >= 32 && 2 * computed <= 3 * f.oh * f.ow;
}

std::unique_ptr<Panels<float>> winogradPanels(const Filter3x3& f, const Weight3x3& weight) {
  auto panels = std::make_unique<Panels<float>>(kPoints, f.c, f.o);
  packWeights(*panels, weight);
  return panels;
}

void winograd(const Filter3x3& f, float* y, const float* x, Panels<float>& panels, const float* bias, const ResultNorm<float>* norm) {
  const Tiles tiles(f);
  if (tiles.count == 0) return;
  const TileKernel<float>& kernel = panels.kernel;
  // The transformed tiles of a block stay in the L2 cache while panels pass.
  const int64_t fitting = std::clamp<int64_t>(int64_t{384} * 1024 / (kPoints * f.c * 4) / 12 * 12, 24, 96);
  // Where panels are few there are more blocks, of some tiles each.
  constexpr int64_t fewest = 24;
  const int64_t parts =
      std::max(ceilDiv(tiles.count, fitting), std::min(ceilDiv(kUnitsPerThread * threads(), panels.count), tiles.count / fewest));
  const Blocks blocks(tiles.count, kernel.rows, parts);
  const int64_t block = blocks.most(), groups = std::clamp<int64_t>(ceilDiv(kUnitsPerThread * threads(), blocks.count), 1, panels.count);
  const std::vector<float> zeros(f.c, 0.0f);
  parallelFor(blocks.count * groups, [&](int64_t unit) {
    const int64_t index = unit % blocks.count, first = blocks.first(index), count = blocks.rows(index), group = unit / blocks.count;
    const int64_t vPoint = block * f.c + kApart, mPoint = block * panels.width + kApart;
    UnitScratch<float> v(kPoints * vPoint), m(kPoints * mPoint), outside(panels.width);
    const float* inputs[kPoints];
    for (int64_t i = 0; i < count; ++i) {
      tiles.inputs(first + i, x, zeros.data(), inputs);
      transformInput({inputs, 0, f.c, v.data() + i * f.c, vPoint});
    }
    const float* rows[kMaxTileRows];
    float *outputs[kMaxTileRows], *pixels[4];
    const float* residual[4];
    const int32_t tap = 0;
    for (int64_t p = panels.count * group / groups; p < panels.count * (group + 1) / groups; ++p) {
      const int64_t column = p * panels.width;
      for (int64_t point = 0; point < kPoints; ++point) {
        const float* panel = panels.panel(p) + point * f.c * panels.width;
        for (int64_t i = 0; i < count; i += kernel.rows) {
          const int valid = static_cast<int>(std::min<int64_t>(kernel.rows, count - i));
          for (int r = 0; r < kernel.rows; ++r) rows[r] = v.data() + point * vPoint + (i + r) * f.c;
          for (int r = 0; r < valid; ++r) outputs[r] = m.data() + point * mPoint + (i + r) * panels.width;
          TileCall<float> call{rows, kernel.rows, 1, 1, &tap, f.c, panel, outputs, valid, static_cast<int>(panels.width), nullptr, false};
          call.fetchBehind(panels.width, i / kernel.rows, ceilDiv(count, kernel.rows), panels.end());
          kernel.run(call);
        }
      }
      const int64_t columns = std::min(panels.width, f.o - column);
      for (int64_t i = 0; i < count; ++i) {
        tiles.outputs<float*>(first + i, y + column, outside.data(), pixels);
        OutputJob job{m.data() + i * panels.width, mPoint, columns, pixels, bias == nullptr ? nullptr : bias + column};
        if (norm != nullptr) {
          job.bias = norm->shift + column;
          job.scale = norm->scale + column;
          job.relu = norm->relu;
          if (norm->residual != nullptr) {
            for (int j = 0; j < 4; ++j) residual[j] = pixels[j] == outside.data() ? outside.data() : norm->residual + (pixels[j] - norm->y);
            job.residual = residual;
          }
        }
        transformOutput(job);
      }
    }
  });
}

void winogradWeight(const Filter3x3& f, float* dw, const float* dy, const float* x) {
  const Tiles tiles(f);
  if (tiles.count == 0) {
    std::fill_n(dw, f.o * 9 * f.c, 0.0f);
    return;
  }
  const TileKernel<float>& kernel = tileKernel<float>(f.c);
  const int64_t width = kernel.columns, panels = ceilDiv(f.c, width);
  // A part of the tiles is transformed, by all threads, and then multiplied, point by point: what it adds to u needs no sums of threads.
  // Slices of it stay in the L1 cache. Rows of dy's are a cache line longer, so that those of a slice lie in different sets of it.
  constexpr int64_t slice = 64;
  const int64_t part = std::min(ceilDiv(tiles.count, slice), std::max<int64_t>(2, 512 / std::max(f.c, f.o))) * slice;
  const int64_t dyStride = f.o + kLanes;
  const int64_t vPoint = panels * part * width + kApart, dPoint = part * dyStride + kApart, uPoint = f.o * f.c + kApart;
  Scratch<float> v(kPoints * vPoint + kAheadWords<float>), d(kPoints * dPoint + kMaxTileRows), u(kPoints * uPoint);
  const std::vector<float> zeros(std::max(f.c, f.o), 0.0f);
  for (int64_t start = 0; start < tiles.count; start += part) {
    const int64_t count = std::min(part, tiles.count - start);
    parallelRange(count, 8, [&](int64_t begin, int64_t end) {
      const float *inputs[kPoints], *pixels[4];
      for (int64_t i = begin; i < end; ++i) {
        tiles.inputs(start + i, x, zeros.data(), inputs);
        for (int64_t p = 0; p < panels; ++p)
          transformInput({inputs, p * width, std::min((p + 1) * width, f.c), v.data() + (p * part + i) * width, vPoint});
        tiles.outputs<const float*>(start + i, dy, zeros.data(), pixels);
        transformGradient({pixels, f.o, d.data() + i * dyStride, dPoint});
      }
    });
    parallelFor(kPoints * panels, [&](int64_t unit) {
      const int64_t point = unit / panels, p = unit % panels, columns = std::min(width, f.c - p * width);
      for (int64_t k = 0; k < count; k += slice) {
        const float* panel = v.data() + point * vPoint + (p * part + k) * width;
        const Lines<float> lines{d.data() + point * dPoint + k * dyStride, 1, dyStride, f.o, std::min(slice, count - k)};
        multiplyLines(kernel, lines, panel, columns, u.data() + point * uPoint + p * width, f.c, start + k > 0);
      }
    });
  }
  parallelRange(f.o, 4, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) transformBack({u.data() + o * f.c, uPoint, f.c, dw + o * 9 * f.c});
  });
}

}  // namespace densecl::cpu
