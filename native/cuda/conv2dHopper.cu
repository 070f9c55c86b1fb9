// The three products of a convolution (conv2d.cu has them) for Hopper in bf16: images pass through im2col bulk copies, weights and
// gradients through tiled ones, and epilogues are those of the other kernels. Depth goes in slices of 64: the channels that are
// summed over must be a multiple of that. Strides, dilation, padding and residue classes are all in the walk of the copies.
#include "conv2dHopper.h"

#include "conv2dEpilogue.cuh"
#include "kernel/warpgroup.cuh"
#include "tensorMap.h"

namespace densecl::cuda {
namespace {

using PingPong128x128 = WarpgroupShape<128, 128, 1, 1>;
using PingPong128x64 = WarpgroupShape<128, 64, 1, 1>;
// Of weight gradients, whose depth is pixels: the products of a tile are long, and two tiles of f32 would not fit beside the pipeline.
using Together128x128 = WarpgroupShape<128, 128, 2, 1>;
using Together64x128 = WarpgroupShape<64, 128, 1, 2>;

// A tap and the first of the slice's channels: where a slice stands in the depth. It is advanced by additions alone, since one warp
// walks for the whole block and has as long for a slice as the tensor cores.
struct DepthPlace {
  int channel, tapX, offsetX, offsetY;
};

// The first pixel of a column, in coordinates of the map.
struct PixelPlace {
  int x, y, n;
};

// A gathered operand: images whose pixels an im2col copy walks through, each tap moving the whole column. Where a product has one tap
// and every pixel, its rows are lines of a matrix and copied as boxes.
struct PixelSource {
  TensorMap map;
  bool matrix;
  int rowsY, rowsX, strideY, strideX, lowerY, lowerX;
  int stepY, stepX, shiftY, shiftX, tapsX, channels;
  int sliceN, sliceY, sliceX;  // kLineElements rows further: images, then rows of pixels, then pixels

