// RoIAlign; native/cpu/roiAlign.cpp has the definition. The weights of both axes are found once for a box and kept in shared memory.
// Forward weighs columns of cells into lines and those into bins. Backward gathers: a block takes a tile of the map and looks for the boxes
// that reach it, in their order; a warp keeps the sums of some cells and reads each bin once for all of them. No atomic additions, whose
// order would change the last bits.
#include "kernel/mma.cuh"
#include "kernel/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr float kReach = 16777216.0f;

DEVICE int minimum(int a, int b) { return a < b ? a : b; }
DEVICE int maximum(int a, int b) { return a > b ? a : b; }

struct Range {
  int from, to;
};

// The samples of a box along one axis.
struct Axis {
  float start, bin;
  int bins, samples, cells;

  DEVICE Axis(float low, float high, float scale, int bins, int cells, int ratio, bool aligned) : bins(bins), samples(0), cells(cells) {
    const float offset = aligned ? 0.5f : 0.0f;
    start = low * scale - offset;
    float length = high * scale - offset - start;
    if (!aligned) length = length > 1 || length != length ? length : 1.0f;
    bin = length / static_cast<float>(bins);
    if (!finite()) return;
    samples = ratio > 0 ? ratio : static_cast<int>(ceilf(bin));
    samples = samples > 0 ? samples : 0;
  }
  DEVICE bool finite() const { return fabsf(start) < kReach && fabsf(bin * static_cast<float>(bins)) < kReach; }
  DEVICE float position(int p, int i) const {
    return start + static_cast<float>(p) * bin + (static_cast<float>(i) + 0.5f) * bin / static_cast<float>(samples);
  }
  DEVICE bool outside(float at) const { return at < -1 || at > static_cast<float>(cells); }
  // Those of a bin whose position may lie between low and high.
  DEVICE Range within(int p, float low, float high) const {
    const float step = bin / static_cast<float>(samples), from = start + static_cast<float>(p) * bin;
    if (step == 0 || samples == 0) return {0, samples};
    const float a = (low - from) / step, b = (high - from) / step;
    const float first = fmaxf(fminf(a, b) - 2, 0.0f), last = fminf(fmaxf(a, b) + 2, static_cast<float>(samples));
    return {first < static_cast<float>(samples) ? static_cast<int>(first) : samples, last > 0 ? static_cast<int>(last) : 0};
  }
  // A position among the cells' centres.
  DEVICE float clamped(float at) const { return fminf(fmaxf(at, 0.0f), static_cast<float>(cells - 1)); }
};

struct Boxes {
  const float* boxes;
  const int32_t* index;
  int images, rows, columns, channels, count, p, q, ratio;
  float scale;
  bool aligned;
  Report* report;

  template <class Names>
  Boxes(const Call& call, Names, const Tensor& map, const Tensor& bins)
      : boxes(call.tensor(Names::boxes).template data<float>()),
        index(call.tensor(Names::index).template data<int32_t>()),
        images(static_cast<int>(map.dim(0))),
        rows(static_cast<int>(map.dim(1))),
        columns(static_cast<int>(map.dim(2))),
        channels(static_cast<int>(map.dim(3))),
        count(static_cast<int>(bins.dim(0))),
        p(static_cast<int>(bins.dim(1))),
        q(static_cast<int>(bins.dim(2))),
        ratio(static_cast<int>(call.integer(Names::samplingRatio))),
        scale(static_cast<float>(call.number(Names::scale))),
        aligned(call.flag(Names::aligned)),
        report(reportOf(call)) {}
  DEVICE Axis axis(int r, bool down) const {
    const int from = r * 4 + (down ? 1 : 0);
    return {boxes[from], boxes[from + 2], scale, down ? p : q, down ? rows : columns, ratio, aligned};
  }
  // The image of a box, or -1.
  DEVICE int image(int r) const {
    const int found = index[r];
    if (found >= -1 && found < images) return found;
    fileReport(report, kBoxImage, found, images);
    return -1;
  }
};

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

