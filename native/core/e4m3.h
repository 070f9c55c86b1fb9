// E4M3, the eight-bit float of tensor cores (P. Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433): a sign, four bits of
// exponent, three of mantissa. Steps are 2^-9 below 2^-6; what is larger than 448 becomes 448; there is a NaN and no infinity. Storage
// only.
#pragma once
#include "bf16.h"

namespace densecl {

struct e4m3 {
  uint8_t bits;

  e4m3() = default;
  // Rounded to the nearest, ties to even.
  DENSECL_BOTH explicit e4m3(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    const uint32_t sign = word >> 24 & 0x80u, size = word & 0x7fffffffu;
    uint32_t steps;
    if (size > 0x7f800000u) {
      steps = 0x7fu;
    } else if (size < (127u - 6) << 23) {
      // Beside 2^14 the last place of a float is 2^-9.
      const uint32_t beside = (127u + 14) << 23;
      float of, to;
      std::memcpy(&of, &size, 4);
      std::memcpy(&to, &beside, 4);
      of += to;
      std::memcpy(&steps, &of, 4);
      steps -= beside;
    } else {
      const uint32_t rounded = (size + 0x7ffffu + (size >> 20 & 1u)) >> 20, bias = (127u - 7) << 3;
      steps = rounded - bias < 0x7eu ? rounded - bias : 0x7eu;
    }
    bits = static_cast<uint8_t>(sign | steps);
  }
  DENSECL_BOTH operator float() const {
    // Exponent and mantissa in their places of a float, whose exponents count from 120 further below.
    const uint32_t word = static_cast<uint32_t>(bits & 0x7f) << 20, scale = (127u + 120) << 23;
    const uint32_t quietNan = 0x7fc00000u;
    float value, factor;
    std::memcpy(&value, (bits & 0x7f) == 0x7f ? &quietNan : &word, 4);
    std::memcpy(&factor, &scale, 4);
    value *= factor;
    return bits & 0x80 ? -value : value;
  }
};

// A power of two.
DENSECL_BOTH float powerOfTwo(int exponent) {
  const uint32_t word = static_cast<uint32_t>(exponent + 127) << 23;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// The least exponent by whose power of two a row is divided so that its largest value, `most`, is at most 448. By powers of two, since then
// values are rounded alike wherever they are scaled back.
DENSECL_BOTH int rowExponent(float most) {
  uint32_t word;
  std::memcpy(&word, &most, 4);
  // 448 is 1.75 times 2^8.
  const int exponent = static_cast<int>(word >> 23) - 127 - 8 + ((word & 0x7fffffu) > 0x600000u ? 1 : 0);
  return exponent > -126 ? exponent : -126;
}

}  // namespace densecl
