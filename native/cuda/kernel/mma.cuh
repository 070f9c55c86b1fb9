// The tensor cores of sm_80: ldmatrix and mma.sync, with the fragment layouts of the PTX manual ("Matrix Fragments for
// mma.m16n8k16" and ".m16n8k8"). With g = lane / 4 and t = lane % 4, an accumulator holds
//   c[0], c[1]: row g, columns 2t, 2t + 1;  c[2], c[3]: row g + 8, the same columns
#pragma once
#include "async.cuh"

namespace densecl::cuda {

#if !defined(__CUDACC__)
struct LdmatrixLane {
  const void* row;
  uint32_t* out;
};
// Matrix i of four 8x8 matrices of 16-bit elements has its rows at the addresses of lanes 8i..8i+7.
template <bool kTranspose>
void performLdmatrix(void* const* lanes) {
  for (int i = 0; i < 4; ++i) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) std::memcpy(matrix[r], static_cast<LdmatrixLane*>(lanes[8 * i + r])->row, 16);
    for (int lane = 0; lane < kWarp; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const uint32_t low = kTranspose ? matrix[column][row] : matrix[row][column];
      const uint32_t high = kTranspose ? matrix[column + 1][row] : matrix[row][column + 1];
      const bool wrong = lane == 9 && i == 1 && simt::faulty(kTranspose ? simt::Instruction::ldmatrixTrans : simt::Instruction::ldmatrix);
      static_cast<LdmatrixLane*>(lanes[lane])->out[i] = wrong ? 0 : low | high << 16;
    }
  }
}
#endif

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
template <bool kTranspose>
DEVICE void ldmatrix(uint32_t (&out)[4], const void* row) {
#if defined(__CUDA_ARCH__)
  if (kTranspose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(sharedAddress(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(sharedAddress(row))
                 : "memory");
#elif !defined(__CUDACC__)
  LdmatrixLane mine{row, out};
  simt::checkAligned(row, 16);
  simt::meet(&performLdmatrix<kTranspose>, &mine);
#endif
}

#if !defined(__CUDACC__)
struct MmaLane {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};
inline float halfOf(const uint32_t* words, int i) {
  const uint32_t bits = i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void accumulateTile(void* const* lanes, const float (*a)[16], const float (*b)[8], int depth) {
  float c[16][8] = {};
  for (int i = 0; i < 16; ++i)  // outermost: a line's sums stay in registers
    for (int k = 0; k < depth; ++k)
      for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
  for (int lane = 0; lane < kWarp; ++lane) {
    float* out = static_cast<MmaLane*>(lanes[lane])->c;
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      if (!(lane == 5 && i == 2 && simt::faulty(simt::Instruction::mma))) out[i] += c[g + i / 2 * 8][2 * t + i % 2];
  }
}
inline void performMmaBf16(void* const* lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto* mine = static_cast<MmaLane*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; ++i) a[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = halfOf(mine->a, i);
    for (int i = 0; i < 4; ++i) b[2 * t + i % 2 + i / 2 * 8][g] = halfOf(mine->b, i);
  }
  accumulateTile(lanes, a, b, 16);
}
inline float tf32(uint32_t bits) {
  bits &= 0xffffe000u;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void performMmaTf32(void* const* lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto* mine = static_cast<MmaLane*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = tf32(mine->a[i]);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = tf32(mine->b[i]);
  }
  accumulateTile(lanes, a, b, 8);
}
#endif

// c += a b, a 16x16 and b 16x8 of bf16
DEVICE void mmaBf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__)
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif !defined(__CUDACC__)
  MmaLane mine{c, a, b};
  simt::meet(&performMmaBf16, &mine);
#endif
}

// A float rounded to the 10 mantissa bits of tf32, to the nearest, ties away from zero.
DEVICE uint32_t roundTf32(float value) {
#if defined(__CUDA_ARCH__)
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#else
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
#endif
}

// c += a b, a 16x8 and b 8x8 of tf32
DEVICE void mmaTf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__)
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif !defined(__CUDACC__)
  MmaLane mine{c, a, b};
  simt::meet(&performMmaTf32, &mine);
#endif
}

}  // namespace densecl::cuda
