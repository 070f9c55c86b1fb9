// A counter-based generator (SplitMix64 of seed and index; G. Steele et al., Fast Splittable Pseudorandom Number
// Generators, 2014): any draw can be made by itself, so no thread order matters.
#pragma once
#include <cstdint>

#include "bf16.h"

namespace densecl {

// 53 random bits.
DENSECL_BOTH uint64_t bitsAt(uint64_t seed, uint64_t index) {
  uint64_t z = seed * 0xD1342543DE82EF95ull + (index + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return (z ^ (z >> 31)) >> 11;
}

inline double uniformAt(uint64_t seed, uint64_t index) { return static_cast<double>(bitsAt(seed, index)) * 0x1.0p-53; }

}  // namespace densecl
