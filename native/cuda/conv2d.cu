// Convolutions as implicit GEMMs in NHWC (the idea: S. Chetlur et al., cuDNN, arXiv:1410.0759):
//   forward          y [pixels, O]     = gathered x [pixels, taps * C]  times  w [O, taps * C]
//   input gradient   dx [pixels, C]    = gathered dy [pixels, taps * O] times  w as [taps * O, C], once for each residue class of
//                                        the input pixels modulo the stride: no multiplication by a zero
//   weight gradient  dw [O, taps * C]  = sum over pixels of dy [pixels, O] and gathered x [pixels, taps * C]; pixels are split
//                                        among blocks whose sums are added in order
// Where the channels are a multiple of 16 bytes, cp.async gathers whole chunks; otherwise (the stem) elements are gathered.
// Forward can also give, for each tile of rows and channel, the mean and squared deviations of what it stored: the statistics
// of the batch norm that follows, without reading y again.
#include "conv2d.cuh"
#include "conv2dHopper.h"
#include "ops.h"

namespace densecl::cuda {
namespace {

template <class T, class Prologue>
struct ForwardJob {
  Gather<T> x;
  const T* weights;
  const float* bias;
  T* y;
  float* statistics;  // [rows / kStatisticsRows, 2, O] or null
  int outputs, columnTiles;
  Prologue prologue;
};

template <class T, class Math, class Shape, bool kAligned, class Prologue>
__global__ void __launch_bounds__(Shape::kThreads, kBlocks<T, Prologue>) forwardKernel(ForwardJob<T, Prologue> job) {
  using Memory = GemmMemory<T, Shape, true, true, T>;
  Memory& memory = sharedMemory<Memory>();
  const int64_t firstRow = static_cast<int64_t>(blockIdx.x / job.columnTiles) * Shape::kM;
  const int firstColumn = static_cast<int>(blockIdx.x % job.columnTiles) * Shape::kN, columns = job.outputs - firstColumn, depth = job.x.depth();
  GatherLoader<T, Shape::kM, Shape::kThreads, kAligned, Prologue> a(job.x, firstRow, job.prologue);
  RowLoader<T, Shape::kN, Shape::kThreads, kAligned> b(job.weights, job.outputs, depth, firstColumn);
  Accumulators<Shape> acc;
  acc.clear();
  multiplySlices<Math>(acc, memory, a, b, (depth + kSlice<T> - 1) / kSlice<T>);
  if (job.bias != nullptr) addBias(acc, job.bias + firstColumn, columns);
  stageTile<Shape>(acc, memory);
  const int64_t left = job.x.rows - firstRow;
  storeForward<Shape>(memory, job.y, firstRow, static_cast<int>(left < Shape::kM ? left : Shape::kM), firstColumn, job.outputs, job.statistics);
}

}  // namespace

// tensors: y, x, w, b f32 or null, statistics f32 [ceil(pixels / 64), 2, O] or null, and scale and shift [G, C] of a batch norm that
// x still waits for, or null; numbers 8 and 9: its groups and ReLU
void conv2d(const Call& call) {
  const Tensor &y = call.t(0), &x = call.t(1), &w = call.t(2), *b = call.optional(3), *statistics = call.optional(4);
  const Geometry g(call, x, w, y);
  if (forwardHopper(call, g, x, w)) return;
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    choose<T>(call, g.pixels(), g.o, aligned<T>(g.c), [&](auto math, auto shape, auto isAligned) {
      using Math = decltype(math);
      using Shape = decltype(shape);
      const int64_t columnTiles = ceilDiv(g.o, Shape::kN);
      withNorm<T, Math, isAligned.value>(call, 5, g.c, g.pixels(), [&](auto prologue) {
        using Prologue = decltype(prologue);
        const ForwardJob<T, Prologue> job{forwardGather<T>(g, x), w.data<T>(), optionalData<float>(b), y.data<T>(), optionalData<float>(statistics),
                                          static_cast<int>(g.o), static_cast<int>(columnTiles), prologue};
        launch(call, forwardKernel<T, Math, Shape, isAligned.value, Prologue>, Grid{ceilDiv(g.pixels(), Shape::kM) * columnTiles}, Shape::kThreads,
               sizeof(GemmMemory<T, Shape, true, true, T>), job);
      });
    });
  });
}

}  // namespace densecl::cuda
