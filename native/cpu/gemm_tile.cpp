#include "gemm_tile.h"

#include <algorithm>
#include <limits>

#include "../core/error.h"

namespace densecl::cpu {
namespace {

template <class T, int Bytes>
struct Vector {
  typedef T type __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
};

// How words are multiplied: the panel's words and a row's word as operands of multiplyAdd.
struct ByValue {
  template <class V, class W>
  static INLINE V column(W words) {
    return words;
  }
  template <class V, class T>
  static INLINE T row(T word) {
    return word;
  }
  template <class V, class T>
  static INLINE void multiplyAdd(V& sum, T row, V column) {
    sum += row * column;
  }
};

#if defined(DENSECL_X86)
// VDPBF16PS. As instructions, since intrinsics could not be inlined into a template that is compiled for every level.
struct ByPairs {
  typedef uint32_t Words __attribute__((vector_size(64)));
  template <class V, class W>
  static INLINE Words column(W words) {
    return words;
  }
  template <class V, class W>
  static INLINE Words row(const W& word) {
    Words row;
    asm("vpbroadcastd %1, %0" : "=v"(row) : "m"(word));
    return row;
  }
  template <class V>
  static INLINE void multiplyAdd(V& sum, Words row, Words column) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(row), "v"(column));
  }
};
#endif

// Sums or their rounded values, at the type of `out`.
template <class Multiply, class V, class A>
INLINE void store(A* out, V sum) {
  *reinterpret_cast<typename Vector<A, sizeof(V)>::type*>(out) = sum;
}
template <class Multiply, class V>
INLINE void store(bf16* out, V sum) {
  using W = typename Vector<uint32_t, sizeof(V)>::type;
  using H = typename Vector<uint16_t, sizeof(V) / 2>::type;
#if defined(DENSECL_X86)
  if constexpr (std::is_same_v<Multiply, ByPairs>) {
    H rounded;
    asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(sum));
    *reinterpret_cast<H*>(out) = rounded;
    return;
  }
#endif
  const W word = (W)sum, rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  *reinterpret_cast<H*>(out) = __builtin_convertvector(((W)(sum == sum) & rounded) | (~(W)(sum == sum) & (word >> 16 | 0x40u)), H);
}

// Values of `from` as what is summed in.
template <class V, class A>
INLINE V load(const A* from) {
  // By a type that need not be aligned, which a template's argument forgets.
  return *reinterpret_cast<const typename Vector<A, sizeof(V)>::type*>(from);
}
template <class V>
INLINE V load(const bf16* from) {
  using W = typename Vector<uint32_t, sizeof(V)>::type;
  using H = typename Vector<uint16_t, sizeof(V) / 2>::type;
  return (V)(__builtin_convertvector(*reinterpret_cast<const H*>(from), W) << 16);
}

// Sums as their type in memory holds them.
template <class Multiply, class V, class A>
INLINE V rounded(V sum, const A*) {
  return sum;
}
template <class Multiply, class V>
INLINE V rounded(V sum, const bf16*) {
  bf16 values[sizeof(V) / sizeof(float)];
  store<Multiply>(values, sum);
  return load<V>(values);
}

// What becomes of the sums of the columns `at` and behind it: bias and what was there are added, or they are normalised.
template <class Multiply, bool Norms, int Bytes, class T, class Out>
class Finish {
  using V = typename Vector<Accumulator<T>, Bytes>::type;

 public:
  INLINE Finish(const TileCall<T, Out>& call, int64_t first, int at) : call_(call), out_(call.out + first), at_(at + call.outShift) {
    if (call.bias != nullptr) bias_ = load<V>(call.bias + at);
    if (Norms) {
      scale_ = load<V>(call.scale + at);
      if (!call.relu) low_ -= std::numeric_limits<Accumulator<T>>::infinity();
    }
  }
  INLINE void store(int row, V sum) const {
    Out* out = out_[row] + at_;
    if constexpr (std::is_same_v<Out, Accumulator<T>>)
      if (call_.accumulate) sum += load<V>(out);
    if (!Norms) return cpu::store<Multiply>(out, V(sum + bias_));
    // As two passes would have it, whose result lies between them in memory.
    sum = rounded<Multiply>(sum, out) * scale_ + bias_;
    if (call_.residual != nullptr) sum += load<V>(call_.residual + (out - call_.y));
    cpu::store<Multiply>(out, V(sum < low_ ? low_ : sum));
  }

