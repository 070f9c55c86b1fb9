// infoNce: value and gradient in one pass. It is attention whose values are its keys: with p the softmax, the gradient of the query is
// sum p_j k_j - k+. A block keeps 16 queries a warp in shared memory and passes over one split of the queue; the logits of a tile of keys
// live in registers, the maximum is carried along (online softmax, M. Milakov, arXiv:1805.02867; the tiling is that of T. Dao,
// arXiv:2307.08691). A second kernel merges the partials with the positive. Memory: O(rows * D), never rows * K.
#include <type_traits>

#include "contrast.cuh"
#include "kernel/gemm.cuh"
#include "meanTerms.cuh"
#include "ops.h"

namespace densecl::cuda {
namespace {

// Shapes: kWarps warps of 16 queries, tiles of kKeys keys, embeddings padded to kDim.
template <class T, int kDim_>
struct ContrastShape {
  static constexpr bool kHalf = std::is_same_v<T, bf16>;
  static constexpr int kDim = kDim_, kWarps = kHalf ? 4 : 2, kRows = 16 * kWarps, kKeys = (kHalf ? 64 : 32) / (kDim > 128 ? 2 : 1),
                       kThreads = kWarp * kWarps, kBuffers = kHalf ? 2 : 1;
  static constexpr int kSlices = kDim / kSlice<T>, kScores = kKeys / 8, kValues = kDim / 8;
  using QueryTile = OperandTile<T, kRows, true>;
  using KeyTile = OperandTile<T, kKeys, true>;
  struct Memory {
    QueryTile query[kSlices];
    KeyTile keys[kBuffers][kSlices];
    float p[kHalf ? 1 : kRows][kHalf ? 1 : kKeys + 1];  // only FMAs need the probabilities here
  };
};

// Copies rows first.. of a matrix [rows, columns] into the slices of a tile; zeros outside.
template <class T, int kRows, int kSlices, int kThreads, bool kAligned>
DEVICE void loadRows(OperandTile<T, kRows, true> (&tile)[kSlices], const T* matrix, int64_t first, int64_t rows, int columns) {
  constexpr int kVector = Vector<T>::kLength, kLine = kSlices * kSlice<T> / kVector;
  for (int unit = static_cast<int>(threadIdx.x); unit < kRows * kLine; unit += kThreads) {
    const int row = unit / kLine, column = unit % kLine * kVector;
    Vector<T>* to = tile[column / kSlice<T>].chunk(row, column % kSlice<T>);
    const T* from = matrix + (first + row) * columns + column;
    if (kAligned) {
      const bool valid = first + row < rows && column < columns;
      cpAsync16(to, valid ? from : matrix, valid);
    } else {
      Vector<T> value;
      for (int e = 0; e < kVector; ++e) value.v[e] = first + row < rows && column + e < columns ? from[e] : T(0.0f);
      *to = value;
    }
  }
}

// The scores of this warp's 16 queries with a tile of keys, and the sum of p times the keys, in the layout of mma.cuh.
template <class Shape>
struct Bf16Contrast {
  static DEVICE void score(float (&s)[Shape::kScores][4], typename Shape::Memory& memory, int buffer) {
    const int matrix = laneIndex() / 8, line = laneIndex() % 8, row = warpIndex() * 16 + matrix % 2 * 8 + line;
#pragma unroll(Shape::kSlices > 4 ? 1 : Shape::kSlices)
    for (int slice = 0; slice < Shape::kSlices; ++slice)
#pragma unroll
      for (int k = 0; k < kSlice<bf16>; k += 16) {
        uint32_t query[4];
        ldmatrix<false>(query, memory.query[slice].chunk(row, k + matrix / 2 * 8));
#pragma unroll
        for (int j = 0; j < Shape::kScores; j += 2) {
          uint32_t keys[4];
          ldmatrix<false>(keys, memory.keys[buffer][slice].chunk(j * 8 + matrix / 2 * 8 + line, k + matrix % 2 * 8));
          mmaBf16(s[j], query, {keys[0], keys[1]});
          mmaBf16(s[j + 1], query, {keys[2], keys[3]});
        }
      }
  }
  // The accumulators of two neighbouring tiles of keys are, as pairs, the left operand of the next product.
  static DEVICE void accumulate(float (&o)[Shape::kValues][4], const float (&p)[Shape::kScores][4], typename Shape::Memory& memory,
                                int buffer) {
    const int matrix = laneIndex() / 8, line = laneIndex() % 8;
#pragma unroll
    for (int j = 0; j < Shape::kScores; j += 2) {
      const uint32_t a[4] = {packPair(p[j][0], p[j][1]), packPair(p[j][2], p[j][3]), packPair(p[j + 1][0], p[j + 1][1]),
                             packPair(p[j + 1][2], p[j + 1][3])};
#pragma unroll
      for (int d = 0; d < Shape::kValues; d += 2) {
        uint32_t values[4];
        const int column = d * 8 + matrix / 2 * 8;
        ldmatrix<true>(values, memory.keys[buffer][column / kSlice<bf16>].chunk(j * 8 + matrix % 2 * 8 + line, column % kSlice<bf16>));
        mmaBf16(o[d], a, {values[0], values[1]});
        mmaBf16(o[d + 1], a, {values[2], values[3]});
      }
    }
  }
};

template <class Shape>
struct F32Contrast {
  static DEVICE void score(float (&s)[Shape::kScores][4], typename Shape::Memory& memory, int buffer) {
    const int row = warpIndex() * 16 + laneIndex() / 4, column = laneIndex() % 4 * 2;
#pragma unroll 1
    for (int slice = 0; slice < Shape::kSlices; ++slice)
#pragma unroll 1
      for (int k = 0; k < kSlice<float>; ++k) {
        const float low = memory.query[slice].element(row, k), high = memory.query[slice].element(row + 8, k);
#pragma unroll
        for (int j = 0; j < Shape::kScores; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float key = memory.keys[buffer][slice].element(j * 8 + column + e, k);
            s[j][e] += low * key;
            s[j][e + 2] += high * key;
          }
      }
  }
  static DEVICE void accumulate(float (&o)[Shape::kValues][4], const float (&p)[Shape::kScores][4], typename Shape::Memory& memory,
                                int buffer) {
    const int row = warpIndex() * 16 + laneIndex() / 4, column = laneIndex() % 4 * 2;
    for (int j = 0; j < Shape::kScores; ++j)
      for (int e = 0; e < 4; ++e) memory.p[row + e / 2 * 8][j * 8 + column + e % 2] = p[j][e];
    syncWarp();
#pragma unroll 1
    for (int key = 0; key < Shape::kKeys; ++key) {
      const float low = memory.p[row][key], high = memory.p[row + 8][key];
#pragma unroll
      for (int d = 0; d < Shape::kValues; ++d)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int at = d * 8 + column + e;
          const float value = memory.keys[buffer][at / kSlice<float>].element(key, at % kSlice<float>);
          o[d][e] += low * value;
          o[d][e + 2] += high * value;
        }
    }
    syncWarp();
  }
};

template <class T, class Shape, bool kAligned, bool kFixed>
__global__ void __launch_bounds__(Shape::kThreads) contrastKernel(ContrastJob<T> job) {
  using Math = std::conditional_t<Shape::kHalf, Bf16Contrast<Shape>, F32Contrast<Shape>>;
  typename Shape::Memory& memory = sharedMemory<typename Shape::Memory>();
  const int64_t firstRow = static_cast<int64_t>(blockIdx.x) * Shape::kRows, begin = blockIdx.y * job.keysPerSplit,
                end = begin + job.keysPerSplit < job.keys ? begin + job.keysPerSplit : job.keys;
  float o[Shape::kValues][4] = {};
  RowState state;

  loadRows<T, Shape::kRows, Shape::kSlices, Shape::kThreads, kAligned>(memory.query, job.query, firstRow, job.rows, job.dim);
  loadRows<T, Shape::kKeys, Shape::kSlices, Shape::kThreads, kAligned>(memory.keys[0], job.queue, begin, end, job.dim);
  cpAsyncCommitGroup();
  int buffer = 0;
  for (int64_t first = begin; first < end; first += Shape::kKeys) {
    const int next = Shape::kBuffers == 2 ? buffer ^ 1 : 0;
    if (Shape::kBuffers == 2) {
      // Loads of the next tile fly while this one is multiplied.
      if (first + Shape::kKeys < end)
        loadRows<T, Shape::kKeys, Shape::kSlices, Shape::kThreads, kAligned>(memory.keys[next], job.queue, first + Shape::kKeys, end,
                                                                             job.dim);
      cpAsyncCommitGroup();
      cpAsyncWaitGroup<1>();
    } else {
      cpAsyncWaitGroup<0>();
    }
    __syncthreads();
    float s[Shape::kScores][4] = {};
    Math::score(s, memory, buffer);

    softmaxUpdate<kFixed>(state, s, o, end - first, job.inverseTemperature);
    if (job.gradient != nullptr) Math::accumulate(o, s, memory, buffer);
    __syncthreads();  // the tile is free
    if (Shape::kBuffers == 1 && first + Shape::kKeys < end) {
      loadRows<T, Shape::kKeys, Shape::kSlices, Shape::kThreads, kAligned>(memory.keys[0], job.queue, first + Shape::kKeys, end, job.dim);
      cpAsyncCommitGroup();
    }
    buffer = next;
  }
  cpAsyncWaitGroup<0>();

  storePartial<kFixed>(job, state, o, firstRow + warpIndex() * 16, static_cast<int>(blockIdx.y));
}

template <class T>
struct MergeJob {
  const T *query, *positive;
  const Partial* partials;
  const float* gradient;
  T* dquery;     // or null
  float* terms;  // [rows, 5]: loss, positive, negative, hit, log sum exp
  int64_t rows, keys;
  int dim, splits;
  float inverseTemperature;
};

// A warp takes a row: merges its partials with the positive.
template <class T>
__global__ void __launch_bounds__(kThreads) mergePartialsKernel(MergeJob<T> job) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warpIndex();
  if (row >= job.rows) return;
  float own = 0;
  for (int c = laneIndex(); c < job.dim; c += kWarp)
    own += static_cast<float>(job.query[row * job.dim + c]) * static_cast<float>(job.positive[row * job.dim + c]);
  own = warpSum(own);
  float maximum = own, best = -INFINITY, negative = 0;
  for (int s = 0; s < job.splits; ++s) {
    const Partial partial = job.partials[s * job.rows + row];
    maximum = fmaxf(maximum, partial.reference);
    best = fmaxf(best, partial.maximum);
    negative += partial.negative;
  }
  const float own0 = expf((own - maximum) * job.inverseTemperature);
  float sum = own0;
  for (int s = 0; s < job.splits; ++s) {
    const Partial partial = job.partials[s * job.rows + row];
    sum += partial.sum * expf((partial.reference - maximum) * job.inverseTemperature);
  }
  if (laneIndex() == 0) {
    const float logSum = logf(sum) + maximum * job.inverseTemperature;
    float* out = job.terms + row * 5;
    out[0] = logSum - own * job.inverseTemperature;
    out[1] = own;
    out[2] = negative / static_cast<float>(job.keys);
    out[3] = own > best ? 1.0f : 0.0f;
    out[4] = logSum;
  }
  if (job.dquery == nullptr) return;
  const float scale = job.inverseTemperature / static_cast<float>(job.rows), p0 = own0 / sum;
  for (int c = laneIndex(); c < job.dim; c += kWarp) {
    float pulled = 0;
    for (int s = 0; s < job.splits; ++s) {
      const int64_t at = s * job.rows + row;
      pulled += job.gradient[at * job.dim + c] * expf((job.partials[at].reference - maximum) * job.inverseTemperature);
    }
    job.dquery[row * job.dim + c] = T(scale * ((p0 - 1) * static_cast<float>(job.positive[row * job.dim + c]) + pulled / sum));
  }
}

