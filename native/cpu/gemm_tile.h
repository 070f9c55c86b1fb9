// The one register tile that every matrix product of the CPU device runs on: convolution in three directions, linear
// layers, similarities. It multiplies rows, each read through its own pointer, a few at a time, by a packed panel of some columns. The
// pointers are the "indirection buffer" of M. Dukhan, The Indirect Convolution Algorithm (arXiv:1907.02129): no im2col matrix is made, and
// padding is a pointer to a row of zeros.
#pragma once
#include <cstdint>

#include "../core/bf16.h"
#include "isa.h"

namespace densecl::cpu {

// What is multiplied at a time along the depth: a value, of bf16 a pair in 32 bits, the first in the lower half.
template <class T>
struct WordOf {
  using type = T;
  static constexpr int kValues = 1;
};
template <>
struct WordOf<bf16> {
  using type = uint32_t;
  static constexpr int kValues = 2;
};
template <class T>
using Word = typename WordOf<T>::type;
template <class T>
constexpr int kWordValues = WordOf<T>::kValues;

constexpr int kMaxTileRows = 32;
constexpr int kMaxPanelBytes = 256;
template <class T>
constexpr int kMaxPanel = kMaxPanelBytes / sizeof(Word<T>);

// How far ahead of its use a panel is fetched from the L2 into the L1 cache, which holds little of it. As much memory must lie behind the
// last: to fetch from where no page is takes a walk through the page tables each time.
constexpr int kAheadBytes = 2048;
template <class T>
constexpr int64_t kAheadWords = kAheadBytes / sizeof(Word<T>);

// Whether bf16 is multiplied in pairs, by instructions for it. Where it is not, its values are multiplied as floats.
bool multipliesPairs();

// Out is T, what T is summed in, or bf16 of floats.
template <class T, class Out = T>
struct TileCall {
  const T* const* rows;  // (taps, rowStride) pointers; up to a multiple of the tile's rows, rows[tap * rowStride + i] must be readable
  int64_t rowStride;
  int64_t step;  // words of a row from one depth to the next: 1, or those of a row of a matrix that is read by columns
  int64_t taps;
  const int32_t* tapIndex;  // which (depth, columns) slab of the panel belongs to a tap
  int64_t depth;            // in words
  const Word<T>* panel;     // (slabs, depth, columns)
  Out* const* out;          // one pointer per row
  int64_t count;            // of rows
  int validColumns;
  const Accumulator<T>* bias;  // of the panel's columns, or null
  bool accumulate;             // add to what out holds; not where that is bf16
  // A norm, or null: out = relu(sum * scale + bias + residual), with a scale for each of the panel's columns.
  const Accumulator<T>* scale = nullptr;
  const Out* residual = nullptr;  // or null; it lies to `y` as what is added lies to `out`
  const Out* y = nullptr;
  bool relu = false;
  int64_t rowShift = 0, outShift = 0;  // values behind the pointers of rows and of out
  // What is fetched into the L2 cache meanwhile, so many bytes for each word of the depth of each tile; null for nothing.
  const char* next = nullptr;
  int64_t nextBytes = 0;

  // Has the tiles of this call, the first of which is `index` of the `tiles` that read the panel one after the other, fetch their parts of
  // what lies behind it, `width` words of which make a row: the next panel, unless panels end there. From beyond the L2 cache it would
  // come late for the first of its tiles, which are few where rows are.
  void fetchBehind(int64_t width, int64_t index, int64_t tiles, const Word<T>* end) {
    const Word<T>* behind = panel + (tapIndex[taps - 1] + 1) * depth * width;
    if (behind >= end) return;
    nextBytes = (width * static_cast<int64_t>(sizeof(Word<T>)) + tiles - 1) / tiles;
    next = reinterpret_cast<const char*>(behind) + index * tileBytes();
  }
  // What a tile fetches.
  int64_t tileBytes() const { return depth * taps * nextBytes; }
};

template <class T, class Out = T>
struct TileKernel {
  int rows;
  int columns;  // of a panel
  void (*run)(const TileCall<T, Out>&);
  // Words of a row and of a panel that it reads at a time: depths are multiples of them.
  int depth = 1;
  // Rows of which the pointers must be evenly spaced, with `step` 1, as a tile register is loaded from them; 1 where any will do.
  int spaced = 1;
};

// The tile of this machine for a product of so many columns; of bf16 where multipliesPairs(). A wide panel reads few rows, each of which is
// a cache line far from the others; it would be mostly empty where columns are few.
template <class T, class Out = T>
const TileKernel<T, Out>& tileKernel(int64_t columns);

// Has the tile registers of AMX configured on this thread while it lives. A kernel of spaced rows runs within one; for others it does
// nothing.
class TileRegisters {
 public:
  template <class T, class Out>
  explicit TileRegisters(const TileKernel<T, Out>& kernel) : used_(kernel.spaced > 1) {
    if (used_) configure();
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  ~TileRegisters() {
    if (used_) release();
  }

 private:
  static void configure();
  static void release();
  bool used_;
};

}  // namespace densecl::cpu
