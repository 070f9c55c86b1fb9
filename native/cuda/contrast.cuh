// What the kernels of infoNce share (infoNce.cu has the notes): the part of the work that a block has, and what it leaves.
#pragma once
#include "runtime.h"

namespace densecl::cuda {

// What a split of the queue contributes to a row (split-K over the keys): largest score, sum of exp((score - reference) / T), sum of
// scores.
struct Partial {
  float maximum, sum, negative, reference;
};

template <class T>
struct ContrastJob {
  const T *query, *queue;
  Partial* partials;  // [splits, rows]
  float* gradient;    // [splits, rows, D], or null
  int64_t rows, keys, keysPerSplit;
  int dim;
  float inverseTemperature;
};

// Scores of unit vectors are at most 1. Where the temperature is not too small for floats they are taken relative to that: no maximum is
// carried from tile to tile, nothing is rescaled, and an exponential is one fused multiply-add and one instruction for 2^x.
constexpr float kUnitScore = 1.0f, kLog2e = 1.4426950408889634f;
inline bool fixedReference(bool unit, double temperature) { return unit && kLog2e / temperature <= 50; }

// 2^x to about 2^-22; what is below the normal floats becomes 0.
DEVICE float exp2Fast(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}

// The two rows of an accumulator tile that a thread has part of: g and g + 8 of its warp.
struct RowState {
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {}, negative[2] = {};
};

// One update of the online softmax: turns the scores of a tile of keys into exp((score - maximum) / T), with the running maximum and sums;
// what was summed before is rescaled to the new maximum. `valid` keys of the tile exist.
template <int kScores, int kValues>
DEVICE void onlineSoftmaxUpdate(RowState& state, float (&s)[kScores][4], float (&o)[kValues][4], int64_t valid, float inverseTemperature) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -INFINITY;
#pragma unroll
    for (int j = 0; j < kScores; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& value = s[j][half * 2 + e];
        const bool exists = j * 8 + laneIndex() % 4 * 2 + e < valid;
        state.negative[half] += exists ? value : 0;
        if (!exists) value = -INFINITY;
        top = fmaxf(top, value);
      }
    top = fmaxf(top, shuffleXor(top, 1));
    top = fmaxf(top, shuffleXor(top, 2));
    top = fmaxf(top, state.maximum[half]);
    const float rescale = state.maximum[half] == top ? 1.0f : expf((state.maximum[half] - top) * inverseTemperature);
    state.maximum[half] = top;
    state.sum[half] *= rescale;
#pragma unroll
    for (int j = 0; j < kScores; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& value = s[j][half * 2 + e];
        value = expf((value - top) * inverseTemperature);
        state.sum[half] += value;
      }
#pragma unroll
    for (int d = 0; d < kValues; ++d) {
      o[d][half * 2] *= rescale;
      o[d][half * 2 + 1] *= rescale;
    }
  }
}

// The same update relative to the fixed reference kUnitScore.
template <int kScores>
DEVICE void fixedSoftmaxUpdate(RowState& state, float (&s)[kScores][4], int64_t valid, float inverseTemperature) {
  const float scale = inverseTemperature * kLog2e;
  const auto add = [&](auto all) {
#pragma unroll
    for (int j = 0; j < kScores; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& value = s[j][e];
        if (!all.value && j * 8 + laneIndex() % 4 * 2 + e % 2 >= valid) {
          value = 0;
          continue;
        }
        state.negative[e / 2] += value;
        state.maximum[e / 2] = fmaxf(state.maximum[e / 2], value);
        value = exp2Fast(fmaf(value, scale, -kUnitScore * scale));
        state.sum[e / 2] += value;
      }
  };
  if (valid >= kScores * 8)
    add(std::true_type{});
  else
    add(std::false_type{});
}

// Either update.
template <bool kFixed, int kScores, int kValues>
DEVICE void softmaxUpdate(RowState& state, float (&s)[kScores][4], float (&o)[kValues][4], int64_t valid, float inverseTemperature) {
  if constexpr (kFixed)
    fixedSoftmaxUpdate(state, s, valid, inverseTemperature);
  else
    onlineSoftmaxUpdate(state, s, o, valid, inverseTemperature);
}

// Stores a warp's 16 rows, the first of which is `warpRow`, of a split.
template <bool kFixed, class T, int kValues>
DEVICE void storePartial(const ContrastJob<T>& job, RowState& state, const float (&o)[kValues][4], int64_t warpRow, int split) {
  for (int half = 0; half < 2; ++half) {
    const int64_t row = warpRow + laneIndex() / 4 + half * 8;
    for (int mask = 1; mask <= 2; mask *= 2) {
      state.sum[half] += shuffleXor(state.sum[half], mask);
      state.negative[half] += shuffleXor(state.negative[half], mask);
      if (kFixed) state.maximum[half] = fmaxf(state.maximum[half], shuffleXor(state.maximum[half], mask));
    }
    if (row >= job.rows) continue;
    const int64_t at = split * job.rows + row;
    if (laneIndex() % 4 == 0)
      job.partials[at] = Partial{state.maximum[half], state.sum[half], state.negative[half], kFixed ? kUnitScore : state.maximum[half]};
    if (job.gradient == nullptr) continue;
    for (int d = 0; d < kValues; ++d)
      for (int e = 0; e < 2; ++e) {
        const int column = d * 8 + laneIndex() % 4 * 2 + e;
        if (column < job.dim) job.gradient[at * job.dim + column] = o[d][half * 2 + e];
      }
  }
}

// On Hopper, where it applies: rows and keys of a block's tile, and the launch.
constexpr int kHopperRows = 128, kHopperKeys = 128;
bool contrastsOnHopper(const Call& call, DType dtype, int64_t dim);
void launchHopperContrast(const Call& call, const ContrastJob<bf16>& job, int64_t rowBlocks, int64_t splits, bool fixed);

}  // namespace densecl::cuda
