// RoIAlign; native/cpu/roiAlign.cpp has the definition. Forward takes the samples one by one. Backward gathers: first the boxes that reach
// each tile of the map, in their order, then for each cell of a tile what their samples send back. No atomic additions, whose order would
// change the last bits.
#include "kernel/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kTile = 8;
constexpr float kReach = 16777216.0f;

struct Range {
  int from, to;
};

// The samples of a box along one axis: bin p has those of numbers p samples .. (p + 1) samples.
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
  DEVICE float position(int number) const {
    const int p = number / samples, i = number - p * samples;
    return start + static_cast<float>(p) * bin + (static_cast<float>(i) + 0.5f) * bin / static_cast<float>(samples);
  }
  // Those of numbers first .. last whose position may lie between low and high.
  DEVICE Range within(float low, float high, int first, int last) const {
    const float step = bin / static_cast<float>(samples);
    if (step == 0) return {first, last};
    const float a = (low - start) / step, b = (high - start) / step;
    const float from = fmaxf(fminf(a, b) - 2, static_cast<float>(first)), to = fminf(fmaxf(a, b) + 2, static_cast<float>(last));
    return {from < static_cast<float>(last) ? static_cast<int>(from) : last, to > static_cast<float>(first) ? static_cast<int>(to) : first};
  }
  DEVICE bool outside(float at) const { return at < -1 || at > static_cast<float>(cells); }
  // The cell below a position and its neighbour's share.
  DEVICE int cellOf(float at, float& share) const {
    at = fmaxf(at, 0.0f);
    const int cell = static_cast<int>(at);
    if (cell >= cells - 1) {
      share = 0;
      return cells - 1;
    }
    share = at - static_cast<float>(cell);
    return cell;
  }
  // How much of a sample a cell gives.
  DEVICE float weight(int number, int cell) const {
    const float at = position(number);
    if (outside(at)) return 0;
    float share;
    const int below = cellOf(at, share);
    return below == cell ? 1 - share : below + 1 == cell ? share : 0.0f;
  }
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
  DEVICE Axis vertical(int r) const { return {boxes[r * 4 + 1], boxes[r * 4 + 3], scale, p, rows, ratio, aligned}; }
  DEVICE Axis horizontal(int r) const { return {boxes[r * 4], boxes[r * 4 + 2], scale, q, columns, ratio, aligned}; }
  // The image of a box, or -1.
  DEVICE int image(int r) const {
    const int found = index[r];
    if (found >= -1 && found < images) return found;
    fileReport(report, kBoxImage, found, images);
    return -1;
  }
};

// A warp takes a bin, its lanes the channels.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) roiAlignKernel(T* y, const T* x, Boxes all) {
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + warpIndex();
  const int perBox = all.p * all.q;
  if (unit >= static_cast<int64_t>(all.count) * perBox) return;
  const int r = static_cast<int>(unit / perBox), p = static_cast<int>(unit % perBox) / all.q, q = static_cast<int>(unit % all.q);
  const int image = all.image(r), channels = all.channels;
  const Axis vertical = all.vertical(r), horizontal = all.horizontal(r);
  Range rows = {0, 0}, columns = {0, 0};
  float empty = 0;
  if (image >= 0) {
    if (!vertical.finite() || !horizontal.finite()) empty = NAN;
    if (vertical.samples > 0 && horizontal.samples > 0) {
      rows = vertical.within(-1, static_cast<float>(all.rows), p * vertical.samples, (p + 1) * vertical.samples);
      columns = horizontal.within(-1, static_cast<float>(all.columns), q * horizontal.samples, (q + 1) * horizontal.samples);
    }
  }
  const T* map = x + static_cast<int64_t>(image < 0 ? 0 : image) * all.rows * all.columns * channels;
  const float samples = static_cast<float>(vertical.samples) * static_cast<float>(horizontal.samples);
  for (int c = laneIndex() * kWidth; c < channels; c += kWarp * kWidth) {
    float sums[kWidth] = {};
    for (int i = rows.from; i < rows.to; ++i) {
      const float atRow = vertical.position(i);
      if (vertical.outside(atRow)) continue;
      float rowShare;
      const int row = vertical.cellOf(atRow, rowShare), nextRow = row + 1 < all.rows ? row + 1 : row;
#pragma unroll 1
      for (int j = columns.from; j < columns.to; ++j) {
        const float atColumn = horizontal.position(j);
        if (horizontal.outside(atColumn)) continue;
        float columnShare;
        const int column = horizontal.cellOf(atColumn, columnShare), nextColumn = column + 1 < all.columns ? column + 1 : column;
        const auto add = [&](int fromRow, int fromColumn, float weight) {
          float values[kWidth];
          unpack(values, loadChunk<T, kWidth>(map + (static_cast<int64_t>(fromRow) * all.columns + fromColumn) * channels + c));
          for (int k = 0; k < kWidth; ++k) sums[k] += weight * values[k];
        };
        add(row, column, (1 - rowShare) * (1 - columnShare));
        add(row, nextColumn, (1 - rowShare) * columnShare);
        add(nextRow, column, rowShare * (1 - columnShare));
        add(nextRow, nextColumn, rowShare * columnShare);
      }
    }
    for (int k = 0; k < kWidth; ++k) sums[k] = samples > 0 ? sums[k] / samples : empty;
    storeRounded<T, kWidth>(y + unit * channels + c, sums);
  }
}

struct Tiles {
  int across, down;
  int64_t count(int images) const { return static_cast<int64_t>(images) * across * down; }
};

