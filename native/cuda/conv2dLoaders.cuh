// How operands of a convolution come to shared memory: rows gathered from images, weights, gradients; and what happens to them on
// the way.
#pragma once
#include "conv2dEpilogue.cuh"
#include "runtime.h"

namespace densecl::cuda {

// Along one axis: row i and tap p of a product meet source position i * stride + origin + p * step, if that is in [0, size).
struct Axis {
  int rows, taps, size, stride, origin, step;
};

// The gathered operand of an implicit GEMM (im2col without the copy): row (n, i, j), depth (tap of y, tap of x, channel).
template <class T>
struct Gather {
  const T* source;
  Axis y, x;
  int channels;
  int64_t rows;
  __host__ __device__ int depth() const { return y.taps * x.taps * channels; }
};

// The iterator over the depth of an implicit GEMM, (tap of y, tap of x, channel), advanced without a division.
struct DepthWalk {
  int p, q, c;
  template <class T>
  DEVICE void start(const Gather<T>& from, int depth) {
    c = depth % from.channels;
    q = depth / from.channels % from.x.taps;
    p = depth / from.channels / from.x.taps;
  }
  DEVICE void advance(int by, int channels, int tapsX) {
    c += by;
    while (c >= channels) {
      c -= channels;
      if (++q == tapsX) {
        q = 0;
        ++p;
      }
    }
  }
};

// What happens to an operand on its way into shared memory. Row and channel are those of the source.

// Nothing: cp.async copies it.
struct Plain {
  static constexpr bool kPlain = true;
};

// A deferred batch norm: relu(x * scale + shift); padding stays zero.
template <class T>
struct NormPrologue {
  static constexpr bool kPlain = false, kTwo = false;
  const float *scale, *shift;  // [G, channels]
  int channels;
  int64_t groupRows;
  bool relu;
  DEVICE Vector<T> apply(Vector<T> value, const Vector<T>&, int64_t row, int channel) const {
    const int64_t at = row / groupRows * channels + channel;
    for (int e = 0; e < Vector<T>::kLength; ++e)
      value.v[e] = T(normalised(static_cast<float>(value.v[e]), scale[at + e], shift[at + e], relu));
    return value;
  }
  DEVICE const T* second() const { return nullptr; }
};

// The deferred gradient of a batch norm: a dz + (b (x - mean) + c), from dz and x.
template <class T>
struct GradientPrologue {
  static constexpr bool kPlain = false, kTwo = true;
  const T* x;
  const float *mean, *coefficients;  // [G, channels], [3, G, channels]
  int channels, plane;               // plane: G * channels
  int64_t groupRows;
  DEVICE Vector<T> apply(Vector<T> dz, const Vector<T>& values, int64_t row, int channel) const {
    const int64_t at = row / groupRows * channels + channel;
    for (int e = 0; e < Vector<T>::kLength; ++e)
      dz.v[e] = T(throughNorm(static_cast<float>(dz.v[e]), static_cast<float>(values.v[e]), mean[at + e], coefficients[at + e],
                              coefficients[plane + at + e], coefficients[2 * plane + at + e]));
    return dz;
  }
  DEVICE const T* second() const { return x; }
};

// Brings a thread's chunks of 16 bytes to shared memory: by cp.async, or through registers, where they stay until the next slice
// is asked for, so that their loads have a slice's time to arrive.
template <class T, class Prologue, int kPerThread, bool kPlain = Prologue::kPlain>
struct Fill {
  DEVICE explicit Fill(const Prologue&) {}
  DEVICE void put(int, Vector<T>* to, const T* source, const T* chunk, int64_t, int) {
    cpAsync16(to, chunk == nullptr ? source : chunk, chunk != nullptr);
  }
  DEVICE void flush() {}
};
template <class T, class Prologue, int kPerThread>
struct Fill<T, Prologue, kPerThread, false> {
  Prologue prologue;
  Vector<T>* to[kPerThread];
  Vector<T> first[kPerThread], second[Prologue::kTwo ? kPerThread : 1];
  int64_t row[kPerThread];
  int channel[kPerThread];
  bool valid[kPerThread], held = false;

  DEVICE explicit Fill(const Prologue& prologue) : prologue(prologue) {}
  DEVICE void put(int i, Vector<T>* place, const T* source, const T* chunk, int64_t sourceRow, int sourceChannel) {
    to[i] = place;
    row[i] = sourceRow;
    channel[i] = sourceChannel;
    valid[i] = chunk != nullptr;
    held = true;
    if (chunk == nullptr) return;
    first[i] = loadVector(chunk);
    if (Prologue::kTwo) second[i] = loadVector(prologue.second() + (chunk - source));
  }
  DEVICE void flush() {
    if (!held) return;
    held = false;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      Vector<T> value{};
      if (valid[i]) value = prologue.apply(first[i], second[Prologue::kTwo ? i : 0], row[i], channel[i]);
      *to[i] = value;
    }
  }