// The products of bf16: 16 results, which are bins or cells, of 16 of the others, for 64 channels. Weights are sums of two bf16, so they
// err by 2^-17. A lane loads eight channels of four of those 16 at a time, as they lie: which channel a column of a product is, is free.
// A value that is not finite spreads to all results of a product, also where its weight is 0.
// With g = lane / 4 and t = lane % 4, terms 2t and 2t + 1, then those behind them by 8.
constexpr int kGroup = 64;

struct alignas(16) Split {
  uint32_t high[4], low[4];
  DEVICE void set(int i, float a, float b) {
    high[i] = packPair(a, b);
    low[i] = packPair(a - floatOf(high[i] << 16), b - floatOf(high[i] & 0xffff0000u));
  }
};

DEVICE void addProducts(float (&sums)[8][4], const Split& weights, const Words<bf16> (&words)[4]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const auto pair = [&](int i) {
      const uint32_t a = words[i].v[j / 2], b = words[i + 1].v[j / 2];
      return j % 2 == 0 ? lowHalves(a, b) : highHalves(a, b);
    };
    const uint32_t terms[2] = {pair(0), pair(2)};
    mmaBf16(sums[j], weights.high, terms);
    mmaBf16(sums[j], weights.low, terms);
  }
}

// Of result g, or g + 8, the channels 16t to 16t + 15.
DEVICE void storeProducts(bf16* to, const float (&sums)[8][4], int second) {
  for (int e = 0; e < 2; ++e) {
    float values[8];
    for (int j = 0; j < 8; ++j) values[j] = sums[j][2 * second + e];
    storeRounded<bf16, 8>(to + (laneIndex() % 4 * 2 + e) * 8, values);
  }
}

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

constexpr int kTile = 8;               // rows and columns of a block's tile
constexpr int kDown = 2, kAcross = 4;  // those of a warp's cells
constexpr int kBlock = 16;             // rows and columns of bins at a time
constexpr int kBehind = 4;             // of no weight that are read behind them
constexpr int kTogether = 3;           // rows of bins that a warp has on their way
constexpr int kRounds = 4;             // boxes that a thread looks at before those found take their turn
constexpr int kScan = kRounds * kThreads;

struct Tiles {
  int across, down, chunks;
  int64_t count(int images) const { return static_cast<int64_t>(images) * across * down * chunks; }
};

struct Gathering {
  // Of a warp's box, the weight of each cell of the tile in each of kBlock rows of bins, and in each of kBlock columns.
  float weights[kWarps][2][kBlock + kBehind][kTile];
  // Bit i: rows 2k and 2k + 1 of the tile have weights in row i of the bins; bit 16 + i: the same of columns.
  unsigned masks[kWarps][kTile / 2];
  int boxes[kScan];
  int found[kWarps];  // by each warp
};

// Where samples of an axis may be, beside a tile that starts at a cell.
DEVICE bool meets(const Axis& axis, int origin) {
  const float end = axis.start + axis.bin * static_cast<float>(axis.bins), low = static_cast<float>(origin);
  return axis.samples > 0 && fmaxf(axis.start, end) >= low - 2 && fminf(axis.start, end) <= low + kTile + 1;
}

