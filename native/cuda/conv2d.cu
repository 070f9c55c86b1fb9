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

// A block takes a line of one unfolded image at a time; columns of the output and their vectors are its threads. Row k of a line is row
// line * stride + origin + k of the image.
constexpr int kUnfoldThreads = 128;
struct UnfoldJob {
  Axis x;
  int64_t lines;
  int height, stride, origin, linesPerImage, channels, width, vectors;
};
template <class T>
__global__ void __launch_bounds__(kUnfoldThreads) unfoldKernel(const T* images, T* out, UnfoldJob job) {
  constexpr int kVector = Vector<T>::kLength;
  const int taps = job.x.taps * job.channels, length = job.x.size * job.channels;
  for (int64_t line = blockIdx.x; line < job.lines; line += gridDim.x) {
    const int64_t image = line / job.linesPerImage;
    const int top = static_cast<int>(line - image * job.linesPerImage) * job.stride + job.origin;
    for (int unit = static_cast<int>(threadIdx.x); unit < job.x.rows * job.vectors; unit += kUnfoldThreads) {
      const int column = unit / job.vectors, channel = unit % job.vectors * kVector, k = channel / job.width,
                first = channel - k * job.width, row = top + k, left = column * job.x.stride + job.x.origin;
      const bool exists = row >= 0 && row < job.height;
      const T* from = images + (image * job.height + (exists ? row : 0)) * length;
      Elements<T, kVector> values;
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const int tap = first + e;
        // Taps of neighbouring pixels lie one after another.
        const int at =
            job.x.step == 1 ? left * job.channels + tap : (left + tap / job.channels * job.x.step) * job.channels + tap % job.channels;
        values.v[e] = exists && tap < taps && at >= 0 && at < length ? from[at] : T(0.0f);
      }
      store(out + (line * job.x.rows * job.vectors + unit) * kVector, values);
    }
  }
}

// What the source has not is zero.
template <class T>
__global__ void __launch_bounds__(kUnfoldThreads)
    copyLinesKernel(const T* from, int fromLines, int fromWidth, T* to, int toLines, int toWidth, int64_t lines) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kUnfoldThreads + threadIdx.x; i < lines * toWidth;
       i += static_cast<int64_t>(gridDim.x) * kUnfoldThreads) {
    const int64_t all = i / toWidth, block = all / toLines;
    const int column = static_cast<int>(i - all * toWidth), line = static_cast<int>(all - block * toLines);
    to[i] = column < fromWidth && line < fromLines ? from[(block * fromLines + line) * fromWidth + column] : T(0.0f);
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
void unfoldImages(const Call& call, const Geometry& g, const Unfolding& to, const T* x, T* out) {
  const bool strided = to.rows > 1;
  UnfoldJob job{};
  job.x = forwardGather<T>(g, x).x;
  job.lines = g.n * to.geometry.h;
  job.height = static_cast<int>(g.h);
  job.stride = strided ? g.sh : 1;
  job.origin = strided ? -g.ph : 0;
  job.linesPerImage = static_cast<int>(to.geometry.h);
  job.channels = static_cast<int>(g.c);
  job.width = to.width;
  job.vectors = static_cast<int>(to.geometry.c / Vector<T>::kLength);
  launch(call, unfoldKernel<T>, Grid{std::min<int64_t>(job.lines, int64_t{64} * multiprocessors(call))}, kUnfoldThreads, 0, x, out, job);
}
template <class T>
void copyLines(const Call& call, const T* from, Lines fromLines, T* to, Lines toLines, int64_t blocks) {
  const int64_t lines = blocks * toLines.lines;
  launch(call, copyLinesKernel<T>, loopGrid(call, lines * toLines.width, kUnfoldThreads), kUnfoldThreads, 0, from,
         static_cast<int>(fromLines.lines), static_cast<int>(fromLines.width), to, static_cast<int>(toLines.lines),
         static_cast<int>(toLines.width), lines);
}
template void unfoldImages(const Call&, const Geometry&, const Unfolding&, const float*, float*);
template void unfoldImages(const Call&, const Geometry&, const Unfolding&, const bf16*, bf16*);
template void copyLines(const Call&, const float*, Lines, float*, Lines, int64_t);
template void copyLines(const Call&, const bf16*, Lines, bf16*, Lines, int64_t);

void conv2dNorm(const Call&) {
  throw Error("DEVICE", "conv2dNorm: expected a device that norms what its convolutions write (Traits::normsResults)");
}

void conv2d(const Call& call) {
  using Names = args::conv2d;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &w = call.tensor(Names::weight),
               *statistics = call.optional(Names::statistics);
  const Geometry g(call, Names{}, x, w, y, "y");
  if (statistics != nullptr) requireChunks(call, "statistics", *statistics, ceilDiv(g.pixels(), kStatisticsRows));
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto product = [&](const Geometry& of, const T* images, const T* weights) {
      if constexpr (std::is_same_v<T, bf16>)
        if (forwardHopper(call, of, images, weights)) return;
      forward<T>(call, of, images, weights);
    };
    if (!unfolds<T>(g)) return product(g, x.data<T>(), w.data<T>());
    const auto to = unfolding<T>(call, g, Family::wgmmaConv2d);
    DeviceScratch<T> images(call, to.images()), weights(call, g.o * to.geometry.depth());
    unfoldImages(call, g, to, x.data<T>(), images.data());
    copyLines<T>(call, w.data<T>(), {g.kh, g.kw * g.c}, weights.data(), {to.geometry.kh * to.rows, to.width}, g.o);
    product(to.geometry, images.data(), weights.data());
  });
}

}  // namespace densecl::cuda
