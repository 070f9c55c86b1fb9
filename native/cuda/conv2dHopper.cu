// The three products of a convolution (conv2d.cu has them) for Hopper in bf16: images pass through im2col bulk copies, weights and
// gradients through tiled ones, and epilogues are those of the other kernels. Depth goes in slices of 64: the channels that are
// summed over must be a multiple of that. Strides, dilation, padding and residue classes are all in the walk of the copies.
#include "conv2dHopper.h"

#include "conv2dEpilogue.cuh"
#include "device/warpgroup.cuh"
#include "tensorMap.h"

namespace densecl::cuda {
namespace {

using Wide = WarpgroupShape<128, 128, 1>;
using Slim = WarpgroupShape<128, 64, 1>;
using Flat = WarpgroupShape<64, 128, 2>;

// A gathered operand: where a row's column of pixels starts, and how a tap moves it.
struct PixelSource {
  TensorMap map;
  int rowsY, rowsX, strideY, strideX, lowerY, lowerX;
  int stepY, stepX, shiftY, shiftX, tapsX, slicesPerTap;
  DEVICE void load(void* to, Barrier& barrier, int64_t row, int tap, int channel) const {
    const int perImage = rowsY * rowsX, inside = static_cast<int>(row % perImage), p = tap / tapsX, q = tap % tapsX;
    copyPixels(to, map, barrier, channel, inside % rowsX * strideX + lowerX, inside / rowsX * strideY + lowerY, static_cast<int>(row / perImage), q * stepX + shiftX, p * stepY + shiftY);
  }
};

PixelSource pixelSource(const Call& call, Gather<bf16> from, int pixels) {
  const auto whole = [](const Axis& axis) { return axis.taps == 1 && axis.stride == 1 && axis.origin == 0 && axis.rows == axis.size; };
  if (whole(from.y) && whole(from.x)) {  // pixels are a matrix
    from.x.rows = from.x.size = static_cast<int>(from.rows);
    from.y.rows = from.y.size = 1;
  }
  // Offsets of a copy are not negative: a walk against the axis starts at its last tap.
  const auto back = [](const Axis& axis) { return std::min(0, std::max(0, axis.taps - 1) * axis.step); };
  const auto walk = [&](const Axis& axis) {
    const int lower = axis.origin + back(axis);
    return PixelWalk{lower, lower + (axis.rows - 1) * axis.stride + 1 - axis.size, axis.stride};
  };
  const PixelWalk y = walk(from.y), x = walk(from.x);
  const int64_t images = from.rows / (static_cast<int64_t>(from.y.rows) * from.x.rows);
  return {pixelMap(call, from.source, images, from.y.size, from.x.size, from.channels, y, x, pixels), from.y.rows, from.x.rows, from.y.stride, from.x.stride, y.lower, x.lower,
          from.y.step, from.x.step, -back(from.y), -back(from.x), std::max(1, from.x.taps), from.channels / kLineElements};
}

template <class S>
struct ForwardJob {
  using Shape = S;
  using Out = bf16;
  static constexpr bool kRowsA = false, kRowsB = false;
  PixelSource x;
  TensorMap weights;  // [O][taps * C]
  bf16* y;
  const float* bias;
  float* statistics;
  int64_t rows;
  int tiles, columnTiles, outputs, depthSlices;
  DEVICE int slices(int) const { return depthSlices; }
  DEVICE void load(int tile, int slice, unsigned char* a, unsigned char* b, Barrier& barrier) const {
    x.load(a, barrier, static_cast<int64_t>(tile / columnTiles) * Shape::kM, slice / x.slicesPerTap, slice % x.slicesPerTap * kLineElements);
    copyBox(b, weights, barrier, slice * kLineElements, tile % columnTiles * Shape::kN);
  }
  template <class Memory>
  DEVICE void finish(int tile, Accumulators<Shape>& acc, Memory& memory) const {
    const int64_t firstRow = static_cast<int64_t>(tile / columnTiles) * Shape::kM, left = rows - firstRow;
    const int firstColumn = tile % columnTiles * Shape::kN, columns = outputs - firstColumn;
    if (bias != nullptr) addBias(acc, bias + firstColumn, columns);
    stageTile<Shape>(acc, memory);
    storeTile<Shape>(memory, columns, outputs % Vector<bf16>::kLength == 0, [&](int r) { return r < left ? y + (firstRow + r) * outputs + firstColumn : nullptr; }, y);
    if (statistics != nullptr)
      columnMoments<Shape>(memory, static_cast<int>(left < Shape::kM ? left : Shape::kM), columns, statistics + firstRow / kStatisticsRows * 2 * outputs + firstColumn, outputs);
  }
};

template <class S>
struct BackwardInputJob {
  using Shape = S;
  using Out = bf16;
  static constexpr bool kRowsA = false, kRowsB = true;
  PixelSource dy;
  TensorMap weights;  // [O][taps][C]
  int firstY, stepY, firstX, stepX, kernelX;  // the taps of the class
  bf16* dx;
  ClassPixels pixels;
  Epilogue<bf16> epilogue;
  int64_t rows;
  int tiles, columnTiles, channels, depthSlices;
  DEVICE int slices(int) const { return depthSlices; }
  DEVICE void load(int tile, int slice, unsigned char* a, unsigned char* b, Barrier& barrier) const {
    const int tap = slice / dy.slicesPerTap, o = slice % dy.slicesPerTap * kLineElements;
    dy.load(a, barrier, static_cast<int64_t>(tile / columnTiles) * Shape::kM, tap, o);
    const int at = (firstY + tap / dy.tapsX * stepY) * kernelX + firstX + tap % dy.tapsX * stepX;
    for (int box = 0; box < Shape::kN / 64; ++box) copyBox(b + box * kBoxBytes, weights, barrier, tile % columnTiles * Shape::kN + box * 64, at, o);
  }
  template <class Memory>
  DEVICE void finish(int tile, Accumulators<Shape>& acc, Memory& memory) const {
    const int64_t firstRow = static_cast<int64_t>(tile / columnTiles) * Shape::kM;
    const int firstColumn = tile % columnTiles * Shape::kN;
    stageTile<Shape>(acc, memory);
    if (epilogue.some()) return finishTile<Shape>(memory, epilogue, dx, pixels, rows, channels, firstRow, firstColumn);
    storeTile<Shape>(memory, channels - firstColumn, true, [&](int r) { return firstRow + r < rows ? dx + pixels.index(firstRow + r) * channels + firstColumn : nullptr; }, dx);
  }
};

template <class S>
struct BackwardWeightJob {
  using Shape = S;
  using Out = float;
  static constexpr bool kRowsA = true, kRowsB = true;
  PixelSource x;
  TensorMap dy;  // [pixels][O]
  float* dw;     // [splits, O, taps * C]
  int64_t rows, share;
  int tiles, columnTiles, splitTiles, outputs, depth;
  DEVICE int64_t begin(int tile) const { return tile / splitTiles * share; }
  DEVICE int slices(int tile) const {
    const int64_t left = rows - begin(tile);
    return static_cast<int>(((left < share ? left : share) + kLineElements - 1) / kLineElements);
  }
  DEVICE int firstRow(int tile) const { return tile % splitTiles / columnTiles * Shape::kM; }
  DEVICE int firstColumn(int tile) const { return tile % columnTiles * Shape::kN; }
  DEVICE void load(int tile, int slice, unsigned char* a, unsigned char* b, Barrier& barrier) const {
    const int64_t pixel = begin(tile) + static_cast<int64_t>(slice) * kLineElements;
    const int channels = x.slicesPerTap * kLineElements;
    for (int box = 0; box < Shape::kM / 64; ++box) copyBox(a + box * kBoxBytes, dy, barrier, firstRow(tile) + box * 64, static_cast<int>(pixel));
    for (int box = 0; box < Shape::kN / 64; ++box) {
      const int column = firstColumn(tile) + box * 64;
      // Behind the last column: channels that do not exist are zero.
      if (column < depth)
        x.load(b + box * kBoxBytes, barrier, pixel, column / channels, column % channels);
      else
        x.load(b + box * kBoxBytes, barrier, pixel, 0, channels);
    }
  }
  template <class Memory>
  DEVICE void finish(int tile, Accumulators<Shape>& acc, Memory& memory) const {
    stageTile<Shape>(acc, memory);
    const int row = firstRow(tile), column = firstColumn(tile);
    float* out = dw + (static_cast<int64_t>(tile / splitTiles) * outputs + row) * depth + column;
    storeTile<Shape>(memory, depth - column, true, [&](int r) { return row + r < outputs ? out + static_cast<int64_t>(r) * depth : nullptr; }, dw);
  }
};

// Tile 4 is Wide, 5 is Slim (Flat for weight gradients), 0 the one that suits the shape; 1 to 3 are those of Ampere.
int64_t tileOf(const Call& call) { return call.numbers.size() <= 6 ? 0 : call.integer(6); }
bool hopper(const Call& call) { return capability(call) == 90 && (tileOf(call) == 0 || tileOf(call) > 3); }
bool narrow(const Call& call, int64_t columns) { return tileOf(call) == 5 || (tileOf(call) != 4 && columns <= 64); }

}  // namespace

bool forwardHopper(const Call& call, const Geometry& g, const Tensor& x, const Tensor& w) {
  if (!hopper(call) || x.dtype != DType::bf16 || g.c % kLineElements != 0 || call.optional(5) != nullptr) return false;
  const auto run = [&](auto shape) {
    using Shape = decltype(shape);
    const int64_t columnTiles = ceilDiv(g.o, Shape::kN), depth = static_cast<int64_t>(g.kh) * g.kw * g.c;
    launchProduct(call, ForwardJob<Shape>{pixelSource(call, forwardGather<bf16>(g, x), Shape::kM), tiledMap(call, w.data<bf16>(), {depth, g.o}, {kLineElements, Shape::kN}), call.t(0).data<bf16>(),
                                          optionalData<float>(call.optional(3)), optionalData<float>(call.optional(4)), g.pixels(), static_cast<int>(ceilDiv(g.pixels(), Shape::kM) * columnTiles), static_cast<int>(columnTiles),
                                          static_cast<int>(g.o), static_cast<int>(depth / kLineElements)});
  };
  if (narrow(call, g.o))
    run(Slim{});
  else
    run(Wide{});
  return true;
}

bool backwardInputHopper(const Call& call, const Geometry& g, const PixelClass<bf16>& pixels, const ClassPixels& where, const Epilogue<bf16>& epilogue) {
  if (!hopper(call) || g.o % kLineElements != 0 || g.c % Vector<bf16>::kLength != 0 || call.optional(10) != nullptr) return false;
  const auto& weights = pixels.weights;
  const auto run = [&](auto shape) {
    using Shape = decltype(shape);
    const int64_t columnTiles = ceilDiv(g.c, Shape::kN);
    launchProduct(call, BackwardInputJob<Shape>{pixelSource(call, pixels.dy, Shape::kM), tiledMap(call, weights.weights, {g.c, static_cast<int64_t>(g.kh) * g.kw, g.o}, {64, 1, 64}), weights.firstY, weights.stepY, weights.firstX,
                                                weights.stepX, g.kw, call.t(0).data<bf16>(), where, epilogue, pixels.dy.rows, static_cast<int>(ceilDiv(pixels.dy.rows, Shape::kM) * columnTiles), static_cast<int>(columnTiles),
                                                static_cast<int>(g.c), pixels.dy.depth() / kLineElements});
  };
  if (narrow(call, g.c))
    run(Slim{});
  else
    run(Wide{});
  return true;
}

bool backwardWeightHopper(const Call& call, const Geometry& g, const Tensor& dy, const Tensor& x) {
  if (!hopper(call) || x.dtype != DType::bf16 || g.c % kLineElements != 0 || g.o % Vector<bf16>::kLength != 0 || call.optional(5) != nullptr) return false;
  const int64_t depth = static_cast<int64_t>(g.kh) * g.kw * g.c;
  const auto run = [&](auto shape) {
    using Shape = decltype(shape);
    const int64_t columnTiles = ceilDiv(depth, Shape::kN), splitTiles = ceilDiv(g.o, Shape::kM) * columnTiles;
    const Splits splits(g.pixels(), splitTiles, multiprocessors(call), kLineElements);
    DeviceScratch<float> partial(call, splits.count > 1 ? splits.count * g.o * depth : 0);
    float* dw = call.t(0).data<float>();
    launchProduct(call, BackwardWeightJob<Shape>{pixelSource(call, forwardGather<bf16>(g, x), kLineElements), tiledMap(call, dy.data<bf16>(), {g.o, g.pixels()}, {64, 64}), splits.count > 1 ? partial.data() : dw, g.pixels(),
                                                 splits.share, static_cast<int>(splitTiles * splits.count), static_cast<int>(columnTiles), static_cast<int>(splitTiles), static_cast<int>(g.o), static_cast<int>(depth)});
    if (splits.count > 1) sumSplits(call, dw, partial.data(), g.o * depth, splits.count);
  };
  if (narrow(call, g.o))
    run(Flat{});
  else
    run(Wide{});
  return true;
}

}  // namespace densecl::cuda
