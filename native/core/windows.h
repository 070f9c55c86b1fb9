// Windows of convolutions and pools, and groups of batch norms: the checks that a type of ops.def cannot say, for every device.
#pragma once
#include <string>

#include "call.h"

namespace densecl {

// How many windows an axis has.
inline int64_t windowsAlong(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation = 1) {
  const int64_t left = size + 2 * padding - dilation * (kernel - 1) - 1;
  return left < 0 ? 0 : left / stride + 1;
}

// `out` [N, OH, OW, _] must have that many windows.
inline void requireWindows(const Call& call, const char* name, const Tensor& out, int64_t height, int64_t width) {
  REQUIRE(out.dim(1) == height && out.dim(2) == width, "SHAPE",
          std::string(call.op) + ": expected " + name + " of " + std::to_string(height) + "x" + std::to_string(width) +
              " windows but received " + describe(out));
}

// Every window must hold a pixel of the image, so its padding must not be more than half of it.
inline void requirePixels(const Call& call, int64_t kernelH, int64_t kernelW, int64_t paddingH, int64_t paddingW) {
  REQUIRE(2 * paddingH <= kernelH && 2 * paddingW <= kernelW, "ARGUMENT",
          std::string(call.op) + ": expected padding of at most half the kernel " + std::to_string(kernelH) + "x" +
              std::to_string(kernelW) + " but received " + std::to_string(paddingH) + "x" + std::to_string(paddingW));
}

// `sums` [chunks, 2, C] must have as many chunks.
inline void requireChunks(const Call& call, const char* name, const Tensor& sums, int64_t chunks) {
  REQUIRE(sums.dim(0) == chunks, "SHAPE",
          std::string(call.op) + ": expected " + name + " of " + std::to_string(chunks) + " chunks but received " + describe(sums));
}

// The groups of the images of x that `vectors` [G, C] has a row for.
inline int64_t groupsOf(const Call& call, const char* name, const Tensor& vectors, const Tensor& x) {
  const int64_t groups = vectors.dim(0);
  REQUIRE(groups > 0 && x.dim(0) % groups == 0, "SHAPE",
          std::string(call.op) + ": expected " + name + " of groups that divide the batch of " + describe(x) + " but received " +
              describe(vectors));
  return groups;
}

}  // namespace densecl
