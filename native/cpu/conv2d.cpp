// conv2d: x [N, H, W, C], w [O, KH, KW, C], y [N, OH, OW, O]
//   y[n, oh, ow, o] = b[o] + sum over kh, kw, c of w[o, kh, kw, c] * x[n, oh*sh - ph + kh*dh, ow*sw - pw + kw*dw, c]
#include <cmath>

#include "../core/convolution.h"
#include "gemm.h"
#include "ops.h"
#include "resultNorm.h"
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

// How a convolution is computed, and how weights are packed for that.
template <class T>
bool byWinograd(const Geometry& g) {
  if constexpr (std::is_same_v<T, float>)
    return g.isFilter3x3() && winogradPays(g.filter());
  else
    return false;
}

// A kernel that reads long rows would read little but zeros of the few channels of a kernel's row.
template <class T>
bool byWindows(const Geometry& g) {
  return g.mergeRow() && tileKernel<T>(g.o).spaced > 1;
}

// Values that copyWindows may write behind its last row.
template <class T>
constexpr int64_t kSlack = 64 / sizeof(T);

// The windows of `count` pixels from the first on as rows (count, length), with zeros behind their ends; of a convolution that merges rows.
template <class T>
void copyWindows(const Geometry& g, const T* x, int64_t first, int64_t count, T* out, int64_t length) {
  const T* end = x + g.n * g.h * g.w * g.c;
  Walk at(first, g.oh, g.ow);
  for (int64_t i = 0; i < count; ++i, at.next(), out += length) {
    const int64_t left = at.x * g.sw - g.pw, from = std::max<int64_t>(0, left), to = std::min(g.w, left + g.kw);
    T* row = out;
    for (int64_t kh = 0; kh < g.kh; ++kh, row += g.kw * g.c) {
      const int64_t ih = at.y * g.sh - g.ph + kh * g.dh;
      const bool inside = ih >= 0 && ih < g.h && from < to;
      const T* in = x + ((at.n * g.h + ih) * g.w + from) * g.c;
      if (inside && to - from == g.kw && end - in >= g.kw * g.c + kSlack<T>) {
        // By 64 bytes: what is copied too much is overwritten by what follows.
        for (int64_t j = 0; j < g.kw * g.c; j += kSlack<T>) std::memcpy(row + j, in + j, 64);
        continue;
      }
      if (!inside || to - from < g.kw) std::fill_n(row, g.kw * g.c, T{0});
      if (inside) std::copy_n(in, (to - from) * g.c, row + (from - left) * g.c);
    }
    std::fill(row, out + length, T{0});
  }
}

// Whether packed weights are worth their memory: of more pixels than these, packing them is little beside multiplying.
bool keepsWeights(const Geometry& g) { return g.pixels() <= 4096; }

template <class T>
std::unique_ptr<Panels<T>> packed(const Geometry& g, const T* weight) {
  if constexpr (std::is_same_v<T, float>) {
    if (byWinograd<T>(g)) return winogradPanels(g.filter(), {weight, 9 * g.c, g.c, 1});
  }
  const bool merge = g.mergeRow(), windows = byWindows<T>(g);
  const int64_t taps = windows ? 1 : merge ? g.kh : g.taps(), depth = g.taps() * g.c / taps;
  auto panels = std::make_unique<Panels<T>>(taps, depth, g.o);
  pack(*panels, weight, taps * depth, depth, 1);
  if (windows) panels->reach = panels->depth * kWordValues<T>;
  return panels;
}

template <class T>
void forward(const Geometry& g, T* y, const T* x, Panels<T>& panels, const Accumulator<T>* bias, const ResultNorm<T>* norm) {
  if constexpr (std::is_same_v<T, float>) {
    if (byWinograd<T>(g)) return winograd(g.filter(), y, x, panels, bias, norm);
  }
  const bool merge = g.mergeRow();
  const int64_t taps = panels.slabs, depth = panels.values;
  const std::vector<T> zeros(depth, T{0});

  auto fillWindows = [&](int64_t first, int64_t rows, const T** table, int64_t, T* scratch) {
    copyWindows(g, x, first, rows, scratch, panels.reach);
    for (int64_t i = 0; i < rows; ++i) table[i] = scratch + i * panels.reach;
  };

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
  if (byWindows<T>(g))
    multiplyRows<T>(g.pixels(), iota(taps), panels, bias, norm, panels.reach, fillWindows, out);
  else if (merge)
    multiplyRows<T>(g.pixels(), iota(taps), panels, bias, norm, taps * depth, fillRows, out);
  else
    multiplyRows<T>(g.pixels(), iota(taps), panels, bias, norm, 0, fillTaps, out);
}

