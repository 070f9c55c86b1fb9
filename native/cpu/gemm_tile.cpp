#include "gemm_tile.h"

namespace densecl::cpu {
namespace {

template <class T, int Bytes>
struct Vector {
  typedef T type __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
};

template <class T, int VectorBytes, int Rows, int PanelBytes>
INLINE void tile(const TileCall<T>& call) {
  using V = typename Vector<T, VectorBytes>::type;
  constexpr int lanes = VectorBytes / sizeof(T);
  constexpr int vectors = PanelBytes / VectorBytes, width = PanelBytes / sizeof(T);

  V sum[Rows][vectors];
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[i][v] = V{};

  for (int64_t tap = 0; tap < call.taps; ++tap) {
    const T* a[Rows];
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) a[i] = call.rows[tap * call.rowStride + i];
    const T* b = call.panel + call.tapIndex[tap] * call.depth * width;
    for (int64_t k = 0, at = 0; k < call.depth; ++k, at += call.step, b += width) {
      V column[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) column[v] = *reinterpret_cast<const V*>(b + v * lanes);
#pragma GCC unroll 12
      for (int i = 0; i < Rows; ++i) {
        const T value = a[i][at];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[i][v] += value * column[v];
      }
    }
  }

  if (call.validColumns == width) {
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
  T spill[Rows][width];
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
  tile<T, 16, 2, 64>(call);
}
#if defined(DENSECL_X86)
template <class T>
__attribute__((target("avx2,fma"))) void tileAvx2(const TileCall<T>& call) {
  tile<T, 32, 6, 64>(call);
}
template <class T>
__attribute__((target("avx512f,avx512vl,avx512dq,fma"))) void tileAvx512(const TileCall<T>& call) {
  tile<T, 64, 12, 64>(call);
}
template <class T>
__attribute__((target("avx512f,avx512vl,avx512dq,fma"))) void wideAvx512(const TileCall<T>& call) {
  tile<T, 64, 6, 256>(call);
}
#endif

template <class T>
TileKernel<T> choose(bool wide) {
#if defined(DENSECL_X86)
  if (isa() == Isa::avx512)
    return wide ? TileKernel<T>{6, 256 / sizeof(T), wideAvx512<T>} : TileKernel<T>{12, 64 / sizeof(T), tileAvx512<T>};
  if (isa() == Isa::avx2) return {6, 64 / sizeof(T), tileAvx2<T>};
#endif
  return {2, 64 / sizeof(T), tilePortable<T>};
}

}  // namespace

template <class T>
const TileKernel<T>& tileKernel(int64_t columns) {
  static const TileKernel<T> narrow = choose<T>(false), wide = choose<T>(true);
  return columns > kMaxPanel<T> / 2 ? wide : narrow;
}
template const TileKernel<float>& tileKernel<float>(int64_t);
template const TileKernel<double>& tileKernel<double>(int64_t);

}  // namespace densecl::cpu
