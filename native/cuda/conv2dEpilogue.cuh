// What convolutions do with a finished tile, staged in shared memory: bias, store, statistics for the batch norm that follows, and
// for input gradients what their consumer left to do.
#pragma once
#include "kernel/gemm.cuh"
#include "kernel/norm.cuh"
#include "kernel/tile.cuh"

namespace densecl::cuda {

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

// Multiplies each column of the accumulators by its scale.
template <class Shape>
DEVICE void scaleColumns(Accumulators<Shape>& acc, const float* scale, int columns) {
  for (int j = 0; j < Shape::kMmaN; ++j)
    for (int e = 0; e < 2; ++e) {
      const int column = accumulatorColumn<Shape>(j, e);
      const float value = column < columns ? scale[column] : 0;
      for (int i = 0; i < Shape::kMmaM; ++i) {
        acc.c[i][j][e] *= value;
        acc.c[i][j][e + 2] *= value;
      }
    }
}

// Writes the staged tile to `rows` consecutive lines of y (unless bulk copies do: then not kStores), and the mean and squared deviations of
// each column over kStatisticsRows rows at a time to lines of statistics [.., 2, channels]. Values are shifted by the chunk's first, so
// that squares do not cancel.
template <class Shape, bool kStores = true, class Out, class Memory>
DEVICE void storeWithMoments(Memory& memory, Out* y, int rows, int columns, bool aligned, float* statistics, int channels) {
  using Threads = TileThreads<Shape, Out>;
  auto& sums = sumsOf<Shape, Out>(memory);
  constexpr int kVector = Threads::kVector;
  const int column = Threads::column(), down = Threads::down();
  const Out *from = &memory.tile[Memory::place(down, column)], *chunks = &memory.tile[Memory::place(0, column)];
  Out* to = y + static_cast<int64_t>(down) * channels + column;
  const int64_t step = static_cast<int64_t>(Threads::kDown) * channels;
#pragma unroll
  for (int chunk = 0; chunk < Threads::kChunks; ++chunk) {
    const auto first = loadWords(chunks + chunk * kStatisticsRows * Memory::kPitch);
    float shift[kVector], sum[kVector] = {}, square[kVector] = {};
    unpack(shift, first);
#pragma unroll
    for (int k = 0; k < Threads::kChunkRows; ++k, to += step) {
      const int row = chunk * kStatisticsRows + k * Threads::kDown;
      if (row + down >= rows) continue;
      const auto words = loadWords(from + row * Memory::kPitch);
      float values[kVector];
      unpack(values, words);
      if (kStores && aligned && column < columns) storeWords(to, words);
      if (kStores && !aligned)
#pragma unroll 1
        for (int e = 0; e < kVector && column + e < columns; ++e) to[e] = from[row * Memory::kPitch + e];
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const float d = values[e] - shift[e];
        sum[e] += d;
        square[e] = fmaf(d, d, square[e]);
      }
    }
    sums.put(chunk, sum, square);
    if (down == 0) sums.shift[chunk].put(shift);
  }
  Shape::sync();
  for (int unit = Shape::thread(); unit < Threads::kChunks * Shape::kN; unit += Shape::kThreads) {
    const int chunk = unit / Shape::kN, c = unit % Shape::kN, count = rows - chunk * kStatisticsRows;
    if (count <= 0 || c >= columns) continue;
    const float first = sums.total(chunk, 0, c), second = sums.total(chunk, 1, c),
                mean = first / static_cast<float>(count < kStatisticsRows ? count : kStatisticsRows);
    float* out = statistics + static_cast<int64_t>(chunk) * 2 * channels + c;
    out[0] = sums.shift[chunk].at(c) + mean;
    out[channels] = fmaxf(fmaf(-first, mean, second), 0.0f);
  }
}

// The statistics of a tile that bulk copies store.
template <class Shape, class Memory>
DEVICE void tileMoments(Memory& memory, int rows, int64_t firstRow, int firstColumn, int outputs, float* statistics) {
  storeWithMoments<Shape, false>(memory, static_cast<bf16*>(nullptr), rows, outputs - firstColumn, true,
                                 statistics + firstRow / kStatisticsRows * 2 * outputs + firstColumn, outputs);
}

// The forward product's tile, with statistics where they are wanted.
template <class Shape, class T, class Memory>
DEVICE void storeForward(Memory& memory, T* y, int64_t firstRow, int rows, int firstColumn, int outputs, float* statistics) {
  const bool aligned = outputs % Vector<T>::kLength == 0;
  T* to = y + firstRow * outputs + firstColumn;
  if (statistics != nullptr)
    return storeWithMoments<Shape>(memory, to, rows, outputs - firstColumn, aligned,
                                   statistics + firstRow / kStatisticsRows * 2 * outputs + firstColumn, outputs);
  storeTile<Shape>(
      memory, outputs - firstColumn, aligned, [&](int r) { return r < rows ? to + static_cast<int64_t>(r) * outputs : nullptr; }, y);
}

