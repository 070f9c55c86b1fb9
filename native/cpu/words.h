// How matrices are copied for the tile of gemm_tile.h: words of 32 bits, floats or pairs of bf16, across memory and side by side.
#pragma once
#include <cstdint>

#include "../core/bf16.h"

namespace densecl::cpu {

// out[i * apart + j] holds column j of row 2 i in its lower and that of row 2 i + 1 in its upper half, for i < count and j < length.
void interleaveRows(uint32_t* out, int64_t apart, const bf16* const* rows, int64_t count, int64_t length);
// The same across memory, out[j * apart + i], with `count` a multiple of 16.
void interleaveAcross(uint32_t* out, int64_t apart, const bf16* const* rows, int64_t count, int64_t length);
// out[i * apart + j] = column j of row i as a float, for i < count and j < length.
void widenRows(float* out, int64_t apart, const bf16* const* rows, int64_t count, int64_t length);

// out[j * outApart + i] = the word at in + i * inApart + j, for i and j below 16. Words need not be aligned; distances are in bytes.
void transposeWords(void* out, int64_t outApart, const void* in, int64_t inApart);

}  // namespace densecl::cpu
