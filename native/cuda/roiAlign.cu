// RoIAlign: the weights of both axes are found once for a box and kept in shared memory; columns of cells are weighed into lines, and
// those into bins.
#include "roiAlign.cuh"

namespace densecl::cuda {
namespace {

// The cells of a bin along one axis, whose weights start at `at`.
struct alignas(16) Span {
  int first, count, at;
};

// Bins of an axis take their turn along it, and two that are neighbours share two cells at most, or one or two more where a box is so large
// that positions are rounded by a cell: with this many floats between them each has its own.
constexpr int kApart = 4;

DEVICE Span spanOf(float* weights, int base, const Axis& axis, int p) {
  Range range = axis.within(p, -1, static_cast<float>(axis.cells));
  while (range.from < range.to && axis.outside(axis.position(p, range.from))) ++range.from;
  while (range.from < range.to && axis.outside(axis.position(p, range.to - 1))) --range.to;
  if (range.from >= range.to) return {0, 0, 0};
  const float ends[2] = {axis.clamped(axis.position(p, range.from)), axis.clamped(axis.position(p, range.to - 1))};
  const int first = static_cast<int>(fminf(ends[0], ends[1]));
  int last = static_cast<int>(ceilf(fmaxf(ends[0], ends[1])));
  const int at = base + kApart * (axis.bin < 0 ? axis.bins - 1 - p : p) + first;
  for (int k = 0; k <= last - first; ++k) weights[at + k] = 0;
  const float each = 1 / static_cast<float>(axis.samples);
  for (int i = range.from; i < range.to; ++i) {
    const float sample = axis.clamped(axis.position(p, i));
    const int cell = static_cast<int>(sample);
    const float share = sample - static_cast<float>(cell);
    weights[at + cell - first] += (1 - share) * each;
    if (share > 0) weights[at + cell + 1 - first] += share * each;
  }
  return {first, last - first + 1, at};
}

// Rows of cells that make a line: kRows of them, or any number where that is 0.
template <class T, int kWidth, int kRows>
struct Lines {
  const T* from[kRows];
  float weights[kRows];
  int channels;

  DEVICE Lines(const T* first, int64_t stride, const Span& span, const float* all, int channels) : channels(channels) {
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      from[t] = first + t * stride;
      weights[t] = all[span.at + t];
    }
  }
  DEVICE void weigh(float (&line)[kWidth], int column) const {
    Chunk<T, kWidth> cells[kRows];
#pragma unroll
    for (int t = 0; t < kRows; ++t) cells[t] = loadChunk<T, kWidth>(from[t] + static_cast<int64_t>(column) * channels);
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      float values[kWidth];
      unpack(values, cells[t]);
      for (int e = 0; e < kWidth; ++e) line[e] = t == 0 ? weights[0] * values[e] : line[e] + weights[t] * values[e];
    }
  }
};
template <class T, int kWidth>
struct Lines<T, kWidth, 0> {
  const T* from;
  const float* weights;
  int64_t stride;
  int count, channels;

  DEVICE Lines(const T* first, int64_t stride, const Span& span, const float* all, int channels)
      : from(first), weights(all + span.at), stride(stride), count(span.count), channels(channels) {}
  DEVICE void weigh(float (&line)[kWidth], int column) const {
    const T* cell = from + static_cast<int64_t>(column) * channels;
    for (int e = 0; e < kWidth; ++e) line[e] = 0;
#pragma unroll 1
    for (int t = 0; t < count; ++t, cell += stride) {
      if (weights[t] == 0) continue;
      float values[kWidth];
      unpack(values, loadChunk<T, kWidth>(cell));
      for (int e = 0; e < kWidth; ++e) line[e] += weights[t] * values[e];
    }
  }
};

// A row of bins, of which `stores` says whether this lane has one: neighbours share columns, so the last line of each parity is kept.
template <class T, int kWidth, int kRows>
DEVICE void rowOfBins(T* y, const Lines<T, kWidth, kRows>& lines, const Span* spans, const float* weights, int count, float empty,
                      bool stores) {
  float even[kWidth] = {}, odd[kWidth] = {};
  int evenColumn = -1, oddColumn = -1;
#pragma unroll 1
  for (int q = 0; q < count; ++q, y += lines.channels) {
    const Span span = spans[q];
    float sums[kWidth];
    for (int e = 0; e < kWidth; ++e) sums[e] = empty;
#pragma unroll 1
    for (int k = 0; k < span.count; ++k) {
      const float weight = weights[span.at + k];
      if (weight == 0) continue;
      const int column = span.first + k;
      if (column % 2 == 0) {
        if (evenColumn != column) lines.weigh(even, evenColumn = column);
        for (int e = 0; e < kWidth; ++e) sums[e] += weight * even[e];
      } else {
        if (oddColumn != column) lines.weigh(odd, oddColumn = column);
        for (int e = 0; e < kWidth; ++e) sums[e] += weight * odd[e];
      }
    }
    if (stores) storeRounded<T, kWidth>(y, sums);
  }
}

