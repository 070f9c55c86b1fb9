// The functions that native/core/maps.def is written with, on one value in float.
#pragma once
#include <cmath>

#include "platform.cuh"

namespace densecl::cuda {

DEVICE float expOf(float x) { return expf(x); }
DEVICE float logOf(float x) { return logf(x); }
DEVICE float sqrtOf(float x) { return sqrtf(x); }
DEVICE float tanhOf(float x) { return tanhf(x); }
DEVICE float powOf(float a, float b) { return powf(a, b); }
DEVICE float sigmoidOf(float x) { return 1.0f / (1.0f + expf(-x)); }
// The distribution function of the normal distribution, and its density.
DEVICE float normalCdf(float x) { return 0.5f * erfcf(x * -0.707106781f); }
DEVICE float normalPdf(float x) { return 0.398942280f * expf(-0.5f * x * x); }

}  // namespace densecl::cuda
