// What a block does with the tile of a product that it has staged in shared memory: rows of vectors out, and sums over its columns.
#pragma once
#include <type_traits>

#include "reduce.cuh"
#include "vector.cuh"

namespace densecl::cuda {

// How the threads of a tile share it where it is staged: each keeps kVector columns and takes every kDown-th row.
template <class Shape, class Out>
struct TileThreads {
  static constexpr int kVector = Vector<Out>::kLength, kLine = Shape::kN / kVector, kDown = Shape::kThreads / kLine,
                       kRows = Shape::kM / kDown;
  static constexpr int kChunks = Shape::kM / kStatisticsRows,
                       kChunkRows = kStatisticsRows / kDown;  // rows of a thread in a chunk of statistics
  static_assert(Shape::kThreads % kLine == 0 && kStatisticsRows % kDown == 0 && kLine <= kWarp && kWarp % kLine == 0,
                "a thread keeps its columns, a warp has whole lines, and rows fill whole chunks");
  static DEVICE int column() { return Shape::thread() % kLine * kVector; }
  static DEVICE int down() { return Shape::thread() / kLine; }
};

// Two sums of each column over a chunk of rows, which the threads of the column hold in parts: added over the lanes of a warp, then over
// the warps in their order. Vectors of four channels lie side by side, so that neither side meets a bank twice.
template <class Shape, class Out>
struct ColumnSums {
  using Threads = TileThreads<Shape, Out>;
  static constexpr int kVector = Threads::kVector, kLine = Threads::kLine, kWarps = Shape::kThreads / kWarp, kPlane = kLine * 4 + 16;
  struct Line {
    float values[kVector / 4][kPlane];
    DEVICE float& at(int column) { return values[column % kVector / 4][column / kVector * 4 + column % 4]; }
    DEVICE void put(const float (&from)[kVector]) {
#pragma unroll
      for (int quarter = 0; quarter < kVector / 4; ++quarter)
        store(&values[quarter][Shape::thread() % kLine * 4],
              Elements<float, 4>{from[quarter * 4], from[quarter * 4 + 1], from[quarter * 4 + 2], from[quarter * 4 + 3]});
    }
  };
  Line parts[Threads::kChunks][kWarps][2];
  Line shift[Threads::kChunks];  // of the chunk's values, where they are summed about one

  DEVICE void put(int chunk, float (&first)[kVector], float (&second)[kVector]) {
#pragma unroll
    for (int e = 0; e < kVector; ++e)
#pragma unroll
      for (int mask = kLine; mask < kWarp; mask *= 2) {
        first[e] += shuffleXor(first[e], mask);
        second[e] += shuffleXor(second[e], mask);
      }
    const int warp = Shape::thread() / kWarp;
    if (laneIndex() < kLine) parts[chunk][warp][0].put(first);
    if (kLine == kWarp || laneIndex() / kLine == 1) parts[chunk][warp][1].put(second);
  }
  DEVICE float total(int chunk, int which, int column) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[chunk][w][which].at(column);
    return sum;
  }
};

// Writes kM rows of the staged tile, whose row r goes to rowAddress(r) (null: nowhere), columns below `columns`.
template <class Shape, class Memory, class Out, class RowAddress>
DEVICE void storeTile(Memory& memory, int columns, bool aligned, RowAddress rowAddress, Out*) {
  using Threads = TileThreads<Shape, Out>;
  constexpr int kVector = Threads::kVector;
  const int column = Threads::column();
  if (column >= columns) return;
#pragma unroll 4
  for (int row = Threads::down(); row < Shape::kM; row += Threads::kDown) {
    Out* to = rowAddress(row);
    if (to == nullptr) continue;
    const Out* from = &memory.tile[row * Memory::kPitch + column];
    if (aligned)
      storeWords(to + column, loadWords(from));
    else
#pragma unroll 1
      for (int e = 0; e < kVector && column + e < columns; ++e) to[column + e] = from[e];
  }
}

// The sums of a block lie behind its tile, which is still being read when the first of them are put.
template <class Shape, class Out, class Memory>
DEVICE ColumnSums<Shape, Out>& sumsOf(Memory& memory) {
  constexpr size_t kTile = sizeof(memory.tile);
  static_assert(kTile % 16 == 0 && kTile + sizeof(ColumnSums<Shape, Out>) <= sizeof(Memory), "the sums fit behind the tile");
  return *reinterpret_cast<ColumnSums<Shape, Out>*>(reinterpret_cast<unsigned char*>(memory.tile) + kTile);
}

}  // namespace densecl::cuda
