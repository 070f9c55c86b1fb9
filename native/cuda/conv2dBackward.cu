// The gradients of a convolution; conv2d.cu has the notes.
#include "conv2d.cuh"
#include "conv2dHopper.h"
#include "lines.cuh"
#include "ops.h"

namespace densecl::cuda {
namespace {

template <class T, class Prologue>
struct BackwardInputJob {
  Gather<T> dy;
  TransposedWeights<T> weights;
  T* dx;
  ClassPixels pixels;
  int columnTiles;
  Prologue prologue;
  Epilogue<T> epilogue;
};

template <class T, class Math, class Shape, bool kAlignedDy, bool kAligned, class Prologue>
__global__ void __launch_bounds__(Shape::kThreads, kInputBlocks<Math, Prologue>) backwardInputKernel(BackwardInputJob<T, Prologue> job) {
  using Memory = GemmMemory<T, Shape, true, false, T>;
  Memory& memory = sharedMemory<Memory>();
  const int64_t firstRow = static_cast<int64_t>(blockIdx.x / job.columnTiles) * Shape::kM;
  const int channels = job.weights.c, firstColumn = static_cast<int>(blockIdx.x % job.columnTiles) * Shape::kN;
  GatherLoader<T, Shape::kM, Shape::kThreads, kAlignedDy, Prologue> a(job.dy, firstRow, job.prologue);
  TransposedLoader<T, Shape::kN, Shape::kThreads, kAligned> b(job.weights, firstColumn);
  Accumulators<Shape> acc;
  acc.clear();
  multiplySlices<Math>(acc, memory, a, b, (job.dy.depth() + kSlice<T> - 1) / kSlice<T>);
  stageTile<Shape>(acc, memory);
  storeGradient<kAligned, Shape>(memory, job.epilogue, job.dx, job.pixels, job.dy.rows, channels, firstRow, firstColumn);
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

template <class T, class Math, class Shape, bool kAlignedDy, bool kAlignedX, class PrologueA, class PrologueB>
__global__ void __launch_bounds__(Shape::kThreads, kBlocks<Math, PrologueA, Shape>)
    backwardWeightKernel(BackwardWeightJob<T, PrologueA, PrologueB> job) {
  using Memory = GemmMemory<T, Shape, false, false, float>;
  Memory& memory = sharedMemory<Memory>();
  const int firstRow = static_cast<int>(blockIdx.x / job.columnTiles) * Shape::kM,
            firstColumn = static_cast<int>(blockIdx.x % job.columnTiles) * Shape::kN, depth = job.x.depth();
  const int64_t begin = blockIdx.y * job.share, end = begin + job.share < job.x.rows ? begin + job.share : job.x.rows;
  ColumnLoader<T, Shape::kM, Shape::kThreads, kAlignedDy, PrologueA> a(job.dy, job.outputs, firstRow, begin, end, job.prologueDy);
  PixelLoader<T, Shape::kN, Shape::kThreads, kAlignedX, PrologueB> b(job.x, firstColumn, begin, end, job.prologueX);
  Accumulators<Shape> acc;
  acc.clear();
  multiplySlices<Math>(acc, memory, a, b, static_cast<int>((end - begin + kSlice<T> - 1) / kSlice<T>));
  stageTile<Shape>(acc, memory);
  float* out = job.dw + (static_cast<int64_t>(blockIdx.y) * job.outputs + firstRow) * depth + firstColumn;
  storeTile<Shape>(
      memory, depth - firstColumn, depth % 4 == 0,
      [&](int r) { return firstRow + r < job.outputs ? out + static_cast<int64_t>(r) * depth : nullptr; }, job.dw);
}

// out[i] = the sum of the splits' values, in their order
__global__ void __launch_bounds__(256) sumSplitsKernel(float* out, const float* partial, int64_t count, int splits) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * 256) {
    float sum = 0;
#pragma unroll 8
    for (int s = 0; s < splits; ++s) sum += partial[s * count + i];
    out[i] = sum;
  }
}

template <class T>
void backwardWeight(const Call& call, const Geometry& g, const T* dy, const T* x, float* dw) {
  using Names = args::conv2dBackwardWeight;
  const int64_t depth = g.depth();
  const OperandNorm norm(call, Names{}, call.tensor(Names::x));
  const OperandGradient gradient(call, Names{}, call.tensor(Names::dy));
  dispatchTile<T>(call, g, Family::mmaConv2dBackwardWeight, g.o, depth, aligned<T>(g.o), aligned<T>(g.c),
                  [&](auto math, auto shape, auto alignedDy, auto alignedX) {
                    using Math = decltype(math);
                    using Shape = decltype(shape);
                    constexpr bool kBoth = alignedDy.value && alignedX.value;
                    const int64_t columnTiles = ceilDiv(depth, Shape::kN), tiles = ceilDiv(g.o, Shape::kM) * columnTiles;
                    const Splits splits(call.integer(Names::splits), g.pixels(), tiles, 2 * multiprocessors(call), kSlice<T>, g.o * depth);
                    DeviceScratch<float> partial(call, splits.count > 1 ? splits.count * g.o * depth : 0);
                    const auto product = [&](auto prologueDy, auto prologueX) {
                      using A = decltype(prologueDy);
                      using B = decltype(prologueX);
                      BackwardWeightJob<T, A, B> job{};
                      job.x = forwardGather<T>(g, x);
                      job.dy = dy;
                      job.dw = splits.count > 1 ? partial.data() : dw;
                      job.outputs = static_cast<int>(g.o);
                      job.columnTiles = static_cast<int>(columnTiles);
                      job.share = splits.share;
                      job.prologueDy = prologueDy;
                      job.prologueX = prologueX;
                      launch(call, backwardWeightKernel<T, Math, Shape, alignedDy.value, alignedX.value, A, B>, Grid{tiles, splits.count},
                             Shape::kThreads, sizeof(GemmMemory<T, Shape, false, false, float>), job);
                    };
                    withNormGradient<T, Math, kBoth>(call, gradient, g.o, g.pixels(), [&](auto prologueDy) {
                      withNorm<T, Math, kBoth>(call, norm, g.c, g.pixels(), [&](auto prologueX) { product(prologueDy, prologueX); });
                    });
                    if (splits.count > 1) sumSplits(call, dw, partial.data(), g.o * depth, splits.count);
                  });
}

}  // namespace

