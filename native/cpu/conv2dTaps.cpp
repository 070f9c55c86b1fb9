#include "conv2dTaps.h"
#include "../core/scratch.h"

#include <vector>

#include "gradientRows.h"
#include "widen.h"

namespace densecl::cpu {
namespace {

// The pixels that a tap connects, of one image.
struct Link {
  int64_t x, y;
};
std::vector<Link> linksOf(const ConvGeometry& g, int64_t tap) {
  std::vector<Link> links;
  for (int64_t oh = 0; oh < g.oh; ++oh)
    for (int64_t ow = 0; ow < g.ow; ++ow) {
      const int64_t ih = oh * g.sh - g.ph + tap / g.kw * g.dh, iw = ow * g.sw - g.pw + tap % g.kw * g.dw;
      if (ih >= 0 && ih < g.h && iw >= 0 && iw < g.w) links.push_back({ih * g.w + iw, oh * g.ow + ow});
    }
  return links;
}

// How many of `count` coordinates of an output a tap finds inside, for all taps of an axis.
int64_t insideAlong(int64_t count, int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  int64_t inside = 0;
  for (int64_t k = 0; k < kernel; ++k)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = i * stride - padding + k * dilation;
      inside += at >= 0 && at < size;
    }
  return inside;
}

void storeSums(float* out, const float* sums, int64_t count) { std::copy_n(sums, count, out); }
void storeSums(double* out, const double* sums, int64_t count) { std::copy_n(sums, count, out); }
void storeSums(bf16* out, const float* sums, int64_t count) { narrow(out, sums, count); }

// One side of a convolution: a map of each image.
struct Side {
  int64_t pixels, channels;
  int64_t Link::* pixel;
};

// T is what is multiplied, S what is stored: out[pixel, j] = bias[j] + sum over taps, the pixels that they connect it with and k of
//   in[connected, k] * weight[j * columnStride + tap * g.c + k * depthStride]
template <class T, class S>
void multiplyByTaps(const ConvGeometry& g, const Side& to, S* out, const Side& from, const S* stored, const S* weight, int64_t columnStride,
                    int64_t depthStride, const Accumulator<S>* bias) {
  using A = Accumulator<T>;
  const As<T, S> factors(stored, g.n * from.pixels * from.channels);
  const T* in = factors.data();
  const TileKernel<T, A>& kernel = tileKernel<T, A>(to.channels);
  std::vector<std::vector<Link>> links;
  for (int64_t tap = 0; tap < g.taps(); ++tap) links.push_back(linksOf(g, tap));
  // A unit has some images or a part of one: so many rows that packing a tap's weights is little beside multiplying them, and no more than
  // those whose sums stay in the L2 cache. Between the two a large image has as many parts as give all threads work.
  constexpr int64_t kRows = 512, kMostRows = 2048;
  const int64_t images = std::max<int64_t>(1, kRows / to.pixels), panels = ceilDiv(to.channels, kernel.columns);
  const int64_t whole = ceilDiv(g.n, images) * panels;
  const int64_t parts =
      std::clamp(ceilDiv(threads(), std::max<int64_t>(1, whole)), ceilDiv(to.pixels, kMostRows), ceilDiv(to.pixels, kRows));
  const int64_t blocks = ceilDiv(g.n, images) * parts;
  parallelFor(panels * blocks, [&](int64_t unit) {
    const int64_t column = unit / blocks * kernel.columns, columns = std::min<int64_t>(kernel.columns, to.channels - column);
    const int64_t firstImage = unit % blocks / parts * images, count = std::min(images, g.n - firstImage), part = unit % parts;
    const int64_t first = to.pixels * part / parts, pixels = to.pixels * (part + 1) / parts - first, rows = count * pixels;
    const TileRegisters registers(kernel);
    Panels<T> slab(1, from.channels, kernel.columns);
    slab.columns = columns;
    UnitScratch<A> sums(rows * kernel.columns);
    std::fill_n(sums.data(), rows * kernel.columns, A{0});
    if (bias != nullptr)
      for (int64_t i = 0; i < rows; ++i) std::copy_n(bias + column, columns, sums.data() + i * kernel.columns);
    std::vector<const T*> table;
    std::vector<A*> outputs;
    const int32_t only = 0;
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      table.clear();
      outputs.clear();
      // Image after image of one link, whose rows are evenly spaced.
      for (const Link& link : links[tap]) {
        const int64_t pixel = link.*to.pixel - first;
        if (pixel < 0 || pixel >= pixels) continue;
        for (int64_t n = 0; n < count; ++n) {
          table.push_back(in + ((firstImage + n) * from.pixels + link.*from.pixel) * from.channels);
          outputs.push_back(sums.data() + (n * pixels + pixel) * kernel.columns);
        }
      }
      if (table.empty()) continue;
      const int64_t valid = static_cast<int64_t>(table.size());
      table.resize(ceilDiv(valid, kernel.rows) * kernel.rows, table.back());
      packPanel(slab, 0, weight + column * columnStride + tap * g.c, columnStride, 0, depthStride);
      const auto copies = copyUneven(slab, table, static_cast<int64_t>(table.size()), valid);
      kernel.run({table.data(), 0, 1, 1, &only, slab.depth, slab.panel(0), outputs.data(), valid, kernel.columns, nullptr, true});
    }
    S* result = out + (firstImage * to.pixels + first) * to.channels + column;
    for (int64_t i = 0; i < rows; ++i) storeSums(result + i * to.channels, sums.data() + i * kernel.columns, columns);
  });
}

}  // namespace