// A block takes a box: here it finds the cells of its bins, and what a bin has beside them.
DEVICE float findSpans(Span* spans, float* weights, const Boxes& all, int r, int image) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < all.p + all.q; i += static_cast<int>(blockDim.x)) {
    const bool down = i < all.p;
    const int base = down ? 0 : all.rows + kApart * all.p;
    spans[i] = image < 0 ? Span{0, 0, 0} : spanOf(weights, base, all.axis(r, down), down ? i : i - all.p);
  }
  __syncthreads();
  return image >= 0 && (!all.axis(r, true).finite() || !all.axis(r, false).finite()) ? NAN : 0.0f;
}

// A warp takes a row of bins, its lanes channels.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, 3) roiAlignKernel(T* y, const T* x, Boxes all) {
  Span* spans = &sharedMemory<Span>();
  float* weights = reinterpret_cast<float*>(spans + all.p + all.q);
  const int r = static_cast<int>(blockIdx.x), image = all.image(r), channels = all.channels;
  const float empty = findSpans(spans, weights, all, r, image);
  const T* map = x + static_cast<int64_t>(image < 0 ? 0 : image) * all.rows * all.columns * channels;
  const int64_t stride = static_cast<int64_t>(all.columns) * channels;
  const int chunks = (channels + kWarp * kWidth - 1) / (kWarp * kWidth);
  for (int unit = warpIndex(); unit < all.p * chunks; unit += static_cast<int>(blockDim.x) / kWarp) {
    const int p = unit % all.p, c = (unit / all.p * kWarp + laneIndex()) * kWidth;
    const bool stores = c < channels;
    const Span rows = spans[p];
    const T* from = map + rows.first * stride + (stores ? c : 0);
    T* to = y + (static_cast<int64_t>(r) * all.p + p) * all.q * channels + c;
    const auto take = [&](auto number) {
      const Lines<T, kWidth, number.value> lines(from, stride, rows, weights, channels);
      rowOfBins(to, lines, spans + all.p, weights, all.q, empty, stores);
    };
    if (rows.count == 2)
      take(std::integral_constant<int, 2>{});
    else if (rows.count == 3)
      take(std::integral_constant<int, 3>{});
    else if (rows.count == 4)
      take(std::integral_constant<int, 4>{});
    else if (rows.count == 5)
      take(std::integral_constant<int, 5>{});
    else
      take(std::integral_constant<int, 0>{});
  }
}

DEVICE float weightAt(const float* weights, const Span& span, int cell) {
  const int k = cell - span.first;
  return k >= 0 && k < span.count ? weights[span.at + k] : 0.0f;
}

// By products a warp takes kGroup channels of kBins by kBins bins: the weights of 16 rows of cells in each row of bins lie in shared
// memory as a product wants them, a column of cells becomes a line, whose elements are a row of bins, and lines are weighed into bins.
constexpr int kBins = 16, kDepth = 16;
constexpr int kProductWarps = 4;
constexpr int kMostRows = 512;  // of a map, whose weights shared memory holds

struct RowsOfCells {
  Split weights[kWarp];
  uint32_t offsets[4][4];  // of terms 2t, 2t + 1, 2t + 8, 2t + 9, in words of 16 bytes
};

DEVICE void findRows(RowsOfCells& to, const Span* spans, const float* weights, int count, int first, int end, uint32_t stride) {
  const int g = laneIndex() / 4, t = laneIndex() % 4;
  float shares[2][4];
  for (int k = 0; k < 4; ++k) {
    const int row = first + 2 * t + k % 2 + k / 2 * 8;
    for (int i = 0; i < 2; ++i) shares[i][k] = g + 8 * i < count ? weightAt(weights, spans[g + 8 * i], row) : 0.0f;
    if (g == 0) to.offsets[t][k] = static_cast<uint32_t>(minimum(row, end - 1)) * stride;
  }
  for (int i = 0; i < 4; ++i) to.weights[laneIndex()].set(i, shares[i % 2][i / 2 * 2], shares[i % 2][i / 2 * 2 + 1]);
}

DEVICE void weighColumn(float (&line)[8][4], const RowsOfCells* cells, int steps, const Words<bf16>* column) {
  for (int j = 0; j < 8; ++j)
    for (int i = 0; i < 4; ++i) line[j][i] = 0;
  const int t = laneIndex() % 4;
#pragma unroll 1
  for (const RowsOfCells* end = cells + steps; cells != end; ++cells) {
    const auto offsets = load<uint32_t, 4>(cells->offsets[t]);
    Words<bf16> words[4];
    for (int i = 0; i < 4; ++i) words[i] = column[offsets.v[i]];
    addProducts(line, cells->weights[laneIndex()], words);
  }
}