// A warp finds what the cells of a tile have of a box's bins from row `p` and column `q` on: each lane takes one of either.
DEVICE void weighTile(float (*weights)[kBlock + kBehind][kTile], unsigned* masks, const Boxes& all, int r, int top, int left, int p,
                      int q) {
  const int lane = laneIndex();
  const bool down = lane < kBlock;
  const Axis axis = all.axis(r, down);
  const int bin = down ? p + lane : q + lane - kBlock;
  const float origin = static_cast<float>(down ? top : left);
  float shares[kTile] = {};
  if (bin < axis.bins) {
    // The border's cells stand for what lies outside of them.
    const Range range = axis.within(bin, origin - 1, origin + kTile);
#pragma unroll 1
    for (int i = range.from; i < range.to; ++i) {
      const float position = axis.position(bin, i), at = axis.clamped(position) - origin;
      if (axis.outside(position)) continue;
      for (int k = 0; k < kTile; ++k) shares[k] += fmaxf(1 - fabsf(at - static_cast<float>(k)), 0.0f);
    }
    for (int k = 0; k < kTile; ++k) shares[k] /= static_cast<float>(axis.samples);
  }
  for (int k = 0; k < kTile; k += 4)
    store<float, 4>(&weights[down ? 0 : 1][lane % kBlock][k], Elements<float, 4>{{shares[k], shares[k + 1], shares[k + 2], shares[k + 3]}});
  for (int k = 0; k < kTile / 2; ++k) {
    const unsigned votes = ballot(shares[2 * k] != 0 || shares[2 * k + 1] != 0);
    if (lane == k) masks[k] = votes;
  }
}

// The cells of a warp, by FMA: two rows of four, each lane kWidth channels of them.
template <class T, int kWidth>
struct GatherVectors {
  static constexpr int kChannels = kWarp * kWidth;
  const T* from;
  int pair, quad, c;
  bool stores;
  float sums[kDown][kAcross][kWidth] = {};

  DEVICE GatherVectors(const T* dy, int channels, int chunk)
      : pair(warpIndex() / (kTile / kAcross)),
        quad(warpIndex() % (kTile / kAcross)),
        c(chunk * kChannels + laneIndex() * kWidth),
        stores(c < channels) {
    from = dy + (stores ? c : 0);
  }
  // Adds what the bins of box r send from row p and column q on.
  DEVICE void add(const Gathering& shared, int b, const Boxes& all, int r, int p, int q) {
    unsigned down = shared.masks[b][pair] & 0xffff;
    const unsigned across = (shared.masks[b][2 * quad] | shared.masks[b][2 * quad + 1]) >> 16;
    if (down == 0 || across == 0) return;
    const T* corner = from + ((static_cast<int64_t>(r) * all.p + p) * all.q + q) * all.channels;
    while (down != 0) {
      const T* lines[kTogether];
      Elements<float, kDown> shares[kTogether];
      bool taken[kTogether];
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        taken[t] = down != 0;
        if (!taken[t]) continue;
        const int row = lowestBit(down);
        down &= down - 1;
        lines[t] = corner + static_cast<int64_t>(row * all.q) * all.channels;
        shares[t] = load<float, kDown>(&shared.weights[b][0][row][pair * kDown]);
      }
#pragma unroll 1
      for (unsigned rest = across; rest != 0; rest &= rest - 1) {
        const int column = lowestBit(rest);
        Chunk<T, kWidth> chunks[kTogether];
#pragma unroll
        for (int t = 0; t < kTogether; ++t)
          if (taken[t]) chunks[t] = loadChunk<T, kWidth>(lines[t] + static_cast<int64_t>(column) * all.channels);
        float weighed[kDown][kWidth] = {};
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {
          if (!taken[t]) continue;
          float values[kWidth];
          unpack(values, chunks[t]);
#pragma unroll
          for (int i = 0; i < kDown; ++i)
            if (shares[t].v[i] != 0)
              for (int e = 0; e < kWidth; ++e) weighed[i][e] += shares[t].v[i] * values[e];
        }
        const auto weight = load<float, kAcross>(&shared.weights[b][1][column][quad * kAcross]);
#pragma unroll
        for (int k = 0; k < kAcross; ++k)
          if (weight.v[k] != 0)
            for (int i = 0; i < kDown; ++i)
              for (int e = 0; e < kWidth; ++e) sums[i][k][e] += weight.v[k] * weighed[i][e];
      }
    }
  }
  DEVICE void finish(T* dx, const Boxes& all, int image, int top, int left) const {
    for (int i = 0; i < kDown; ++i)
      for (int k = 0; k < kAcross; ++k) {
        const int row = top + pair * kDown + i, column = left + quad * kAcross + k;
        if (stores && row < all.rows && column < all.columns)
          storeRounded<T, kWidth>(dx + ((static_cast<int64_t>(image) * all.rows + row) * all.columns + column) * all.channels + c,
                                  sums[i][k]);
      }
  }
};

