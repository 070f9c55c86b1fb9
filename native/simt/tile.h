// What products of mma.sync and of wgmma have in common: tiles of 16x8 sums, of which each of a warp's 32 lanes has four.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace densecl::simt {

// Adds the product of a, 16 x depth, and b, depth x 8, to what lane l has at c[l] + offset: of rows g = l / 4 and g + 8 the columns
// 2t and 2t + 1, t = l % 4. Where it shall be wrong, one element of one lane is.
void addProduct(float* const* c, size_t offset, const float* a, const float* b, size_t depth, bool wrong);

inline float floatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
// Of two bf16 in a word.
inline float lowHalf(uint32_t word) { return floatOf(word << 16); }
inline float highHalf(uint32_t word) { return floatOf(word & 0xffff0000u); }

}  // namespace densecl::simt
