// The three products of a convolution (conv2d.cu has them) for Hopper in bf16: images pass through im2col bulk copies, weights and
// gradients through tiled ones, and epilogues are those of the other kernels. Depth goes in slices of 64: the channels that are
// summed over must be a multiple of that. Strides, dilation, padding and residue classes are all in the walk of the copies. A batch norm
// with ReLU that the images still wait for is computed in registers.
#include "conv2dHopper.h"

#include "conv2dEpilogue.cuh"
#include "normFragments.cuh"
#include "pixelSource.cuh"

namespace densecl::cuda {
namespace {

using PingPong128x128 = WarpgroupShape<128, 128, 1, 1>;
using PingPong128x64 = WarpgroupShape<128, 64, 1, 1>;
// Of weight gradients, whose depth is pixels: the products of a tile are long, and two tiles of f32 would not fit beside the pipeline.
using Together128x128 = WarpgroupShape<128, 128, 2, 1>;
using Together128x64 = WarpgroupShape<128, 64, 2, 1>;
// Of all products: shared memory does not bound them, but both warpgroups finish a tile while nobody multiplies.
using Together128x256 = WarpgroupShape<128, 256, 2, 1>;

template <class S>
struct ForwardJob {
  using Shape = S;
  using Stored = typename S::Part;
  using Out = bf16;
  static constexpr bool kRowsA = false, kRowsB = false, kFragments = false, kE4m3 = false;
  PixelSource x;
  TensorMap weights;                                       // [O][taps * C]
  std::conditional_t<S::kBulkStores, TensorMap, bf16*> y;  // [pixels][O]
  const float* bias;
  float* statistics;
  int64_t rows;
  int tiles, columnTiles, outputs, depthSlices;
  DEVICE void prefetch() const {
    prefetchTensorMap(x.map);
    prefetchTensorMap(weights);
    if constexpr (S::kBulkStores) prefetchTensorMap(y);
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
  template <class Part, class Memory>
  DEVICE void finish(int tile, int row, int column, Accumulators<Part>& acc, Memory& memory) const {
    const int64_t firstRow = static_cast<int64_t>(tile / columnTiles) * Shape::kM + row, left = rows - firstRow;
    const int firstColumn = tile % columnTiles * Shape::kN + column;
    const int some = static_cast<int>(left < Part::kM ? left : Part::kM);
    if (bias != nullptr) addBias(acc, bias + firstColumn, outputs - firstColumn);
    if constexpr (S::kBulkStores) {
      storeBoxes<Part>(acc, memory, y, firstColumn, static_cast<int>(firstRow));
      if (statistics != nullptr) tileMoments<Part>(memory, some, firstRow, firstColumn, outputs, statistics);
    } else {
      stageTile<Part>(acc, memory);
      storeForward<Part>(memory, y, firstRow, some, firstColumn, outputs, statistics);
    }
  }
};

template <class S, bool kPadded>
struct NormedForwardJob : ForwardJob<S> {
  static constexpr bool kFragments = true;
  NormVectors norm;
  DEVICE NormedRows<S, kPadded> left(int tile) const { return {this->x, norm, static_cast<int64_t>(tile / this->columnTiles) * S::kM}; }
};

// Of E4M3, two of which are taken for one of bf16 until they are multiplied.
template <class S>
struct E4m3ForwardJob : ForwardJob<S> {
  static constexpr bool kE4m3 = true;
  const float* weightScale;  // [O]
  template <class Part, class Memory>
  DEVICE void finish(int tile, int row, int column, Accumulators<Part>& acc, Memory& memory) const {
    const int firstColumn = tile % this->columnTiles * S::kN + column;
    scaleColumns(acc, weightScale + firstColumn, this->outputs - firstColumn);
    ForwardJob<S>::finish(tile, row, column, acc, memory);
  }
};

template <class S>
struct BackwardInputJob {
  using Shape = S;
  using Stored = typename S::Part;
  using Out = bf16;
  static constexpr bool kRowsA = false, kRowsB = true, kFragments = false, kE4m3 = false;
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
  template <class Part, class Memory>
  DEVICE void finish(int tile, int row, int column, Accumulators<Part>& acc, Memory& memory) const {
    const int64_t firstRow = static_cast<int64_t>(tile / columnTiles) * Shape::kM + row;
    const int firstColumn = tile % columnTiles * Shape::kN + column;
    stageTile<Part>(acc, memory);
    storeGradient<true, Part>(memory, epilogue, dx, pixels, rows, channels, firstRow, firstColumn);
  }
};

// Computed as its transpose, [taps * C, O], whose left operand is x: that one may have to be normalised.
template <class S>
struct BackwardWeightJob {
  using Shape = S;
  using Stored = WarpgroupShape<S::Part::kN, S::Part::kM, 1, S::Part::kTileGroups>;
  using Out = float;
  static constexpr bool kRowsA = true, kRowsB = true, kFragments = false, kE4m3 = false;
  PixelSource x;
  TensorMap dy;  // [pixels][O]
  float* dw;     // [splits, O, taps * C]
  int64_t rows, share;
  int tiles, outputTiles, splitTiles, outputs, depth;
  DEVICE void prefetch() const {
    prefetchTensorMap(x.map);
    prefetchTensorMap(dy);
  }
  DEVICE int64_t begin(int tile) const { return tile / splitTiles * share; }
  DEVICE int slices(int tile) const {
    const int64_t left = rows - begin(tile);
    return static_cast<int>(((left < share ? left : share) + kLineElements - 1) / kLineElements);
  }
  DEVICE int firstColumn(int tile) const { return tile % splitTiles / outputTiles * Shape::kM; }  // of dw
  DEVICE int firstOutput(int tile) const { return tile % outputTiles * Shape::kN; }
  struct Walk {
    PixelPlace pixel;
    DepthPlace columns[Shape::kM / 64];
    int output, at;  // of dy
  };
  DEVICE Walk start(int tile) const {
    const int64_t first = begin(tile);
    Walk walk{x.pixel(static_cast<int>(first)), {}, firstOutput(tile), static_cast<int>(first)};
    for (int box = 0; box < Shape::kM / 64; ++box) {
      const int column = firstColumn(tile) + box * 64, tap = column / x.channels;
      // Behind the last column: channels that do not exist are zero.
      walk.columns[box] = column < depth ? x.depth(tap, column - tap * x.channels) : x.depth(0, x.channels);
    }
    return walk;
  }
  DEVICE void load(const Walk& walk, unsigned char* a, unsigned char* b, Mbarrier& barrier) const {
    for (int box = 0; box < Shape::kM / 64; ++box) x.load(a + box * kBoxBytes, barrier, walk.pixel, walk.columns[box]);
    for (int box = 0; box < Shape::kN / 64; ++box) tmaLoad(b + box * kBoxBytes, dy, barrier, walk.output + box * 64, walk.at);
  }
  DEVICE void advance(Walk& walk) const {
    x.advance(walk.pixel);
    walk.at += kLineElements;
  }
  template <class Part, class Memory>
  DEVICE void finish(int tile, int row, int column, Accumulators<Part>& acc, Memory& memory) const {
    stageTransposed<Part>(acc, memory);
    const int output = firstOutput(tile) + column, first = firstColumn(tile) + row;
    float* out = dw + (static_cast<int64_t>(tile / splitTiles) * outputs + output) * depth + first;
    storeTile<Stored>(
        memory, depth - first, true, [&](int r) { return output + r < outputs ? out + static_cast<int64_t>(r) * depth : nullptr; }, dw);
  }
};

template <class S, bool kPadded>
struct NormedBackwardWeightJob : BackwardWeightJob<S> {
  static constexpr bool kFragments = true;
  NormVectors norm;
  DEVICE NormedColumns<S, kPadded> left(int tile) const { return {this->x, norm, this->firstColumn(tile), this->depth, this->begin(tile)}; }
};

// Tile 4 is 128x128, 5 is 128x64 (64x128 for weight gradients), 6 is 128x256 (256x128 for those), 0 the one of 4 and 5 that suits the
// shape, 7 the same stored by bulk copies (forward in bf16 alone); 1 to 3 are those of Ampere.
bool hopper(const Call& call, const Geometry& g, Family family) {
  if (g.tile == kWidestTile && !usable(call, Family::wgmmaWidest)) return false;
  if (g.tile == kBulkStoredTile &&
      (family != Family::wgmmaConv2d || g.o % Vector<bf16>::kLength != 0 || !usable(call, Family::wgmmaBulkStores)))
    return false;
  return usable(call, family) && (g.tile == 0 || g.tile > 3);
}
template <class Wide, class Narrow, class Run>
void byWidth(const Geometry& g, int64_t columns, Run run) {
  if (g.tile == kWidestTile)
    run(Together128x256{});
  else if (g.tile == 5 || (g.tile != 4 && columns <= 64))
    run(Narrow{});
  else
    run(Wide{});
}

// Norms with ReLU, whose groups no tile of pixels straddles.
bool takes(const OperandNorm& norm, int64_t pixels, int64_t tile) {
  if (norm.scale == nullptr) return true;
  const int64_t groups = norm.scale->dim(0);
  return norm.relu && (groups == 1 || pixels / groups % tile == 0);
}

// Launches Job, or where there is a norm Normed<kPadded>, with what `fill` says of either.
template <class Job, template <class, bool> class Normed, class Fill>
void launchNormed(const Call& call, const OperandNorm& norm, const Geometry& g, const PixelSource& x, Fill fill) {
  using Shape = typename Job::Shape;
  const auto run = [&](auto job) {
    job.x = x;
    fill(job);
    launchProduct(call, job);
  };
  if (norm.scale == nullptr) return run(Job{});
  const auto normed = [&](auto job) {
    job.norm = {norm.scale->data<float>(), norm.shift->data<float>(), static_cast<int>(g.c), g.pixels() / norm.scale->dim(0)};
    run(job);
  };
  if (x.matrix)
    normed(Normed<Shape, false>{});
  else
    normed(Normed<Shape, true>{});
}

// What both forward products say of their tiles. The channels of `g` are those that the copies count.
template <class Names, class Job>
void fillForward(const Call& call, Names, const Geometry& g, const bf16* w, Job& job) {
  using Shape = typename Job::Shape;
  const int64_t columnTiles = ceilDiv(g.o, Shape::kN);
  job.weights = tiledMap(call, w, {g.depth(), g.o}, {kLineElements, Shape::kN});
  bf16* const y = call.tensor(Names::y).template data<bf16>();
  if constexpr (Shape::kBulkStores)
    job.y = tiledMap(call, y, {g.o, g.pixels()}, {kLineElements, Shape::kM});
  else
    job.y = y;
  job.statistics = optionalData<float>(call.optional(Names::statistics));
  job.rows = g.pixels();
  job.tiles = static_cast<int>(ceilDiv(g.pixels(), Shape::kM) * columnTiles);
  job.columnTiles = static_cast<int>(columnTiles);
  job.outputs = static_cast<int>(g.o);
  job.depthSlices = static_cast<int>(g.depth() / kLineElements);
}

}  // namespace

bool forwardHopper(const Call& call, const Geometry& g, const bf16* x, const bf16* w) {
  using Names = args::conv2d;
  const OperandNorm norm(call, Names{}, call.tensor(Names::x));
  if (!hopper(call, g, Family::wgmmaConv2d) || !copies(forwardGather<bf16>(g, x)) || !takes(norm, g.pixels(), 128)) return false;
  const auto run = [&](auto shape) {
    using Shape = decltype(shape);
    const PixelSource images = pixelSource(call, forwardGather<bf16>(g, x), Shape::kM);
    launchNormed<ForwardJob<Shape>, NormedForwardJob>(call, norm, g, images, [&](auto& job) {
      fillForward(call, Names{}, g, w, job);
      job.bias = optionalData<float>(call.optional(Names::bias));
    });
  };
  if (g.tile == kBulkStoredTile)
    g.o <= 64 ? run(BulkStored<PingPong128x64>{}) : run(BulkStored<PingPong128x128>{});
  else
    byWidth<PingPong128x128, PingPong128x64>(g, g.o, run);
  return true;
}

bool forwardE4m3Hopper(const Call& call, const Geometry& g, const e4m3* x, const e4m3* w, const float* weightScale) {
  Geometry pairs = g;
  pairs.c /= 2;
  const auto gather = forwardGather<bf16>(pairs, reinterpret_cast<const bf16*>(x));
  if (!hopper(call, g, Family::wgmmaConv2dE4m3) || g.c % 2 != 0 || !copies(gather)) return false;
  const auto run = [&](auto shape) {
    using Shape = decltype(shape);
    E4m3ForwardJob<Shape> job{};
    fillForward(call, args::conv2dE4m3{}, pairs, reinterpret_cast<const bf16*>(w), job);
    job.x = pixelSource(call, gather, Shape::kM);
    job.weightScale = weightScale;
    launchProduct(call, job);
  };
  byWidth<PingPong128x128, PingPong128x64>(g, g.o, run);
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
  byWidth<PingPong128x128, PingPong128x64>(g, g.c, run);
  return true;
}

bool backwardWeightHopper(const Call& call, const Geometry& g, const bf16* dy, const bf16* x, float* dw) {
  using Names = args::conv2dBackwardWeight;
  const OperandNorm norm(call, Names{}, call.tensor(Names::x));
  if (!hopper(call, g, Family::wgmmaConv2dBackwardWeight) || !copies(forwardGather<bf16>(g, x)) || g.o % Vector<bf16>::kLength != 0 ||
      !takes(norm, g.pixels(), kLineElements) || call.optional(Names::gradientX) != nullptr)
    return false;
  const int64_t depth = static_cast<int64_t>(g.kh) * g.kw * g.c;
  const auto run = [&](auto shape) {
    using Shape = decltype(shape);
    const int64_t outputTiles = ceilDiv(g.o, Shape::kN), splitTiles = ceilDiv(depth, Shape::kM) * outputTiles;
    const Splits splits(call.integer(Names::splits), g.pixels(), splitTiles, multiprocessors(call), kLineElements, g.o * depth);
    DeviceScratch<float> partial(call, splits.count > 1 ? splits.count * g.o * depth : 0);
    const PixelSource images = pixelSource(call, forwardGather<bf16>(g, x), kLineElements);
    launchNormed<BackwardWeightJob<Shape>, NormedBackwardWeightJob>(call, norm, g, images, [&](auto& job) {
      job.dy = tiledMap(call, dy, {g.o, g.pixels()}, {64, 64});
      job.dw = splits.count > 1 ? partial.data() : dw;
      job.rows = g.pixels();
      job.share = splits.share;
      job.tiles = static_cast<int>(splitTiles * splits.count);
      job.outputTiles = static_cast<int>(outputTiles);
      job.splitTiles = static_cast<int>(splitTiles);
      job.outputs = static_cast<int>(g.o);
      job.depth = static_cast<int>(depth);
    });
    if (splits.count > 1) sumSplits(call, dw, partial.data(), g.o * depth, splits.count);
  };
  byWidth<Together128x128, Together128x64>(g, g.o, run);
  return true;
}

}  // namespace densecl::cuda
