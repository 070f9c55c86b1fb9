#include "winograd.h"

#include <cstdlib>
#include <cstring>
#include <limits>

#include "gemm.h"
#include "winogradTransforms.h"

namespace densecl::cpu {
namespace {

// What a point has lies a cache line further from the next point's than it must: at powers of two, those that are written or read together
// would drive each other out of one set of a cache.
constexpr int64_t kApart = 16;

// Tiles of so many outputs that a length is made of, of every `apart` pixels.
int64_t tilesAlong(int64_t length, int64_t apart, int64_t outputs) { return ceilDiv(ceilDiv(length, apart), outputs); }

// The tiles of outputs of all images, in order.
struct Tiles {
  Tiles(const Filter3x3& f, const TileSize& by)
      : f(f),
        side(by.side),
        outputsASide(by.outputs),
        rows(tilesAlong(f.oh, f.dh, by.outputs)),
        columns(tilesAlong(f.ow, f.dw, by.outputs)),
        count(f.n * f.dh * rows * f.dw * columns) {}
  const Filter3x3& f;
  int64_t side, outputsASide, rows, columns, count;

  // The image and the first output of a tile, of which the others are dh rows and dw columns apart.
  struct Place {
    int64_t n, top, left;
  };
  Place place(int64_t tile) const {
    const int64_t line = tile / (f.dw * columns), row = line % (f.dh * rows), column = tile % (f.dw * columns);
    return {line / (f.dh * rows), row % rows * outputsASide * f.dh + row / rows, column % columns * outputsASide * f.dw + column / columns};
  }

