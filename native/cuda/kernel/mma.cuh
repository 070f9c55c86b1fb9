// The tensor cores of sm_80: ldmatrix and mma.sync, with the fragment layouts of the PTX manual ("Matrix Fragments for
// mma.m16n8k16" and ".m16n8k8"). With g = lane / 4 and t = lane % 4, an accumulator holds
//   c[0], c[1]: row g, columns 2t, 2t + 1;  c[2], c[3]: row g + 8, the same columns
#pragma once
#include "async.cuh"
#if !defined(__CUDACC__)
#include "../../simt/mma.h"
#endif

namespace densecl::cuda {

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
  simt::checkAligned(row, 16);
  simt::LdmatrixLane mine{&row, out};
  simt::meet([](void* const* lanes) { simt::loadMatrices(lanes, 1, kTranspose); }, &mine);
#endif
}

// Several one after another; rowOf(i) is the row of the i-th.
template <bool kTranspose, int kCount, class RowOf>
DEVICE void ldmatrix(uint32_t (&out)[kCount][4], RowOf rowOf) {
#if defined(__CUDACC__)
#pragma unroll
  for (int i = 0; i < kCount; ++i) ldmatrix<kTranspose>(out[i], rowOf(i));
#else
  const void* rows[kCount];
  for (int i = 0; i < kCount; ++i) {
    rows[i] = rowOf(i);
    simt::checkAligned(rows[i], 16);
  }
  simt::LdmatrixLane mine{rows, out[0]};
  simt::meet([](void* const* lanes) { simt::loadMatrices(lanes, kCount, kTranspose); }, &mine);
#endif
}

// c += a b, a 16x16 and b 16x8 of bf16
DEVICE void mmaBf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__)
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif !defined(__CUDACC__)
  simt::MmaLane mine{c, a, b};
  simt::meet([](void* const* lanes) { simt::multiplyBf16(lanes, 1, 1); }, &mine);
#endif
}

// The products of kM tiles with kN others.
template <int kM, int kN>
DEVICE void mmaBf16(float (&c)[kM][kN][4], const uint32_t (&a)[kM][4], const uint32_t (&b)[kN][2]) {
#if defined(__CUDACC__)
#pragma unroll
  for (int i = 0; i < kM; ++i)
#pragma unroll
    for (int j = 0; j < kN; ++j) mmaBf16(c[i][j], a[i], b[j]);
#else
  static_assert(kN <= simt::kMostMmaTiles);
  simt::MmaLane mine{c[0][0], a[0], b[0]};
  simt::meet([](void* const* lanes) { simt::multiplyBf16(lanes, kM, kN); }, &mine);
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
  simt::MmaLane mine{c, a, b};
  simt::meet([](void* const* lanes) { simt::multiplyTf32(lanes, 1, 1); }, &mine);
#endif
}

// The products of a tile with kN others.
template <int kN>
DEVICE void mmaTf32(float (&c)[kN][4], const uint32_t (&a)[4], const uint32_t (&b)[kN][2]) {
#if defined(__CUDACC__)
#pragma unroll
  for (int j = 0; j < kN; ++j) mmaTf32(c[j], a, b[j]);
#else
  static_assert(kN <= simt::kMostMmaTiles);
  simt::MmaLane mine{c[0], a, b[0]};
  simt::meet([](void* const* lanes) { simt::multiplyTf32(lanes, 1, kN); }, &mine);
#endif
}

}  // namespace densecl::cuda
