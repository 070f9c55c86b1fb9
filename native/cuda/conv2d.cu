// Convolutions as implicit GEMMs in NHWC (the idea: S. Chetlur et al., cuDNN, arXiv:1410.0759):
//   forward          y [pixels, O]     = gathered x [pixels, taps * C]  times  w [O, taps * C]
//   input gradient   dx [pixels, C]    = gathered dy [pixels, taps * O] times  w as [taps * O, C], once for each residue class of
//                                        the input pixels modulo the stride: no multiplication by a zero
//   weight gradient  dw [O, taps * C]  = sum over pixels of dy [pixels, O] and gathered x [pixels, taps * C]; pixels are split
//                                        among blocks whose sums are added in order
// Where the channels are a multiple of 16 bytes, cp.async gathers whole chunks. Few channels (the stem) are unfolded along a row of the
// kernel first; otherwise elements are gathered.
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
__global__ void __launch_bounds__(Shape::kThreads, kBlocks<Math, Prologue, Shape>) forwardKernel(ForwardJob<T, Prologue> job) {
  using Memory = GemmMemory<T, Shape, true, true, T>;
  Memory& memory = sharedMemory<Memory>();
  const int64_t firstRow = static_cast<int64_t>(blockIdx.x / job.columnTiles) * Shape::kM;
  const int firstColumn = static_cast<int>(blockIdx.x % job.columnTiles) * Shape::kN, columns = job.outputs - firstColumn,
            depth = job.x.depth();
  GatherLoader<T, Shape::kM, Shape::kThreads, kAligned, Prologue> a(job.x, firstRow, job.prologue);
  RowLoader<T, Shape::kN, Shape::kThreads, kAligned> b(job.weights, job.outputs, depth, firstColumn);
  Accumulators<Shape> acc;
  acc.clear();
  multiplySlices<Math>(acc, memory, a, b, (depth + kSlice<T> - 1) / kSlice<T>);
  if (job.bias != nullptr) addBias(acc, job.bias + firstColumn, columns);
  stageTile<Shape>(acc, memory);
  const int64_t left = job.x.rows - firstRow;
  storeForward<Shape>(memory, job.y, firstRow, static_cast<int>(left < Shape::kM ? left : Shape::kM), firstColumn, job.outputs,
                      job.statistics);
}

// A block takes a line of one image at a time; columns of the output and their vectors are its threads.
constexpr int kUnfoldThreads = 128;
template <class T>
__global__ void __launch_bounds__(kUnfoldThreads) unfoldKernel(const T* x, T* out, int64_t lines, Axis axis, int channels, int vectors) {
  constexpr int kVector = Vector<T>::kLength;
  const int taps = axis.taps * channels;
  for (int64_t line = blockIdx.x; line < lines; line += gridDim.x) {
    const T* from = x + line * axis.size * channels;
    for (int unit = static_cast<int>(threadIdx.x); unit < axis.rows * vectors; unit += kUnfoldThreads) {
      const int column = unit / vectors, first = unit % vectors * kVector;
      Elements<T, kVector> values;
      for (int e = 0; e < kVector; ++e) {
        const int tap = (first + e) / channels, at = column * axis.stride + axis.origin + tap * axis.step;
        const bool inside = first + e < taps && at >= 0 && at < axis.size;
        values.v[e] = inside ? from[at * channels + (first + e) % channels] : T(0.0f);
      }
      store(out + (line * axis.rows * vectors + unit) * kVector, values);
    }
  }
}

// Lines of another width; what the shorter has not is zero.
template <class T>
__global__ void __launch_bounds__(kUnfoldThreads) copyLinesKernel(const T* from, int fromWidth, T* to, int toWidth, int64_t lines) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kUnfoldThreads + threadIdx.x; i < lines * toWidth;
       i += static_cast<int64_t>(gridDim.x) * kUnfoldThreads) {
    const int64_t line = i / toWidth;
    const int column = static_cast<int>(i - line * toWidth);
    to[i] = column < fromWidth ? from[line * fromWidth + column] : T(0.0f);
  }
}