  DEVICE PixelPlace pixel(int row) const {
    const int perImage = rowsY * rowsX, n = row / perImage, inside = row - n * perImage, y = inside / rowsX;
    return {(inside - y * rowsX) * strideX + lowerX, y * strideY + lowerY, n};
  }
  DEVICE void advance(PixelPlace& at) const {
    at.x += sliceX * strideX;
    at.y += sliceY * strideY;
    at.n += sliceN;
    if (at.x >= lowerX + rowsX * strideX) {
      at.x -= rowsX * strideX;
      at.y += strideY;
    }
    if (at.y >= lowerY + rowsY * strideY) {
      at.y -= rowsY * strideY;
      ++at.n;
    }
  }
  DEVICE DepthPlace depth(int tap, int channel) const {
    return {channel, tap % tapsX, shiftX + tap % tapsX * stepX, shiftY + tap / tapsX * stepY};
  }
  // True when the place has moved on to the next tap.
  DEVICE bool advance(DepthPlace& at) const {
    at.channel += kLineElements;
    if (at.channel < channels) return false;
    at.channel = 0;
    at.offsetX += stepX;
    if (++at.tapX == tapsX) {
      at.tapX = 0;
      at.offsetX = shiftX;
      at.offsetY += stepY;
    }
    return true;
  }
  DEVICE void load(void* to, Mbarrier& barrier, const PixelPlace& pixel, const DepthPlace& depth) const {
    if (matrix)
      tmaLoad(to, map, barrier, depth.channel, pixel.x);
    else
      tmaLoadIm2col(to, map, barrier, depth.channel, pixel.x, pixel.y, pixel.n, depth.offsetX, depth.offsetY);
  }
};

// The walk of one axis as an im2col copy has it: offsets are not negative, so a walk against the axis starts at its last tap.
struct AxisWalk {
  PixelWalk walk;
  int shift, reach;  // of the first tap, and of the farthest
  explicit AxisWalk(const Axis& axis) {
    const int back = std::min(0, std::max(0, axis.taps - 1) * axis.step), lower = axis.origin + back;
    walk = {lower, lower + (axis.rows - 1) * axis.stride + 1 - axis.size, axis.stride};
    shift = -back;
    reach = std::max(0, axis.taps - 1) * std::abs(axis.step);
  }
};

bool isMatrix(const Gather<bf16>& from) {
  const auto whole = [](const Axis& axis) { return axis.taps == 1 && axis.stride == 1 && axis.origin == 0 && axis.rows == axis.size; };
  return whole(from.y) && whole(from.x);
}

// Whether bulk copies can walk through the images: whole slices of channels, and what a tensor map and its coordinates hold.
bool copies(const Gather<bf16>& from) {
  if (from.channels % kLineElements != 0 || from.rows >= (int64_t{1} << 31) - 128) return false;
  const AxisWalk y(from.y), x(from.x);
  return isMatrix(from) || (mapHolds(y.walk, y.reach) && mapHolds(x.walk, x.reach));
}

PixelSource pixelSource(const Call& call, Gather<bf16> from, int pixels) {
  const bool matrix = isMatrix(from);
  if (matrix) {
    from.x.rows = from.x.size = static_cast<int>(from.rows);
    from.y.rows = from.y.size = 1;
  }
  const AxisWalk y(from.y), x(from.x);
  const int perImage = from.y.rows * from.x.rows, inside = kLineElements % perImage;
  PixelSource source{};
  source.map = matrix ? tiledMap(call, from.source, {from.channels, from.rows}, {kLineElements, pixels})
                      : pixelMap(call, from.source, from.rows / perImage, from.y.size, from.x.size, from.channels, y.walk, x.walk, pixels);
  source.matrix = matrix;
  source.rowsY = from.y.rows;
  source.rowsX = from.x.rows;
  source.strideY = from.y.stride;
  source.strideX = from.x.stride;
  source.lowerY = y.walk.lower;
  source.lowerX = x.walk.lower;
  source.stepY = from.y.step;
  source.stepX = from.x.step;
  source.shiftY = y.shift;
  source.shiftX = x.shift;
  source.tapsX = std::max(1, from.x.taps);
  source.channels = from.channels;
  source.sliceN = kLineElements / perImage;
  source.sliceY = inside / from.x.rows;
  source.sliceX = inside % from.x.rows;
  return source;
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
  DEVICE void prefetch() const {
    prefetchTensorMap(x.map);
    prefetchTensorMap(weights);
  }
  DEVICE int slices(int) const { return depthSlices; }
  struct Walk {
    PixelPlace pixel;
    DepthPlace depth;
    int column, at;  // of the weights
  };
  DEVICE Walk start(int tile) const {
    const int rowTile = tile / columnTiles;
    return {x.pixel(rowTile * Shape::kM), x.depth(0, 0), (tile - rowTile * columnTiles) * Shape::kN, 0};
  }
  DEVICE void load(const Walk& walk, unsigned char* a, unsigned char* b, Mbarrier& barrier) const {
    x.load(a, barrier, walk.pixel, walk.depth);
    tmaLoad(b, weights, barrier, walk.at, walk.column);
  }
  DEVICE void advance(Walk& walk) const {
    x.advance(walk.depth);
    walk.at += kLineElements;
  }
  template <class Memory>
  DEVICE void finish(int tile, Accumulators<Shape>& acc, Memory& memory) const {
    const int64_t firstRow = static_cast<int64_t>(tile / columnTiles) * Shape::kM, left = rows - firstRow;
    const int firstColumn = tile % columnTiles * Shape::kN;
    if (bias != nullptr) addBias(acc, bias + firstColumn, outputs - firstColumn);
    stageTile<Shape>(acc, memory);
    storeForward<Shape>(memory, y, firstRow, static_cast<int>(left < Shape::kM ? left : Shape::kM), firstColumn, outputs, statistics);
  }
};

template <class S>
struct BackwardInputJob {
  using Shape = S;
  using Out = bf16;
  static constexpr bool kRowsA = false, kRowsB = true;
  PixelSource dy;
  TensorMap weights;                          // [O][taps][C]
  int firstY, stepY, firstX, stepX, kernelX;  // the taps of the class
  bf16* dx;
  ClassPixels pixels;
  Epilogue<bf16> epilogue;
  int64_t rows;
  int tiles, columnTiles, channels, depthSlices;
  DEVICE void prefetch() const {
    prefetchTensorMap(dy.map);
    prefetchTensorMap(weights);
  }
  DEVICE int slices(int) const { return depthSlices; }
  struct Walk {
    PixelPlace pixel;
    DepthPlace depth;
    int column, tap;  // of the weights
  };
  DEVICE Walk start(int tile) const {
    const int rowTile = tile / columnTiles;
    return {dy.pixel(rowTile * Shape::kM), dy.depth(0, 0), (tile - rowTile * columnTiles) * Shape::kN, firstY * kernelX + firstX};
  }
  DEVICE void load(const Walk& walk, unsigned char* a, unsigned char* b, Mbarrier& barrier) const {
    dy.load(a, barrier, walk.pixel, walk.depth);
    for (int box = 0; box < Shape::kN / 64; ++box)
      tmaLoad(b + box * kBoxBytes, weights, barrier, walk.column + box * 64, walk.tap, walk.depth.channel);
  }
  DEVICE void advance(Walk& walk) const {
    if (!dy.advance(walk.depth)) return;
    walk.tap += walk.depth.tapX == 0 ? stepY * kernelX - (dy.tapsX - 1) * stepX : stepX;
  }
  template <class Memory>
  DEVICE void finish(int tile, Accumulators<Shape>& acc, Memory& memory) const {
    const int64_t firstRow = static_cast<int64_t>(tile / columnTiles) * Shape::kM;
    const int firstColumn = tile % columnTiles * Shape::kN;
    stageTile<Shape>(acc, memory);
    storeGradient<true, Shape>(memory, epilogue, dx, pixels, rows, channels, firstRow, firstColumn);
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
  DEVICE void prefetch() const {
    prefetchTensorMap(x.map);
    prefetchTensorMap(dy);
  }
  DEVICE int64_t begin(int tile) const { return tile / splitTiles * share; }
  DEVICE int slices(int tile) const {
    const int64_t left = rows - begin(tile);
    return static_cast<int>(((left < share ? left : share) + kLineElements - 1) / kLineElements);
  }
  DEVICE int firstRow(int tile) const { return tile % splitTiles / columnTiles * Shape::kM; }
  DEVICE int firstColumn(int tile) const { return tile % columnTiles * Shape::kN; }
  struct Walk {
    PixelPlace pixel;
    DepthPlace columns[Shape::kN / 64];
    int row, at;  // of dy
  };
  DEVICE Walk start(int tile) const {
    const int64_t first = begin(tile);
    Walk walk{x.pixel(static_cast<int>(first)), {}, firstRow(tile), static_cast<int>(first)};
    for (int box = 0; box < Shape::kN / 64; ++box) {
      const int column = firstColumn(tile) + box * 64, tap = column / x.channels;
      // Behind the last column: channels that do not exist are zero.
      walk.columns[box] = column < depth ? x.depth(tap, column - tap * x.channels) : x.depth(0, x.channels);
    }
    return walk;
  }
  DEVICE void load(const Walk& walk, unsigned char* a, unsigned char* b, Mbarrier& barrier) const {
    for (int box = 0; box < Shape::kM / 64; ++box) tmaLoad(a + box * kBoxBytes, dy, barrier, walk.row + box * 64, walk.at);
    for (int box = 0; box < Shape::kN / 64; ++box) x.load(b + box * kBoxBytes, barrier, walk.pixel, walk.columns[box]);
  }
  DEVICE void advance(Walk& walk) const {
    x.advance(walk.pixel);
    walk.at += kLineElements;
  }
  template <class Memory>
  DEVICE void finish(int tile, Accumulators<Shape>& acc, Memory& memory) const {
    stageTile<Shape>(acc, memory);
    const int row = firstRow(tile), column = firstColumn(tile);
    float* out = dw + (static_cast<int64_t>(tile / splitTiles) * outputs + row) * depth + column;
    storeTile<Shape>(
        memory, depth - column, true, [&](int r) { return row + r < outputs ? out + static_cast<int64_t>(r) * depth : nullptr; }, dw);
  }
};

// Tile 4 is 128x128, 5 is 128x64 (64x128 for weight gradients), 0 the one that suits the shape; 1 to 3 are those
// of Ampere.
bool hopper(const Call& call, const Geometry& g, Family family) { return usable(call, family) && (g.tile == 0 || g.tile > 3); }
bool narrow(const Geometry& g, int64_t columns) { return g.tile == 5 || (g.tile != 4 && columns <= 64); }

}  // namespace

bool forwardHopper(const Call& call, const Geometry& g, const bf16* x, const bf16* w) {
  using Names = args::conv2d;
  if (!hopper(call, g, Family::wgmmaConv2d) || !copies(forwardGather<bf16>(g, x)) || call.optional(Names::scale) != nullptr) return false;
  const auto run = [&](auto shape) {
    using Shape = decltype(shape);
    const int64_t columnTiles = ceilDiv(g.o, Shape::kN), depth = static_cast<int64_t>(g.kh) * g.kw * g.c;
    ForwardJob<Shape> job{};
    job.x = pixelSource(call, forwardGather<bf16>(g, x), Shape::kM);
    job.weights = tiledMap(call, w, {depth, g.o}, {kLineElements, Shape::kN});
    job.y = call.tensor(Names::y).template data<bf16>();
    job.bias = optionalData<float>(call.optional(Names::bias));
    job.statistics = optionalData<float>(call.optional(Names::statistics));
    job.rows = g.pixels();
    job.tiles = static_cast<int>(ceilDiv(g.pixels(), Shape::kM) * columnTiles);
    job.columnTiles = static_cast<int>(columnTiles);
    job.outputs = static_cast<int>(g.o);
    job.depthSlices = static_cast<int>(depth / kLineElements);
    launchProduct(call, job);
  };
  if (narrow(g, g.o))
    run(PingPong128x64{});
  else
    run(PingPong128x128{});
  return true;
}

bool backwardInputHopper(const Call& call, const Geometry& g, const PixelClass<bf16>& pixels, const ClassPixels& where,
                         const Epilogue<bf16>& epilogue) {
  using Names = args::conv2dBackwardInput;
  if (!hopper(call, g, Family::wgmmaConv2dBackwardInput) || !copies(pixels.dy) || g.c % Vector<bf16>::kLength != 0 ||
      call.optional(Names::gradientX) != nullptr)
    return false;
  const auto& weights = pixels.weights;
  const auto run = [&](auto shape) {
    using Shape = decltype(shape);
    const int64_t columnTiles = ceilDiv(g.c, Shape::kN);
    BackwardInputJob<Shape> job{};
    job.dy = pixelSource(call, pixels.dy, Shape::kM);
    job.weights = tiledMap(call, weights.weights, {g.c, static_cast<int64_t>(g.kh) * g.kw, g.o}, {64, 1, 64});
    job.firstY = weights.firstY;
    job.stepY = weights.stepY;
    job.firstX = weights.firstX;
    job.stepX = weights.stepX;
    job.kernelX = g.kw;
    job.dx = call.tensor(Names::dx).template data<bf16>();
    job.pixels = where.by(TileThreads<Shape, bf16>::kDown);
    job.epilogue = epilogue;
    job.rows = pixels.dy.rows;
    job.tiles = static_cast<int>(ceilDiv(pixels.dy.rows, Shape::kM) * columnTiles);
    job.columnTiles = static_cast<int>(columnTiles);
    job.channels = static_cast<int>(g.c);
    job.depthSlices = pixels.dy.depth() / kLineElements;
    launchProduct(call, job);
  };
  if (narrow(g, g.c))
    run(PingPong128x64{});
  else
    run(PingPong128x128{});
  return true;
}

bool backwardWeightHopper(const Call& call, const Geometry& g, const bf16* dy, const bf16* x, float* dw) {
  using Names = args::conv2dBackwardWeight;
  if (!hopper(call, g, Family::wgmmaConv2dBackwardWeight) || !copies(forwardGather<bf16>(g, x)) || g.o % Vector<bf16>::kLength != 0 ||
      call.optional(Names::gradientX) != nullptr)
    return false;
  const int64_t depth = static_cast<int64_t>(g.kh) * g.kw * g.c;
  const auto run = [&](auto shape) {
    using Shape = decltype(shape);
    const int64_t columnTiles = ceilDiv(depth, Shape::kN), splitTiles = ceilDiv(g.o, Shape::kM) * columnTiles;
    const Splits splits(call.integer(Names::splits), g.pixels(), splitTiles, multiprocessors(call), kLineElements, g.o * depth);
    DeviceScratch<float> partial(call, splits.count > 1 ? splits.count * g.o * depth : 0);
    BackwardWeightJob<Shape> job{};
    job.x = pixelSource(call, forwardGather<bf16>(g, x), kLineElements);
    job.dy = tiledMap(call, dy, {g.o, g.pixels()}, {64, 64});
    job.dw = splits.count > 1 ? partial.data() : dw;
    job.rows = g.pixels();
    job.share = splits.share;
    job.tiles = static_cast<int>(splitTiles * splits.count);
    job.columnTiles = static_cast<int>(columnTiles);
    job.splitTiles = static_cast<int>(splitTiles);
    job.outputs = static_cast<int>(g.o);
    job.depth = static_cast<int>(depth);
    launchProduct(call, job);
    if (splits.count > 1) sumSplits(call, dw, partial.data(), g.o * depth, splits.count);
  };
  if (narrow(g, g.o))
    run(Together64x128{});
  else
    run(Together128x128{});
  return true;
}

}  // namespace densecl::cuda
