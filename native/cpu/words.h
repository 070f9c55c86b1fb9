// How matrices are copied for the tile of gemm_tile.h: words of 32 bits, floats or pairs of bf16, across memory and side by side.
#pragma once
#include <cstdint>

#include "../core/bf16.h"

namespace densecl::cpu {

// out[i] holds a[i] in its lower and b[i] in its upper half.
void interleave(uint32_t* out, const bf16* a, const bf16* b, int64_t count);
// The same of rows 2 i and 2 i + 1 at out + i * apart.
void interleaveRows(uint32_t* out, int64_t apart, const bf16* const* rows, int64_t count, int64_t length);
// The same of each column of a matrix (rows, columns) whose rows begin `inApart` values apart: the pair of rows 2 i and 2 i + 1 at
// out[column * apart + i], with zeros up to `depth`, a multiple of 16.
void interleaveAcross(uint32_t* out, int64_t apart, const bf16* in, int64_t inApart, int64_t rows, int64_t columns, int64_t depth);

// out[j * outApart + i] = the word at in + i * inApart + j, for i and j below 16. Words need not be aligned; distances are in bytes.
void transposeWords(void* out, int64_t outApart, const void* in, int64_t inApart);

}  // namespace densecl::cpu