 private:
  const TileCall<T, Out>& call_;
  Out* const* const out_;
  const int64_t at_;
  V bias_{}, scale_{}, low_{};
};

// Sums of a tile of so many rows whose panel has columns behind the last.
template <class T, class Out, int Width>
INLINE void storePart(const TileCall<T, Out>& call, int64_t first, int rows, const Accumulator<T> (*sums)[Width]) {
  using A = Accumulator<T>;
  for (int i = 0; i < rows; ++i) {
    Out* out = call.out[first + i] + call.outShift;
    for (int j = 0; j < call.validColumns; ++j) {
      A sum = sums[i][j];
      if constexpr (std::is_same_v<Out, A>)
        if (call.accumulate) sum += out[j];
      // In one expression, as a pass of its own has it: of two the compiler makes an FMA where it likes.
      if (call.scale != nullptr)
        sum = A(Out(sum)) * call.scale[j] + call.bias[j];
      else if (call.bias != nullptr)
        sum += call.bias[j];
      if (call.residual != nullptr) sum += A(call.residual[out - call.y + j]);
      out[j] = Out(call.relu && sum < 0 ? A{0} : sum);
    }
  }
}

template <class Multiply, bool Norms, class T, class Out, class V, int Rows, int Vectors>
INLINE void storeTile(const TileCall<T, Out>& call, int64_t first, int rows, const V (&sum)[Rows][Vectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    const Finish<Multiply, Norms, sizeof(V), T, Out> finish(call, first, v * static_cast<int>(sizeof(V) / sizeof(Accumulator<T>)));
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) {
      if (i >= rows) break;
      finish.store(i, sum[i][v]);
    }
  }
}

// Where a tile's sums go, and its residual, which is of another op, lie beyond the L2 cache: they come while the tile is multiplied.
template <class T, class Out>
INLINE void fetchOutputs(const TileCall<T, Out>& call, int64_t first, int rows) {
  for (int i = 0; i < rows; ++i) {
    const Out* out = call.out[first + i] + call.outShift;
    for (int j = 0; j < call.validColumns; j += 64 / sizeof(Out)) __builtin_prefetch(out + j);
    if (call.residual == nullptr) continue;
    for (int j = 0; j < call.validColumns; j += 64 / sizeof(Out)) __builtin_prefetch(call.residual + (out + j - call.y));
  }
}

// So many valid rows from the first on, fetching from `next` meanwhile.
template <class T, class Out, class Multiply, int VectorBytes, int Rows, int PanelBytes>
INLINE void tile(const TileCall<T, Out>& call, int64_t first, int rows, const char* next) {
  using A = Accumulator<T>;
  using V = typename Vector<A, VectorBytes>::type;
  using W = typename Vector<Word<T>, VectorBytes>::type;
  typedef Word<T> RowWord __attribute__((aligned(sizeof(T)), may_alias));
  constexpr int lanes = VectorBytes / sizeof(A);
  constexpr int vectors = PanelBytes / VectorBytes, width = PanelBytes / sizeof(A);

  // A panel of one vector leaves no room for it: its rows keep the ports of loads busy.
  constexpr bool fetches = vectors > 1;
  // Where a tile's part is more than a line for each word of the depth, another half of it: rows are few then, and the panel far.
  const int64_t second = call.nextBytes > 64 ? call.nextBytes / 2 : 0;
  fetchOutputs(call, first, rows);
  V sum[Rows][vectors];
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[i][v] = V{};

  for (int64_t tap = 0; tap < call.taps; ++tap) {
    const RowWord* a[Rows];
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) a[i] = reinterpret_cast<const RowWord*>(call.rows[tap * call.rowStride + first + i] + call.rowShift);
    const Word<T>* b = call.panel + call.tapIndex[tap] * call.depth * width;
    for (int64_t k = 0, at = 0; k < call.depth; ++k, at += call.step, b += width) {
      if (fetches) {
#pragma GCC unroll 4
        for (int line = 0; line < PanelBytes; line += 64) __builtin_prefetch(reinterpret_cast<const char*>(b) + kAheadBytes + line);
        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + second, 0, 2);
        next += call.nextBytes;
      }
      decltype(Multiply::template column<V>(W{})) column[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) column[v] = Multiply::template column<V>(*reinterpret_cast<const W*>(b + v * lanes));
#pragma GCC unroll 12
      for (int i = 0; i < Rows; ++i) {
        const auto row = Multiply::template row<V>(a[i][at]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) Multiply::multiplyAdd(sum[i][v], row, column[v]);
      }
    }
  }

  if (call.validColumns == width)
    return call.scale != nullptr ? storeTile<Multiply, true>(call, first, rows, sum) : storeTile<Multiply, false>(call, first, rows, sum);
  A spill[Rows][width];
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) *reinterpret_cast<V*>(&spill[i][v * lanes]) = sum[i][v];
  storePart<T, Out, width>(call, first, rows, spill);
}

