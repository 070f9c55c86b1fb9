// Sums of squares of lists of tensors, in a fixed order: a block's elements, then the blocks of a tensor.
#pragma once
#include "kernel/reduce.cuh"
#include "lists.cuh"

namespace densecl::cuda {

constexpr size_t kSquaresShared = kListThreads / kWarp * sizeof(float);

// The sum of `count` values that are `stride` apart, over the block, in every thread.
DEVICE float blockTotal(const float* values, int64_t count, int stride, float* buffer) {
  float sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kListThreads) sum += values[i * stride];
  return blockSum(sum, buffer);
}

inline int64_t blocksOf(const std::vector<const Tensor*>& tensors) {
  int64_t blocks = 0;
  for (const Tensor* tensor : tensors) blocks += ceilDiv(tensor->size(), kListPerBlock);
  return blocks;
}

}  // namespace densecl::cuda
