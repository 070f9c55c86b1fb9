// The tile product that convolutions, linear layers, matching and the contrastive loss are made of:
//   acc[m][n] += sum over k of A[m][k] B[n][k]
// A block owns a kM x kN tile of the result. Operands pass through shared memory in slices of 64 bytes of depth, in a multistage pipeline
// of kStages slices that cp.async fills ahead; warps multiply on tensor cores (bf16, tf32) or with FMAs (f32).
#pragma once
#include "mma.cuh"
#include "tile.cuh"
#include "vector.cuh"

namespace densecl::cuda {

// The depth of a slice: 32 elements of bf16, 16 of f32.
template <class T>
constexpr int kSlice = 64 / static_cast<int>(sizeof(T));

// kRows x kSlice elements in chunks of 16 bytes, along the depth (kDepthMajor) or along the rows. Chunks are permuted by an
// exclusive or so that the eight rows of an ldmatrix lie in different banks.
template <class T, int kRows, bool kDepthMajor>
struct OperandTile {
  static constexpr int kVector = Vector<T>::kLength;
  static constexpr int kLine = kDepthMajor ? kSlice<T> / kVector : kRows / kVector;  // chunks of a line
  static constexpr int kMask = (kLine < 8 ? kLine : 8) - 1;
  static constexpr int kChunks = kRows * kSlice<T> / kVector;
  Vector<T> chunks[kChunks];

  // The chunk that starts at (row, k); the one along the chunk must be a multiple of kVector.
  DEVICE Vector<T>* chunk(int row, int k) {
    if (kDepthMajor) return &chunks[row * kLine + (k / kVector ^ (row >> 1 & kMask))];
    return &chunks[k * kLine + (row / kVector ^ (k & kMask))];
  }
  DEVICE T element(int row, int k) {
    return kDepthMajor ? chunk(row, k / kVector * kVector)->v[k % kVector] : chunk(row / kVector * kVector, k)->v[row % kVector];
  }
};

template <int kM_, int kN_, int kWarpsM_, int kWarpsN_>
struct TileShape {
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kThreads = kWarp * kWarpsM * kWarpsN;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;            // the part of a warp
  static constexpr int kMmaM = kWarpM / 16, kMmaN = kWarpN / 8, kMmaStep = 16;  // rows from one accumulator tile to the next
  static constexpr int kTogether = 2;  // rows of an epilogue whose loads are on their way together: two blocks share the registers
  static DEVICE void sync() { __syncthreads(); }
  static DEVICE int thread() { return static_cast<int>(threadIdx.x); }
  // The first row and column of the calling warp's part.
  static DEVICE int firstRow() { return warpIndex() / kWarpsN * kWarpM; }
  static DEVICE int firstColumn() { return warpIndex() % kWarpsN * kWarpN; }
};

// The accumulators of a warp's part, in the fragment layout of mma.cuh.
template <class Shape>
struct Accumulators {
  float c[Shape::kMmaM][Shape::kMmaN][4];
  DEVICE void clear() {
    for (auto& row : c)
      for (auto& tile : row)
        for (float& value : tile) value = 0;
  }
};

// Row and column, in the block's tile, of accumulator c[i][j][e] of this lane.
template <class Shape>
DEVICE int accumulatorRow(int i, int e) {
  return Shape::firstRow() + i * Shape::kMmaStep + laneIndex() / 4 + e / 2 * 8;
}
template <class Shape>
DEVICE int accumulatorColumn(int j, int e) {
  return Shape::firstColumn() + j * 8 + laneIndex() % 4 * 2 + e % 2;
}

// How a slice is multiplied.
struct MathBf16 {
  template <class Shape, class A, class B>
  static DEVICE void multiply(Accumulators<Shape>& acc, A& a, B& b, int rowA, int rowB) {
    const int matrix = laneIndex() / 8, line = laneIndex() % 8;
#pragma unroll
    for (int k = 0; k < kSlice<bf16>; k += 16) {
      uint32_t fragA[Shape::kMmaM][4], pairs[Shape::kMmaN / 2][4], fragB[Shape::kMmaN][2];
      loadFragments(fragA, a, rowA + matrix % 2 * 8, k + matrix / 2 * 8, line);
      loadFragments(pairs, b, rowB + matrix / 2 * 8, k + matrix % 2 * 8, line);
#pragma unroll
      for (int j = 0; j < Shape::kMmaN; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) fragB[j][e] = pairs[j / 2][j % 2 * 2 + e];
      mmaBf16(acc.c, fragA, fragB);
    }
  }

