#include "winograd.h"

#include <cstdlib>
#include <cstring>
#include <limits>

#include "gemm.h"

namespace densecl::cpu {
namespace {

constexpr int64_t kLanes = 16;  // channels come in multiples of them, so that no loop over channels has a tail
// What a point has lies a cache line further from the next point's than it must: at powers of two, those that are written or read together
// would drive each other out of one set of a cache.
constexpr int64_t kApart = 16;

// The transforms of a line of a tile that gives `kOutputs` pixels a side.
template <int Outputs>
struct Minimal;

// At the points 0, 1, -1 and infinity.
template <>
struct Minimal<2> {
  static constexpr int kOutputs = 2, kSide = 4, kPoints = 16;
  static INLINE void input(const float (&d)[4], float (&t)[4]) {  // B^T d
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[1] - d[3];
  }
  static INLINE void output(const float (&m)[4], float (&y)[2]) {  // A^T m
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  static INLINE void gradient(const float (&y)[2], float (&t)[4]) {  // A y
    t[0] = y[0];
    t[1] = y[0] + y[1];
    t[2] = y[0] - y[1];
    t[3] = -y[1];
  }
  static INLINE void weight(const float (&w)[3], float (&t)[4]) {  // G w
    t[0] = w[0];
    t[1] = 0.5f * (w[0] + w[2] + w[1]);
    t[2] = 0.5f * (w[0] + w[2] - w[1]);
    t[3] = w[2];
  }
  static INLINE void back(const float (&u)[4], float (&w)[3]) {  // G^T u
    const float half = 0.5f * (u[1] + u[2]);
    w[0] = u[0] + half;
    w[1] = 0.5f * (u[1] - u[2]);
    w[2] = half + u[3];
  }
};

// At 0, the roots of 1/2 and of 2, and infinity: errors are twice those of direct products, where 1, -1, 2 and -2, which are usual, have
// five times those. Numbers of the transforms lie around one, as a point's counterpart is its inverse.
template <>
struct Minimal<4> {
  static constexpr int kOutputs = 4, kSide = 6, kPoints = 36;
  static constexpr float kNear = 0.707106781f, kFar = 1.41421356f;
  static INLINE void input(const float (&d)[6], float (&t)[6]) {
    const float evenNear = d[4] - 2 * d[2], oddNear = d[3] - 2 * d[1], evenFar = d[4] - 0.5f * d[2], oddFar = d[3] - 0.5f * d[1];
    t[0] = d[0] + d[4] - 2.5f * d[2];
    t[1] = evenNear + kNear * oddNear;
    t[2] = evenNear - kNear * oddNear;
    t[3] = evenFar + kFar * oddFar;
    t[4] = evenFar - kFar * oddFar;
    t[5] = d[1] + d[5] - 2.5f * d[3];
  }
  static INLINE void output(const float (&m)[6], float (&y)[4]) {
    const float evenNear = m[1] + m[2], oddNear = m[1] - m[2], evenFar = m[3] + m[4], oddFar = m[3] - m[4];
    y[0] = m[0] + evenNear + evenFar;
    y[1] = kNear * oddNear + kFar * oddFar;
    y[2] = 0.5f * evenNear + 2 * evenFar;
    y[3] = 0.5f * kNear * oddNear + (2 * kFar * oddFar + m[5]);
  }
  static INLINE void gradient(const float (&y)[4], float (&t)[6]) {
    const float evenNear = y[0] + 0.5f * y[2], oddNear = y[1] + 0.5f * y[3], evenFar = y[0] + 2 * y[2], oddFar = y[1] + 2 * y[3];
    t[0] = y[0];
    t[1] = evenNear + kNear * oddNear;
    t[2] = evenNear - kNear * oddNear;
    t[3] = evenFar + kFar * oddFar;
    t[4] = evenFar - kFar * oddFar;
    t[5] = y[3];
  }
  static INLINE void weight(const float (&w)[3], float (&t)[6]) {
    const float evenNear = -2.0f / 3 * w[0] - 1.0f / 3 * w[2], oddNear = -2.0f / 3 * kNear * w[1];
    const float evenFar = 1.0f / 6 * w[0] + 1.0f / 3 * w[2], oddFar = 1.0f / 6 * kFar * w[1];
    t[0] = w[0];
    t[1] = evenNear + oddNear;
    t[2] = evenNear - oddNear;
    t[3] = evenFar + oddFar;
    t[4] = evenFar - oddFar;
    t[5] = w[2];
  }
  static INLINE void back(const float (&u)[6], float (&w)[3]) {
    const float evenNear = u[1] + u[2], oddNear = u[1] - u[2], evenFar = u[3] + u[4], oddFar = u[3] - u[4];
    w[0] = u[0] - 2.0f / 3 * evenNear + 1.0f / 6 * evenFar;
    w[1] = 1.0f / 6 * kFar * oddFar - 2.0f / 3 * kNear * oddNear;
    w[2] = u[5] - 1.0f / 3 * evenNear + 1.0f / 3 * evenFar;
  }
};

constexpr int kMaxPoints = Minimal<4>::kPoints, kMaxPixels = 16;

// `apply`, which makes To values of From, to a square's columns, and then to its rows: read(row, column) to write(row, column, value).
template <int From, int To, class Apply, class Read, class Write>
INLINE void bothWays(Apply apply, Read read, Write write) {
  float t[To][From];
#pragma GCC unroll 6
  for (int j = 0; j < From; ++j) {
    float in[From], out[To];
#pragma GCC unroll 6
    for (int i = 0; i < From; ++i) in[i] = read(i, j);
    apply(in, out);
#pragma GCC unroll 6
    for (int i = 0; i < To; ++i) t[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < To; ++i) {
    float out[To];
    apply(t[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < To; ++j) write(i, j, out[j]);
  }
}

// B^T x B for channels `first` to `last`: out[point * stride + channel - first]. Pixels are those of a tile.
struct InputJob {
  const float* const* pixels;
  int64_t first, last;
  float* out;
  int64_t stride;
};
template <class F>
INLINE void inputLoop(const InputJob& job) {
  constexpr int side = F::kSide;
  const int64_t count = job.last - job.first;
  const float* x[F::kPoints];
  float* out[F::kPoints];
  for (int64_t i = 0; i < F::kPoints; ++i) {
    x[i] = job.pixels[i] + job.first;
    out[i] = job.out + i * job.stride;
  }
#pragma GCC ivdep
  for (int64_t c = 0; c < count; ++c)
    bothWays<side, side>([](const float (&d)[side], float (&t)[side]) INLINE_LAMBDA { F::input(d, t); },
                         [&](int i, int j) INLINE_LAMBDA { return x[side * i + j][c]; },
                         [&](int i, int j, float value) INLINE_LAMBDA { out[side * i + j][c] = value; });
}
SIMD(void, transformInput2, (const InputJob& job), (job)) { inputLoop<Minimal<2>>(job); }
SIMD(void, transformInput4, (const InputJob& job), (job)) { inputLoop<Minimal<4>>(job); }

// A^T m A, for `count` channels of m[point * stride + channel], to the pixels of an output tile: plus bias, or normalised.
struct OutputJob {
  const float* m;
  int64_t stride, count;
  float* const* pixels;
  const float* bias;                       // or null
  const float* scale = nullptr;            // of a norm, whose shift is the bias; or null
  const float* const* residual = nullptr;  // of the norm, at the tile's pixels; or null
  bool relu = false;
};
template <class F, bool Biased, bool Norms, bool Adds>
INLINE void outputLoop(const OutputJob& job) {
  constexpr int side = F::kSide, outputs = F::kOutputs;
  const float* m[F::kPoints];
  for (int64_t i = 0; i < F::kPoints; ++i) m[i] = job.m + i * job.stride;
  const float low = job.relu ? 0 : -std::numeric_limits<float>::infinity();
#pragma GCC ivdep
  for (int64_t c = 0; c < job.count; ++c)
    bothWays<side, outputs>([](const float (&in)[side], float (&out)[outputs]) INLINE_LAMBDA { F::output(in, out); },
                            [&](int i, int j) INLINE_LAMBDA { return m[side * i + j][c]; },
                            [&](int i, int j, float y) INLINE_LAMBDA {
                              const int pixel = outputs * i + j;
                              if (Norms) y *= job.scale[c];
                              if (Biased) y += job.bias[c];
                              if (Adds) y += job.residual[pixel][c];
                              job.pixels[pixel][c] = Norms && y < low ? low : y;
                            });
}
template <class F>
INLINE void outputOf(const OutputJob& job) {
  if (job.residual != nullptr) return outputLoop<F, true, true, true>(job);
  if (job.scale != nullptr) return outputLoop<F, true, true, false>(job);
  job.bias != nullptr ? outputLoop<F, true, false, false>(job) : outputLoop<F, false, false, false>(job);
}
SIMD(void, transformOutput2, (const OutputJob& job), (job)) { outputOf<Minimal<2>>(job); }
SIMD(void, transformOutput4, (const OutputJob& job), (job)) { outputOf<Minimal<4>>(job); }

// A dy A^T: out[point * stride + channel]. Pixels are those of an output tile.
struct GradientJob {
  const float* const* pixels;
  int64_t count;
  float* out;
  int64_t stride;
};
template <class F>
INLINE void gradientLoop(const GradientJob& job) {
  constexpr int side = F::kSide, outputs = F::kOutputs;
  float* out[F::kPoints];
  for (int64_t i = 0; i < F::kPoints; ++i) out[i] = job.out + i * job.stride;
#pragma GCC ivdep
  for (int64_t c = 0; c < job.count; ++c)
    bothWays<outputs, side>([](const float (&y)[outputs], float (&t)[side]) INLINE_LAMBDA { F::gradient(y, t); },
                            [&](int i, int j) INLINE_LAMBDA { return job.pixels[outputs * i + j][c]; },
                            [&](int i, int j, float value) INLINE_LAMBDA { out[side * i + j][c] = value; });
}
SIMD(void, transformGradient2, (const GradientJob& job), (job)) { gradientLoop<Minimal<2>>(job); }
SIMD(void, transformGradient4, (const GradientJob& job), (job)) { gradientLoop<Minimal<4>>(job); }

// G w G^T of kLanes columns: taps[tap * depth * kLanes + lane] to rows of `width` from one depth to the next, out[point * stride + lane].
struct WeightsJob {
  const float* taps;  // (9, depth, kLanes)
  int64_t depth;
  float* out;
  int64_t width, stride;
};
template <class F>
INLINE void weightsLoop(const WeightsJob& job) {
  constexpr int side = F::kSide;
  const int64_t apart = job.depth * kLanes;
  for (int64_t k = 0; k < job.depth; ++k) {
    const float* taps = job.taps + k * kLanes;
    float* out = job.out + k * job.width;
#pragma GCC ivdep
    for (int64_t c = 0; c < kLanes; ++c)
      bothWays<3, side>([](const float (&w)[3], float (&t)[side]) INLINE_LAMBDA { F::weight(w, t); },
                        [&](int i, int j) INLINE_LAMBDA { return taps[(3 * i + j) * apart + c]; },
                        [&](int i, int j, float value) INLINE_LAMBDA { out[(side * i + j) * job.stride + c] = value; });
  }
}
SIMD(void, transformWeights2, (const WeightsJob& job), (job)) { weightsLoop<Minimal<2>>(job); }
SIMD(void, transformWeights4, (const WeightsJob& job), (job)) { weightsLoop<Minimal<4>>(job); }

// G^T u G: u[point * stride + channel] to out[tap * count + channel].
struct BackJob {
  const float* u;
  int64_t stride, count;
  float* out;
};
template <class F>
INLINE void backLoop(const BackJob& job) {
  constexpr int side = F::kSide;
  const float* u[F::kPoints];
  for (int64_t i = 0; i < F::kPoints; ++i) u[i] = job.u + i * job.stride;
#pragma GCC ivdep
  for (int64_t c = 0; c < job.count; ++c)
    bothWays<side, 3>([](const float (&in)[side], float (&w)[3]) INLINE_LAMBDA { F::back(in, w); },
                      [&](int i, int j) INLINE_LAMBDA { return u[side * i + j][c]; },
                      [&](int i, int j, float value) INLINE_LAMBDA { job.out[(3 * i + j) * job.count + c] = value; });
}
SIMD(void, transformBack2, (const BackJob& job), (job)) { backLoop<Minimal<2>>(job); }
SIMD(void, transformBack4, (const BackJob& job), (job)) { backLoop<Minimal<4>>(job); }

// The transforms of tiles of so many outputs a side.
struct Transforms {
  int64_t outputs, side, points;
  void (*input)(const InputJob&);
  void (*output)(const OutputJob&);
  void (*gradient)(const GradientJob&);
  void (*weights)(const WeightsJob&);
  void (*back)(const BackJob&);
};
const Transforms& transforms(int64_t outputs) {
  static const Transforms two{2, 4, 16, transformInput2, transformOutput2, transformGradient2, transformWeights2, transformBack2},
      four{4, 6, 36, transformInput4, transformOutput4, transformGradient4, transformWeights4, transformBack4};
  return outputs == 2 ? two : four;
}

// The tiles of outputs of all images, in order.
struct Tiles {
  Tiles(const Filter3x3& f, const Transforms& by)
      : f(f),
        side(by.side),
        outputsASide(by.outputs),
        rows(ceilDiv(f.oh, by.outputs)),
        columns(ceilDiv(f.ow, by.outputs)),
        count(f.n * rows * columns) {}
  const Filter3x3& f;
  int64_t side, outputsASide, rows, columns, count;

  // The pixels of x that a tile reads; what is outside of the image is `zeros`.
  void inputs(int64_t tile, const float* x, const float* zeros, const float** pixels) const {
    const int64_t n = tile / (rows * columns), top = tile / columns % rows * outputsASide - f.ph,
                  left = tile % columns * outputsASide - f.pw;
    for (int64_t i = 0; i < side; ++i)
      for (int64_t j = 0; j < side; ++j) {
        const bool inside = top + i >= 0 && top + i < f.h && left + j >= 0 && left + j < f.w;
        *pixels++ = inside ? x + ((n * f.h + top + i) * f.w + left + j) * f.c : zeros;
      }
  }
  // The pixels of y that a tile is; what is outside of the image is `other`.
  template <class Pointer>
  void outputs(int64_t tile, Pointer y, Pointer other, Pointer* pixels) const {
    const int64_t n = tile / (rows * columns), top = tile / columns % rows * outputsASide, left = tile % columns * outputsASide;
    for (int64_t i = 0; i < outputsASide; ++i)
      for (int64_t j = 0; j < outputsASide; ++j)
        *pixels++ = top + i < f.oh && left + j < f.ow ? y + ((n * f.oh + top + i) * f.ow + left + j) * f.o : other;
  }
};

void packWeights(Panels<float>& panels, const Transforms& by, const Weight3x3& weight) {
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
        by.weights({taps, depth, panels.panel(index) + k0 * panels.width + j0, panels.width, panels.depth * panels.width});
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

int64_t winogradOutputs(const Filter3x3& f) {
  if (!allowed() || f.c % kLanes != 0 || f.o % kLanes != 0 || f.c < 32 || f.o < 32) return 0;
  // Beyond these weights, the 36 points of 9 would pass from memory and take much of it, for maps that are small as a rule.
  constexpr int64_t mostWeights = 256 * 256, fewestTiles = 4;
  const auto tiles = [&](int64_t outputs) { return ceilDiv(f.oh, outputs) * ceilDiv(f.ow, outputs); };
  const int64_t byTwo = Minimal<2>::kPoints * tiles(2), byFour = Minimal<4>::kPoints * tiles(4);
  const bool four = byFour < byTwo && tiles(4) >= fewestTiles && f.c * f.o <= mostWeights;
  // Two thirds of what direct products do, nine for an output.
  return (four ? byFour : byTwo) > 6 * f.oh * f.ow ? 0 : four ? 4 : 2;
}

int64_t winogradPoints(int64_t outputs) { return transforms(outputs).points; }

std::unique_ptr<Panels<float>> winogradPanels(const Filter3x3& f, const Weight3x3& weight, Life life) {
  const Transforms& by = transforms(winogradOutputs(f));
  auto panels = std::make_unique<Panels<float>>(by.points, f.c, f.o, life);
  packWeights(*panels, by, weight);
  return panels;
}

void winograd(const Filter3x3& f, float* y, const float* x, Panels<float>& panels, const float* bias, const ResultNorm<float>* norm) {
  const Transforms& by = transforms(winogradOutputs(f));
  const Tiles tiles(f, by);
  if (tiles.count == 0) return;
  const TileKernel<float>& kernel = panels.kernel;
  // The transformed tiles of a block stay in the L2 cache while panels pass.
  const int64_t fitting = std::clamp<int64_t>(int64_t{384} * 1024 / (by.points * f.c * 4) / 12 * 12, 24, 96);
  // Where panels are few there are more blocks, of some tiles each.
  constexpr int64_t fewest = 24;
  const int64_t parts =
      std::max(ceilDiv(tiles.count, fitting), std::min(ceilDiv(kUnitsPerThread * threads(), panels.count), tiles.count / fewest));
  const Blocks blocks(tiles.count, kernel.rows, parts);
  const int64_t block = blocks.most(), groups = std::clamp<int64_t>(ceilDiv(kUnitsPerThread * threads(), blocks.count), 1, panels.count);
  const std::vector<float> zeros(f.c, 0.0f);
  const int64_t vPoint = block * f.c + kApart, mPoint = block * panels.width + kApart;
  const auto transformInputs = [&](int64_t first, int64_t begin, int64_t end, float* v) {
    const float* inputs[kMaxPoints];
    for (int64_t i = begin; i < end; ++i) {
      tiles.inputs(first + i, x, zeros.data(), inputs);
      by.input({inputs, 0, f.c, v + i * f.c, vPoint});
    }
  };
  // Blocks that several units have are transformed for all of them.
  Scratch<float> shared(groups > 1 ? blocks.count * by.points * vPoint : 0);
  if (groups > 1)
    parallelRange(blocks.count * block, 4, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end;) {
        const int64_t index = at / block, until = std::min(end, (index + 1) * block);
        transformInputs(blocks.first(index), at - index * block, std::min(until - index * block, blocks.rows(index)),
                        shared.data() + index * by.points * vPoint);
        at = until;
      }
    });
  parallelFor(blocks.count * groups, [&](int64_t unit) {
    const int64_t index = unit % blocks.count, first = blocks.first(index), count = blocks.rows(index), group = unit / blocks.count;
    UnitScratch<float> own(groups > 1 ? 0 : by.points * vPoint), m(by.points * mPoint), outside(panels.width);
    float* const v = groups > 1 ? shared.data() + index * by.points * vPoint : own.data();
    if (groups == 1) transformInputs(first, 0, count, v);
    // Of the first point.
    std::vector<const float*> rows(ceilDiv(count, kernel.rows) * kernel.rows);
    std::vector<float*> sums(count);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = v + i * f.c;
    for (int64_t i = 0; i < count; ++i) sums[i] = m.data() + i * panels.width;
    float* pixels[kMaxPixels];
    const float* residual[kMaxPixels];
    const int32_t tap = 0;
    for (int64_t p = panels.count * group / groups; p < panels.count * (group + 1) / groups; ++p) {
      const int64_t column = p * panels.width;
      for (int64_t point = 0; point < by.points; ++point) {
        const float* panel = panels.panel(p) + point * f.c * panels.width;
        TileCall<float> call{rows.data(), 0, 1, 1, &tap, f.c, panel, sums.data(), count, static_cast<int>(panels.width), nullptr, false};
        call.rowShift = point * vPoint;
        call.outShift = point * mPoint;
        call.fetchBehind(panels.width, 0, ceilDiv(count, kernel.rows), panels.end());
        kernel.run(call);
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
            for (int64_t j = 0; j < by.outputs * by.outputs; ++j)
              residual[j] = pixels[j] == outside.data() ? outside.data() : norm->residual + (pixels[j] - norm->y);
            job.residual = residual;
          }
        }
        by.output(job);
      }
    }
  });
}

void winogradWeight(const Filter3x3& f, float* dw, const float* dy, const float* x) {
  const Transforms& by = transforms(winogradOutputs(f));
  const Tiles tiles(f, by);
  if (tiles.count == 0) {
    std::fill_n(dw, f.o * 9 * f.c, 0.0f);
    return;
  }
  const TileKernel<float>& kernel = tileKernel<float>(f.c);
  const int64_t width = kernel.columns, panels = ceilDiv(f.c, width);
  // A part of the tiles is transformed, by all threads, and then multiplied, point by point: what it adds to u needs no sums of threads.
  // Slices of it stay in the L1 cache. Rows of dy's are a cache line longer, so that those of a slice lie in different sets of it.
  constexpr int64_t slice = 64;
  const int64_t part = std::min(ceilDiv(tiles.count, slice), std::max<int64_t>(2, 8192 / by.points / std::max(f.c, f.o))) * slice;
  const int64_t dyStride = f.o + kLanes;
  const int64_t vPoint = panels * part * width + kApart, dPoint = part * dyStride + kApart, uPoint = f.o * f.c + kApart;
  Scratch<float> v(by.points * vPoint + kAheadWords<float>), d(by.points * dPoint + kMaxTileRows), u(by.points * uPoint);
  const std::vector<float> zeros(std::max(f.c, f.o), 0.0f);
  for (int64_t start = 0; start < tiles.count; start += part) {
    const int64_t count = std::min(part, tiles.count - start);
    parallelRange(count, 8, [&](int64_t begin, int64_t end) {
      const float *inputs[kMaxPoints], *pixels[kMaxPixels];
      for (int64_t i = begin; i < end; ++i) {
        tiles.inputs(start + i, x, zeros.data(), inputs);
        for (int64_t p = 0; p < panels; ++p)
          by.input({inputs, p * width, std::min((p + 1) * width, f.c), v.data() + (p * part + i) * width, vPoint});
        tiles.outputs<const float*>(start + i, dy, zeros.data(), pixels);
        by.gradient({pixels, f.o, d.data() + i * dyStride, dPoint});
      }
    });
    parallelFor(by.points * panels, [&](int64_t unit) {
      const int64_t point = unit / panels, p = unit % panels, columns = std::min(width, f.c - p * width);
      for (int64_t k = 0; k < count; k += slice) {
        const float* panel = v.data() + point * vPoint + (p * part + k) * width;
        const Lines<float> lines{d.data() + point * dPoint + k * dyStride, 1, dyStride, f.o, std::min(slice, count - k)};
        multiplyLines(kernel, lines, panel, columns, u.data() + point * uPoint + p * width, f.c, start + k > 0);
      }
    });
  }
  parallelRange(f.o, 4, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) by.back({u.data() + o * f.c, uPoint, f.c, dw + o * 9 * f.c});
  });
}

}  // namespace densecl::cpu