void sumSplits(const Call& call, float* out, const float* partial, int64_t count, int64_t splits) {
  // Of a small gradient there are many splits and few values: threads share the splits.
  if (splits > 16) return sumLines(call, Planes<1>{partial, splits, static_cast<int>(count)}, out);
  launch(call, sumSplitsKernel, loopGrid(call, count, 256), 256, 0, out, partial, count, static_cast<int>(splits));
}

void conv2dBackwardInput(const Call& call) {
  using Names = args::conv2dBackwardInput;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy), &w = call.tensor(Names::weight),
               *sums = call.optional(Names::sums), *mean = call.optional(Names::mean);
  const Geometry g(call, Names{}, dx, w, dy, "dy");
  const OperandGradient gradient(call, Names{}, dy);
  REQUIRE(call.optional(Names::x) == nullptr || (mean != nullptr && sums != nullptr), "ARGUMENT",
          "conv2dBackwardInput: expected mean and sums with x");
  const int64_t groups = mean == nullptr ? 1 : groupsOf(call, "mean", *mean, dx);
  if (sums != nullptr) {
    int64_t all = 0;
    for (int64_t a = 0; a < std::min<int64_t>(g.sh, g.h); ++a)
      for (int64_t b = 0; b < std::min<int64_t>(g.sw, g.w); ++b)
        all += ceilDiv(g.n * ceilDiv(g.h - a, g.sh) * ceilDiv(g.w - b, g.sw) / groups, kStatisticsRows);
    requireChunks(call, "sums", *sums, groups * all);
  }
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    int chunks = 0;
    for (int a = 0; a < std::min<int64_t>(g.sh, g.h); ++a)
      for (int b = 0; b < std::min<int64_t>(g.sw, g.w); ++b) {
        const PixelClass<T> pixels(g, dy, w, a, b);
        const ClassPixels where = pixels.where(g, a, b);
        const int64_t groupRows = pixels.dy.rows / groups;
        const int classChunks = static_cast<int>(ceilDiv(groupRows, kStatisticsRows));
        Epilogue<T> epilogue{};
        epilogue.add = optionalData<T>(call.optional(Names::add));
        epilogue.x = optionalData<T>(call.optional(Names::x));
        epilogue.y = optionalData<T>(call.optional(Names::y));
        epilogue.scale = optionalData<float>(call.optional(Names::scale));
        epilogue.shift = optionalData<float>(call.optional(Names::shift));
        epilogue.mean = optionalData<float>(mean);
        epilogue.sums = optionalData<float>(sums);
        epilogue.groupRows = groupRows;
        epilogue.classChunks = classChunks;
        epilogue.firstChunk = chunks;
        epilogue.groupChunks = sums == nullptr ? 0 : static_cast<int>(sums->dim(0) / groups);
        chunks += classChunks;
        if constexpr (std::is_same_v<T, bf16>)
          if (backwardInputHopper(call, g, pixels, where, epilogue)) continue;
        dispatchTile<T>(call, g, Family::mmaConv2dBackwardInput, pixels.dy.rows, g.c, aligned<T>(g.o), aligned<T>(g.c),
                        [&](auto math, auto shape, auto alignedDy, auto isAligned) {
                          using Math = decltype(math);
                          using Shape = decltype(shape);
                          const int64_t columnTiles = ceilDiv(g.c, Shape::kN);
                          withNormGradient<T, Math, alignedDy.value && isAligned.value>(
                              call, gradient, g.o, pixels.dy.rows, [&](auto prologue) {
                                using Prologue = decltype(prologue);
                                BackwardInputJob<T, Prologue> job{};
                                job.dy = pixels.dy;
                                job.weights = pixels.weights;
                                job.dx = dx.data<T>();
                                job.pixels = where.by(TileThreads<Shape, T>::kDown);
                                job.columnTiles = static_cast<int>(columnTiles);
                                job.prologue = prologue;
                                job.epilogue = epilogue;
                                launch(call, backwardInputKernel<T, Math, Shape, alignedDy.value, isAligned.value, Prologue>,
                                       Grid{ceilDiv(pixels.dy.rows, Shape::kM) * columnTiles}, Shape::kThreads,
                                       sizeof(GemmMemory<T, Shape, true, false, T>), job);
                              });
                        });
      }
  });
}

void conv2dBackwardWeight(const Call& call) {
  using Names = args::conv2dBackwardWeight;
  const Tensor &dw = call.tensor(Names::dweight), &dy = call.tensor(Names::dy), &x = call.tensor(Names::x);
  const Geometry g(call, Names{}, x, dw, dy, "dy");
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto product = [&](const Geometry& of, const T* images, float* gradient) {
      if constexpr (std::is_same_v<T, bf16>)
        if (backwardWeightHopper(call, of, dy.data<T>(), images, gradient)) return;
      backwardWeight<T>(call, of, dy.data<T>(), images, gradient);
    };
    if (!unfolds<T>(g)) return product(g, x.data<T>(), dw.data<float>());
    const auto to = unfolding<T>(call, g, Family::wgmmaConv2dBackwardWeight);
    DeviceScratch<T> images(call, to.images());
    DeviceScratch<float> gradient(call, g.o * to.geometry.depth());
    unfoldImages(call, g, to, x.data<T>(), images.data());
    product(to.geometry, images.data(), gradient.data());
    copyLines<float>(call, gradient.data(), {to.geometry.kh * to.rows, to.width}, dw.data<float>(), {g.kh, g.kw * g.c}, g.o);
  });
}

}  // namespace densecl::cuda
