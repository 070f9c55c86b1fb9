// The arithmetic of batch norm on one element, written once: whoever applies it, in a pass of its own or while loading an operand,
// computes the same bits.
#pragma once
#include <cmath>

#include "platform.cuh"

namespace densecl::cuda {

// relu(x * scale + shift), before it is rounded
DEVICE float normalised(float x, float scale, float shift, bool relu) {
  const float z = fmaf(x, scale, shift);
  return relu && z < 0 ? 0.0f : z;
}

// Whether ReLU let x * scale + shift through, as it is stored in T: what rounds to zero did not pass. bf16 rounds 2^-134 and less to zero.
template <class T>
DEVICE bool passes(float x, float scale, float shift) {
  return fmaf(x, scale, shift) > (sizeof(T) == 2 ? 0x1p-134f : 0.0f);
}

// The gradient of x: a dz + (b (x - mean) + c). The mean is not folded into c: it would cancel.
DEVICE float throughNorm(float dz, float x, float mean, float a, float b, float c) { return fmaf(a, dz, fmaf(b, x - mean, c)); }

}  // namespace densecl::cuda
