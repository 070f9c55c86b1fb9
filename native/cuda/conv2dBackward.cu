// The gradients of a convolution; conv2d.cu has the notes.
#include "conv2d.cuh"
#include "ops.h"

namespace densecl::cuda {
namespace {

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

template <class T, class Prologue>
struct BackwardInputJob {
  Gather<T> dy;
  TransposedWeights<T> weights;
  T* dx;
  int h, w, a, b, sh, sw, columnTiles;
  Prologue prologue;
  Epilogue<T> epilogue;
  // The pixel of a row, in elements of dx.
  DEVICE int64_t offset(int64_t row) const {
    const int perImage = dy.y.rows * dy.x.rows, inside = static_cast<int>(row % perImage);
    const int y = a + inside / dy.x.rows * sh, x = b + inside % dy.x.rows * sw;
    return ((row / perImage * h + y) * w + x) * weights.c;
  }
};

// Stores the staged tile with what the epilogue adds and masks, and its sums. A thread has one vector of channels, so it sums in
// registers; the threads of a column are added in their order.
template <class Shape, class T, class Prologue, class Memory>
DEVICE void finishTile(Memory& memory, const BackwardInputJob<T, Prologue>& job, int64_t firstRow, int firstColumn) {
  constexpr int kVector = Vector<T>::kLength, kLine = Shape::kN / kVector, kDown = Shape::kThreads / kLine, kChunks = Shape::kM / kStatisticsRows;
  static_assert(Shape::kThreads % kLine == 0 && kStatisticsRows % kDown == 0, "a thread keeps its channels, and its rows fill whole chunks");
  const Epilogue<T>& epilogue = job.epilogue;
  const int channels = job.weights.c, column = static_cast<int>(threadIdx.x) % kLine * kVector, down = static_cast<int>(threadIdx.x) / kLine, channel = firstColumn + column;
  float sums[kChunks][kVector][2] = {};
#pragma unroll
  for (int r = 0; r < Shape::kM; r += kDown) {
    const int64_t row = firstRow + r + down;
    if (row >= job.dy.rows || channel >= channels) continue;
    const int64_t at = job.offset(row) + channel;
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
    store(job.dx + at, dz);
  }
  if (epilogue.sums == nullptr) return;
  __syncthreads();  // the tile has been read: its memory serves the sums
  float* parts = reinterpret_cast<float*>(&memory);  // [chunk][which][down][column]
  for (int k = 0; k < kChunks; ++k)
    for (int e = 0; e < kVector; ++e)
      for (int which = 0; which < 2; ++which) parts[((k * 2 + which) * kDown + down) * Shape::kN + column + e] = sums[k][e][which];
  __syncthreads();
  for (int unit = static_cast<int>(threadIdx.x); unit < kChunks * 2 * Shape::kN; unit += Shape::kThreads) {
    const int k = unit / (2 * Shape::kN), which = unit / Shape::kN % 2, c = unit % Shape::kN;
    const int64_t row = firstRow + k * kStatisticsRows;
    if (row >= job.dy.rows || firstColumn + c >= channels) continue;
    float sum = 0;
    for (int d = 0; d < kDown; ++d) sum += parts[((k * 2 + which) * kDown + d) * Shape::kN + c];
    const int64_t chunk = row / kStatisticsRows, slot = chunk / epilogue.classChunks * epilogue.groupChunks + epilogue.firstChunk + chunk % epilogue.classChunks;
    epilogue.sums[(slot * 2 + which) * channels + firstColumn + c] = sum;
  }
}

template <class T, class Math, class Shape, bool kAligned, class Prologue>
__global__ void __launch_bounds__(Shape::kThreads) backwardInputKernel(BackwardInputJob<T, Prologue> job) {
  using Memory = GemmMemory<T, Shape, true, false, T>;
  Memory& memory = sharedMemory<Memory>();
  const int64_t firstRow = static_cast<int64_t>(blockIdx.x / job.columnTiles) * Shape::kM;
  const int channels = job.weights.c, firstColumn = static_cast<int>(blockIdx.x % job.columnTiles) * Shape::kN;
  GatherLoader<T, Shape::kM, Shape::kThreads, kAligned, Prologue> a(job.dy, firstRow, job.prologue);
  TransposedLoader<T, Shape::kN, Shape::kThreads, kAligned> b(job.weights, firstColumn);
  Accumulators<Shape> acc;
  acc.clear();
  multiplySlices<Math>(acc, memory, a, b, (job.dy.depth() + kSlice<T> - 1) / kSlice<T>);
  stageTile<Shape>(acc, memory);
  if (kAligned && job.epilogue.some()) return finishTile<Shape>(memory, job, firstRow, firstColumn);
  storeTile<Shape>(
      memory, channels - firstColumn, channels % Vector<T>::kLength == 0, [&](int r) -> T* { return firstRow + r < job.dy.rows ? job.dx + job.offset(firstRow + r) + firstColumn : nullptr; },
      job.dx);
}

template <class T, class PrologueA, class PrologueB>
struct BackwardWeightJob {
  Gather<T> x;
  const T* dy;
  float* dw;  // [splits, O, taps * C]
  int outputs, columnTiles;
  int64_t share;  // pixels of a split, a multiple of the slice
  PrologueA prologueDy;
  PrologueB prologueX;
};

template <class T, class Math, class Shape, bool kAligned, class PrologueA, class PrologueB>
__global__ void __launch_bounds__(Shape::kThreads) backwardWeightKernel(BackwardWeightJob<T, PrologueA, PrologueB> job) {
  using Memory = GemmMemory<T, Shape, false, false, float>;
  Memory& memory = sharedMemory<Memory>();
  const int firstRow = static_cast<int>(blockIdx.x / job.columnTiles) * Shape::kM, firstColumn = static_cast<int>(blockIdx.x % job.columnTiles) * Shape::kN, depth = job.x.depth();
  const int64_t begin = blockIdx.y * job.share, end = begin + job.share < job.x.rows ? begin + job.share : job.x.rows;
  ColumnLoader<T, Shape::kM, Shape::kThreads, kAligned, PrologueA> a(job.dy, job.outputs, firstRow, begin, end, job.prologueDy);
  PixelLoader<T, Shape::kN, Shape::kThreads, kAligned, PrologueB> b(job.x, firstColumn, begin, end, job.prologueX);
  Accumulators<Shape> acc;
  acc.clear();
  multiplySlices<Math>(acc, memory, a, b, static_cast<int>((end - begin + kSlice<T> - 1) / kSlice<T>));
  stageTile<Shape>(acc, memory);
  float* out = job.dw + (static_cast<int64_t>(blockIdx.y) * job.outputs + firstRow) * depth + firstColumn;
  storeTile<Shape>(memory, depth - firstColumn, depth % 4 == 0, [&](int r) { return firstRow + r < job.outputs ? out + static_cast<int64_t>(r) * depth : nullptr; }, job.dw);
}

// out[i] = the sum of the splits' values, in their order
__global__ void __launch_bounds__(256) sumSplitsKernel(float* out, const float* partial, int64_t count, int splits) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * 256) {
    float sum = 0;
    for (int s = 0; s < splits; ++s) sum += partial[s * count + i];
    out[i] = sum;
  }
}

