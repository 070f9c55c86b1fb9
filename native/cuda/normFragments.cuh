// A deferred batch norm on the way into Hopper's products. Bulk copies bring the operand as it lies in memory; each warp loads fragments
// of it, computes relu(x * scale + shift) in registers and multiplies from there (wgmmaRegisters). Padding, which the copies made zero,
// stays zero.
#pragma once
#include "kernel/norm.cuh"
#include "pixelSource.cuh"

namespace densecl::cuda {

// scale and shift [G, channels] of a norm with ReLU; a group has groupRows pixels of the product.
struct NormVectors {
  const float *scale, *shift;
  int channels;
  int64_t groupRows;
};

// Two neighbours of a fragment, rounded as the pass over memory rounds them.
DEVICE uint32_t normalisedPair(uint32_t pair, float scaleLow, float shiftLow, float scaleHigh, float shiftHigh) {
  return packRectified(normalised(floatOf(pair << 16), scaleLow, shiftLow, false),
                       normalised(floatOf(pair & 0xffff0000u), scaleHigh, shiftHigh, false));
}

// The byte of a slice at which the 16 bytes `chunk` of a line begin, under the 128-byte swizzle.
DEVICE int chunkPlace(int line, int chunk) { return line * 128 + ((chunk ^ line % 8) * 16); }

// Rows of pixels with channels as the depth: the left operand of a forward product. kPadded: taps may lie in the padding.
template <class Shape, bool kPadded>
struct NormedRows {
  const PixelSource& x;
  const float *scale, *shift;  // of the tile's group
  DepthPlace depth;
  PixelPlace pixels[Shape::kMmaM][2];
  uint32_t inside[Shape::kMmaM][2];  // all bits of a row whose pixel exists

  DEVICE NormedRows(const PixelSource& x, const NormVectors& norm, int64_t firstRow) : x(x), depth(x.depth(0, 0)) {
    const int64_t group = firstRow / norm.groupRows * norm.channels;
    scale = norm.scale + group;
    shift = norm.shift + group;
    if constexpr (kPadded) {
      for (int i = 0; i < Shape::kMmaM; ++i)
        for (int half = 0; half < 2; ++half)
          pixels[i][half] = x.pixel(static_cast<int>(firstRow) + Shape::firstRow() + i * Shape::kMmaStep + laneIndex() / 4 + half * 8);
      enterTap();
    }
  }
  DEVICE void advance() {
    if (x.advance(depth) && kPadded) enterTap();
  }
  // The fragments of 16 of the slice's depth: as they lie there, then normalised.
  DEVICE void load(uint32_t (&words)[Shape::kMmaM][4], const unsigned char* slice, int step) const {
#pragma unroll
    for (int i = 0; i < Shape::kMmaM; ++i)
      ldmatrix<false>(words[i],
                      slice + chunkPlace(Shape::firstRow() + i * Shape::kMmaStep + laneIndex() % 16, step * 2 + laneIndex() / 16));
  }
  DEVICE void normalise(uint32_t (&to)[Shape::kMmaM][4], const uint32_t (&words)[Shape::kMmaM][4], int step) const {
    const int channel = depth.channel + step * 16 + laneIndex() % 4 * 2;
    Elements<float, 2> scales[2], shifts[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scales[half] = densecl::cuda::load<float, 2>(scale + channel + half * 8);
      shifts[half] = densecl::cuda::load<float, 2>(shift + channel + half * 8);
    }
#pragma unroll
    for (int i = 0; i < Shape::kMmaM; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const auto &a = scales[e / 2], &b = shifts[e / 2];
        to[i][e] = normalisedPair(words[i][e], a.v[0], b.v[0], a.v[1], b.v[1]);
        if (kPadded) to[i][e] &= inside[i][e % 2];
      }
  }

 private:
  DEVICE void enterTap() {
#pragma unroll
    for (int i = 0; i < Shape::kMmaM; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) inside[i][half] = x.inside(pixels[i][half], depth) ? 0xffffffffu : 0;
  }
};

// Channels of one tap with pixels as the depth: the left operand of a weight gradient, a box of 64 columns for each warpgroup.
template <class Shape, bool kPadded>
struct NormedColumns {
  static_assert(Shape::kMmaM == 1, "a warpgroup has the 64 columns of one tap");
  const PixelSource& x;
  const NormVectors& norm;
  DepthPlace tap;
  PixelPlace pixels[2];  // of this lane: of the slice's 64, each lane watches two
  unsigned inside[2];    // a bit for each pixel of the slice, moved so that this lane's first is bit 0
  float scale[2], shift[2];
  int64_t group, left;  // pixels before the next group

  // A tile that begins with column `column` of [taps, channels], and with pixel firstRow. Columns behind the last are not stored.
  DEVICE NormedColumns(const PixelSource& x, const NormVectors& norm, int column, int columns, int64_t firstRow) : x(x), norm(norm) {
    const int own = column + Shape::groupRow(), first = own < columns ? own : 0;
    tap = x.depth(first / x.channels, first % x.channels);
    group = firstRow / norm.groupRows;
    left = (group + 1) * norm.groupRows - firstRow;
    loadVectors();
    if constexpr (kPadded) {
      for (int half = 0; half < 2; ++half) pixels[half] = x.pixel(static_cast<int>(firstRow) + laneIndex() + half * kWarp);
      enterSlice();
    }
  }
  DEVICE void advance() {
    left -= kLineElements;
    if (left == 0) {
      left = norm.groupRows;
      ++group;
      loadVectors();
    }
    if constexpr (kPadded) {
      x.advance(pixels[0]);
      x.advance(pixels[1]);
      enterSlice();
    }
  }
  DEVICE void load(uint32_t (&words)[1][4], const unsigned char* slice, int step) const {
    const int lane = laneIndex(), line = step * 16 + lane / 16 * 8 + lane % 8;
    ldmatrix<true>(words[0], slice + Shape::groupRow() / 64 * kBoxBytes + chunkPlace(line, warpIndex() % 4 * 2 + lane / 8 % 2));
  }
  DEVICE void normalise(uint32_t (&to)[1][4], const uint32_t (&words)[1][4], int step) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      to[0][e] = normalisedPair(words[0][e], scale[e % 2], shift[e % 2], scale[e % 2], shift[e % 2]);
      if (!kPadded) continue;
      const unsigned pair = inside[step / 2] >> (step % 2 * 16 + e / 2 * 8);
      to[0][e] &= (pair & 1 ? 0xffffu : 0) | (pair & 2 ? 0xffff0000u : 0);
    }
  }

 private:
  DEVICE void loadVectors() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t at = group * norm.channels + tap.channel + warpIndex() % 4 * 16 + laneIndex() / 4 + half * 8;
      scale[half] = norm.scale[at];
      shift[half] = norm.shift[at];
    }
  }
  DEVICE void enterSlice() {
#pragma unroll
    for (int half = 0; half < 2; ++half) inside[half] = ballot(x.inside(pixels[half], tap)) >> laneIndex() % 4 * 2;
  }
};

}  // namespace densecl::cuda
