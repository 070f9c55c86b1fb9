// The gradients of a convolution; conv2d.cu has the notes.
#include "conv2d.cuh"
#include "ops.h"

namespace densecl::cuda {
namespace {

template <class T>
struct BackwardInputJob {
  Gather<T> dy;
  TransposedWeights<T> weights;
  T* dx;
  int h, w, a, b, sh, sw, columnTiles;
};

template <class T, class Math, class Shape, bool kAligned>
__global__ void __launch_bounds__(Shape::kThreads) backwardInputKernel(BackwardInputJob<T> job) {
  using Memory = GemmMemory<T, Shape, true, false, T>;
  Memory& memory = sharedMemory<Memory>();
  const int64_t firstRow = static_cast<int64_t>(blockIdx.x / job.columnTiles) * Shape::kM;
  const int channels = job.weights.c, firstColumn = static_cast<int>(blockIdx.x % job.columnTiles) * Shape::kN;
  GatherLoader<T, Shape::kM, Shape::kThreads, kAligned> a(job.dy, firstRow);
  TransposedLoader<T, Shape::kN, Shape::kThreads, kAligned> b(job.weights, firstColumn);
  Accumulators<Shape> acc;
  acc.clear();
  multiplySlices<Math>(acc, memory, a, b, (job.dy.depth() + kSlice<T> - 1) / kSlice<T>);
  stageTile<Shape>(acc, memory);
  storeTile<Shape>(
      memory, channels - firstColumn, channels % Vector<T>::kLength == 0,
      [&](int r) -> T* {
        const int64_t row = firstRow + r;
        if (row >= job.dy.rows) return nullptr;
        const int perImage = job.dy.y.rows * job.dy.x.rows, inside = static_cast<int>(row % perImage);
        const int y = job.a + inside / job.dy.x.rows * job.sh, x = job.b + inside % job.dy.x.rows * job.sw;
        return job.dx + ((row / perImage * job.h + y) * job.w + x) * channels + firstColumn;
      },
      job.dx);
}

template <class T>
struct BackwardWeightJob {
  Gather<T> x;
  const T* dy;
  float* dw;  // [splits, O, taps * C]
  int outputs, columnTiles;
  int64_t share;  // pixels of a split, a multiple of the slice
};

template <class T, class Math, class Shape, bool kAligned>
__global__ void __launch_bounds__(Shape::kThreads) backwardWeightKernel(BackwardWeightJob<T> job) {
  using Memory = GemmMemory<T, Shape, false, false, float>;
  Memory& memory = sharedMemory<Memory>();
  const int firstRow = static_cast<int>(blockIdx.x / job.columnTiles) * Shape::kM, firstColumn = static_cast<int>(blockIdx.x % job.columnTiles) * Shape::kN, depth = job.x.depth();
  const int64_t begin = blockIdx.y * job.share, end = begin + job.share < job.x.rows ? begin + job.share : job.x.rows;
  ColumnLoader<T, Shape::kM, Shape::kThreads, kAligned> a(job.dy, job.outputs, firstRow, begin, end);
  PixelLoader<T, Shape::kN, Shape::kThreads, kAligned> b(job.x, firstColumn, begin, end);
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

}  // namespace

void conv2dBackwardInput(const Call& call) {
  const Tensor &dx = call.t(0), &dy = call.t(1), &w = call.t(2);
  const Geometry g(call, dx, w, dy);
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int a = 0; a < std::min<int64_t>(g.sh, g.h); ++a)
      for (int b = 0; b < std::min<int64_t>(g.sw, g.w); ++b) {
        const ClassTaps ty(a, g.sh, g.ph, g.dh, g.kh), tx(b, g.sw, g.pw, g.dw, g.kw);
        const int rowsY = static_cast<int>(ceilDiv(g.h - a, g.sh)), rowsX = static_cast<int>(ceilDiv(g.w - b, g.sw));
        // Without a tap the sums are empty; an axis of one tap then stands in, as the walk divides by it.
        const int tapsY = tx.count == 0 ? 0 : ty.count, tapsX = std::max(1, tx.count);
        const Gather<T> from{dy.data<T>(),
                             {rowsY, tapsY, static_cast<int>(g.oh), 1, (a + g.ph - ty.first * g.dh) / g.sh, -ty.step * g.dh / g.sh},
                             {rowsX, tapsX, static_cast<int>(g.ow), 1, (b + g.pw - tx.first * g.dw) / g.sw, -tx.step * g.dw / g.sw},
                             static_cast<int>(g.o),
                             g.n * rowsY * rowsX};
        const TransposedWeights<T> weights{w.data<T>(), static_cast<int>(g.o), g.kh, g.kw, static_cast<int>(g.c), ty.first, ty.step, tx.first, tx.step, tapsY, tapsX};
        choose<T>(call, from.rows, g.c, aligned<T>(g.o) && aligned<T>(g.c), [&](auto math, auto shape, auto isAligned) {
          using Shape = decltype(shape);
          const int64_t columnTiles = ceilDiv(g.c, Shape::kN);
          const BackwardInputJob<T> job{from, weights, dx.data<T>(), static_cast<int>(g.h), static_cast<int>(g.w), a, b, g.sh, g.sw, static_cast<int>(columnTiles)};
          launch(call, backwardInputKernel<T, decltype(math), Shape, isAligned.value>, Grid{ceilDiv(from.rows, Shape::kM) * columnTiles}, Shape::kThreads,
                 sizeof(GemmMemory<T, Shape, true, false, T>), job);
        });
      }
  });
}

// dw is f32 for every dtype of x: it is what was summed.
void conv2dBackwardWeight(const Call& call) {
  const Tensor &dw = call.t(0), &dy = call.t(1), &x = call.t(2);
  const Geometry g(call, x, dw, dy);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t depth = static_cast<int64_t>(g.kh) * g.kw * g.c;
    choose<T>(call, g.o, depth, aligned<T>(g.o) && aligned<T>(g.c), [&](auto math, auto shape, auto isAligned) {
      using Shape = decltype(shape);
      const int64_t columnTiles = ceilDiv(depth, Shape::kN), tiles = ceilDiv(g.o, Shape::kM) * columnTiles;
      // Enough splits for two blocks on every multiprocessor, but at least 16 slices of work in each.
      const int64_t most = std::max<int64_t>(1, g.pixels() / (16 * kSlice<T>));
      const int64_t share = ceilDiv(ceilDiv(g.pixels(), std::min(most, ceilDiv(2 * multiprocessors(call), tiles))), kSlice<T>) * kSlice<T>;
      const int64_t splits = std::max<int64_t>(1, ceilDiv(g.pixels(), std::max<int64_t>(1, share)));
      DeviceScratch<float> partial(call, splits > 1 ? splits * g.o * depth : 0);
      const BackwardWeightJob<T> job{forwardGather<T>(g, x), dy.data<T>(), splits > 1 ? partial.data() : dw.data<float>(), static_cast<int>(g.o), static_cast<int>(columnTiles), share};
      launch(call, backwardWeightKernel<T, decltype(math), Shape, isAligned.value>, Grid{tiles, splits}, Shape::kThreads, sizeof(GemmMemory<T, Shape, false, false, float>), job);
      if (splits > 1)
        launch(call, sumSplitsKernel, loopGrid(call, g.o * depth, 256), 256, 0, dw.data<float>(), partial.data(), g.o * depth, static_cast<int>(splits));
    });
  });
}

}  // namespace densecl::cuda
