// The weight gradient of conv2d:
//   dw[o, kh, kw, c] = sum over n, oh, ow of dy[n, oh, ow, o] * x[n, oh*sh - ph + kh*dh, ow*sw - pw + kw*dw, c]
#include <vector>

#include "../core/scratch.h"
#include "conv2d.h"
#include "conv2dTaps.h"
#include "gradientRows.h"

namespace densecl::cpu {
namespace {

// Columns j = (kh, kw, c) of the matrix of windows, which is not made (im2col), copied into a panel for a block of pixels. T is what is
// multiplied, S what x is stored as.
template <class T, class S>
class ColumnReader {
 public:
  // Where a pixel's window begins.
  struct Place {
    int64_t top, left;
    const S* base;
  };
  // Of a convolution that merges rows, `windows` (pixels, taps, channels) is written first, and places lie there.
  static void placesOf(const ConvGeometry& g, const S* x, int64_t first, int64_t pixels, S* windows, std::vector<Place>& places) {
    places.clear();
    const int64_t length = g.taps() * g.c;
    if (g.mergeRow()) {
      copyWindows(g, x, first, pixels, windows, length);
      for (int64_t i = 0; i < pixels; ++i) places.push_back({0, 0, windows + i * length});
      return;
    }
    Walk at(first, g.oh, g.ow);
    for (int64_t i = 0; i < pixels; ++i, at.next()) {
      const int64_t top = at.y * g.sh - g.ph, left = at.x * g.sw - g.pw;
      places.push_back({top, left, x + ((at.n * g.h + top) * g.w + left) * g.c});
    }
  }

  // Columns first.. of a panel of `width`; what lies behind the last column is zero.
  ColumnReader(const ConvGeometry& g, int64_t first, int64_t width) : g_(g), width_(width) {
    const int64_t last = std::min(first + width, g.taps() * g.c);
    if (g.mergeRow())
      runs_.push_back({0, 0, first, last - first});
    else
      for (int64_t j = first; j < last;) {
        const int64_t tap = j / g.c, channel = j % g.c, row = tap / g.kw * g.dh, column = tap % g.kw * g.dw;
        const int64_t length = std::min(g.c - channel, last - j);
        runs_.push_back({row, column, (row * g.w + column) * g.c + channel, length});
        j += length;
      }
    zeros_ = width - std::max<int64_t>(last - first, 0);
  }

  // panel (words of pixels, width) of the pixels whose windows begin at `places`
  void read(const std::vector<Place>& places, std::vector<const S*>& sources, Word<T>* panel) const {
    const int64_t words = ceilDiv(static_cast<int64_t>(places.size()), kWordValues<T>);
    sources.resize(words * kWordValues<T>);
    sources.back() = kZeros<S>;  // the last pixel may have no partner
    for (const Run& run : runs_) {
      for (size_t i = 0; i < places.size(); ++i) {
        const int64_t row = places[i].top + run.row, column = places[i].left + run.column;
        sources[i] = row >= 0 && row < g_.h && column >= 0 && column < g_.w ? places[i].base + run.offset : kZeros<S>;
      }
      copyRows(panel, width_, sources.data(), words, run.length);
      panel += run.length;
    }
    if (zeros_ > 0)
      for (int64_t k = 0; k < words; ++k) std::fill_n(panel + k * width_, zeros_, Word<T>{0});
  }

 private:
  // Channels of one tap, which lie side by side.
  struct Run {
    int64_t row, column, offset, length;
  };