 private:
  // The 8x8 matrices at (row, depth) and 16 rows further each: their lines run along the depth, or along the rows and are transposed on
  // the way.
  template <int kCount, int kRows>
  static DEVICE void loadFragments(uint32_t (&out)[kCount][4], OperandTile<bf16, kRows, true>& tile, int row, int depth, int line) {
    ldmatrix<false>(out, [&](int i) { return tile.chunk(row + i * 16 + line, depth); });
  }
  template <int kCount, int kRows>
  static DEVICE void loadFragments(uint32_t (&out)[kCount][4], OperandTile<bf16, kRows, false>& tile, int row, int depth, int line) {
    ldmatrix<true>(out, [&](int i) { return tile.chunk(row + i * 16, depth + line); });
  }
};

struct MathTf32 {
  template <class Shape, class A, class B>
  static DEVICE void multiply(Accumulators<Shape>& acc, A& a, B& b, int rowA, int rowB) {
    const int g = laneIndex() / 4, t = laneIndex() % 4;
#pragma unroll
    for (int k = 0; k < kSlice<float>; k += 8) {
      uint32_t fragB[Shape::kMmaN][2];
#pragma unroll
      for (int j = 0; j < Shape::kMmaN; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) fragB[j][e] = roundTf32(b.element(rowB + j * 8 + g, k + t + e * 4));
#pragma unroll
      for (int i = 0; i < Shape::kMmaM; ++i) {
        uint32_t fragA[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) fragA[e] = roundTf32(a.element(rowA + i * 16 + g + e % 2 * 8, k + t + e / 2 * 4));
        mmaTf32(acc.c[i], fragA, fragB);
      }
    }
  }
};

// FMAs, exact to f32: for f32, and where tensor cores must not be used on bf16.
template <class T>
struct MathFma {
  template <class Shape, class A, class B>
  static DEVICE void multiply(Accumulators<Shape>& acc, A& a, B& b, int rowA, int rowB) {
    const int g = laneIndex() / 4, t = laneIndex() % 4;
#pragma unroll 4
    for (int k = 0; k < kSlice<T>; ++k) {
      float columns[Shape::kMmaN][2];
#pragma unroll
      for (int j = 0; j < Shape::kMmaN; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) columns[j][e] = static_cast<float>(b.element(rowB + j * 8 + 2 * t + e, k));
#pragma unroll
      for (int i = 0; i < Shape::kMmaM; ++i) {
        const float low = static_cast<float>(a.element(rowA + i * 16 + g, k)),
                    high = static_cast<float>(a.element(rowA + i * 16 + g + 8, k));
#pragma unroll
        for (int j = 0; j < Shape::kMmaN; ++j) {
          acc.c[i][j][0] += low * columns[j][0];
          acc.c[i][j][1] += low * columns[j][1];
          acc.c[i][j][2] += high * columns[j][0];
          acc.c[i][j][3] += high * columns[j][1];
        }
      }
    }
  }
};
using MathF32 = MathFma<float>;

constexpr int kStages = 4;

// The ring of slices, and the finished tile in the same memory (Out is the type that it is stored as), with room after it for the sums
// of its columns. Weight gradients, whose left operand does not lie along the depth, have none.
template <class T, class Shape, bool kDepthMajorA, bool kDepthMajorB, class Out>
struct GemmMemory {
  using A = OperandTile<T, Shape::kM, kDepthMajorA>;
  using B = OperandTile<T, Shape::kN, kDepthMajorB>;
  static constexpr int kPitch = Shape::kN + Vector<Out>::kLength;  // elements; rows start in different banks
  static constexpr int kTile = Shape::kM * kPitch;
  static DEVICE int place(int row, int column) { return row * kPitch + column; }
  struct Slice {
    A a;
    B b;
  };
  union {
    Slice ring[kStages];
    Out tile[kTile];
    unsigned char room[kTile * sizeof(Out) + (kDepthMajorA ? sizeof(ColumnSums<Shape, Out>) : 0)];
  };
};

// Rows of a matrix [rows, depth] with chunks along the depth.
template <class T, int kRows, int kThreads, bool kAligned>
struct RowLoader {
  using Tile = OperandTile<T, kRows, true>;
  static constexpr int kVector = Tile::kVector, kLine = Tile::kLine, kPerThread = Tile::kChunks / kThreads, kRowStep = kThreads / kLine;
  const T* matrix;
  int rows, depth, first, k;

