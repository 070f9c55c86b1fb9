// What the passes of batch norm over rows [rows, C] in groups share: a thread keeps its channels and walks down rows, so the vectors
// of the channels stay in registers; partial results go to scratch memory and are merged in a fixed order.
#pragma once
#include <algorithm>

#include "../core/windows.h"
#include "kernel/norm.cuh"
#include "kernel/reduce.cuh"
#include "kernel/vector.cuh"
#include "lines.cuh"
#include "runtime.h"

namespace densecl::cuda::norm {

// How threads share a matrix [rows, channels]: `across` threads (a power of 2) lie along the vectors of a row, the others
// along rows. A block takes a chunk of the rows of one group and a tile of channels.
struct Layout {
  int64_t groupRows;
  int channels, groups, across, chunkRows, perGroup, tiles;
  bool backwards;
  Grid grid() const { return {int64_t{groups} * perGroup * tiles}; }
};

inline Layout layoutOf(const Call& call, int64_t rows, int64_t channels, int64_t groups, int width, int64_t perMultiprocessor,
                       bool backwards) {
  Layout layout{rows / groups, static_cast<int>(channels), static_cast<int>(groups), 1, 1, 1, 1, backwards};
  while (layout.across < kWarp && layout.across * width < channels) layout.across *= 2;
  layout.tiles = static_cast<int>(ceilDiv(channels, static_cast<int64_t>(layout.across) * width));
  const int64_t down = kThreads / layout.across,
                blocks = std::max<int64_t>(1, perMultiprocessor * multiprocessors(call) / (groups * layout.tiles));
  layout.chunkRows = static_cast<int>(std::max<int64_t>(4 * down, ceilDiv(layout.groupRows, blocks)));
  layout.perGroup = static_cast<int>(ceilDiv(layout.groupRows, layout.chunkRows));
  return layout;
}
// Of a pass that leaves a line of partial results a chunk.
inline Layout reducingLayout(const Call& call, int64_t rows, int64_t channels, int64_t groups, int width) {
  return layoutOf(call, rows, channels, groups, width, 8, false);
}
// Of a pass over what has just been written, front to back: it begins with the end, which the L2 cache still holds, and ends with the
// front, where the next product begins. Its chunks are short, so that those of one time lie together. (An H100 showed no gain.)
inline Layout sweepingLayout(const Call& call, int64_t rows, int64_t channels, int64_t groups, int width) {
  return layoutOf(call, rows, channels, groups, width, 32, true);
}

// The calling thread's part of its block's chunk.
template <int kWidth>
struct Part {
  int chunk, group, channel, down, step;
  int64_t row, end;
  bool active;
  DEVICE explicit Part(const Layout& layout) {
    const int block = static_cast<int>(layout.backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    chunk = block / layout.tiles;
    group = chunk / layout.perGroup;
    channel = (block % layout.tiles * layout.across + static_cast<int>(threadIdx.x) % layout.across) * kWidth;
    down = static_cast<int>(threadIdx.x) / layout.across;
    step = kThreads / layout.across;
    const int64_t first = static_cast<int64_t>(chunk % layout.perGroup) * layout.chunkRows, last = first + layout.chunkRows;
    row = group * layout.groupRows + first + down;
    end = group * layout.groupRows + (last < layout.groupRows ? last : layout.groupRows);
    active = channel < layout.channels;
  }
};

// The sum, by merge(a, b), of the values that the threads of one column of the block hold; in the thread with down == 0.
template <class V, class Merge>
DEVICE V mergeDown(V mine, V* buffer, int across, Merge merge) {
  const int t = static_cast<int>(threadIdx.x);
  for (int half = kThreads / across / 2; half > 0; half /= 2) {
    __syncthreads();
    buffer[t] = mine;
    __syncthreads();
    if (t / across < half) mine = merge(mine, buffer[t + half * across]);
  }
  return mine;
}

struct Pair {
  float first, second;
};
struct AddPairs {
  DEVICE Pair operator()(const Pair& a, const Pair& b) const { return {a.first + b.first, a.second + b.second}; }
};

}  // namespace densecl::cuda::norm