// The boxes that may reach a tile of the map, in their order: list[tile, 0 .. found[tile]]. A block takes a tile.
__global__ void __launch_bounds__(kThreads) boxesOfTilesKernel(int32_t* list, int32_t* found, Boxes all, Tiles tiles) {
  int* warps = &sharedMemory<int>();  // how many each warp has found
  const int64_t tile = blockIdx.x;
  const int image = static_cast<int>(tile / (tiles.across * tiles.down)), place = static_cast<int>(tile % (tiles.across * tiles.down));
  const float top = static_cast<float>(place / tiles.across * kTile), left = static_cast<float>(place % tiles.across * kTile);
  int total = 0;
  for (int first = 0; first < all.count; first += kThreads) {
    const int r = first + static_cast<int>(threadIdx.x);
    bool reaches = false;
    if (r < all.count && all.image(r) == image) {
      const Axis vertical = all.vertical(r), horizontal = all.horizontal(r);
      const auto meets = [](const Axis& axis, float low) {
        const float end = axis.start + axis.bin * static_cast<float>(axis.bins);
        return fmaxf(axis.start, end) >= low - 2 && fminf(axis.start, end) <= low + kTile + 1;
      };
      reaches = vertical.samples > 0 && horizontal.samples > 0 && meets(vertical, top) && meets(horizontal, left);
    }
    const unsigned votes = ballot(reaches);
    if (laneIndex() == 0) warps[warpIndex()] = popCount(votes);
    __syncthreads();
    int before = total;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warpIndex()) before += warps[w];
      total += warps[w];
    }
    if (reaches) list[tile * all.count + before + popCount(votes & ((1u << laneIndex()) - 1))] = r;
    __syncthreads();
  }
  if (threadIdx.x == 0) found[tile] = total;
}

// A block takes a tile, a warp one cell of it after another, its lanes the channels.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    roiAlignBackwardKernel(T* dx, const T* dy, const int32_t* list, const int32_t* found, Boxes all, Tiles tiles) {
  const int64_t tile = blockIdx.x;
  const int image = static_cast<int>(tile / (tiles.across * tiles.down)), place = static_cast<int>(tile % (tiles.across * tiles.down));
  const int top = place / tiles.across * kTile, left = place % tiles.across * kTile, channels = all.channels;
  for (int cell = warpIndex(); cell < kTile * kTile; cell += kWarps) {
    const int row = top + cell / kTile, column = left + cell % kTile;
    if (row >= all.rows || column >= all.columns) continue;
    // The border's cells stand for what lies outside of them.
    const float above = static_cast<float>(row) - 1, before = static_cast<float>(column) - 1;
    for (int c = laneIndex() * kWidth; c < channels; c += kWarp * kWidth) {
      float sums[kWidth] = {};
      for (int at = 0; at < found[tile]; ++at) {
        const int r = list[tile * all.count + at];
        const Axis vertical = all.vertical(r), horizontal = all.horizontal(r);
        const Range rows = vertical.within(above, above + 2, 0, all.p * vertical.samples),
                    columns = horizontal.within(before, before + 2, 0, all.q * horizontal.samples);
        const float samples = static_cast<float>(vertical.samples) * static_cast<float>(horizontal.samples);
        for (int i = rows.from; i < rows.to;) {
          // The cell's weight in a bin is the sum over its samples, along each axis.
          const int p = i / vertical.samples;
          float rowWeight = 0;
          for (; i < rows.to && i < (p + 1) * vertical.samples; ++i) rowWeight += vertical.weight(i, row);
          if (rowWeight == 0) continue;
          for (int j = columns.from; j < columns.to;) {
            const int q = j / horizontal.samples;
            float weight = 0;
            for (; j < columns.to && j < (q + 1) * horizontal.samples; ++j) weight += horizontal.weight(j, column);
            if (weight == 0) continue;
            weight *= rowWeight / samples;
            float values[kWidth];
            unpack(values, loadChunk<T, kWidth>(dy + ((static_cast<int64_t>(r) * all.p + p) * all.q + q) * channels + c));
            for (int k = 0; k < kWidth; ++k) sums[k] += weight * values[k];
          }
        }
      }
      storeRounded<T, kWidth>(dx + ((static_cast<int64_t>(image) * all.rows + row) * all.columns + column) * channels + c, sums);
    }
  }
}

}  // namespace

void roiAlign(const Call& call) {
  using Names = args::roiAlign;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x);
  const Boxes all(call, Names{}, x, y);
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    launch(call, roiAlignKernel<T, width.value>, Grid{ceilDiv(y.dim(0) * y.dim(1) * y.dim(2), kWarps)}, kThreads, 0, y.data<T>(),
           x.data<T>(), all);
  });
}

void roiAlignBackward(const Call& call) {
  using Names = args::roiAlignBackward;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy);
  const Boxes all(call, Names{}, dx, dy);
  const Tiles tiles{static_cast<int>(ceilDiv(all.columns, kTile)), static_cast<int>(ceilDiv(all.rows, kTile))};
  const int64_t count = tiles.count(all.images);
  DeviceScratch<int32_t> list(call, count * all.count), found(call, count);
  launch(call, boxesOfTilesKernel, Grid{count}, kThreads, kWarps * sizeof(int), list.data(), found.data(), all, tiles);
  dispatchWidth(call, dx, [&](auto zero, auto width) {
    using T = decltype(zero);
    launch(call, roiAlignBackwardKernel<T, width.value>, Grid{count}, kThreads, 0, dx.data<T>(), dy.data<T>(), list.data(), found.data(),
           all, tiles);
  });
}

}  // namespace densecl::cuda