  // The pixels of x that a tile reads; what is outside of the image is `zeros`.
  template <class S>
  void inputs(int64_t tile, const S* x, const S* zeros, const S** pixels) const {
    const auto [n, top, left] = place(tile);
    for (int64_t i = 0; i < side; ++i)
      for (int64_t j = 0; j < side; ++j) {
        const int64_t row = top - f.ph + i * f.dh, column = left - f.pw + j * f.dw;
        const bool inside = row >= 0 && row < f.h && column >= 0 && column < f.w;
        *pixels++ = inside ? x + ((n * f.h + row) * f.w + column) * f.c : zeros;
      }
  }
  // The pixels of y that a tile is; what is outside of the image is `other`.
  template <class Pointer>
  void outputs(int64_t tile, Pointer y, Pointer other, Pointer* pixels) const {
    const auto [n, top, left] = place(tile);
    for (int64_t i = 0; i < outputsASide; ++i)
      for (int64_t j = 0; j < outputsASide; ++j) {
        const int64_t row = top + i * f.dh, column = left + j * f.dw;
        *pixels++ = row < f.oh && column < f.ow ? y + ((n * f.oh + row) * f.ow + column) * f.o : other;
      }
  }
};

template <class S>
void packWeights(Panels<float>& panels, const Transforms<S>& by, const Weight3x3<S>& weight) {
  parallelFor(panels.count, [&](int64_t index) {
    constexpr int64_t slice = 32;
    alignas(64) float taps[9 * slice * kWinogradLanes];
    for (int64_t j0 = 0; j0 < panels.width; j0 += kWinogradLanes)
      for (int64_t k0 = 0; k0 < panels.depth; k0 += slice) {
        const int64_t first = index * panels.width + j0, depth = std::min(slice, panels.depth - k0);
        const int64_t valid = std::clamp<int64_t>(panels.columns - first, 0, kWinogradLanes);
        for (int64_t tap = 0; tap < 9; ++tap)
          copyColumns<float, kWinogradLanes>(taps + tap * depth * kWinogradLanes, kWinogradLanes,
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

int64_t outputsOf(const Filter3x3& f) {
  if (!allowed() || f.c % kWinogradLanes != 0 || f.o % kWinogradLanes != 0 || f.c < 32 || f.o < 32) return 0;
  // Beyond these weights the 36 points of 9 pass from memory and take much of it, which only maps of many tiles are worth.
  constexpr int64_t mostWeights = 256 * 256, fewestTiles = 4, manyTiles = 64;
  const auto tiles = [&](int64_t outputs) { return f.dh * tilesAlong(f.oh, f.dh, outputs) * f.dw * tilesAlong(f.ow, f.dw, outputs); };
  const int64_t byTwo = winogradPoints(2) * tiles(2), byFour = winogradPoints(4) * tiles(4);
  const bool four = byFour < byTwo && tiles(4) >= fewestTiles && (f.c * f.o <= mostWeights || tiles(4) >= manyTiles);
  // Two thirds of what direct products do, nine for an output.
  return (four ? byFour : byTwo) > 6 * f.oh * f.ow ? 0 : four ? 4 : 2;
}

}  // namespace

Filter3x3::Filter3x3(int64_t n, int64_t h, int64_t w, int64_t c, int64_t oh, int64_t ow, int64_t o, int64_t ph, int64_t pw, int64_t dh,
                     int64_t dw)
    : n(n), h(h), w(w), c(c), oh(oh), ow(ow), o(o), ph(ph), pw(pw), dh(dh), dw(dw), outputs(outputsOf(*this)) {}

int64_t winogradPoints(int64_t outputs) { return transforms<float>(outputs).points; }

template <class S>
std::unique_ptr<Panels<float>> winogradPanels(const Filter3x3& f, const Weight3x3<S>& weight, Life life) {
  const Transforms<S>& by = transforms<S>(f.outputs);
  auto panels = std::make_unique<Panels<float>>(by.points, f.c, f.o, life);
  packWeights(*panels, by, weight);
  return panels;
}

template <class S>
void winograd(const Filter3x3& f, S* y, const S* x, Panels<float>& panels, const float* bias, const ResultNorm<S>* norm) {
  const Transforms<S>& by = transforms<S>(f.outputs);
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
  const std::vector<S> zeros(f.c, S{0});
  const int64_t vPoint = block * f.c + kApart, mPoint = block * panels.width + kApart;
  const auto transformInputs = [&](int64_t first, int64_t begin, int64_t end, float* v) {
    const S* inputs[kMaxPoints];
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
    UnitScratch<float> own(groups > 1 ? 0 : by.points * vPoint), m(by.points * mPoint);
    UnitScratch<S> outside(panels.width);
    float* const v = groups > 1 ? shared.data() + index * by.points * vPoint : own.data();
    if (groups == 1) transformInputs(first, 0, count, v);
    // Of the first point.
    std::vector<const float*> rows(ceilDiv(count, kernel.rows) * kernel.rows);
    std::vector<float*> sums(count);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = v + i * f.c;
    for (int64_t i = 0; i < count; ++i) sums[i] = m.data() + i * panels.width;
    S* pixels[kMaxPixels];
    const S* residual[kMaxPixels];
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
        tiles.outputs<S*>(first + i, y + column, outside.data(), pixels);
        OutputJob<S> job{m.data() + i * panels.width, mPoint, columns, pixels, bias == nullptr ? nullptr : bias + column};
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

template <class S>
void winogradWeight(const Filter3x3& f, float* dw, const S* dy, const S* x) {
  const Transforms<S>& by = transforms<S>(f.outputs);
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
  const int64_t dyStride = f.o + kWinogradLanes;
  const int64_t vPoint = panels * part * width + kApart, dPoint = part * dyStride + kApart, uPoint = f.o * f.c + kApart;
  Scratch<float> v(by.points * vPoint + kAheadWords<float>), d(by.points * dPoint + kMaxTileRows), u(by.points * uPoint);
  const std::vector<S> zeros(std::max(f.c, f.o), S{0});
  for (int64_t start = 0; start < tiles.count; start += part) {
    const int64_t count = std::min(part, tiles.count - start);
    parallelRange(count, 8, [&](int64_t begin, int64_t end) {
      const S *inputs[kMaxPoints], *pixels[kMaxPixels];
      for (int64_t i = begin; i < end; ++i) {
        tiles.inputs(start + i, x, zeros.data(), inputs);
        for (int64_t p = 0; p < panels; ++p)
          by.input({inputs, p * width, std::min((p + 1) * width, f.c), v.data() + (p * part + i) * width, vPoint});
        tiles.outputs<const S*>(start + i, dy, zeros.data(), pixels);
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

#define INSTANCES(S)                                                                                          \
  template std::unique_ptr<Panels<float>> winogradPanels(const Filter3x3&, const Weight3x3<S>&, Life);        \
  template void winograd(const Filter3x3&, S*, const S*, Panels<float>&, const float*, const ResultNorm<S>*); \
  template void winogradWeight(const Filter3x3&, float*, const S*, const S*);
INSTANCES(float)
INSTANCES(bf16)

}  // namespace densecl::cpu
