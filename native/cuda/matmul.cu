// Batched products of matrices on the tile of kernel/gemm.cuh: bf16 on tensor cores, f32 by FMAs.
#include "../core/matmul.h"

#include <type_traits>

#include "kernel/gemm.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

using Shape = TileShape<64, 64, 2, 2>;

// Rows whose elements along the depth are `depthStride` apart, element by element. Neighbouring threads take neighbouring rows where
// these are what lies side by side in memory, so that a warp reads whole lines.
template <class T, int kRows, int kThreads>
struct StridedLoader {
  using Tile = OperandTile<T, kRows, true>;
  static constexpr int kVector = Tile::kVector, kLine = Tile::kLine;
  const T* matrix;
  int rows, depth, firstRow, k = 0;
  int64_t rowStride, depthStride;

  DEVICE StridedLoader(const T* matrix, int rows, int depth, int firstRow, int64_t rowStride, int64_t depthStride)
      : matrix(matrix), rows(rows), depth(depth), firstRow(firstRow), rowStride(rowStride), depthStride(depthStride) {}

  DEVICE void next(Tile& tile) {
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kChunks; i += kThreads) {
      const int row = depthStride == 1 ? i / kLine : i % kRows, depthAt = (depthStride == 1 ? i % kLine : i / kRows) * kVector;
      const T* from = matrix + (firstRow + row) * rowStride + (k + depthAt) * depthStride;
      Vector<T> value;
      for (int e = 0; e < kVector; ++e) value.v[e] = firstRow + row < rows && k + depthAt + e < depth ? from[e * depthStride] : T(0.0f);
      *tile.chunk(row, depthAt) = value;
    }
    k += kSlice<T>;
  }
  DEVICE void flush() {}
};

template <class T>
struct MatmulJob {
  T* y;
  const T *a, *b;
  int m, n, k;
  int64_t rowA, depthA, rowB, depthB;
  StridedLoop<2> batches;
};

// A block takes a tile of 64 x 64 of one product.
template <class T, class Math, bool kRowsA, bool kRowsB>
__global__ void __launch_bounds__(Shape::kThreads) matmulKernel(MatmulJob<T> job) {
  using Memory = GemmMemory<T, Shape, true, true, T>;
  Memory& memory = sharedMemory<Memory>();
  const int tilesM = (job.m + Shape::kM - 1) / Shape::kM, tilesN = (job.n + Shape::kN - 1) / Shape::kN;
  const int64_t tiles = static_cast<int64_t>(tilesM) * tilesN, batch = blockIdx.x / tiles;
  const int tile = static_cast<int>(blockIdx.x % tiles), firstRow = tile / tilesN * Shape::kM, firstColumn = tile % tilesN * Shape::kN;
  int64_t offsets[2] = {0, 0}, rest = batch;
  for (int axis = job.batches.rank - 1; axis >= 0; --axis) {
    for (int k = 0; k < 2; ++k) offsets[k] += rest % job.batches.size[axis] * job.batches.stride[axis][k];
    rest /= job.batches.size[axis];
  }
  const T *matrixA = job.a + offsets[0] * job.m * job.k, *matrixB = job.b + offsets[1] * job.k * job.n;
  Accumulators<Shape> acc;
  acc.clear();
  const int slices = (job.k + kSlice<T> - 1) / kSlice<T>;
  const auto multiply = [&](auto& a, auto& b) { multiplySlices<Math>(acc, memory, a, b, slices); };
  const auto withB = [&](auto& a) {
    if constexpr (kRowsB) {
      RowLoader<T, Shape::kN, Shape::kThreads, true> b(matrixB, job.n, job.k, firstColumn);
      multiply(a, b);
    } else {
      StridedLoader<T, Shape::kN, Shape::kThreads> b(matrixB, job.n, job.k, firstColumn, job.rowB, job.depthB);
      multiply(a, b);
    }
  };
  if constexpr (kRowsA) {
    RowLoader<T, Shape::kM, Shape::kThreads, true> a(matrixA, job.m, job.k, firstRow);
    withB(a);
  } else {
    StridedLoader<T, Shape::kM, Shape::kThreads> a(matrixA, job.m, job.k, firstRow, job.rowA, job.depthA);
    withB(a);
  }
  stageTile<Shape>(acc, memory);
  T* y = job.y + batch * job.m * job.n + firstColumn;
  storeTile<Shape>(
      memory, job.n - firstColumn, job.n % Vector<T>::kLength == 0,
      [&](int row) { return firstRow + row < job.m ? y + static_cast<int64_t>(firstRow + row) * job.n : nullptr; },
      static_cast<T*>(nullptr));
}

}  // namespace

void matmul(const Call& call) {
  using args::matmul;
  const Matmul all(call);
  constexpr int64_t kMost = (int64_t{1} << 31) - Shape::kM;
  REQUIRE(all.m < kMost && all.n < kMost && all.k < kMost, "SHAPE", "matmul: the matrices are too large for one launch");
  dispatchFloat(call, call.tensor(matmul::y).dtype, [&](auto zero) {
    using T = decltype(zero);
    using TensorCores = std::conditional_t<std::is_same_v<T, bf16>, MathBf16, MathF32>;
    const MatmulJob<T> job{call.tensor(matmul::y).data<T>(),
                           call.tensor(matmul::a).data<T>(),
                           call.tensor(matmul::b).data<T>(),
                           static_cast<int>(all.m),
                           static_cast<int>(all.n),
                           static_cast<int>(all.k),
                           all.rowA,
                           all.depthA,
                           all.rowB,
                           all.depthB,
                           all.batches};
    const auto run = [&](auto math, auto rowsA, auto rowsB) {
      launch(call, matmulKernel<T, decltype(math), decltype(rowsA)::value, decltype(rowsB)::value>,
             Grid{ceilDiv(all.m, Shape::kM) * ceilDiv(all.n, Shape::kN) * all.batches.count}, Shape::kThreads,
             sizeof(GemmMemory<T, Shape, true, true, T>), job);
    };
    // Rows of whole vectors along the depth are copied without passing registers.
    const bool whole = all.k % Vector<T>::kLength == 0, rowsA = whole && all.depthA == 1, rowsB = whole && all.depthB == 1;
    const auto choose = [&](auto math) {
      if (rowsA && rowsB) return run(math, std::true_type{}, std::true_type{});
      if (rowsA) return run(math, std::true_type{}, std::false_type{});
      if (rowsB) return run(math, std::false_type{}, std::true_type{});
      run(math, std::false_type{}, std::false_type{});
    };
    if (usable(call, Family::mmaMatmul))
      choose(TensorCores{});
    else
      choose(MathFma<T>{});
  });
}

}  // namespace densecl::cuda
