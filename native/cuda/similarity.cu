// L2 normalisation and dense matching.
#include <type_traits>

#include "kernel/gemm.cuh"
#include "kernel/reduce.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kRowsPerBlock = kThreads / kWarp;

template <class T>
DEVICE float squareOf(const T* row, int columns) {
  float square = 0;
  for (int c = laneIndex(); c < columns; c += kWarp) square += static_cast<float>(row[c]) * static_cast<float>(row[c]);
  return warpSum(square);
}

// A warp takes a row.
template <class T>
__global__ void __launch_bounds__(kThreads) normalizeKernel(T* y, float* norm, const T* x, int64_t rows, int columns, float eps) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + warpIndex();
  if (row >= rows) return;
  const float length = fmaxf(sqrtf(squareOf(x + row * columns, columns)), eps);
  if (laneIndex() == 0) norm[row] = length;
  if (y == nullptr) return;
  for (int c = laneIndex(); c < columns; c += kWarp) y[row * columns + c] = T(static_cast<float>(x[row * columns + c]) / length);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    normalizeBackwardKernel(T* dx, const T* dy, const T* y, const float* norm, int64_t rows, int columns, float eps) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + warpIndex();
  if (row >= rows) return;
  const float length = norm[row];
  float dot = 0;
  for (int c = laneIndex(); c < columns; c += kWarp)
    dot += static_cast<float>(dy[row * columns + c]) * static_cast<float>(y[row * columns + c]);
  dot = warpSum(dot);
  if (!(length > eps)) dot = 0;
  for (int c = laneIndex(); c < columns; c += kWarp)
    dx[row * columns + c] = T((static_cast<float>(dy[row * columns + c]) - static_cast<float>(y[row * columns + c]) * dot) / length);
}

using Shape = TileShape<64, 64, 2, 2>;

template <class T>
struct MatchJob {
  int32_t* index;
  float* similarity;  // or null
  const T *query, *key;
  const float *queryNorm, *keyNorm;  // null: plain products
  int p, q, channels;
};

// A block takes 64 queries of one image and passes over its keys 64 at a time; the similarities exist as one tile.
template <class T, class Math, bool kAligned>
__global__ void __launch_bounds__(Shape::kThreads) matchKernel(MatchJob<T> job) {
  using Memory = GemmMemory<T, Shape, true, true, float>;
  Memory& memory = sharedMemory<Memory>();
  const int64_t image = blockIdx.y;
  const int firstQuery = static_cast<int>(blockIdx.x) * Shape::kM;
  // Two threads to a query: each looks at half of the keys of a tile.
  const int row = static_cast<int>(threadIdx.x) / 2, half = static_cast<int>(threadIdx.x) % 2, query = firstQuery + row;
  float best = -INFINITY;
  int where = 0;
  for (int firstKey = 0; firstKey < job.q; firstKey += Shape::kN) {
    RowLoader<T, Shape::kM, Shape::kThreads, kAligned> a(job.query + image * job.p * job.channels, job.p, job.channels, firstQuery);
    RowLoader<T, Shape::kN, Shape::kThreads, kAligned> b(job.key + image * job.q * job.channels, job.q, job.channels, firstKey);
    Accumulators<Shape> acc;
    acc.clear();
    multiplySlices<Math>(acc, memory, a, b, (job.channels + kSlice<T> - 1) / kSlice<T>);
    stageTile<Shape>(acc, memory);
    const int begin = half * Shape::kN / 2;
    for (int j = begin; j < begin + Shape::kN / 2 && firstKey + j < job.q; ++j) {
      float value = memory.tile[row * Memory::kPitch + j];
      if (job.keyNorm != nullptr) value /= job.keyNorm[image * job.q + firstKey + j];
      if (value > best) {
        best = value;
        where = firstKey + j;
      }
    }
    __syncthreads();
  }
  const float otherBest = shuffleXor(best, 1);
  const int other = shuffleXor(where, 1);
  if (otherBest > best || (otherBest == best && other < where)) {
    best = otherBest;
    where = other;
  }
  if (half != 0 || query >= job.p) return;
  job.index[image * job.p + query] = where;
  if (job.similarity != nullptr)
    job.similarity[image * job.p + query] = job.queryNorm == nullptr ? best : best / job.queryNorm[image * job.p + query];
}

template <class T>
void norms(const Call& call, T* y, float* norm, const T* x, int64_t rows, int64_t columns, float eps) {
  launch(call, normalizeKernel<T>, Grid{ceilDiv(rows, kRowsPerBlock)}, kThreads, 0, y, norm, x, rows, static_cast<int>(columns), eps);
}

}  // namespace

void l2Normalize(const Call& call) {
  using Names = args::l2Normalize;
  const Tensor &y = call.tensor(Names::y), &norm = call.tensor(Names::norm), &x = call.tensor(Names::x);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    norms(call, y.data<T>(), norm.data<float>(), x.data<T>(), x.rows(), x.columns(), static_cast<float>(call.number(Names::eps)));
  });
}

void l2NormalizeBackward(const Call& call) {
  using Names = args::l2NormalizeBackward;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy), &y = call.tensor(Names::y), &norm = call.tensor(Names::norm);
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, normalizeBackwardKernel<T>, Grid{ceilDiv(dx.rows(), kRowsPerBlock)}, kThreads, 0, dx.data<T>(), dy.data<T>(), y.data<T>(),
           norm.data<float>(), dx.rows(), static_cast<int>(dx.columns()), static_cast<float>(call.number(Names::eps)));
  });
}

void denseMatch(const Call& call) {
  using Names = args::denseMatch;
  const Tensor &index = call.tensor(Names::index), *similarity = call.optional(Names::similarity), &query = call.tensor(Names::query),
               &key = call.tensor(Names::key);
  const bool cosine = call.flag(Names::cosine);
  const int64_t N = query.dim(0), P = query.dim(1), Q = key.dim(1), C = query.dim(2);
  DeviceScratch<float> queryNorm(call, N * P), keyNorm(call, N * Q);
  dispatchFloat(call, query.dtype, [&](auto zero) {
    using T = decltype(zero);
    using TensorCores = std::conditional_t<std::is_same_v<T, bf16>, MathBf16, MathF32>;
    if (cosine) {
      norms<T>(call, nullptr, queryNorm.data(), query.data<T>(), N * P, C, 1e-12f);
      norms<T>(call, nullptr, keyNorm.data(), key.data<T>(), N * Q, C, 1e-12f);
    }
    MatchJob<T> job{};
    job.index = index.data<int32_t>();
    job.similarity = optionalData<float>(similarity);
    job.query = query.data<T>();
    job.key = key.data<T>();
    job.queryNorm = cosine ? queryNorm.data() : nullptr;
    job.keyNorm = cosine ? keyNorm.data() : nullptr;
    job.p = static_cast<int>(P);
    job.q = static_cast<int>(Q);
    job.channels = static_cast<int>(C);
    const auto kernelOf = [&](auto math) {
      using Math = decltype(math);
      return C % Vector<T>::kLength == 0 ? matchKernel<T, Math, true> : matchKernel<T, Math, false>;
    };
    launch(call, usable(call, Family::mmaDenseMatch) ? kernelOf(TensorCores{}) : kernelOf(MathFma<T>{}), Grid{ceilDiv(P, Shape::kM), N},
           Shape::kThreads, sizeof(GemmMemory<T, Shape, true, true, float>), job);
  });
}

}  // namespace densecl::cuda