// The pixels of a residue class: row (n, i, j) of the product is pixel (n, a + i * sh, b + j * sw) of [N, h, w].
struct ClassPixels {
  int rowsY, rowsX, h, w, a, b, sh, sw;
  // A fixed number of rows further: rows of pixels and pixels of the class, and what that is in pixels of [N, h, w], also where a row or an
  // image ends on the way.
  int stepY = 0, stepX = 0, onward = 0, atRowEnd = 0, atImageEnd = 0;

  // With steps of `rows` rows.
  ClassPixels by(int rows) const {
    ClassPixels with = *this;
    const int perImage = rowsY * rowsX, inside = rows % perImage;
    with.stepY = inside / rowsX;
    with.stepX = inside % rowsX;
    with.onward = (rows / perImage * h + with.stepY * sh) * w + with.stepX * sw;
    with.atRowEnd = sh * w - rowsX * sw;
    with.atImageEnd = (h - rowsY * sh) * w;
    return with;
  }

  // A row and its pixel, that go on without a division.
  struct Walk {
    int pixel, y, x;
  };
  DEVICE Walk start(int64_t row) const {
    const int perImage = rowsY * rowsX, n = static_cast<int>(row / perImage),
              inside = static_cast<int>(row - static_cast<int64_t>(n) * perImage), y = inside / rowsX, x = inside - y * rowsX;
    return {(n * h + a + y * sh) * w + b + x * sw, y, x};
  }
  DEVICE void advance(Walk& at) const {
    at.pixel += onward;
    at.x += stepX;
    at.y += stepY;
    if (at.x >= rowsX) {
      at.x -= rowsX;
      ++at.y;
      at.pixel += atRowEnd;
    }
    if (at.y >= rowsY) {
      at.y -= rowsY;
      at.pixel += atImageEnd;
    }
  }
};

// What is done to the input gradient before it is stored (src/autograd/op.ts has the idea); tensors of its shape.
template <class T>
struct Epilogue {
  const T* add;                       // other gradients, or null
  const T* x;                         // what the batch norm before it normalised, or null
  const T* y;                         // where its ReLU let values through: y > 0, or x * scale + shift > 0; all null without ReLU
  const float *scale, *shift, *mean;  // [G, C]
  float* sums;                        // [G * groupChunks, 2, C]: of dz and dz (x - mean), over chunks of 64 rows
  // Rows of a group and their chunks in this class of pixels, where they start among the group's, and how many that has.
  int64_t groupRows;
  int classChunks, firstChunk, groupChunks;
};

