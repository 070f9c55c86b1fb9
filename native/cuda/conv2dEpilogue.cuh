// What convolutions do with a finished tile, staged in shared memory: bias, store, statistics for the batch norm that follows, and
// for input gradients what their consumer left to do.
#pragma once
#include "device/gemm.cuh"
#include "device/norm.cuh"
#include "device/reduce.cuh"

namespace densecl::cuda {

// Writes kM rows of the staged tile, whose row r goes to rowAddress(r) (null: nowhere), columns below `columns`.
template <class Shape, class Memory, class Out, class RowAddress>
DEVICE void storeTile(Memory& memory, int columns, bool aligned, RowAddress rowAddress, Out*) {
  constexpr int kVector = Vector<Out>::kLength, kLine = Shape::kN / kVector;
  for (int unit = static_cast<int>(threadIdx.x); unit < Shape::kM * kLine; unit += Shape::kThreads) {
    const int row = unit / kLine, column = unit % kLine * kVector;
    Out* to = rowAddress(row);
    if (to == nullptr || column >= columns) continue;
    const Out* from = &memory.tile[row * Memory::kPitch + column];
    if (aligned)
      store(to + column, load<Out, kVector>(from));
    else
      for (int e = 0; e < kVector && column + e < columns; ++e) to[column + e] = from[e];
  }
}

// Adds the bias of each column to the accumulators.
template <class Shape>
DEVICE void addBias(Accumulators<Shape>& acc, const float* bias, int columns) {
  for (int j = 0; j < Shape::kMmaN; ++j)
    for (int e = 0; e < 2; ++e) {
      const int column = accumulatorColumn<Shape>(j, e);
      const float value = column < columns ? bias[column] : 0;
      for (int i = 0; i < Shape::kMmaM; ++i) {
        acc.c[i][j][e] += value;
        acc.c[i][j][e + 2] += value;
      }
    }
}

// Mean and squared deviations of each column over kStatisticsRows rows of the staged tile at a time: rows of statistics [.., 2,
// channels], the first of which is this tile's.
template <class Shape, class Memory>
DEVICE void columnMoments(Memory& memory, int rows, int columns, float* statistics, int channels) {
  constexpr int kParts = Shape::kThreads / Shape::kN, kShare = Shape::kM / kParts, kMerged = kStatisticsRows / kShare;
  static_assert(kParts * Shape::kN == Shape::kThreads && kShare * kMerged == kStatisticsRows, "a whole number of threads to a column");
  const int column = static_cast<int>(threadIdx.x) % Shape::kN, part = static_cast<int>(threadIdx.x) / Shape::kN;
  const int begin = part * kShare, end = begin + kShare < rows ? begin + kShare : rows;
  Moments mine{0, 0, 0};
  if (end > begin) {
    for (int r = begin; r < end; ++r) mine.mean += static_cast<float>(memory.tile[r * Memory::kPitch + column]);
    mine.count = static_cast<float>(end - begin);
    mine.mean /= mine.count;
    for (int r = begin; r < end; ++r) {
      const float d = static_cast<float>(memory.tile[r * Memory::kPitch + column]) - mine.mean;
      mine.m2 += d * d;
    }
  }
  Shape::sync();  // the tile has been read and stored: its memory serves the parts
  Moments* parts = reinterpret_cast<Moments*>(memory.tile);
  parts[static_cast<int>(threadIdx.x)] = mine;
  Shape::sync();
  if (part % kMerged != 0 || column >= columns || begin >= rows) return;
  for (int p = 1; p < kMerged; ++p) mine = merge(mine, parts[(part + p) * Shape::kN + column]);
  float* out = statistics + static_cast<int64_t>(part / kMerged) * 2 * channels;
  out[column] = mine.mean;
  out[channels + column] = mine.m2;
}

// The pixels of a residue class: row (n, i, j) of the product is pixel (n, a + i * sh, b + j * sw) of [N, h, w].
struct ClassPixels {
  int rowsY, rowsX, h, w, a, b, sh, sw;
  DEVICE int64_t index(int64_t row) const {
    const int perImage = rowsY * rowsX, inside = static_cast<int>(row % perImage);
    return (row / perImage * h + a + inside / rowsX * sh) * w + b + inside % rowsX * sw;
  }
};

// What is done to the input gradient before it is stored (src/autograd/op.ts has the idea); tensors of its shape.
template <class T>
struct Epilogue {
  const T* add;  // other gradients, or null
  const T* x;    // what the batch norm before it normalised, or null
  const T* y;    // where its ReLU let values through: y > 0, or x * scale + shift > 0; all null without ReLU
  const float *scale, *shift, *mean;  // [G, C]
  float* sums;                        // [G * groupChunks, 2, C]: of dz and dz (x - mean), over chunks of 64 rows
  // Rows of a group and their chunks in this class of pixels, where they start among the group's, and how many that has.
  int64_t groupRows;
  int classChunks, firstChunk, groupChunks;
  DEVICE bool some() const { return add != nullptr || x != nullptr; }
};

// Stores the staged tile with what the epilogue adds and masks, and its sums. A thread has one vector of channels, so it sums in
// registers; the threads of a column are added in their order.
template <class Shape, class T, class Memory>
DEVICE void finishTile(Memory& memory, const Epilogue<T>& epilogue, T* dx, const ClassPixels& pixels, int64_t rows, int channels, int64_t firstRow, int firstColumn) {
  constexpr int kVector = Vector<T>::kLength, kLine = Shape::kN / kVector, kDown = Shape::kThreads / kLine, kChunks = Shape::kM / kStatisticsRows;
  static_assert(Shape::kThreads % kLine == 0 && kStatisticsRows % kDown == 0, "a thread keeps its channels, and its rows fill whole chunks");
  const int column = static_cast<int>(threadIdx.x) % kLine * kVector, down = static_cast<int>(threadIdx.x) / kLine, channel = firstColumn + column;
  float sums[kChunks][kVector][2] = {};
#pragma unroll
  for (int r = 0; r < Shape::kM; r += kDown) {
    const int64_t row = firstRow + r + down;
    if (row >= rows || channel >= channels) continue;
    const int64_t at = pixels.index(row) * channels + channel;
    auto dz = load<T, kVector>(&memory.tile[(r + down) * Memory::kPitch + column]);
    if (epilogue.add != nullptr) {
      const auto other = load<T, kVector>(epilogue.add + at);
      for (int e = 0; e < kVector; ++e) dz.v[e] = T(static_cast<float>(other.v[e]) + static_cast<float>(dz.v[e]));
    }
    if (epilogue.x != nullptr) {
      const auto x = load<T, kVector>(epilogue.x + at);
      const int64_t group = row / epilogue.groupRows * channels + channel;
      if (epilogue.y != nullptr) {
        const auto y = load<T, kVector>(epilogue.y + at);
        for (int e = 0; e < kVector; ++e)
          if (!(static_cast<float>(y.v[e]) > 0)) dz.v[e] = T(0.0f);
      } else if (epilogue.scale != nullptr) {
        for (int e = 0; e < kVector; ++e)
          if (!passes(x.v[e], epilogue.scale[group + e], epilogue.shift[group + e])) dz.v[e] = T(0.0f);
      }
      for (int e = 0; e < kVector; ++e) {
        const float g = static_cast<float>(dz.v[e]);
        sums[r / kStatisticsRows][e][0] += g;
        sums[r / kStatisticsRows][e][1] += g * (static_cast<float>(x.v[e]) - epilogue.mean[group + e]);
      }
    }
    store(dx + at, dz);
  }
  if (epilogue.sums == nullptr) return;
  Shape::sync();  // the tile has been read: its memory serves the sums
  float* parts = reinterpret_cast<float*>(memory.tile);  // [chunk][which][down][column]
  for (int k = 0; k < kChunks; ++k)
    for (int e = 0; e < kVector; ++e)
      for (int which = 0; which < 2; ++which) parts[((k * 2 + which) * kDown + down) * Shape::kN + column + e] = sums[k][e][which];
  Shape::sync();
  for (int unit = static_cast<int>(threadIdx.x); unit < kChunks * 2 * Shape::kN; unit += Shape::kThreads) {
    const int k = unit / (2 * Shape::kN), which = unit / Shape::kN % 2, c = unit % Shape::kN;
    const int64_t row = firstRow + k * kStatisticsRows;
    if (row >= rows || firstColumn + c >= channels) continue;
    float sum = 0;
    for (int d = 0; d < kDown; ++d) sum += parts[((k * 2 + which) * kDown + d) * Shape::kN + c];
    const int64_t chunk = row / kStatisticsRows, slot = chunk / epilogue.classChunks * epilogue.groupChunks + epilogue.firstChunk + chunk % epilogue.classChunks;
    epilogue.sums[(slot * 2 + which) * channels + firstColumn + c] = sum;
  }
}

}  // namespace densecl::cuda