DEVICE void addWeighed(float (&sums)[8][4], float weight, const float (&line)[8][4]) {
  for (int j = 0; j < 8; ++j)
    for (int i = 0; i < 4; ++i) sums[j][i] += weight * line[j][i];
}

__global__ void __launch_bounds__(kProductWarps* kWarp, 3) roiAlignProductKernel(bf16* y, const bf16* x, Boxes all, int groups, int most) {
  RowsOfCells* cells = &sharedMemory<RowsOfCells>();
  Span* spans = reinterpret_cast<Span*>(cells + most);
  float* weights = reinterpret_cast<float*>(spans + all.p + all.q);
  const int part = static_cast<int>(blockIdx.x) % groups, r = static_cast<int>(blockIdx.x) / groups;
  const int image = all.image(r), channels = all.channels, words = channels / 8;
  const float empty = findSpans(spans, weights, all, r, image);
  const int g = laneIndex() / 4, c = (part * kProductWarps + warpIndex()) * kGroup;
  const auto* map =
      reinterpret_cast<const Words<bf16>*>(x) + static_cast<int64_t>(image < 0 ? 0 : image) * all.rows * all.columns * words + c / 8 + g;
  for (int p = 0; p < all.p; p += kBins) {
    // Rows of cells that these bins have.
    const int count = minimum(kBins, all.p - p);
    int top = all.rows, bottom = 0;
    for (int i = 0; i < count; ++i) {
      if (spans[p + i].count == 0) continue;
      top = minimum(top, spans[p + i].first);
      bottom = maximum(bottom, spans[p + i].first + spans[p + i].count);
    }
    const int steps = top < bottom ? (bottom - top + kDepth - 1) / kDepth : 0;
    __syncthreads();
    for (int k = warpIndex(); k < steps; k += kProductWarps)
      findRows(cells[k], spans + p, weights, count, top + k * kDepth, bottom, static_cast<uint32_t>(all.columns * words));
    __syncthreads();
    if (c >= channels) continue;
    float even[8][4] = {}, odd[8][4] = {};
    int evenColumn = -1, oddColumn = -1;
    bf16* to = y + ((static_cast<int64_t>(r) * all.p + p + g) * all.q) * channels + c;
#pragma unroll 1
    for (int q = 0; q < all.q; ++q, to += channels) {
      const Span span = spans[all.p + q];
      float sums[8][4];
      for (int j = 0; j < 8; ++j)
        for (int i = 0; i < 4; ++i) sums[j][i] = 0;
#pragma unroll 1
      for (int k = 0; k < span.count; ++k) {
        const float weight = weights[span.at + k];
        if (weight == 0) continue;
        const int column = span.first + k;
        if (column % 2 == 0) {
          if (evenColumn != column) weighColumn(even, cells, steps, map + (evenColumn = column) * words);
          addWeighed(sums, weight, even);
        } else {
          if (oddColumn != column) weighColumn(odd, cells, steps, map + (oddColumn = column) * words);
          addWeighed(sums, weight, odd);
        }
      }
      if (empty != 0)
        for (int j = 0; j < 8; ++j)
          for (int i = 0; i < 4; ++i) sums[j][i] = empty;
      for (int i = 0; i < 2; ++i)
        if (g + 8 * i < count) storeProducts(to + static_cast<int64_t>(8 * i) * all.q * channels, sums, i);
      syncWarp();  // lanes meet again for the next products
    }
  }
}

}  // namespace

void roiAlign(const Call& call) {
  using Names = args::roiAlign;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x);
  const Boxes all(call, Names{}, x, y);
  const size_t bins = static_cast<size_t>(all.p) + static_cast<size_t>(all.q),
               weights = static_cast<size_t>(all.rows) + static_cast<size_t>(all.columns) + kApart * bins;
  const size_t shared = bins * sizeof(Span) + weights * sizeof(float);
  const auto threads = [](int64_t units) { return kWarp * static_cast<int>(std::min(units, int64_t{kWarps})); };
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<T, bf16>)
      if (all.channels % kGroup == 0 && (all.p - 1) % kBins >= kBins / 2 && all.rows <= kMostRows) {
        // Each step of a box has kDepth rows of cells.
        const int most = static_cast<int>(ceilDiv(all.rows, kDepth)),
                  groups = static_cast<int>(ceilDiv(all.channels, kProductWarps * kGroup));
        return launch(call, roiAlignProductKernel, Grid{all.count * groups}, kProductWarps * kWarp,
                      static_cast<size_t>(most) * sizeof(RowsOfCells) + shared, y.data<T>(), x.data<T>(), all, groups, most);
      }
    launch(call, roiAlignKernel<T, width.value>, Grid{all.count}, threads(all.p * ceilDiv(all.channels, kWarp * width.value)), shared,
           y.data<T>(), x.data<T>(), all);
  });
}

}  // namespace densecl::cuda
