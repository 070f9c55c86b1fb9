// The transforms of Winograd's minimal filtering (winograd.h), a tile of many channels at a time: what is stored, as S, is transformed to
// floats, and what floats are transformed to is rounded once.
#pragma once
#include <cstdint>

#include "../core/bf16.h"

namespace densecl::cpu {

constexpr int64_t kWinogradLanes = 16;           // channels come in multiples of them, so that no loop over channels has a tail
constexpr int kMaxPoints = 36, kMaxPixels = 16;  // of a tile

// B^T x B for channels `first` to `last`: out[point * stride + channel - first]. Pixels are those of a tile.
template <class S>
struct InputJob {
  const S* const* pixels;
  int64_t first, last;
  float* out;
  int64_t stride;
};

// A^T m A, for `count` channels of m[point * stride + channel], to the pixels of an output tile: plus bias, or normalised as what is stored
// would be.
template <class S>
struct OutputJob {
  const float* m;
  int64_t stride, count;
  S* const* pixels;
  const float* bias;                   // or null
  const float* scale = nullptr;        // of a norm, whose shift is the bias; or null
  const S* const* residual = nullptr;  // of the norm, at the tile's pixels; or null
  bool relu = false;
};

// A dy A^T: out[point * stride + channel]. Pixels are those of an output tile.
template <class S>
struct GradientJob {
  const S* const* pixels;
  int64_t count;
  float* out;
  int64_t stride;
};

// G w G^T of kWinogradLanes columns: taps[tap * depth * kWinogradLanes + lane] to rows of `width` from one depth to the next, out[point *
// stride + lane].
struct WeightsJob {
  const float* taps;  // (9, depth, kWinogradLanes)
  int64_t depth;
  float* out;
  int64_t width, stride;
};

// G^T u G: u[point * stride + channel] to out[tap * count + channel].
struct BackJob {
  const float* u;
  int64_t stride, count;
  float* out;
};

// A tile of so many outputs a side, of which each has a side of so many inputs, and its transforms.
struct TileSize {
  int64_t outputs, side, points;
};
template <class S>
struct Transforms : TileSize {
  void (*input)(const InputJob<S>&);
  void (*output)(const OutputJob<S>&);
  void (*gradient)(const GradientJob<S>&);
  void (*weights)(const WeightsJob&);
  void (*back)(const BackJob&);
};
// S is float or bf16.
template <class S>
const Transforms<S>& transforms(int64_t outputs);

}  // namespace densecl::cpu