// The input pixels with the same remainder modulo the stride meet the same taps: each such class is a dense product.
template <class T>
void backwardInput(const Geometry& g, T* dx, const T* dy, const T* weight) {
  if constexpr (std::is_same_v<T, float>) {
    // The taps of an input's pixel are those of an output's, the last one first.
    const Filter3x3 adjoint{g.n, g.oh, g.ow, g.o, g.h, g.w, g.c, 2 - g.ph, 2 - g.pw};
    if (g.isFilter3x3() && winogradPays(adjoint)) {
      const auto panels = winogradPanels(adjoint, {weight + 8 * g.c, 1, -g.c, 9 * g.c});
      return winograd(adjoint, dx, dy, *panels, nullptr, nullptr);
    }
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
      multiplyRows<T>(g.n * height * width, taps, panels, nullptr, nullptr, 0, fill, out);
    }
  }
}

// Columns j = (kh, kw, c) of the matrix of windows, which is not made (im2col), copied into a panel for a block of pixels.
template <class T>
class ColumnReader {
 public:
  // Where a pixel's window begins.
  struct Place {
    int64_t top, left;
    const T* base;
  };
  // Of a convolution that merges rows, `windows` (pixels, taps, channels) is written first, and places lie there.
  static void placesOf(const Geometry& g, const T* x, int64_t first, int64_t pixels, T* windows, std::vector<Place>& places) {
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
  ColumnReader(const Geometry& g, int64_t first, int64_t width) : g_(g), width_(width) {
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
  void read(const std::vector<Place>& places, std::vector<const T*>& sources, Word<T>* panel) const {
    const int64_t words = ceilDiv(static_cast<int64_t>(places.size()), kWordValues<T>);
    sources.resize(words * kWordValues<T>);
    sources.back() = kZeros<T>;  // the last pixel may have no partner
    for (const Run& run : runs_) {
      for (size_t i = 0; i < places.size(); ++i) {
        const int64_t row = places[i].top + run.row, column = places[i].left + run.column;
        sources[i] = row >= 0 && row < g_.h && column >= 0 && column < g_.w ? places[i].base + run.offset : kZeros<T>;
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

  const Geometry& g_;
  int64_t width_, zeros_;
  std::vector<Run> runs_;
};

// Words of pixels in a block: a panel of them stays in the L1 cache, their lines of dy in the L2 cache.
constexpr int64_t kBlockWords = 96;
// Lines of dy are copied so far apart that those of a block do not drive each other out of the cache, and that a tile may read beyond.
constexpr int64_t kApart = 16;

// Words of pixels in a block of a kernel that reads rows along memory, of which so many channels of dy stay in the L2 cache: the longer,
// the fewer passes over dw.
int64_t blockWords(int64_t channels) { return std::clamp<int64_t>(196608 / std::max<int64_t>(1, channels) / 16 * 16, 96, 512); }

// How the work of a weight gradient is split beside the groups of columns: by channels of dy, of which each part reads all columns again,
// or by pixels, of which each chunk has sums of its own, written, read and added. Whatever costs less of what gives a few threads work.
struct WeightSplit {
  int64_t parts = 1, chunks = 1;
  WeightSplit(int64_t groups, int64_t pixels, int64_t blocks, int64_t channels) {
    constexpr int64_t units = 16, enough = 4, fewestChannels = 64;
    int64_t least = 0, most = 0;
    for (int64_t p = 1; p == 1 || (p * groups <= units && p * fewestChannels <= channels); p *= 2) {
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
template <class T>
void backwardWeight(const Geometry& g, Accumulator<T>* dw, const T* dy, const T* x) {
  if constexpr (std::is_same_v<T, float>) {
    if (g.isFilter3x3() && winogradPays(g.filter())) return winogradWeight(g.filter(), dw, dy, x);
  }
  using A = Accumulator<T>;
  const int64_t pixels = g.pixels(), columns = g.taps() * g.c;
  const TileKernel<T, A>& kernel = tileKernel<T, A>(columns);
  const bool along = kernel.spaced > 1;  // rows of the kernel, channels of dy, along the pixels
  const int64_t panelCount = ceilDiv(columns, kernel.columns), groups = ceilDiv(panelCount, std::max<int64_t>(1, 256 / kernel.columns));
  const int64_t tiles = ceilDiv(g.o, kernel.rows);
  const auto blockOf = [&](int64_t parts) { return (along ? blockWords(ceilDiv(g.o, parts)) : kBlockWords) * kWordValues<T>; };
  const WeightSplit split(groups, pixels, ceilDiv(pixels, blockOf(1)), g.o);
  const int64_t parts = split.parts, block = blockOf(parts), words = block / kWordValues<T>, blocks = ceilDiv(pixels, block);
  const int64_t chunks = std::min(split.chunks, std::max<int64_t>(1, blocks));
  Scratch<A> partial(chunks > 1 ? chunks * g.o * columns : 0);
  const int32_t tap = 0;
  parallelFor(chunks * parts * groups, [&](int64_t unit) {
    const int64_t chunk = unit / (parts * groups), part = unit / groups % parts, group = unit % groups;
    const int64_t firstPanel = panelCount * group / groups, lastPanel = panelCount * (group + 1) / groups;
    const int64_t firstChannel = tiles * part / parts * kernel.rows;
    const int64_t ownChannels = std::min(g.o, tiles * (part + 1) / parts * kernel.rows) - firstChannel;
    A* target = (chunks > 1 ? partial.data() + chunk * g.o * columns : dw) + firstChannel * columns;
    const TileRegisters registers(kernel);
    const int64_t apart = along ? words + kApart : ownChannels + kApart;
    UnitScratch<Word<T>> panel(words * kernel.columns),
        lines(along ? ceilDiv(ownChannels, kernel.rows) * kernel.rows * apart : words * apart);
    UnitScratch<T> windows(g.mergeRow() ? block * columns + kSlack<T> : 0);
    const T* rows[kMaxTileRows];
    A* outputs[kMaxTileRows];
    std::vector<ColumnReader<T>> readers;
    for (int64_t q = firstPanel; q < lastPanel; ++q) readers.emplace_back(g, q * kernel.columns, kernel.columns);
    std::vector<typename ColumnReader<T>::Place> places;
    std::vector<const T*> sources;
    const std::vector<T> nothing(ownChannels, T{0});
    const int64_t firstBlock = blocks * chunk / chunks, lastBlock = blocks * (chunk + 1) / chunks;
    for (int64_t b = firstBlock; b < lastBlock; ++b) {
      const int64_t count = std::min(block, pixels - b * block), valid = ceilDiv(count, kWordValues<T>);
      const int64_t depth = ceilDiv(valid, kernel.depth) * kernel.depth;
      ColumnReader<T>::placesOf(g, x, b * block, count, windows.data(), places);
      const T* line = dy + b * block * g.o + firstChannel;
      if (along)
        copyAcross(lines.data(), apart, line, g.o, count, ownChannels, depth);
      else
        for (int64_t k = 0; k < depth; ++k, line += kWordValues<T> * g.o)
          copyWords(lines.data() + k * apart, line, k * kWordValues<T> + 1 < count ? line + g.o : nothing.data(), ownChannels);
      for (int64_t q = firstPanel; q < lastPanel; ++q) {
        const int64_t column = q * kernel.columns;
        const int width = static_cast<int>(std::min<int64_t>(kernel.columns, columns - column));
        readers[q - firstPanel].read(places, sources, panel.data());
        std::fill(panel.data() + valid * kernel.columns, panel.data() + depth * kernel.columns, Word<T>{0});
        for (int64_t o = 0; o < ownChannels; o += kernel.rows) {
          const int channels = static_cast<int>(std::min<int64_t>(kernel.rows, ownChannels - o));
          for (int i = 0; i < kernel.rows; ++i) rows[i] = reinterpret_cast<const T*>(lines.data() + (along ? (o + i) * apart : o + i));
          for (int i = 0; i < channels; ++i) outputs[i] = target + (o + i) * columns + column;
          kernel.run(
              {rows, kernel.rows, along ? 1 : apart, 1, &tap, depth, panel.data(), outputs, channels, width, nullptr, b != firstBlock});
        }
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
  dispatchStored(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    // The tile loads whole panels of bias: keep a padded copy.
    using A = Accumulator<T>;
    std::vector<A> bias;
    if (b != nullptr) {
      bias.assign(b->data<A>(), b->data<A>() + g.o);
      bias.resize(ceilDiv(g.o, kMaxPanel<T>) * kMaxPanel<T>);
    }
    const auto panels = packed(g, w.data<T>());
    forward<T>(g, y.data<T>(), x.data<T>(), *panels, b == nullptr ? nullptr : bias.data(), nullptr);
  });
}

void conv2dNorm(const Call& call) {
  using Names = args::conv2dNorm;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &w = call.tensor(Names::weight),
               *residual = call.optional(Names::residual);
  REQUIRE(residual == nullptr || residual->shape == y.shape, "SHAPE",
          "conv2dNorm: expected a residual of y's shape " + describe(y) + " but received " + describe(*residual));
  const Geometry g(call, Names{}, x, w, y, "y");
  const double eps = call.number(Names::eps);
  const bool relu = call.flag(Names::relu);
  dispatchStored(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const A* variance = call.tensor(Names::variance).data<A>();
    std::vector<A> invstd(g.o), scale(g.o), shift(g.o);
    for (int64_t o = 0; o < g.o; ++o) invstd[o] = static_cast<A>(1 / std::sqrt(static_cast<double>(variance[o]) + eps));
    affine(g.o, call.tensor(Names::normWeight).data<A>(), call.tensor(Names::normBias).data<A>(), call.tensor(Names::mean).data<A>(),
           invstd.data(), scale.data(), shift.data());
    const ResultNorm<T> norm{scale.data(), shift.data(), y.data<T>(), residual == nullptr ? nullptr : residual->data<T>(), relu};
    // Weights of one shape are packed in one of three ways; views of other shapes share their memory.
    const std::array<int64_t, 4> form{g.o, g.kh, g.kw, byWinograd<T>(g) ? 3 : g.mergeRow() ? 2 : 1};
    std::shared_ptr<void> panels = w.storage->derived.form == form ? w.storage->derived.value : packed(g, w.data<T>());
    if (keepsWeights(g)) w.storage->derived = {form, panels};
    forward<T>(g, y.data<T>(), x.data<T>(), *static_cast<Panels<T>*>(panels.get()), nullptr, &norm);
  });
}

size_t keptBytes(const Call& call, const Tensor*& holder) {
  if (static_cast<OpIndex>(call.index) != OpIndex::conv2dNorm) return 0;
  using Names = args::conv2dNorm;
  holder = &call.tensor(Names::weight);
  const Geometry g(call, Names{}, call.tensor(Names::x), *holder, call.tensor(Names::y), "y");
  if (!keepsWeights(g)) return 0;
  const size_t bytes = static_cast<size_t>(g.o * g.taps() * g.c) * itemSize(holder->dtype);
  return holder->dtype == DType::f32 && byWinograd<float>(g) ? bytes * 16 / 9 : bytes;
}

void conv2dBackwardInput(const Call& call) {
  using Names = args::conv2dBackwardInput;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy), &w = call.tensor(Names::weight);
  refuse(call, "add", Names::add);
  refuse(call, "x", Names::x);
  refuse(call, "gradientX", Names::gradientX);
  const Geometry g(call, Names{}, dx, w, dy, "dy");
  dispatchStored(call, dx.dtype, [&](auto zero) {
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
  dispatchStored(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    backwardWeight<T>(g, dw.data<Accumulator<T>>(), dy.data<T>(), x.data<T>());
  });
}

}  // namespace densecl::cpu