// The taps of one axis that input positions a, a + stride, ... meet: first, first + step, ...
struct ClassTaps {
  int first = 0, step = 1, count = 0;
  ClassTaps(int a, int stride, int padding, int dilation, int kernel) {
    step = stride / std::gcd(stride, dilation);
    for (first = 0; first < kernel && (a + padding - first * dilation) % stride != 0; ++first) {
    }
    count = first < kernel ? (kernel - first + step - 1) / step : 0;
  }
};

// The input pixels (y, x) with y % stride == a and x % stride == b, and the product that gives their gradient.
template <class T>
struct PixelClass {
  Gather<T> dy;
  TransposedWeights<T> weights;
  PixelClass(const Geometry& g, const Tensor& gradient, const Tensor& w, int a, int b) {
    const ClassTaps ty(a, g.sh, g.ph, g.dh, g.kh), tx(b, g.sw, g.pw, g.dw, g.kw);
    const int rowsY = static_cast<int>(ceilDiv(g.h - a, g.sh)), rowsX = static_cast<int>(ceilDiv(g.w - b, g.sw));
    // Without a tap the sums are empty; an axis of one tap then stands in, as the walk divides by it.
    const int tapsY = tx.count == 0 ? 0 : ty.count, tapsX = std::max(1, tx.count);
    dy = {gradient.data<T>(),
          {rowsY, tapsY, static_cast<int>(g.oh), 1, (a + g.ph - ty.first * g.dh) / g.sh, -ty.step * g.dh / g.sh},
          {rowsX, tapsX, static_cast<int>(g.ow), 1, (b + g.pw - tx.first * g.dw) / g.sw, -tx.step * g.dw / g.sw},
          static_cast<int>(g.o),
          g.n * rowsY * rowsX};
    weights = {w.data<T>(), static_cast<int>(g.o), g.kh, g.kw, static_cast<int>(g.c), ty.first, ty.step, tx.first, tx.step, tapsY, tapsX};
  }
};

}  // namespace

