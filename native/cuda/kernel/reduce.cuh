// Reductions in a fixed order: over a warp by halves, over a block by warps in their order.
#pragma once
#include "platform.cuh"

namespace densecl::cuda {

DEVICE float warpSum(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffleXor(value, mask);
  return value;
}

DEVICE float warpMax(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffleXor(value, mask));
  return value;
}

// The sum over the block, in every thread. `buffer` holds a float per warp and is free again on return.
DEVICE float blockSum(float value, float* buffer) {
  value = warpSum(value);
  if (laneIndex() == 0) buffer[warpIndex()] = value;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) total += buffer[w];
  __syncthreads();
  return total;
}

// Rows that one row of the statistics of a convolution covers: what every tile is a multiple of.
constexpr int kStatisticsRows = 64;

// Mean and sum of squared deviations of a set, merged without cancellation (T. Chan, G. Golub, R. LeVeque, 1979).
struct Moments {
  float count, mean, m2;
};

DEVICE Moments merge(const Moments& a, const Moments& b) {
  const float count = a.count + b.count;
  if (count == 0) return {0, 0, 0};
  const float delta = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

}  // namespace densecl::cuda