template <class T>
void forward(const Call& call, const Geometry& g, const T* x, const T* w) {
  using Names = args::conv2d;
  const Tensor &y = call.tensor(Names::y), *b = call.optional(Names::bias), *statistics = call.optional(Names::statistics);
  const OperandNorm norm(call, Names{}, call.tensor(Names::x));
  dispatchTile<T>(
      call, g, Family::mmaConv2d, g.pixels(), g.o, aligned<T>(g.c), aligned<T>(g.c), [&](auto math, auto shape, auto isAligned, auto both) {
        if constexpr (isAligned.value == both.value) {
          using Math = decltype(math);
          using Shape = decltype(shape);
          const int64_t columnTiles = ceilDiv(g.o, Shape::kN);
          withNorm<T, Math, isAligned.value>(call, norm, g.c, g.pixels(), [&](auto prologue) {
            using Prologue = decltype(prologue);
            ForwardJob<T, Prologue> job{};
            job.x = forwardGather<T>(g, x);
            job.weights = w;
            job.bias = optionalData<float>(b);
            job.y = y.data<T>();
            job.statistics = optionalData<float>(statistics);
            job.outputs = static_cast<int>(g.o);
            job.columnTiles = static_cast<int>(columnTiles);
            job.prologue = prologue;
            launch(call, forwardKernel<T, Math, Shape, isAligned.value, Prologue>, Grid{ceilDiv(g.pixels(), Shape::kM) * columnTiles},
                   Shape::kThreads, sizeof(GemmMemory<T, Shape, true, true, T>), job);
          });
        }
      });
}

}  // namespace

template <class T>
void unfoldImages(const Call& call, const Geometry& g, const T* x, T* out) {
  const int64_t lines = g.n * g.h;
  launch(call, unfoldKernel<T>, Grid{std::min<int64_t>(lines, int64_t{64} * multiprocessors(call))}, kUnfoldThreads, 0, x, out, lines,
         forwardGather<T>(g, x).x, static_cast<int>(g.c), static_cast<int>(unfolded<T>(g).c / Vector<T>::kLength));
}
template <class T>
void copyLines(const Call& call, const T* from, int64_t fromWidth, T* to, int64_t toWidth, int64_t lines) {
  launch(call, copyLinesKernel<T>, loopGrid(call, lines * toWidth, kUnfoldThreads), kUnfoldThreads, 0, from, static_cast<int>(fromWidth),
         to, static_cast<int>(toWidth), lines);
}
template void unfoldImages(const Call&, const Geometry&, const float*, float*);
template void unfoldImages(const Call&, const Geometry&, const bf16*, bf16*);
template void copyLines(const Call&, const float*, int64_t, float*, int64_t, int64_t);
template void copyLines(const Call&, const bf16*, int64_t, bf16*, int64_t, int64_t);

void conv2d(const Call& call) {
  using Names = args::conv2d;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &w = call.tensor(Names::weight),
               *statistics = call.optional(Names::statistics);
  const Geometry g(call, Names{}, x, w, y, "y");
  if (statistics != nullptr) requireChunks(call, "statistics", *statistics, ceilDiv(g.pixels(), kStatisticsRows));
  if (forwardHopper(call, g, x, w)) return;
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (!unfolds<T>(g)) return forward<T>(call, g, x.data<T>(), w.data<T>());
    const Geometry narrow = unfolded<T>(g);
    DeviceScratch<T> images(call, narrow.n * narrow.h * narrow.w * narrow.c), weights(call, narrow.o * narrow.depth());
    unfoldImages(call, g, x.data<T>(), images.data());
    copyLines(call, w.data<T>(), g.kw * g.c, weights.data(), narrow.c, g.o * g.kh);
    forward<T>(call, narrow, images.data(), weights.data());
  });
}

}  // namespace densecl::cuda
