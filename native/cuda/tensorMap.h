// Descriptions of tensors for Hopper's bulk copies, made by the host when a kernel is launched.
#pragma once
#include <initializer_list>

#include "device/hopper.cuh"
#include "runtime.h"

namespace densecl::cuda {

// A bf16 tensor of two or three dimensions, innermost first, copied in boxes; the inner side of a box is 64 elements.
TensorMap tiledMap(const Call& call, const bf16* address, std::initializer_list<int64_t> sizes, std::initializer_list<int> box);

// Images [n, h, w, c] of bf16, copied as columns of `pixels` pixels and 64 channels. A column walks through the positions
// lower + i * step that are below size + upper, along w, then h, then n; a copy may move all of them.
struct PixelWalk {
  int lower, upper, step;
};
TensorMap pixelMap(const Call& call, const bf16* address, int64_t n, int64_t h, int64_t w, int64_t c, PixelWalk alongH, PixelWalk alongW, int pixels);

}  // namespace densecl::cuda