// The tensors of infoNce; the embeddings of an exact copy stand in for its own where bf16 has no tensor cores.
struct Embeddings {
  const Tensor *query, *positive, *queue, *dquery;  // dquery may be null
};

template <class T, int kDim>
void contrast(const Call& call, const Embeddings& embeddings) {
  using Names = args::infoNce;
  using Shape = ContrastShape<T, kDim>;
  const Tensor &loss = call.tensor(Names::loss), &statistics = call.tensor(Names::statistics), *dquery = embeddings.dquery;
  const Tensor &query = *embeddings.query, &positive = *embeddings.positive, &queue = *embeddings.queue;
  const double temperature = call.number(Names::temperature);
  const int64_t R = query.dim(0), D = query.dim(1), K = queue.dim(0);
  const float inverseTemperature = static_cast<float>(1 / temperature);
  const bool hopper = contrastsOnHopper(call, query.dtype, D);
  const int64_t tileKeys = hopper ? kHopperKeys : Shape::kKeys;
  // Enough blocks for four on every multiprocessor (on Hopper, four one after another); a split is a whole number of tiles.
  const int64_t rowBlocks = ceilDiv(R, hopper ? kHopperRows : Shape::kRows), tiles = ceilDiv(K, tileKeys);
  const int64_t keysPerSplit = ceilDiv(tiles, std::min(tiles, std::max<int64_t>(1, 4 * multiprocessors(call) / rowBlocks))) * tileKeys,
                splits = ceilDiv(K, keysPerSplit);
  DeviceScratch<Partial> partials(call, splits * R);
  DeviceScratch<float> gradient(call, dquery == nullptr ? 0 : splits * R * D), terms(call, R * 5);
  ContrastJob<T> job{};
  job.query = query.data<T>();
  job.queue = queue.data<T>();
  job.partials = partials.data();
  job.gradient = dquery == nullptr ? nullptr : gradient.data();
  job.rows = R;
  job.keys = K;
  job.keysPerSplit = keysPerSplit;
  job.dim = static_cast<int>(D);
  job.inverseTemperature = inverseTemperature;
  const bool whole = D % Vector<T>::kLength == 0, fixed = Shape::kHalf && whole && fixedReference(call.flag(Names::unit), temperature);
  auto kernel = whole ? contrastKernel<T, Shape, true, false> : contrastKernel<T, Shape, false, false>;
  if constexpr (Shape::kHalf) {
    if (fixed) kernel = contrastKernel<T, Shape, true, true>;
    if (hopper) launchHopperContrast(call, job, rowBlocks, splits, fixed);
  }
  if (!hopper) launch(call, kernel, Grid{rowBlocks, splits}, Shape::kThreads, sizeof(typename Shape::Memory), job);
  MergeJob<T> merge{};
  merge.query = query.data<T>();
  merge.positive = positive.data<T>();
  merge.partials = partials.data();
  merge.gradient = gradient.data();
  merge.dquery = optionalData<T>(dquery);
  merge.terms = terms.data();
  merge.rows = R;
  merge.keys = K;
  merge.dim = static_cast<int>(D);
  merge.splits = static_cast<int>(splits);
  merge.inverseTemperature = inverseTemperature;
  launch(call, mergePartialsKernel<T>, Grid{ceilDiv(R, kThreads / kWarp)}, kThreads, 0, merge);
  meanTerms<5>(call, terms.data(), R, nullptr, loss.data<float>(), statistics.data<float>());
}

