#include "words.h"

#include <algorithm>
#include <cstring>

#include "isa.h"
#include "math.h"

namespace densecl::cpu {
namespace {

constexpr int64_t kLanes = 16;

SIMD(void, interleaveRowsOf, (uint32_t* __restrict out, int64_t apart, const uint16_t* const* rows, int64_t count, int64_t length),
     (out, apart, rows, count, length)) {
  for (int64_t i = 0; i < count; ++i, out += apart) {
    const uint16_t *a = rows[2 * i], *b = rows[2 * i + 1];
    for (int64_t j = 0; j + kLanes <= length; j += kLanes)
      for (int64_t l = 0; l < kLanes; ++l) out[j + l] = a[j + l] | static_cast<uint32_t>(b[j + l]) << 16;
    for (int64_t j = length / kLanes * kLanes; j < length; ++j) out[j] = a[j] | static_cast<uint32_t>(b[j]) << 16;
  }
}

SIMD(void, widenRowsOf, (float* __restrict out, int64_t apart, const uint16_t* const* rows, int64_t count, int64_t length),
     (out, apart, rows, count, length)) {
  for (int64_t i = 0; i < count; ++i, out += apart) {
    const uint16_t* row = rows[i];
    for (int64_t j = 0; j + kLanes <= length; j += kLanes)
      for (int64_t l = 0; l < kLanes; ++l) out[j + l] = floatOf(static_cast<uint32_t>(row[j + l]) << 16);
    for (int64_t j = length / kLanes * kLanes; j < length; ++j) out[j] = floatOf(static_cast<uint32_t>(row[j]) << 16);
  }
}

#if defined(DENSECL_X86)
typedef uint32_t Words __attribute__((vector_size(64), aligned(1), may_alias));

// Element j of row i of a matrix and element i of row j change places in four steps, one for each bit of an index: rows that differ in that
// bit alone give each other the half of their elements whose index differs from the row's in it.
struct Exchange {
  uint32_t low[4][kLanes], high[4][kLanes];
};
constexpr Exchange exchanges() {
  Exchange all{};
  for (uint32_t step = 0; step < 4; ++step)
    for (uint32_t j = 0, bit = 1u << step; j < kLanes; ++j) {
      all.low[step][j] = (j & bit) == 0 ? j : kLanes + j - bit;
      all.high[step][j] = (j & bit) == 0 ? j + bit : kLanes + j;
    }
  return all;
}
constexpr Exchange kExchange = exchanges();

INLINE void transpose(Words* row) {
#pragma GCC unroll 4
  for (int step = 0; step < 4; ++step) {
    const Words low = *reinterpret_cast<const Words*>(kExchange.low[step]), high = *reinterpret_cast<const Words*>(kExchange.high[step]);
    const int bit = 1 << step;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if ((i & bit) == 0) {
        const Words first = row[i], second = row[i + bit];
        row[i] = __builtin_shuffle(first, second, low);
        row[i + bit] = __builtin_shuffle(first, second, high);
      }
  }
}

SIMD(void, transposeBlock, (char* out, int64_t outApart, const char* in, int64_t inApart), (out, outApart, in, inApart)) {
  Words row[kLanes];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) row[i] = *reinterpret_cast<const Words*>(in + i * inApart);
  transpose(row);
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) *reinterpret_cast<Words*>(out + i * outApart) = row[i];
}

// 32 rows of 16 columns, from `column` on, to 16 rows of 16 pairs.
SIMD(void, interleaveBlock, (uint32_t* out, int64_t apart, const uint16_t* const* rows, int64_t column), (out, apart, rows, column)) {
  Words row[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    const uint16_t *a = rows[2 * i] + column, *b = rows[2 * i + 1] + column;
    uint32_t words[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) words[l] = a[l] | static_cast<uint32_t>(b[l]) << 16;
    row[i] = *reinterpret_cast<const Words*>(words);
  }
  transpose(row);
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes; ++i) *reinterpret_cast<Words*>(out + i * apart) = row[i];
}
#else
void transposeBlock(char* out, int64_t outApart, const char* in, int64_t inApart) {
  for (int64_t i = 0; i < kLanes; ++i)
    for (int64_t j = 0; j < kLanes; ++j) std::memcpy(out + j * outApart + i * 4, in + i * inApart + j * 4, 4);
}
void interleaveBlock(uint32_t* out, int64_t apart, const uint16_t* const* rows, int64_t column) {
  for (int64_t i = 0; i < kLanes; ++i)
    for (int64_t j = 0; j < kLanes; ++j)
      out[j * apart + i] = rows[2 * i][column + j] | static_cast<uint32_t>(rows[2 * i + 1][column + j]) << 16;
}
#endif

}  // namespace

void interleaveRows(uint32_t* out, int64_t apart, const bf16* const* rows, int64_t count, int64_t length) {
  interleaveRowsOf(out, apart, reinterpret_cast<const uint16_t* const*>(rows), count, length);
}

void widenRows(float* out, int64_t apart, const bf16* const* rows, int64_t count, int64_t length) {
  widenRowsOf(out, apart, reinterpret_cast<const uint16_t* const*>(rows), count, length);
}

void interleaveAcross(uint32_t* out, int64_t apart, const bf16* const* rows, int64_t count, int64_t length) {
  const auto* bits = reinterpret_cast<const uint16_t* const*>(rows);
  const int64_t whole = length / kLanes * kLanes;
  for (int64_t i = 0; i < count; i += kLanes)
    for (int64_t j = 0; j < whole; j += kLanes) interleaveBlock(out + j * apart + i, apart, bits + 2 * i, j);
  for (int64_t j = whole; j < length; ++j)
    for (int64_t i = 0; i < count; ++i) out[j * apart + i] = bits[2 * i][j] | static_cast<uint32_t>(bits[2 * i + 1][j]) << 16;
}

void transposeWords(void* out, int64_t outApart, const void* in, int64_t inApart) {
  transposeBlock(static_cast<char*>(out), outApart, static_cast<const char*>(in), inApart);
}

}  // namespace densecl::cpu
