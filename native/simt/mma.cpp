#include "mma.h"

#include <cstring>

#include "../cpu/isa.h"
#include "block.h"
#include "tile.h"

namespace densecl::simt {
namespace {

using Two = float __attribute__((vector_size(8)));
using Four = float __attribute__((vector_size(16)));
using Eight = float __attribute__((vector_size(32)));

// c = a b. Products of bf16, E4M3 and tf32 are exact in f32: an FMA gives the same bits. On copies of the operands, which AddressSanitizer
// need not watch.
__attribute__((no_sanitize("address"))) SIMD(void, multiplyTile, (Eight * c, const float* a, const float* b, size_t depth),
                                             (c, a, b, depth)) {
  for (size_t row = 0; row < 16; row += 4) {
    const float* const rows = a + row * depth;
    Eight sums[4] = {};
    for (size_t k = 0; k < depth; ++k) {
      Eight line;
      std::memcpy(&line, b + k * 8, sizeof(line));
      for (size_t i = 0; i < 4; ++i) sums[i] += rows[i * depth + k] * line;
    }
    for (size_t i = 0; i < 4; ++i) c[row + i] = sums[i];
  }
}

float tf32(uint32_t word) { return floatOf(word & 0xffffe000u); }

// In the layouts of fragments: a word of a lane is two neighbours of bf16 along the depth, or one value.
template <bool kTf32>
void multiply(void* const* lanes, int m, int n) {
  constexpr int kDepth = kTf32 ? 8 : 16;
  float a[16][kDepth], b[kMostMmaTiles][kDepth][8];
  float* c[kWarp];
  const bool wrong = faulty(Instruction::mma);
  for (int lane = 0; lane < static_cast<int>(kWarp); ++lane) {
    const auto* mine = static_cast<MmaLane*>(lanes[lane]);
    const uint32_t* from = mine->b;
    const int g = lane / 4, t = lane % 4;
    c[lane] = mine->c;
    for (int j = 0; j < n; ++j, from += 2)
      for (int i = 0; i < 2; ++i) {
        if (kTf32) {
          b[j][t + i * 4][g] = tf32(from[i]);
        } else {
          b[j][2 * t + i * 8][g] = lowHalf(from[i]);
          b[j][2 * t + i * 8 + 1][g] = highHalf(from[i]);
        }
      }
  }
  for (int tile = 0; tile < m; ++tile) {
    for (int lane = 0; lane < static_cast<int>(kWarp); ++lane) {
      const uint32_t* from = static_cast<MmaLane*>(lanes[lane])->a + tile * 4;
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        float* const to = a[g + i % 2 * 8];
        if (kTf32) {
          to[t + i / 2 * 4] = tf32(from[i]);
        } else {
          to[2 * t + i / 2 * 8] = lowHalf(from[i]);
          to[2 * t + i / 2 * 8 + 1] = highHalf(from[i]);
        }
      }
    }
    for (int j = 0; j < n; ++j) addProduct(c, static_cast<size_t>(tile * n + j) * 4, a[0], b[j][0], kDepth, wrong);
  }
}

}  // namespace

void addProduct(float* const* c, size_t offset, const float* a, const float* b, size_t depth, bool wrong) {
  Eight sums[16];
  multiplyTile(sums, a, b, depth);
  for (size_t lane = 0; lane < kWarp; ++lane) {
    const float* const row = reinterpret_cast<const float*>(sums + lane / 4) + lane % 4 * 2;
    Two low, high;
    Four mine;
    std::memcpy(&low, row, sizeof(low));
    std::memcpy(&high, row + 64, sizeof(high));
    std::memcpy(&mine, c[lane] + offset, sizeof(mine));
    Four product = __builtin_shufflevector(low, high, 0, 1, 2, 3);
    if (wrong && lane == 5) product[2] = 0;
    mine += product;
    std::memcpy(c[lane] + offset, &mine, sizeof(mine));
  }
}

// Matrix i of four 8x8 matrices of 16-bit elements has its rows at the addresses of lanes 8i..8i+7.
void loadMatrices(void* const* lanes, int count, bool transpose) {
  const bool wrong = faulty(transpose ? Instruction::ldmatrixTrans : Instruction::ldmatrix);
  for (int each = 0; each < count; ++each)
    for (int i = 0; i < 4; ++i) {
      uint16_t matrix[8][8];
      for (int r = 0; r < 8; ++r) std::memcpy(matrix[r], static_cast<LdmatrixLane*>(lanes[8 * i + r])->rows[each], 16);
      for (int lane = 0; lane < static_cast<int>(kWarp); ++lane) {
        const int row = lane / 4, column = lane % 4 * 2;
        const uint32_t low = transpose ? matrix[column][row] : matrix[row][column];
        const uint32_t high = transpose ? matrix[column + 1][row] : matrix[row][column + 1];
        static_cast<LdmatrixLane*>(lanes[lane])->out[each * 4 + i] = wrong && lane == 9 && i == 1 ? 0 : low | high << 16;
      }
    }
}

void multiplyBf16(void* const* lanes, int m, int n) { multiply<false>(lanes, m, n); }
void multiplyTf32(void* const* lanes, int m, int n) { multiply<true>(lanes, m, n); }

}  // namespace densecl::simt