// By products: four rows of four cells and 128 channels, from four rows of four bins at a time.
struct GatherProducts {
  static constexpr int kGroups = 2, kChannels = 2 * kGroup * kGroups;
  const bf16* from;
  int half, side, c;
  float sums[kGroups][8][4] = {};

  DEVICE GatherProducts(const bf16* dy, int, int chunk)
      : half(warpIndex() / 2 % 2), side(warpIndex() % 2), c(chunk * kChannels + warpIndex() / 4 * (kGroup * kGroups)) {
    from = dy + c + laneIndex() / 4 * 8;
  }
  DEVICE void add(const Gathering& shared, int b, const Boxes& all, int r, int p, int q) {
    const unsigned down = (shared.masks[b][2 * half] | shared.masks[b][2 * half + 1]) & 0xffff;
    const unsigned across = (shared.masks[b][2 * side] | shared.masks[b][2 * side + 1]) >> 16;
    if (down == 0 || across == 0 || c >= all.channels) return;
    const int g = laneIndex() / 4, t = laneIndex() % 4;
    const int words = all.channels / 8;
    const auto* box = reinterpret_cast<const Words<bf16>*>(from) + static_cast<int64_t>(r) * all.p * all.q * words;
#pragma unroll 1
    for (unsigned rows = down; rows != 0;) {
      const int row = lowestBit(rows), i = row + t / 2;
      rows = rows >> row >> 4 << row << 4;
      const float (*vertical)[kTile] = shared.weights[b][0];
      const float* above = &vertical[i][4 * half + g / 4];
      const float* below = &vertical[i + 2][4 * half + g / 4];
      const uint32_t lines[2] = {static_cast<uint32_t>(minimum(p + i, all.p - 1) * all.q * words),
                                 static_cast<uint32_t>(minimum(p + i + 2, all.p - 1) * all.q * words)};
#pragma unroll 1
      for (unsigned columns = across; columns != 0;) {
        const int column = lowestBit(columns), j = column + t % 2 * 2;
        columns = columns >> column >> 4 << column << 4;
        const float first = shared.weights[b][1][j][4 * side + g % 4], second = shared.weights[b][1][j + 1][4 * side + g % 4];
        Split products;
        products.set(0, above[0] * first, above[0] * second);
        products.set(1, above[2] * first, above[2] * second);
        products.set(2, below[0] * first, below[0] * second);
        products.set(3, below[2] * first, below[2] * second);
        const uint32_t places[2] = {static_cast<uint32_t>(minimum(q + j, all.q - 1) * words),
                                    static_cast<uint32_t>(minimum(q + j + 1, all.q - 1) * words)};
#pragma unroll
        for (int s = 0; s < kGroups; ++s) {
          Words<bf16> bins[4];
          for (int k = 0; k < 4; ++k) bins[k] = (box + s * (kGroup / 8))[lines[k / 2] + places[k % 2]];
          addProducts(sums[s], products, bins);
        }
      }
    }
  }
  DEVICE void finish(bf16* dx, const Boxes& all, int image, int top, int left) const {
    for (int i = 0; i < 2; ++i) {
      const int row = top + 4 * half + laneIndex() / 16 + 2 * i, column = left + 4 * side + laneIndex() / 4 % 4;
      if (c < all.channels && row < all.rows && column < all.columns)
        for (int s = 0; s < kGroups; ++s)
          storeProducts(dx + ((static_cast<int64_t>(image) * all.rows + row) * all.columns + column) * all.channels + c + s * kGroup,
                        sums[s], i);
    }
  }
};

