#include "gemm_tile.h"

namespace densecl::cpu {
namespace {

template <class T, int Bytes>
struct Vector {
  typedef T type __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
};

template <class T, int VectorBytes, int Rows>
INLINE void tile(const TileCall<T>& call) {
  using V = typename Vector<T, VectorBytes>::type;
  constexpr int lanes = VectorBytes / sizeof(T);
  constexpr int vectors = kPanelBytes / VectorBytes;

  V sum[Rows][vectors];
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[i][v] = V{};

  for (int64_t tap = 0; tap < call.taps; ++tap) {
    const T* a[Rows];
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) a[i] = call.rows[tap * call.rowStride + i];
    const T* b = call.panel + call.tapIndex[tap] * call.depth * kPanel<T>;
    for (int64_t k = 0; k < call.depth; ++k, b += kPanel<T>) {
      V column[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) column[v] = *reinterpret_cast<const V*>(b + v * lanes);
#pragma GCC unroll 12
      for (int i = 0; i < Rows; ++i) {
        const T value = a[i][k];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[i][v] += value * column[v];
      }
    }
  }

  if (call.validColumns == kPanel<T>) {
    V bias[vectors] = {};
    if (call.bias != nullptr)
      for (int v = 0; v < vectors; ++v) bias[v] = *reinterpret_cast<const V*>(call.bias + v * lanes);
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) {
      if (i >= call.validRows) break;
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        V* out = reinterpret_cast<V*>(call.out[i] + v * lanes);
        *out = call.accumulate ? *out + sum[i][v] : sum[i][v] + bias[v];
      }
    }
    return;
  }
  T spill[Rows][kPanel<T>];
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) *reinterpret_cast<V*>(&spill[i][v * lanes]) = sum[i][v];
  for (int i = 0; i < call.validRows; ++i) {
    for (int j = 0; j < call.validColumns; ++j) {
      const T base = call.accumulate ? call.out[i][j] : (call.bias != nullptr ? call.bias[j] : T{0});
      call.out[i][j] = base + spill[i][j];
    }
  }
}

template <class T>
void tilePortable(const TileCall<T>& call) {
  tile<T, 16, 2>(call);
}
#if defined(DENSECL_X86)
template <class T>
__attribute__((target("avx2,fma"))) void tileAvx2(const TileCall<T>& call) {
  tile<T, 32, 6>(call);
}
template <class T>
__attribute__((target("avx512f,avx512vl,avx512dq,fma"))) void tileAvx512(const TileCall<T>& call) {
  tile<T, 64, 12>(call);
}
#endif

template <class T>
TileKernel<T> choose() {
#if defined(DENSECL_X86)
  if (isa() == Isa::avx512) return {12, tileAvx512<T>};
  if (isa() == Isa::avx2) return {6, tileAvx2<T>};
#endif
  return {2, tilePortable<T>};
}

}  // namespace

template <class T>
const TileKernel<T>& tileKernel() {
  static const TileKernel<T> kernel = choose<T>();
  return kernel;
}
template const TileKernel<float>& tileKernel<float>();
template const TileKernel<double>& tileKernel<double>();

}  // namespace densecl::cpu