 private:
  static DEVICE Vector<T> loadVector(const T* at) {
    const auto elements = load<T, Vector<T>::kLength>(at);
    Vector<T> value;
    for (int e = 0; e < Vector<T>::kLength; ++e) value.v[e] = elements.v[e];
    return value;
  }
};

// Gathered rows, as the left operand (chunks along the depth).
template <class T, int kRows, int kThreads, bool kAligned, class Prologue = Plain>
struct GatherLoader {
  using Tile = OperandTile<T, kRows, true>;
  static constexpr int kVector = Tile::kVector, kLine = Tile::kLine, kPerThread = Tile::kChunks / kThreads, kRowStep = kThreads / kLine;
  Gather<T> from;
  const T* image[kPerThread];
  int y[kPerThread], x[kPerThread];
  int64_t firstRow;
  DepthWalk at;
  Fill<T, Prologue, kPerThread> fill;

  DEVICE GatherLoader(const Gather<T>& from, int64_t firstRow, const Prologue& prologue = {})
      : from(from), firstRow(firstRow), fill(prologue) {
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t row = firstRow + static_cast<int>(threadIdx.x) / kLine + i * kRowStep;
      const int perImage = from.y.rows * from.x.rows;
      const int inside = static_cast<int>(row % perImage);
      image[i] = from.source + row / perImage * from.y.size * from.x.size * from.channels;
      y[i] = row < from.rows ? inside / from.x.rows * from.y.stride + from.y.origin : -(1 << 30);
      x[i] = inside % from.x.rows * from.x.stride + from.x.origin;
    }
    at.start(from, static_cast<int>(threadIdx.x) % kLine * kVector);
  }

  DEVICE const T* address(int i, const DepthWalk& place) const {
    const int sy = y[i] + place.p * from.y.step, sx = x[i] + place.q * from.x.step;
    const bool inside = place.p < from.y.taps && static_cast<unsigned>(sy) < static_cast<unsigned>(from.y.size) &&
                        static_cast<unsigned>(sx) < static_cast<unsigned>(from.x.size);
    return inside ? image[i] + (sy * from.x.size + sx) * from.channels + place.c : nullptr;
  }

  DEVICE void next(Tile& tile) {
    fill.flush();
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      Vector<T>* to = tile.chunk(static_cast<int>(threadIdx.x) / kLine + i * kRowStep, static_cast<int>(threadIdx.x) % kLine * kVector);
      if (kAligned) {
        fill.put(i, to, from.source, address(i, at), firstRow + static_cast<int>(threadIdx.x) / kLine + i * kRowStep, at.c);
      } else {
        DepthWalk place = at;
        Vector<T> value;
        for (int e = 0; e < kVector; ++e, place.advance(1, from.channels, from.x.taps)) {
          const T* element = address(i, place);
          value.v[e] = element == nullptr ? T(0.0f) : *element;
        }
        *to = value;
      }
    }
    at.advance(kSlice<T>, from.channels, from.x.taps);
  }
  DEVICE void flush() { fill.flush(); }
};

// The weights as [taps * O, C] for an input gradient; along the rows (channels c) they are contiguous.
template <class T>
struct TransposedWeights {
  const T* weights;  // [O, KH, KW, C]
  int o, kh, kw, c;
  int firstY, stepY, firstX, stepX, tapsY, tapsX;  // the taps of the class
};

template <class T, int kRows, int kThreads, bool kAligned>
struct TransposedLoader {
  using Tile = OperandTile<T, kRows, false>;
  static constexpr int kVector = Tile::kVector, kLine = Tile::kLine, kPerThread = Tile::kChunks / kThreads, kDepthStep = kThreads / kLine;
  TransposedWeights<T> from;
  int column;
  DepthWalk at[kPerThread];

  DEVICE TransposedLoader(const TransposedWeights<T>& from, int firstColumn)
      : from(from), column(firstColumn + static_cast<int>(threadIdx.x) % kLine * kVector) {
    for (int i = 0; i < kPerThread; ++i) {
      at[i] = {0, 0, 0};
      at[i].advance(static_cast<int>(threadIdx.x) / kLine + i * kDepthStep, from.o, from.tapsX);
    }
  }

  DEVICE void next(Tile& tile) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      Vector<T>* to = tile.chunk(static_cast<int>(threadIdx.x) % kLine * kVector, static_cast<int>(threadIdx.x) / kLine + i * kDepthStep);
      const int ky = from.firstY + at[i].p * from.stepY, kx = from.firstX + at[i].q * from.stepX;
      const T* chunk = from.weights + ((static_cast<int64_t>(at[i].c) * from.kh + ky) * from.kw + kx) * from.c + column;
      const bool inside = at[i].p < from.tapsY;
      if (kAligned) {
        const bool valid = inside && column < from.c;
        cpAsync16(to, valid ? chunk : from.weights, valid);
      } else {
        Vector<T> value;
        for (int e = 0; e < kVector; ++e) value.v[e] = inside && column + e < from.c ? chunk[e] : T(0.0f);
        *to = value;
      }
      at[i].advance(kSlice<T>, from.o, from.tapsX);
    }
  }
  DEVICE void flush() {}
};

