// L2 normalisation, dense matching and row gathers.
#include <type_traits>

#include "kernel/gemm.cuh"
#include "kernel/reduce.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kThreads = 256, kRowsPerBlock = kThreads / kWarp;

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

// y[n, p] = x[n, index[n, p]], rows of `width` words
template <class Word>
__global__ void __launch_bounds__(kThreads)
    gatherKernel(Word* y, const Word* x, const int32_t* index, int64_t p, int64_t q, int64_t width, int64_t count, Report* report) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / width;
    int at = index[row];
    if (at < 0 || at >= q) {
      fileReport(report, kGatherIndex, at, static_cast<int>(q));
      at = 0;
    }
    y[i] = x[(row / p * q + at) * width + i % width];
  }
}

// dx[n, q] = the sum, in order, of the rows of dy that were gathered from it
template <class T>
__global__ void __launch_bounds__(kThreads)
    gatherBackwardKernel(T* dx, const T* dy, const int32_t* index, int64_t p, int64_t q, int64_t width, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / width, image = row / q;
    float sum = 0;
    for (int64_t k = 0; k < p; ++k)
      if (index[image * p + k] == row % q) sum += static_cast<float>(dy[(image * p + k) * width + i % width]);
    dx[i] = T(sum);
  }
}

template <class T>
void norms(const Call& call, T* y, float* norm, const T* x, int64_t rows, int64_t columns, float eps) {
  launch(call, normalizeKernel<T>, Grid{ceilDiv(rows, kRowsPerBlock)}, kThreads, 0, y, norm, x, rows, static_cast<int>(columns), eps);
}

struct alignas(16) Word16 {
  uint32_t v[4];
};

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
    const MatchJob<T> job{index.data<int32_t>(),
                          optionalData<float>(similarity),
                          query.data<T>(),
                          key.data<T>(),
                          cosine ? queryNorm.data() : nullptr,
                          cosine ? keyNorm.data() : nullptr,
                          static_cast<int>(P),
                          static_cast<int>(Q),
                          static_cast<int>(C)};
    const auto kernelOf = [&](auto math) {
      using Math = decltype(math);
      return C % Vector<T>::kLength == 0 ? matchKernel<T, Math, true> : matchKernel<T, Math, false>;
    };
    launch(call, usable(call, Family::mmaDenseMatch) ? kernelOf(TensorCores{}) : kernelOf(MathFma<T>{}), Grid{ceilDiv(P, Shape::kM), N},
           Shape::kThreads, sizeof(GemmMemory<T, Shape, true, true, float>), job);
  });
}

void gatherRows(const Call& call) {
  const Tensor &y = call.tensor(args::gatherRows::y), &x = call.tensor(args::gatherRows::x), &index = call.tensor(args::gatherRows::index);
  const int64_t bytes = y.dim(2) * static_cast<int64_t>(itemSize(y.dtype));
  const auto run = [&](auto word) {
    using Word = decltype(word);
    const int64_t width = bytes / static_cast<int64_t>(sizeof(Word)), count = y.dim(0) * y.dim(1) * width;
    launch(call, gatherKernel<Word>, loopGrid(call, count, kThreads), kThreads, 0, y.data<Word>(), x.data<Word>(), index.data<int32_t>(),
           y.dim(1), x.dim(1), width, count, reportOf(call));
  };
  if (bytes % 16 == 0) return run(Word16{});
  if (bytes % 4 == 0) return run(uint32_t{});
  run(uint16_t{});
}

void gatherRowsBackward(const Call& call) {
  const Tensor &dx = call.tensor(args::gatherRowsBackward::dx), &dy = call.tensor(args::gatherRowsBackward::dy),
               &index = call.tensor(args::gatherRowsBackward::index);
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, gatherBackwardKernel<T>, loopGrid(call, dx.size(), kThreads), kThreads, 0, dx.data<T>(), dy.data<T>(),
           index.data<int32_t>(), dy.dim(1), dx.dim(1), dx.dim(2), dx.size());
  });
}

}  // namespace densecl::cuda