// Calls run(first, rows, next) for tiles of so many rows.
template <class T, class Out, class Run>
INLINE void eachTile(const TileCall<T, Out>& call, int64_t tileRows, Run run) {
  const char* next = call.next != nullptr ? call.next : reinterpret_cast<const char*>(call.panel);
  for (int64_t first = 0; first < call.count; first += tileRows, next += call.tileBytes())
    run(first, static_cast<int>(std::min(tileRows, call.count - first)), next);
}

// Tiles, the last of which has half of the rows where no more are left: the rest of a small map's pixels.
template <class T, class Out, class Multiply, int VectorBytes, int Rows, int PanelBytes>
INLINE void vectorTiles(const TileCall<T, Out>& call) {
  eachTile(call, Rows, [&](int64_t first, int rows, const char* next) INLINE_LAMBDA {
    if (2 * rows > Rows) return tile<T, Out, Multiply, VectorBytes, Rows, PanelBytes>(call, first, rows, next);
    tile<T, Out, Multiply, VectorBytes, Rows / 2, PanelBytes>(call, first, rows, next);
  });
}

template <class T, class Out>
void tilePortable(const TileCall<T, Out>& call) {
  vectorTiles<T, Out, ByValue, 16, 2, 64>(call);
}
#if defined(DENSECL_X86)
template <class T, class Out>
__attribute__((target("avx2,fma"))) void tileAvx2(const TileCall<T, Out>& call) {
  vectorTiles<T, Out, ByValue, 32, 6, 64>(call);
}
template <class T, class Out>
__attribute__((target("avx512f,avx512vl,avx512dq,fma"))) void tileAvx512(const TileCall<T, Out>& call) {
  vectorTiles<T, Out, ByValue, 64, 12, 64>(call);
}
template <class T, class Out>
__attribute__((target("avx512f,avx512vl,avx512dq,fma"))) void wideAvx512(const TileCall<T, Out>& call) {
  vectorTiles<T, Out, ByValue, 64, 6, 256>(call);
}
template <class Out>
__attribute__((target("avx512f,avx512vl,avx512dq,fma,avx512bf16"))) void tileAvx512Bf16(const TileCall<bf16, Out>& call) {
  vectorTiles<bf16, Out, ByPairs, 64, 12, 64>(call);
}
template <class Out>
__attribute__((target("avx512f,avx512vl,avx512dq,fma,avx512bf16"))) void wideAvx512Bf16(const TileCall<bf16, Out>& call) {
  vectorTiles<bf16, Out, ByPairs, 64, 6, 256>(call);
}