// Columns of a matrix [depth, columns] with chunks along the columns: dy of a weight gradient.
template <class T, int kRows, int kThreads, bool kAligned, class Prologue = Plain>
struct ColumnLoader {
  using Tile = OperandTile<T, kRows, false>;
  static constexpr int kVector = Tile::kVector, kLine = Tile::kLine, kPerThread = Tile::kChunks / kThreads, kDepthStep = kThreads / kLine;
  const T* matrix;
  int columns, column;
  int64_t k, end;
  Fill<T, Prologue, kPerThread> fill;

  DEVICE ColumnLoader(const T* matrix, int columns, int firstColumn, int64_t begin, int64_t end, const Prologue& prologue = {})
      : matrix(matrix),
        columns(columns),
        column(firstColumn + static_cast<int>(threadIdx.x) % kLine * kVector),
        k(begin + static_cast<int>(threadIdx.x) / kLine),
        end(end),
        fill(prologue) {}

  DEVICE void next(Tile& tile) {
    fill.flush();
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      Vector<T>* to = tile.chunk(static_cast<int>(threadIdx.x) % kLine * kVector, static_cast<int>(threadIdx.x) / kLine + i * kDepthStep);
      const int64_t row = k + i * kDepthStep;
      const T* chunk = matrix + row * columns + column;
      if (kAligned) {
        fill.put(i, to, matrix, row < end && column < columns ? chunk : nullptr, row, column);
      } else {
        Vector<T> value;
        for (int e = 0; e < kVector; ++e) value.v[e] = row < end && column + e < columns ? chunk[e] : T(0.0f);
        *to = value;
      }
    }
    k += kSlice<T>;
  }
  DEVICE void flush() { fill.flush(); }
};

// Gathered x with pixels as the depth and (tap, channel) as rows: the other operand of a weight gradient.
template <class T, int kRows, int kThreads, bool kAligned, class Prologue = Plain>
struct PixelLoader {
  using Tile = OperandTile<T, kRows, false>;
  static constexpr int kVector = Tile::kVector, kLine = Tile::kLine, kPerThread = Tile::kChunks / kThreads, kDepthStep = kThreads / kLine;
  Gather<T> from;
  DepthWalk column;
  int64_t left[kPerThread];  // pixels before the end of this block's share
  int64_t image[kPerThread];
  int i[kPerThread], j[kPerThread];
  int64_t end;
  Fill<T, Prologue, kPerThread> fill;

  DEVICE PixelLoader(const Gather<T>& from, int firstColumn, int64_t begin, int64_t end, const Prologue& prologue = {})
      : from(from), end(end), fill(prologue) {
    column.start(from, firstColumn + static_cast<int>(threadIdx.x) % kLine * kVector);
    const int perImage = from.y.rows * from.x.rows;
    for (int u = 0; u < kPerThread; ++u) {
      const int64_t pixel = begin + static_cast<int>(threadIdx.x) / kLine + u * kDepthStep;
      left[u] = end - pixel;
      image[u] = pixel / perImage;
      i[u] = static_cast<int>(pixel % perImage) / from.x.rows;
      j[u] = static_cast<int>(pixel % perImage) % from.x.rows;
    }
  }

  DEVICE const T* address(int u, const DepthWalk& place) const {
    const int sy = i[u] * from.y.stride + from.y.origin + place.p * from.y.step,
              sx = j[u] * from.x.stride + from.x.origin + place.q * from.x.step;
    const bool inside = left[u] > 0 && place.p < from.y.taps && static_cast<unsigned>(sy) < static_cast<unsigned>(from.y.size) &&
                        static_cast<unsigned>(sx) < static_cast<unsigned>(from.x.size);
    return inside ? from.source + (image[u] * from.y.size * from.x.size + sy * from.x.size + sx) * from.channels + place.c : nullptr;
  }

  DEVICE void next(Tile& tile) {
    fill.flush();
#pragma unroll
    for (int u = 0; u < kPerThread; ++u) {
      Vector<T>* to = tile.chunk(static_cast<int>(threadIdx.x) % kLine * kVector, static_cast<int>(threadIdx.x) / kLine + u * kDepthStep);
      if (kAligned) {
        fill.put(u, to, from.source, address(u, column), end - left[u], column.c);
      } else {
        DepthWalk place = column;
        Vector<T> value;
        for (int e = 0; e < kVector; ++e, place.advance(1, from.channels, from.x.taps)) {
          const T* element = address(u, place);
          value.v[e] = element == nullptr ? T(0.0f) : *element;
        }
        *to = value;
      }
      left[u] -= kSlice<T>;
      j[u] += kSlice<T>;
      while (j[u] >= from.x.rows) {
        j[u] -= from.x.rows;
        if (++i[u] == from.y.rows) {
          i[u] = 0;
          ++image[u];
        }
      }
    }
  }
  DEVICE void flush() { fill.flush(); }
};

}  // namespace densecl::cuda
