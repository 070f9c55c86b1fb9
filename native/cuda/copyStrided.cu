// copyStrided: the widest words that lie whole on both sides, a thread to a word; a transposition passes through tiles of shared memory.
#include "../core/strided.h"

#include "kernel/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kTile = 32, kMaxAxes = 8;

// Axes and their strides, outermost first.
template <class Index>
struct Places {
  int axes;
  Index size[kMaxAxes];
  int64_t y[kMaxAxes], x[kMaxAxes];
  DEVICE void find(Index at, int64_t& yAt, int64_t& xAt) const {
    yAt = xAt = 0;
    for (int i = axes - 1; i >= 0; --i) {
      const Index rest = at / size[i], own = at - rest * size[i];
      yAt += static_cast<int64_t>(own) * y[i];
      xAt += static_cast<int64_t>(own) * x[i];
      at = rest;
    }
  }
};

template <class Word, class Index>
__global__ void __launch_bounds__(kThreads) copyWordsKernel(Word* y, const Word* x, int64_t count, Places<Index> places) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t to, from;
    places.find(static_cast<Index>(i), to, from);
    y[to] = x[from];
  }
}

template <class Word>
struct TransposeJob {
  Word* y;
  const Word* x;
  int64_t rows, columns;            // x is dense along rows, y along columns
  int64_t rowStride, columnStride;  // of a row in y, of a column in x
  int64_t rowTiles, columnTiles, tiles;
  Places<int64_t> outer;
};

template <class Word>
__global__ void __launch_bounds__(kThreads) transposeKernel(TransposeJob<Word> job) {
  struct Memory {
    Word tile[kTile][kTile + 1];  // [column][row]
  };
  Memory& memory = sharedMemory<Memory>();
  const int lane = static_cast<int>(threadIdx.x) % kTile, line = static_cast<int>(threadIdx.x) / kTile;
  for (int64_t tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
    const int64_t firstColumn = tile % job.columnTiles * kTile, firstRow = tile / job.columnTiles % job.rowTiles * kTile;
    int64_t y, x;
    job.outer.find(tile / job.columnTiles / job.rowTiles, y, x);
    for (int c = line; c < kTile; c += kThreads / kTile)
      if (firstRow + lane < job.rows && firstColumn + c < job.columns)
        memory.tile[c][lane] = job.x[x + firstRow + lane + (firstColumn + c) * job.columnStride];
    __syncthreads();
    for (int r = line; r < kTile; r += kThreads / kTile)
      if (firstRow + r < job.rows && firstColumn + lane < job.columns)
        job.y[y + (firstRow + r) * job.rowStride + firstColumn + lane] = memory.tile[lane][r];
    __syncthreads();
  }
}

template <class Index>
Places<Index> placesOf(const std::vector<StridedCopy::Axis>& axes) {
  REQUIRE(axes.size() <= kMaxAxes, "SHAPE",
          "copyStrided: expected at most 8 axes that are not one run of memory but received " + std::to_string(axes.size()));
  Places<Index> places{};
  places.axes = static_cast<int>(axes.size());
  for (size_t i = 0; i < axes.size(); ++i) {
    places.size[i] = static_cast<Index>(axes[i].size);
    places.y[i] = axes[i].y;
    places.x[i] = axes[i].x;
  }
  return places;
}

template <class Word>
void copyWords(const Call& call, const StridedCopy& copy, Word* y, const Word* x) {
  const auto run = [&](auto index) {
    using Index = decltype(index);
    launch(call, copyWordsKernel<Word, Index>, loopGrid(call, copy.count, kThreads), kThreads, 0, y + copy.yOffset, x + copy.xOffset,
           copy.count, placesOf<Index>(copy.axes));
  };
  if (copy.count < (int64_t{1} << 31))
    run(uint32_t{});
  else
    run(int64_t{});
}

template <class Word>
void transpose(const Call& call, const StridedCopy& copy, int dense, Word* y, const Word* x) {
  const StridedCopy::Axis rows = copy.axes[dense], columns = copy.axes.back();
  std::vector<StridedCopy::Axis> outer(copy.axes.begin(), copy.axes.end() - 1);
  outer.erase(outer.begin() + dense);
  TransposeJob<Word> job{};
  job.y = y + copy.yOffset;
  job.x = x + copy.xOffset;
  job.rows = rows.size;
  job.columns = columns.size;
  job.rowStride = rows.y;
  job.columnStride = columns.x;
  job.rowTiles = ceilDiv(rows.size, kTile);
  job.columnTiles = ceilDiv(columns.size, kTile);
  job.tiles = copy.count / rows.size / columns.size * job.rowTiles * job.columnTiles;
  job.outer = placesOf<int64_t>(outer);
  launch(call, transposeKernel<Word>, Grid{std::min(job.tiles, int64_t{16} * multiprocessors(call))}, kThreads,
         sizeof(Word) * kTile * (kTile + 1), job);
}

// The copy in words of `ratio` elements, where runs, offsets and strides are whole words.
bool widen(StridedCopy& copy, int64_t ratio) {
  const StridedCopy::Axis last = copy.axes.back();
  if (last.y != 1 || last.x != 1 || last.size % ratio != 0 || copy.yOffset % ratio != 0 || copy.xOffset % ratio != 0) return false;
  for (size_t i = 0; i + 1 < copy.axes.size(); ++i)
    if (copy.axes[i].y % ratio != 0 || copy.axes[i].x % ratio != 0) return false;
  for (size_t i = 0; i + 1 < copy.axes.size(); ++i) {
    copy.axes[i].y /= ratio;
    copy.axes[i].x /= ratio;
  }
  copy.axes.back().size /= ratio;
  copy.count /= ratio;
  copy.yOffset /= ratio;
  copy.xOffset /= ratio;
  return true;
}

}  // namespace

void copyStrided(const Call& call) {
  StridedCopy copy(call);
  if (copy.count == 0) return;
  const Tensor &y = call.tensor(args::copyStrided::y), &x = call.tensor(args::copyStrided::x);
  const auto bytes = static_cast<int64_t>(itemSize(y.dtype));
  if (widen(copy, 16 / bytes)) return copyWords(call, copy, y.data<Vector<uint32_t>>(), x.data<Vector<uint32_t>>());
  const auto run = [&](auto zero) {
    using Word = decltype(zero);
    // Few columns fill no tile.
    if (const int dense = copy.transposed(); dense >= 0 && copy.axes.back().size >= 8 && copy.axes[dense].size >= 8)
      transpose(call, copy, dense, y.data<Word>(), x.data<Word>());
    else
      copyWords(call, copy, y.data<Word>(), x.data<Word>());
  };
  switch (bytes) {
    case 1: return run(uint8_t{});
    case 2: return run(uint16_t{});
    case 4: return run(uint32_t{});
    default: return run(uint64_t{});
  }
}

}  // namespace densecl::cuda