  const ConvGeometry& g_;
  int64_t width_, zeros_;
  std::vector<Run> runs_;
};

// Words of pixels in a block, of which there are `all`: a panel of them stays in the L1 cache, their rows of so many channels of dy in the
// L2 cache. The longer, the fewer passes over dw; all are about as long, and rather a tenth longer than one more.
template <class Kernel>
int64_t blockWords(const Kernel& kernel, int64_t panelRowBytes, int64_t channels, int64_t all) {
  const bool along = kernel.spaced > 1;
  const int64_t rows = (along ? 196608 : 98304) / std::max<int64_t>(1, channels);
  const int64_t most = std::clamp<int64_t>(rows, 96, along ? 512 : 24576 / panelRowBytes);
  const int64_t blocks = std::max<int64_t>(1, ceilDiv(10 * all, 11 * most));
  return std::max<int64_t>(1, ceilDiv(ceilDiv(all, blocks), kernel.depth)) * kernel.depth;
}

// How the work of a weight gradient is split beside the groups of columns: by channels of dy, of which each part reads all columns again,
// or by pixels, of which each chunk has sums of its own, written, read and added. Whatever costs less of what gives a few threads work.
struct WeightSplit {
  int64_t parts = 1, chunks = 1;
  WeightSplit(int64_t groups, int64_t pixels, int64_t blocks, int64_t channels, int64_t fewestParts) {
    constexpr int64_t units = 16, enough = 4, fewestChannels = 64;
    int64_t least = 0, most = 0;
    for (int64_t p = fewestParts; p == fewestParts || (p * groups <= units && p * fewestChannels <= channels); p *= 2) {
      const int64_t c = std::clamp<int64_t>(std::min(blocks, units / (groups * p)), 1, 8), busy = std::min(enough, groups * p * c);
      const int64_t cost = p * pixels + (c > 1 ? 3 * c * channels : 0);
      if (busy < most || (busy == most && cost >= least)) continue;
      least = cost;
      most = busy;
      parts = p;
      chunks = c;
    }
  }
};

// dw[o, j] = sum over pixels of dy[pixel, o] * column j. Work is split by columns, and by channels or pixels where columns are few; the
// split depends on shapes alone and partial sums are added in order, so the bits do not depend on threads.
template <class T, class S>
void backwardWeight(const ConvGeometry& g, Accumulator<S>* dw, const S* dy, const S* x) {
  if (tapsPay(g)) return backwardWeightByTaps<T, S>(g, dw, dy, x);
  if constexpr (std::is_same_v<T, float>) {
    if (g.isFilter3x3() && g.filter().outputs != 0) return winogradWeight(g.filter(), dw, dy, x);
  }
  using A = Accumulator<T>;
  const int64_t pixels = g.pixels(), columns = g.taps() * g.c;
  const TileKernel<T, A>& kernel = tileKernel<T, A>(columns);
  const int64_t panelCount = ceilDiv(columns, kernel.columns), groups = ceilDiv(panelCount, std::max<int64_t>(1, 256 / kernel.columns));
  const int64_t tiles = ceilDiv(g.o, kernel.rows);
  const auto blockOf = [&](int64_t parts) {
    const int64_t all = ceilDiv(pixels, kWordValues<T>);
    return blockWords(kernel, kernel.columns * sizeof(Word<T>), ceilDiv(g.o, parts), all) * kWordValues<T>;
  };
  // Where a panel leaves room for long blocks, so few channels that their rows do too.
  const int64_t fewestParts = kernel.spaced == 1 && kernel.columns * sizeof(Word<T>) <= 64 ? ceilDiv(g.o, 512) : 1;
  const WeightSplit split(groups, pixels, ceilDiv(pixels, blockOf(fewestParts)), g.o, fewestParts);
  const int64_t parts = split.parts, block = blockOf(parts), words = block / kWordValues<T>, blocks = ceilDiv(pixels, block);
  const int64_t chunks = std::min(split.chunks, std::max<int64_t>(1, blocks));
  Scratch<A> partial(chunks > 1 ? chunks * g.o * columns : 0);
  parallelFor(chunks * parts * groups, [&](int64_t unit) {
    const int64_t chunk = unit / (parts * groups), part = unit / groups % parts, group = unit % groups;
    const int64_t firstPanel = panelCount * group / groups, lastPanel = panelCount * (group + 1) / groups;
    const int64_t firstChannel = tiles * part / parts * kernel.rows;
    const int64_t ownChannels = std::min(g.o, tiles * (part + 1) / parts * kernel.rows) - firstChannel;
    A* target = (chunks > 1 ? partial.data() + chunk * g.o * columns : dw) + firstChannel * columns;
    const TileRegisters registers(kernel);
    GradientRows<T, S> rows(kernel, ownChannels, words);
    UnitScratch<Word<T>> panel(words * kernel.columns + kAheadWords<T>);
    UnitScratch<S> windows(g.mergeRow() ? block * columns + kSlack<S> : 0);
    std::vector<ColumnReader<T, S>> readers;
    for (int64_t q = firstPanel; q < lastPanel; ++q) readers.emplace_back(g, q * kernel.columns, kernel.columns);
    std::vector<typename ColumnReader<T, S>::Place> places;
    std::vector<const S*> sources;
    const int64_t firstBlock = blocks * chunk / chunks, lastBlock = blocks * (chunk + 1) / chunks;
    for (int64_t b = firstBlock; b < lastBlock; ++b) {
      const int64_t count = std::min(block, pixels - b * block), valid = ceilDiv(count, kWordValues<T>);
      ColumnReader<T, S>::placesOf(g, x, b * block, count, windows.data(), places);
      sources.resize(count);
      for (int64_t i = 0; i < count; ++i) sources[i] = dy + (b * block + i) * g.o + firstChannel;
      rows.read(sources);
      for (int64_t q = firstPanel; q < lastPanel; ++q) {
        const int64_t column = q * kernel.columns;
        readers[q - firstPanel].read(places, sources, panel.data());
        std::fill(panel.data() + valid * kernel.columns, panel.data() + rows.depth() * kernel.columns, Word<T>{0});
        rows.multiply(panel.data(), std::min<int64_t>(kernel.columns, columns - column), target + column, columns, b != firstBlock);
      }
    }
  });
  if (chunks > 1 || blocks == 0)
    parallelRange(g.o * columns, 1 << 12, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        A sum{0};
        for (int64_t c = 0; c < chunks && blocks > 0; ++c) sum += partial[c * g.o * columns + i];
        dw[i] = sum;
      }
    });
}

}  // namespace

void conv2dBackwardWeight(const Call& call) {
  using Names = args::conv2dBackwardWeight;
  const Tensor &dw = call.tensor(Names::dweight), &dy = call.tensor(Names::dy), &x = call.tensor(Names::x);
  refuse(call, "scale", Names::scale);
  refuse(call, "gradientX", Names::gradientX);
  const ConvGeometry g(call, Names{}, x, dw, dy, "dy");
  dispatchStored(call, x.dtype, [&](auto zero) {
    using S = decltype(zero);
    multipliedAs<S>([&](auto factor) { backwardWeight<decltype(factor), S>(g, dw.data<Accumulator<S>>(), dy.data<S>(), x.data<S>()); });
  });
}

}  // namespace densecl::cpu