// AMX: a register holds 16 rows of 64 bytes. A tile is two of them each way, of sums in registers 0 to 3, rows in 4 and 5, and the panel's
// columns in 6 and 7, whose pairs lie as TDPBF16PS takes them. As instructions, since the compiler knows nothing of the registers.
constexpr int kRegisterRows = 16, kRegisterWords = 16, kAmxRows = 2 * kRegisterRows, kAmxColumns = 2 * kRegisterWords;
#define TILE_ZERO(to) asm volatile("tilezero %%tmm" #to ::)
#define TILE_LOAD(to, from, spacing) asm volatile("tileloadd (%0,%1,1), %%tmm" #to ::"r"(from), "r"(spacing) : "memory")
#define TILE_STORE(from, to, spacing) asm volatile("tilestored %%tmm" #from ", (%0,%1,1)" ::"r"(to), "r"(spacing) : "memory")
#define TILE_MULTIPLY(sums, row, column) asm volatile("tdpbf16ps %%tmm" #column ", %%tmm" #row ", %%tmm" #sums ::)

template <bool Norms, class Out>
INLINE void storeRows(const TileCall<bf16, Out>& call, int64_t first, int rows, const float (*sums)[kAmxColumns]) {
  using V = typename Vector<float, 64>::type;
  const Finish<ByPairs, Norms, sizeof(V), bf16, Out> left(call, first, 0), right(call, first, kRegisterWords);
  for (int i = 0; i < rows; ++i) {
    left.store(i, load<V>(sums[i]));
    right.store(i, load<V>(sums[i] + kRegisterWords));
  }
}

template <bool TwoRows, bool TwoColumns, class Out>
INLINE void amxTile(const TileCall<bf16, Out>& call, int64_t first, int valid, const char* next) {
  fetchOutputs(call, first, valid);
  TILE_ZERO(0);
  if (TwoColumns) TILE_ZERO(1);
  if (TwoRows) TILE_ZERO(2);
  if (TwoRows && TwoColumns) TILE_ZERO(3);
  constexpr int64_t columnSpacing = kAmxColumns * sizeof(uint32_t);
  for (int64_t tap = 0; tap < call.taps; ++tap) {
    const auto row = [&](int i) { return reinterpret_cast<const char*>(call.rows[tap * call.rowStride + first + i] + call.rowShift); };
    const char *a = row(0), *c = TwoRows ? row(kRegisterRows) : nullptr;
    const int64_t spacing = row(1) - a, secondSpacing = TwoRows ? row(kRegisterRows + 1) - c : 0;
    const uint32_t* b = call.panel + call.tapIndex[tap] * call.depth * kAmxColumns;
    for (int64_t k = 0; k < call.depth; k += kRegisterWords, b += kRegisterWords * kAmxColumns) {
      TILE_LOAD(6, b, columnSpacing);
      TILE_LOAD(4, a + k * sizeof(uint32_t), spacing);
      TILE_MULTIPLY(0, 4, 6);
      if (TwoColumns) {
        TILE_LOAD(7, b + kRegisterWords, columnSpacing);
        TILE_MULTIPLY(1, 4, 7);
      }
      if (TwoRows) {
        TILE_LOAD(5, c + k * sizeof(uint32_t), secondSpacing);
        TILE_MULTIPLY(2, 5, 6);
      }
      if (TwoRows && TwoColumns) TILE_MULTIPLY(3, 5, 7);
      const char* const until = next + kRegisterWords * call.nextBytes;
      for (; next < until; next += 64) __builtin_prefetch(next, 0, 2);
    }
  }

  alignas(64) float sums[kAmxRows][kAmxColumns];
  TILE_STORE(0, &sums[0][0], columnSpacing);
  if (TwoColumns) TILE_STORE(1, &sums[0][kRegisterWords], columnSpacing);
  if (TwoRows) TILE_STORE(2, &sums[kRegisterRows][0], columnSpacing);
  if (TwoRows && TwoColumns) TILE_STORE(3, &sums[kRegisterRows][kRegisterWords], columnSpacing);
  if (!TwoColumns || call.validColumns != kAmxColumns) return storePart<bf16, Out, kAmxColumns>(call, first, valid, sums);
  call.scale != nullptr ? storeRows<true>(call, first, valid, sums) : storeRows<false>(call, first, valid, sums);
}

