// Descriptions of tensors for Hopper's bulk copies, made by the host when a kernel is launched.
#pragma once
#include <initializer_list>

#include "kernel/hopper.cuh"
#include "runtime.h"

namespace densecl::cuda {

// A bf16 tensor of two or three dimensions, innermost first, copied in boxes; the inner side of a box is 64 elements.
TensorMap tiledMap(const Call& call, const bf16* address, std::initializer_list<int64_t> sizes, std::initializer_list<int> box);

// Images [n, h, w, c] of bf16, copied as columns of `pixels` pixels and 64 channels. A column walks through the positions
// lower + i * step that are below size + upper, along w, then h, then n; a copy may move all of them.
struct PixelWalk {
  int lower, upper, step;
};
// Whether a map can describe the walk with copies moved by up to `reach` pixels: corners and offsets have 8 bits in maps of two spatial
// axes, traversal strides go to 8 (CUDA driver API, cuTensorMapEncodeIm2col).
bool mapHolds(const PixelWalk& walk, int reach);
TensorMap pixelMap(const Call& call, const bf16* address, int64_t n, int64_t h, int64_t w, int64_t c, PixelWalk alongH, PixelWalk alongW,
                   int pixels);

}  // namespace densecl::cuda
