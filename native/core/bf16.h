// bfloat16: the upper half of a float, rounded to the nearest, ties to even. Storage only: arithmetic is in float.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DENSECL_BOTH __host__ __device__ __forceinline__
#else
#define DENSECL_BOTH inline
#endif

namespace densecl {

struct alignas(2) bf16 {
  uint16_t bits;

  bf16() = default;
  DENSECL_BOTH explicit bf16(float value) {
#if defined(__CUDA_ARCH__)
    // What __float2bfloat16_rn is, without the header that a compiler reads for a second.
    asm("{ cvt.rn.bf16.f32 %0, %1; }" : "=h"(bits) : "f"(value));
#else
    uint32_t word;
    std::memcpy(&word, &value, 4);
    const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? static_cast<uint16_t>((word >> 16) | 0x40u) : static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
#endif
  }
  DENSECL_BOTH operator float() const {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
#else
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
#endif
  }
};

// What values of T are computed and summed in.
template <class T>
struct AccumulatorOf {
  using type = T;
};
template <>
struct AccumulatorOf<bf16> {
  using type = float;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

}  // namespace densecl
