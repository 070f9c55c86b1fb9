// The convolutions of Hopper: each returns false where it does not apply and the kernels of Ampere do the work.
#pragma once
#include "conv2d.cuh"

namespace densecl::cuda {

bool forwardHopper(const Call& call, const Geometry& g, const bf16* x, const bf16* w);
// Of maps in E4M3 and weights that are 1 / weightScale [O] times what they were.
bool forwardE4m3Hopper(const Call& call, const Geometry& g, const e4m3* x, const e4m3* w, const float* weightScale);
bool backwardInputHopper(const Call& call, const Geometry& g, const PixelClass<bf16>& pixels, const ClassPixels& where,
                         const Epilogue<bf16>& epilogue);
bool backwardWeightHopper(const Call& call, const Geometry& g, const bf16* dy, const bf16* x, float* dw);

}  // namespace densecl::cuda
