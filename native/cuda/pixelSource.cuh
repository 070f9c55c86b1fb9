// Images as an operand of Hopper's products: which pixels a tile and a slice of its depth have, walked by the thread that copies them, and
// how bulk copies bring them.
#pragma once
#include <algorithm>

#include "conv2dLoaders.cuh"
#include "kernel/warpgroup.cuh"
#include "tensorMap.h"

namespace densecl::cuda {

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
  int stepY, stepX, shiftY, shiftX, tapsX, channels, sizeY, sizeX;
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
  // Whether the copy found a pixel there, or padding, which it made zero.
  DEVICE bool inside(const PixelPlace& pixel, const DepthPlace& depth) const {
    return static_cast<unsigned>(pixel.x + depth.offsetX) < static_cast<unsigned>(sizeX) &&
           static_cast<unsigned>(pixel.y + depth.offsetY) < static_cast<unsigned>(sizeY);
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

inline bool isMatrix(const Gather<bf16>& from) {
  const auto whole = [](const Axis& axis) { return axis.taps == 1 && axis.stride == 1 && axis.origin == 0 && axis.rows == axis.size; };
  return whole(from.y) && whole(from.x);
}

// Whether bulk copies can walk through the images: whole slices of channels, and what a tensor map and its coordinates hold.
inline bool copies(const Gather<bf16>& from) {
  if (from.channels % kLineElements != 0 || from.rows >= (int64_t{1} << 31) - 128) return false;
  const AxisWalk y(from.y), x(from.x);
  return isMatrix(from) || (mapHolds(y.walk, y.reach) && mapHolds(x.walk, x.reach));
}

inline PixelSource pixelSource(const Call& call, Gather<bf16> from, int pixels) {
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
  source.sizeY = from.y.size;
  source.sizeX = from.x.size;
  source.sliceN = kLineElements / perImage;
  source.sliceY = inside / from.x.rows;
  source.sliceX = inside % from.x.rows;
  return source;
}

}  // namespace densecl::cuda