// Stores the staged tile, with what the epilogue adds and masks, and its sums. A thread has one vector of channels, so their scale,
// shift and mean stay in registers, and it sums there. Loads of Shape::kTogether rows are on their way before the first is stored.
// kWhole: every row and column of the tile exists.
template <bool kWhole, class Shape, class T, class Memory>
DEVICE void finishTile(Memory& memory, const Epilogue<T>& epilogue, T* dx, const ClassPixels& pixels, int64_t rows, int channels,
                       int64_t firstRow, int firstColumn) {
  using Threads = TileThreads<Shape, T>;
  auto& sums = sumsOf<Shape, T>(memory);
  constexpr int kVector = Threads::kVector, kTogether = Shape::kTogether < Threads::kChunkRows ? Shape::kTogether : Threads::kChunkRows;
  static_assert(Threads::kChunkRows % kTogether == 0, "rows are taken in whole batches");
  const int column = Threads::column(), down = Threads::down(), channel = firstColumn + column;
  const bool normalises = epilogue.x != nullptr, masksByX = normalises && epilogue.y == nullptr && epilogue.scale != nullptr;
  float scale[kVector], shift[kVector], mean[kVector];
  ClassPixels::Walk at = pixels.start(firstRow + down);
  int64_t group = epilogue.groupRows == rows ? 0 : firstRow / epilogue.groupRows, groupEnd = 0;
#pragma unroll 1
  for (int chunk = 0; chunk < Threads::kChunks; ++chunk) {
    const int64_t chunkRow = firstRow + chunk * kStatisticsRows;
    const bool some = kWhole || (channel < channels && chunkRow < rows);
    [[maybe_unused]] const int left = chunkRow + kStatisticsRows < rows ? kStatisticsRows : static_cast<int>(rows - chunkRow);
    float sum[kVector] = {}, weighted[kVector] = {};
    // A chunk lies in one group.
    if (some && normalises && chunkRow >= groupEnd) {
      if (chunk > 0) ++group;
      groupEnd = (group + 1) * epilogue.groupRows;
      loadFloats(mean, epilogue.mean + group * channels + channel);
      if (masksByX) {
        loadFloats(scale, epilogue.scale + group * channels + channel);
        loadFloats(shift, epilogue.shift + group * channels + channel);
      }
    }
#pragma unroll 1
    for (int k = down; k < kStatisticsRows; k += kTogether * Threads::kDown) {
      int64_t place[kTogether];
      bool exists[kTogether];
      Words<T> dz[kTogether], add[kTogether], x[kTogether], y[kTogether];
#pragma unroll
      for (int r = 0; r < kTogether; ++r) {
        place[r] = static_cast<int64_t>(at.pixel) * channels + channel;
        exists[r] = kWhole || (some && k + r * Threads::kDown < left);
        pixels.advance(at);
      }
      if (epilogue.add != nullptr)
#pragma unroll
        for (int r = 0; r < kTogether; ++r)
          if (exists[r]) add[r] = loadWords(epilogue.add + place[r]);
      if (normalises)
#pragma unroll
        for (int r = 0; r < kTogether; ++r)
          if (exists[r]) x[r] = loadWords(epilogue.x + place[r]);
      if (epilogue.y != nullptr)
#pragma unroll
        for (int r = 0; r < kTogether; ++r)
          if (exists[r]) y[r] = loadWords(epilogue.y + place[r]);
#pragma unroll
      for (int r = 0; r < kTogether; ++r)
        dz[r] = loadWords(&memory.tile[(chunk * kStatisticsRows + k + r * Threads::kDown) * Memory::kPitch + column]);
      if (epilogue.add != nullptr)
#pragma unroll
        for (int r = 0; r < kTogether; ++r) {
          float own[kVector], other[kVector];
          unpack(own, dz[r]);
          unpack(other, add[r]);
#pragma unroll
          for (int e = 0; e < kVector; ++e) own[e] += other[e];
          dz[r] = pack<T>(own);
        }
      if (normalises)
#pragma unroll
        for (int r = 0; r < kTogether; ++r) {
          if (!exists[r]) continue;
          float g[kVector], normed[kVector];
          unpack(g, dz[r]);
          unpack(normed, x[r]);
          if (epilogue.y != nullptr) {
            float out[kVector];
            unpack(out, y[r]);
#pragma unroll
            for (int e = 0; e < kVector; ++e) g[e] = out[e] > 0 ? g[e] : 0.0f;
          } else if (masksByX) {
#pragma unroll
            for (int e = 0; e < kVector; ++e) g[e] = passes<T>(normed[e], scale[e], shift[e]) ? g[e] : 0.0f;
          }
#pragma unroll
          for (int e = 0; e < kVector; ++e) {
            sum[e] += g[e];
            weighted[e] = fmaf(g[e], normed[e] - mean[e], weighted[e]);
          }
          dz[r] = pack<T>(g);
        }
#pragma unroll
      for (int r = 0; r < kTogether; ++r)
        if (exists[r]) storeWords(dx + place[r], dz[r]);
    }
    if (epilogue.sums != nullptr) sums.put(chunk, sum, weighted);
  }
  if (epilogue.sums == nullptr) return;
  Shape::sync();
  for (int unit = Shape::thread(); unit < Threads::kChunks * 2 * Shape::kN; unit += Shape::kThreads) {
    const int chunk = unit / (2 * Shape::kN), which = unit / Shape::kN % 2, c = unit % Shape::kN;
    const int64_t row = firstRow + chunk * kStatisticsRows;
    if (row >= rows || firstColumn + c >= channels) continue;
    const int line = static_cast<int>(row / kStatisticsRows), group = line / epilogue.classChunks,
              slot = group * epilogue.groupChunks + epilogue.firstChunk + line - group * epilogue.classChunks;
    epilogue.sums[(static_cast<int64_t>(slot) * 2 + which) * channels + firstColumn + c] = sums.total(chunk, which, c);
  }
}

// The input gradient's tile. Epilogues are for whole vectors of channels.
template <bool kAligned, class Shape, class T, class Memory>
DEVICE void storeGradient(Memory& memory, const Epilogue<T>& epilogue, T* dx, const ClassPixels& pixels, int64_t rows, int channels,
                          int64_t firstRow, int firstColumn) {
  if constexpr (kAligned) {
    if (firstRow + Shape::kM <= rows && firstColumn + Shape::kN <= channels)
      return finishTile<true, Shape>(memory, epilogue, dx, pixels, rows, channels, firstRow, firstColumn);
    return finishTile<false, Shape>(memory, epilogue, dx, pixels, rows, channels, firstRow, firstColumn);
  } else {
    ClassPixels::Walk at = pixels.start(firstRow + TileThreads<Shape, T>::down());
    storeTile<Shape>(
        memory, channels - firstColumn, false,
        [&](int r) -> T* {
          T* to = firstRow + r < rows ? dx + static_cast<int64_t>(at.pixel) * channels + firstColumn : nullptr;
          pixels.advance(at);
          return to;
        },
        dx);
  }
}

}  // namespace densecl::cuda