  DEVICE RowLoader(const T* matrix, int rows, int depth, int firstRow)
      : matrix(matrix),
        rows(rows),
        depth(depth),
        first(firstRow + static_cast<int>(threadIdx.x) / kLine),
        k(static_cast<int>(threadIdx.x) % kLine * kVector) {}

  DEVICE void next(Tile& tile) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int row = first + i * kRowStep;
      Vector<T>* to = tile.chunk(static_cast<int>(threadIdx.x) / kLine + i * kRowStep, static_cast<int>(threadIdx.x) % kLine * kVector);
      const T* chunk = matrix + static_cast<int64_t>(row) * depth + k;
      if (kAligned) {
        const bool valid = row < rows && k < depth;
        cpAsync16(to, valid ? chunk : matrix, valid);
      } else {
        Vector<T> value;
        for (int e = 0; e < kVector; ++e) value.v[e] = row < rows && k + e < depth ? chunk[e] : T(0.0f);
        *to = value;
      }
    }
    k += kSlice<T>;
  }
  DEVICE void flush() {}
};

// Multiplies `slices` slices. A loader's next(tile) starts the copies of its next slice; flush() is called after the last, two
// barriers before that is read: a loader may keep a slice in registers until it is asked for the next.
template <class Math, class Shape, class Memory, class LoaderA, class LoaderB>
DEVICE void multiplySlices(Accumulators<Shape>& acc, Memory& memory, LoaderA& a, LoaderB& b, int slices) {
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < slices) {
      a.next(memory.ring[s].a);
      b.next(memory.ring[s].b);
    } else {
      a.flush();
      b.flush();
    }
    cpAsyncCommitGroup();
  }
  for (int s = 0; s < slices; ++s) {
    cpAsyncWaitGroup<kStages - 2>();
    // Everybody's copies of slice s have arrived, and everybody has finished slice s - 1, whose slot is filled next.
    __syncthreads();
    if (s + kStages - 1 < slices) {
      a.next(memory.ring[(s + kStages - 1) % kStages].a);
      b.next(memory.ring[(s + kStages - 1) % kStages].b);
    } else {
      a.flush();
      b.flush();
    }
    cpAsyncCommitGroup();
    // Loaders may leave lanes at different places, and ldmatrix and mma.sync are for a warp that is at one.
    syncWarp();
    Math::template multiply<Shape>(acc, memory.ring[s % kStages].a, memory.ring[s % kStages].b, Shape::firstRow(), Shape::firstColumn());
  }
  cpAsyncWaitGroup<0>();
  __syncthreads();
}

// The accumulators as the tile in shared memory, rounded to Out.
template <class Shape, class Memory>
DEVICE void stageTile(const Accumulators<Shape>& acc, Memory& memory) {
  using Out = typename std::remove_reference<decltype(memory.tile[0])>::type;
#pragma unroll
  for (int i = 0; i < Shape::kMmaM; ++i)
#pragma unroll
    for (int j = 0; j < Shape::kMmaN; ++j)
#pragma unroll
      for (int e = 0; e < 4; e += 2)
        store(&memory.tile[accumulatorRow<Shape>(i, e) * Memory::kPitch + accumulatorColumn<Shape>(j, e)],
              Elements<Out, 2>{Out(acc.c[i][j][e]), Out(acc.c[i][j][e + 1])});
  Shape::sync();
}

}  // namespace densecl::cuda
