#include "tensorMap.h"

#include <vector>

#if defined(__CUDACC__)
#include <cuda.h>
#endif

namespace densecl::cuda {
namespace {

constexpr int kInner = 64;  // elements: the 128 bytes of the swizzle

void checkAddress(const Call& call, const void* address, int64_t inner) {
  REQUIRE(reinterpret_cast<uintptr_t>(address) % 16 == 0 && inner % 8 == 0, "INTERNAL",
          std::string(call.op) + ": bulk copies need lines that are multiples of 16 bytes");
}

#if defined(__CUDACC__)
// A function of the driver, which is not linked: the addon loads without one.
template <class Function>
Function driver(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  const cudaError_t code = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t code = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
  if (code != cudaSuccess || result != cudaDriverEntryPointSuccess)
    throw Error("CUDA", std::string("the NVIDIA driver has no ") + name + ": expected one for CUDA 12 or later");
  return reinterpret_cast<Function>(found);
}

void check(const Call& call, CUresult code) {
  if (code != CUDA_SUCCESS)
    throw Error("CUDA", std::string(call.op) + ": a tensor map was refused (error " + std::to_string(static_cast<int>(code)) + ")");
}
#endif

}  // namespace

TensorMap tiledMap(const Call& call, const bf16* address, std::initializer_list<int64_t> sizes, std::initializer_list<int> box) {
  const std::vector<int64_t> size(sizes);
  const std::vector<int> side(box);
  checkAddress(call, address, size[0]);
  REQUIRE(side[0] == kInner && size.size() == side.size() && size.size() <= 3, "INTERNAL",
          std::string(call.op) + ": a box of another kind than the kernels use");
  TensorMap map{};
#if defined(__CUDACC__)
  static const auto encode = driver<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  cuuint64_t dimensions[3], strides[2];
  cuuint32_t boxes[3], steps[3];
  cuuint64_t stride = 2;
  for (size_t d = 0; d < size.size(); ++d) {
    if (d > 0) strides[d - 1] = stride;
    dimensions[d] = static_cast<cuuint64_t>(size[d]);
    boxes[d] = static_cast<cuuint32_t>(side[d]);
    steps[d] = 1;
    stride *= dimensions[d];
  }
  check(call, encode(reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(size.size()),
                     const_cast<bf16*>(address), dimensions, strides, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
#else
  auto& host = reinterpret_cast<simt::HostTensorMap&>(map);
  host.address = reinterpret_cast<const unsigned char*>(address);
  host.rank = static_cast<int8_t>(size.size());
  int64_t stride = 2;
  for (size_t d = 0; d < 3; ++d) {
    if (d > 0) host.strides[d - 1] = stride;
    host.sizes[d] = d < size.size() ? static_cast<int32_t>(size[d]) : 1;
    host.box[d] = d < side.size() ? side[d] : 1;
    stride *= host.sizes[d];
  }
#endif
  return map;
}

bool mapHolds(const PixelWalk& walk, int reach) {
  const auto corner = [](int value) { return value >= -128 && value < 128; };
  return corner(walk.lower) && corner(walk.upper) && reach < 256 && walk.step <= 8;
}

TensorMap pixelMap(const Call& call, const bf16* address, int64_t n, int64_t h, int64_t w, int64_t c, PixelWalk alongH, PixelWalk alongW,
                   int pixels) {
  checkAddress(call, address, c);
  REQUIRE(mapHolds(alongH, 0) && mapHolds(alongW, 0), "INTERNAL", std::string(call.op) + ": a walk beyond what tensor maps hold");
  TensorMap map{};
#if defined(__CUDACC__)
  static const auto encode = driver<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  const auto size = [](int64_t value) { return static_cast<cuuint64_t>(value); };
  const cuuint64_t dimensions[4] = {size(c), size(w), size(h), size(n)}, strides[3] = {size(c * 2), size(w * c * 2), size(h * w * c * 2)};
  const int lower[2] = {alongW.lower, alongH.lower}, upper[2] = {alongW.upper, alongH.upper};
  const cuuint32_t steps[4] = {1, static_cast<cuuint32_t>(alongW.step), static_cast<cuuint32_t>(alongH.step), 1};
  check(call, encode(reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<bf16*>(address), dimensions,
                     strides, lower, upper, kInner, static_cast<cuuint32_t>(pixels), steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
#else
  auto& host = reinterpret_cast<simt::HostTensorMap&>(map);
  host.address = reinterpret_cast<const unsigned char*>(address);
  host.rank = 4;
  host.im2col = true;
  const int64_t sizes[4] = {c, w, h, n}, strides[3] = {c * 2, w * c * 2, h * w * c * 2};
  for (int d = 0; d < 4; ++d) host.sizes[d] = static_cast<int32_t>(sizes[d]);
  for (int d = 0; d < 3; ++d) host.strides[d] = strides[d];
  host.box[0] = kInner;
  host.box[1] = pixels;
  host.box[2] = 1;
  const PixelWalk walks[2] = {alongW, alongH};
  for (int d = 0; d < 2; ++d) {
    host.lower[d] = static_cast<int16_t>(walks[d].lower);
    host.upper[d] = static_cast<int16_t>(walks[d].upper);
    host.steps[d] = static_cast<int16_t>(walks[d].step);
  }
#endif
  return map;
}

}  // namespace densecl::cuda