// A block takes a tile of a map and Gather::kChannels channels.
template <class T, class Gather>
__global__ void __launch_bounds__(kThreads, 2) roiAlignBackwardKernel(T* dx, const T* dy, Boxes all, Tiles tiles) {
  Gathering& shared = sharedMemory<Gathering>();
  const int perImage = tiles.across * tiles.down, warp = warpIndex();
  const int place = static_cast<int>(blockIdx.x) % perImage, chunk = static_cast<int>(blockIdx.x) / perImage % tiles.chunks,
            image = static_cast<int>(blockIdx.x) / perImage / tiles.chunks;
  const int top = place / tiles.across * kTile, left = place % tiles.across * kTile;
  Gather gather(dy, all.channels, chunk);
  for (int i = laneIndex(); i < 2 * kBehind * kTile; i += kWarp)
    shared.weights[warp][i / (kBehind * kTile)][kBlock + i / kTile % kBehind][i % kTile] = 0;
  for (int first = 0; first < all.count; first += kScan) {
    // Most boxes are of other images.
    unsigned own = 0, votes = 0;
    int mine = 0;
    const int r = first + warp * (kScan / kWarps) + laneIndex();
    for (int s = 0; s < kRounds; ++s)
      if (r + s * kWarp < all.count && all.image(r + s * kWarp) == image) own |= 1u << s;
    const bool any = ballot(own != 0) != 0;
#pragma unroll 1
    for (int s = 0; any && s < kRounds; ++s) {
      const unsigned found =
          ballot((own >> s & 1) && meets(all.axis(r + s * kWarp, true), top) && meets(all.axis(r + s * kWarp, false), left));
      if (laneIndex() == s) votes = found;
      mine += popCount(found);
    }
    if (laneIndex() == 0) shared.found[warp] = mine;
    __syncthreads();
    int at = 0, total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) at += shared.found[w];
      total += shared.found[w];
    }
#pragma unroll 1
    for (int s = 0; mine != 0 && s < kRounds; ++s) {
      const unsigned found = shuffle(votes, s);
      if (found >> laneIndex() & 1) shared.boxes[at + popCount(found & ((1u << laneIndex()) - 1))] = r + s * kWarp;
      at += popCount(found);
    }
    __syncthreads();
    for (int start = 0; start < total; start += kWarps)
      for (int p = 0; p < all.p; p += kBlock)
        for (int q = 0; q < all.q; q += kBlock) {
          if (start + warp < total) weighTile(shared.weights[warp], shared.masks[warp], all, shared.boxes[start + warp], top, left, p, q);
          __syncthreads();
#pragma unroll 1
          for (int b = 0; b < kWarps && start + b < total; ++b) gather.add(shared, b, all, shared.boxes[start + b], p, q);
          __syncthreads();
        }
  }
  gather.finish(dx, all, image, top, left);
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

void roiAlignBackward(const Call& call) {
  using Names = args::roiAlignBackward;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy);
  const Boxes all(call, Names{}, dx, dy);
  dispatchWidth(call, dx, [&](auto zero, auto width) {
    using T = decltype(zero);
    const auto take = [&](auto kernel, int64_t channels) {
      const Tiles tiles{static_cast<int>(ceilDiv(all.columns, kTile)), static_cast<int>(ceilDiv(all.rows, kTile)),
                        static_cast<int>(ceilDiv(all.channels, channels))};
      launch(call, kernel, Grid{tiles.count(all.images)}, kThreads, sizeof(Gathering), dx.data<T>(), dy.data<T>(), all, tiles);
    };
    if constexpr (std::is_same_v<T, bf16>)
      if (all.channels % (kGroup * GatherProducts::kGroups) == 0)
        return take(&roiAlignBackwardKernel<T, GatherProducts>, GatherProducts::kChannels);
    using Gather = GatherVectors<T, width.value>;
    take(&roiAlignBackwardKernel<T, Gather>, Gather::kChannels);
  });
}

}  // namespace densecl::cuda
