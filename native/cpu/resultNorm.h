// Batch norm as it is applied: y = relu(x * scale + shift + residual), in a pass of its own or to the sums of a convolution.
#pragma once
#include <cstdint>

#include "../core/bf16.h"

namespace densecl::cpu {

template <class T>
struct NormRows {
  T* y;
  const T* x;  // may be y
  const Accumulator<T>*scale, *shift;
  const T* residual;  // or null
  bool relu;
  int64_t rows, channels;
};
void applyNorm(const NormRows<float>& job);
void applyNorm(const NormRows<double>& job);
void applyNorm(const NormRows<bf16>& job);

// The norm of a convolution's result.
template <class T>
struct ResultNorm {
  const Accumulator<T>*scale, *shift;  // of the channels
  const T* y;                          // of the whole result
  const T* residual;                   // of its shape, or null
  bool relu;
};

// Scale and shift of every channel: batch norm of x is x * scale + shift.
template <class T>
void affine(int64_t channels, const T* gamma, const T* beta, const T* mean, const T* invstd, T* scale, T* shift) {
  for (int64_t c = 0; c < channels; ++c) {
    scale[c] = gamma[c] * invstd[c];
    shift[c] = beta[c] - mean[c] * scale[c];
  }
}

}  // namespace densecl::cpu
