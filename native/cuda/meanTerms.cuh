// Means of what the rows of a batch contribute to a loss.
#pragma once
#include "kernel/reduce.cuh"
#include "runtime.h"

namespace densecl::cuda {

constexpr int kMeanThreads = 1024;

template <int kTerms>
__global__ void __launch_bounds__(kMeanThreads)
    meanTermsKernel(const float* terms, int64_t rows, const float* divisor, float* loss, float* statistics) {
  float* buffer = &sharedMemory<float>();
  float sums[kTerms] = {};
#pragma unroll 4
  for (int64_t row = threadIdx.x; row < rows; row += blockDim.x)
#pragma unroll
    for (int k = 0; k < kTerms; ++k) sums[k] += terms[row * kTerms + k];
  for (int k = 0; k < kTerms; ++k) {
    const float sum = blockSum(sums[k], buffer) / (divisor == nullptr ? static_cast<float>(rows) : *divisor);
    if (threadIdx.x == 0) (k == 0 ? loss : statistics + k - 1)[0] = sum;
  }
}

// Sums of columns of terms [rows, kTerms] over `divisor`, or over the rows, by one block in a fixed order: term 0 is the loss, the others
// are statistics.
template <int kTerms>
void meanTerms(const Call& call, const float* terms, int64_t rows, const float* divisor, float* loss, float* statistics) {
  constexpr int few = 256;  // rows keep a small block busy
  launch(call, meanTermsKernel<kTerms>, Grid{}, rows > few ? kMeanThreads : few, kMeanThreads / kWarp * sizeof(float), terms, rows, divisor,
         loss, statistics);
}

}  // namespace densecl::cuda