template <class Out>
__attribute__((target("avx512f,avx512vl,avx512dq,fma,avx512bf16,amx-tile,amx-bf16"))) void tileAmx(const TileCall<bf16, Out>& call) {
  const bool twoColumns = call.validColumns > kRegisterWords;
  eachTile(call, kAmxRows, [&](int64_t first, int rows, const char* next) INLINE_LAMBDA {
    const bool twoRows = rows > kRegisterRows;
    if (twoRows && twoColumns) return amxTile<true, true>(call, first, rows, next);
    if (twoRows) return amxTile<true, false>(call, first, rows, next);
    twoColumns ? amxTile<false, true>(call, first, rows, next) : amxTile<false, false>(call, first, rows, next);
  });
}
#endif

template <class T, class Out>
TileKernel<T, Out> choose(bool wide) {
  constexpr int narrowColumns = 64 / sizeof(Word<T>);
#if defined(DENSECL_X86)
  if (isa() >= Isa::avx512)
    return wide ? TileKernel<T, Out>{6, kMaxPanel<T>, wideAvx512<T, Out>} : TileKernel<T, Out>{12, narrowColumns, tileAvx512<T, Out>};
  if (isa() == Isa::avx2) return {6, narrowColumns, tileAvx2<T, Out>};
#endif
  return {2, narrowColumns, tilePortable<T, Out>};
}

template <class Out>
TileKernel<bf16, Out> choosePairs(bool wide) {
  constexpr int narrowColumns = 64 / sizeof(Word<bf16>);
#if defined(DENSECL_X86)
  if (isa() == Isa::amx) return {kAmxRows, kAmxColumns, tileAmx<Out>, kRegisterWords, kRegisterRows};
  if (multipliesPairs())
    return wide ? TileKernel<bf16, Out>{6, kMaxPanel<bf16>, wideAvx512Bf16<Out>}
                : TileKernel<bf16, Out>{12, narrowColumns, tileAvx512Bf16<Out>};
#endif
  throw Error("INTERNAL", "products of pairs of bf16: this processor has no instructions for them");
}

}  // namespace

#if defined(DENSECL_X86)
__attribute__((target("amx-tile"))) void TileRegisters::configure() {
  struct Configuration {  // of palette 1, as LDTILECFG reads it
    uint8_t palette, startRow, reserved[14];
    uint16_t rowBytes[16];
    uint8_t rows[16];
  };
  static const Configuration all = [] {
    Configuration each{};
    each.palette = 1;
    for (int i = 0; i < 8; ++i) {
      each.rowBytes[i] = kRegisterWords * sizeof(uint32_t);
      each.rows[i] = kRegisterRows;
    }
    return each;
  }();
  asm volatile("ldtilecfg %0" ::"m"(all));
}
__attribute__((target("amx-tile"))) void TileRegisters::release() { asm volatile("tilerelease" ::); }
#else
void TileRegisters::configure() {}
void TileRegisters::release() {}
#endif

template <class T, class Out>
const TileKernel<T, Out>& tileKernel(int64_t columns) {
  const auto chosen = [](bool wide) -> TileKernel<T, Out> {
    if constexpr (std::is_same_v<T, bf16>)
      return choosePairs<Out>(wide);
    else
      return choose<T, Out>(wide);
  };
  static const TileKernel<T, Out> narrow = chosen(false), wide = chosen(true);
  return columns > kMaxPanel<T> / 2 ? wide : narrow;
}
bool multipliesPairs() { return isa() >= Isa::avx512bf16; }

template const TileKernel<float>& tileKernel<float>(int64_t);
template const TileKernel<float, bf16>& tileKernel<float, bf16>(int64_t);
template const TileKernel<double>& tileKernel<double>(int64_t);
template const TileKernel<bf16>& tileKernel<bf16>(int64_t);
template const TileKernel<bf16, float>& tileKernel<bf16, float>(int64_t);

}  // namespace densecl::cpu