// tensors: dx, dy, w; of the epilogue, each may be null: add, x, y, scale, shift, mean, sums; of a deferred dy, or null: x, mean,
// coefficients. numbers 8 and 9: groups of the epilogue's norm and of the deferred one.
void conv2dBackwardInput(const Call& call) {
  const Tensor &dx = call.t(0), &dy = call.t(1), &w = call.t(2), *sums = call.optional(9);
  const Geometry g(call, dx, w, dy);
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    int chunks = 0;
    for (int a = 0; a < std::min<int64_t>(g.sh, g.h); ++a)
      for (int b = 0; b < std::min<int64_t>(g.sw, g.w); ++b) {
        const PixelClass<T> pixels(g, dy, w, a, b);
        const int64_t groupRows = pixels.dy.rows / (sums == nullptr ? 1 : call.integer(8));
        const int classChunks = static_cast<int>(ceilDiv(groupRows, kStatisticsRows));
        const Epilogue<T> epilogue{optionalData<T>(call.optional(3)), optionalData<T>(call.optional(4)), optionalData<T>(call.optional(5)), optionalData<float>(call.optional(6)), optionalData<float>(call.optional(7)),
                                   optionalData<float>(call.optional(8)), optionalData<float>(sums), groupRows, classChunks, chunks, sums == nullptr ? 0 : static_cast<int>(sums->dim(0) / call.integer(8))};
        chunks += classChunks;
        choose<T>(call, pixels.dy.rows, g.c, aligned<T>(g.o) && aligned<T>(g.c), [&](auto math, auto shape, auto isAligned) {
          using Math = decltype(math);
          using Shape = decltype(shape);
          const int64_t columnTiles = ceilDiv(g.c, Shape::kN);
          withNormGradient<T, Math, isAligned.value>(call, 10, g.o, pixels.dy.rows, 9, [&](auto prologue) {
            using Prologue = decltype(prologue);
            const BackwardInputJob<T, Prologue> job{pixels.dy, pixels.weights, dx.data<T>(), static_cast<int>(g.h), static_cast<int>(g.w), a, b, g.sh, g.sw, static_cast<int>(columnTiles), prologue, epilogue};
            launch(call, backwardInputKernel<T, Math, Shape, isAligned.value, Prologue>, Grid{ceilDiv(pixels.dy.rows, Shape::kM) * columnTiles}, Shape::kThreads,
                   sizeof(GemmMemory<T, Shape, true, false, T>), job);
          });
        });
      }
  });
}

// tensors: dw, f32 for every dtype of x (it is what was summed), dy, x; scale and shift of a deferred x, or null; x, mean and
// coefficients of a deferred dy, or null. numbers 8 and 9: groups, and ReLU of the deferred x.
void conv2dBackwardWeight(const Call& call) {
  const Tensor &dw = call.t(0), &dy = call.t(1), &x = call.t(2);
  const Geometry g(call, x, dw, dy);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t depth = static_cast<int64_t>(g.kh) * g.kw * g.c;
    choose<T>(call, g.o, depth, aligned<T>(g.o) && aligned<T>(g.c), [&](auto math, auto shape, auto isAligned) {
      using Math = decltype(math);
      using Shape = decltype(shape);
      const int64_t columnTiles = ceilDiv(depth, Shape::kN), tiles = ceilDiv(g.o, Shape::kM) * columnTiles;
      // Enough splits for two blocks on every multiprocessor, but at least 16 slices of work in each.
      const int64_t most = std::max<int64_t>(1, g.pixels() / (16 * kSlice<T>));
      const int64_t share = ceilDiv(ceilDiv(g.pixels(), std::min(most, ceilDiv(2 * multiprocessors(call), tiles))), kSlice<T>) * kSlice<T>;
      const int64_t splits = std::max<int64_t>(1, ceilDiv(g.pixels(), std::max<int64_t>(1, share)));
      DeviceScratch<float> partial(call, splits > 1 ? splits * g.o * depth : 0);
      const auto product = [&](auto prologueDy, auto prologueX) {
        using A = decltype(prologueDy);
        using B = decltype(prologueX);
        const BackwardWeightJob<T, A, B> job{forwardGather<T>(g, x), dy.data<T>(), splits > 1 ? partial.data() : dw.data<float>(), static_cast<int>(g.o), static_cast<int>(columnTiles), share, prologueDy, prologueX};
        launch(call, backwardWeightKernel<T, Math, Shape, isAligned.value, A, B>, Grid{tiles, splits}, Shape::kThreads, sizeof(GemmMemory<T, Shape, false, false, float>), job);
      };
      withNormGradient<T, Math, isAligned.value>(call, 5, g.o, g.pixels(), 8, [&](auto prologueDy) {
        if constexpr (decltype(prologueDy)::kPlain)
          product(prologueDy, Plain{});
        else
          withNorm<T, Math, isAligned.value>(call, 3, g.c, g.pixels(), [&](auto prologueX) { product(prologueDy, prologueX); });
      });
      if (splits > 1)
        launch(call, sumSplitsKernel, loopGrid(call, g.o * depth, 256), 256, 0, dw.data<float>(), partial.data(), g.o * depth, static_cast<int>(splits));
    });
  });
}

}  // namespace densecl::cuda
