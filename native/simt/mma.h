// The host bodies of native/cuda/kernel/mma.cuh: several instructions of a warp that come one after another are carried out when it meets
// once, as no lane can leave between them.
#pragma once
#include <cstdint>

namespace densecl::simt {

// A lane's row addresses and results, four words each, of several ldmatrix.
struct LdmatrixLane {
  const void* const* rows;
  uint32_t* out;
};
void loadMatrices(void* const* lanes, int count, bool transpose);

// A lane's registers of the products of m tiles with n others: of c [m][n][4], of a [m][4], of b [n][2].
struct MmaLane {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};
constexpr int kMostMmaTiles = 16;  // n
void multiplyBf16(void* const* lanes, int m, int n);
void multiplyTf32(void* const* lanes, int m, int n);

}  // namespace densecl::simt