bool tapsPay(const ConvGeometry& g) {
  const int64_t inside = insideAlong(g.oh, g.h, g.kh, g.sh, g.ph, g.dh) * insideAlong(g.ow, g.w, g.kw, g.sw, g.pw, g.dw);
  return g.taps() > 1 && !g.mergeRow() && 10 * inside < 7 * g.oh * g.ow * g.taps();
}

template <class T, class S>
void forwardByTaps(const ConvGeometry& g, S* y, const S* x, const S* weight, const Accumulator<S>* bias) {
  multiplyByTaps<T, S>(g, {g.oh * g.ow, g.o, &Link::y}, y, {g.h * g.w, g.c, &Link::x}, x, weight, g.taps() * g.c, 1, bias);
}

template <class T, class S>
void backwardInputByTaps(const ConvGeometry& g, S* dx, const S* dy, const S* weight) {
  multiplyByTaps<T, S>(g, {g.h * g.w, g.c, &Link::x}, dx, {g.oh * g.ow, g.o, &Link::y}, dy, weight, 1, g.taps() * g.c, nullptr);
}

// dw[o, tap, c] = sum over the pixels that the tap connects of dy[connected, o] * x[pixel, c]. A unit is a tap and some channels of dy.
template <class T, class S>
void backwardWeightByTaps(const ConvGeometry& g, Accumulator<S>* dw, const S* dy, const S* x) {
  using A = Accumulator<T>;
  const TileKernel<T, A>& kernel = tileKernel<T, A>(g.c);
  // Rows of so many pixels and channels stay in the L2 cache.
  constexpr int64_t block = 256, words = block / kWordValues<T>, channels = 128;
  const int64_t parts = ceilDiv(g.o, channels);
  parallelFor(g.taps() * parts, [&](int64_t unit) {
    const int64_t tap = unit % g.taps(), first = unit / g.taps() * channels, own = std::min(channels, g.o - first);
    const std::vector<Link> links = linksOf(g, tap);
    const int64_t pixels = static_cast<int64_t>(links.size()) * g.n, rowLength = g.taps() * g.c;
    A* target = dw + first * rowLength + tap * g.c;
    if (pixels == 0)
      for (int64_t o = 0; o < own; ++o) std::fill_n(target + o * rowLength, g.c, A{0});
    const TileRegisters registers(kernel);
    GradientRows<T, S> rows(kernel, own, words);
    UnitScratch<Word<T>> panel(words * kernel.columns + kAheadWords<T>);
    std::vector<const S*> ours, theirs;
    for (int64_t begin = 0; begin < pixels; begin += block) {
      const int64_t count = std::min(block, pixels - begin), valid = ceilDiv(count, kWordValues<T>);
      ours.resize(count);
      theirs.assign(valid * kWordValues<T>, kZeros<S>);
      for (int64_t i = 0; i < count; ++i) {
        const Link& link = links[(begin + i) / g.n];
        const int64_t n = (begin + i) % g.n;
        ours[i] = dy + (n * g.oh * g.ow + link.y) * g.o + first;
        theirs[i] = x + (n * g.h * g.w + link.x) * g.c;
      }
      rows.read(ours);
      for (int64_t column = 0; column < g.c; column += kernel.columns) {
        const int64_t width = std::min<int64_t>(kernel.columns, g.c - column);
        copyRows(panel.data(), kernel.columns, theirs.data(), valid, width);
        for (int64_t k = 0; k < valid; ++k)
          std::fill(panel.data() + k * kernel.columns + width, panel.data() + (k + 1) * kernel.columns, Word<T>{0});
        std::fill(panel.data() + valid * kernel.columns, panel.data() + rows.depth() * kernel.columns, Word<T>{0});
        for (int64_t i = 0; i < count; ++i) theirs[i] += width;
        rows.multiply(panel.data(), width, target + column, rowLength, begin > 0);
      }
    }
  });
}

#define INSTANCES(T, S)                                                                                  \
  template void forwardByTaps<T, S>(const ConvGeometry&, S*, const S*, const S*, const Accumulator<S>*); \
  template void backwardInputByTaps<T, S>(const ConvGeometry&, S*, const S*, const S*);                  \
  template void backwardWeightByTaps<T, S>(const ConvGeometry&, Accumulator<S>*, const S*, const S*);
INSTANCES(float, float)
INSTANCES(double, double)
INSTANCES(bf16, bf16)
INSTANCES(float, bf16)

}  // namespace densecl::cpu