void infoNceOf(const Call& call, const Embeddings& embeddings) {
  const DType dtype = embeddings.query->dtype;
  const int64_t D = embeddings.query->dim(1);
  dispatchFloat(call, dtype, [&](auto zero) {
    using T = decltype(zero);
    if (D <= 32) return contrast<T, 32>(call, embeddings);
    if (D <= 64) return contrast<T, 64>(call, embeddings);
    if (D <= 128) return contrast<T, 128>(call, embeddings);
    contrast<T, 256>(call, embeddings);
  });
}

// Without tensor cores bf16 embeddings pass through the kernels of f32, and the gradient is rounded as theirs would be.
void infoNceByFma(const Call& call, const Embeddings& embeddings) {
  const auto exact = [&](const Tensor& tensor) {
    return Tensor{std::make_shared<Storage>(call.device(), tensor.size() * sizeof(float)), DType::f32, tensor.shape};
  };
  const auto converted = [&](const Tensor* tensor) {
    const Tensor made = exact(*tensor);
    convertTensor(call, made, *tensor);
    return made;
  };
  const Tensor query = converted(embeddings.query), positive = converted(embeddings.positive), queue = converted(embeddings.queue);
  if (embeddings.dquery == nullptr) return infoNceOf(call, {&query, &positive, &queue, nullptr});
  const Tensor dquery = exact(*embeddings.dquery);
  infoNceOf(call, {&query, &positive, &queue, &dquery});
  convertTensor(call, *embeddings.dquery, dquery);
}

}  // namespace

// Embeddings of at most 256 dimensions.
void infoNce(const Call& call) {
  using Names = args::infoNce;
  const Embeddings embeddings{&call.tensor(Names::query), &call.tensor(Names::positive), &call.tensor(Names::queue),
                              call.optional(Names::dquery)};
  const Tensor& query = *embeddings.query;
  const int64_t D = query.dim(1);
  REQUIRE(D <= 256, "SHAPE",
          "infoNce: expected embeddings of at most 256 dimensions on " + call.device().name + " but received " + describe(query));
  const bool tensorCores = contrastsOnHopper(call, query.dtype, D) || usable(call, Family::mmaInfoNce);
  if (query.dtype == DType::bf16 && !tensorCores) return infoNceByFma(call, embeddings);
  infoNceOf(call, embeddings);
}

}  // namespace densecl::cuda
