// The one register tile that every matrix product of the CPU device runs on: convolution in three directions, linear
// layers, similarities. It multiplies a few rows, each read through its own pointer, by a packed panel of kPanelBytes
// wide columns. The pointers are the "indirection buffer" of M. Dukhan, The Indirect Convolution Algorithm
// (arXiv:1907.02129): no im2col matrix is made, and padding is a pointer to a row of zeros.
#pragma once
#include <cstdint>

#include "isa.h"

namespace densecl::cpu {

constexpr int kPanelBytes = 64;
template <class T>
constexpr int kPanel = kPanelBytes / sizeof(T);  // columns of a panel: 16 floats or 8 doubles
constexpr int kMaxTileRows = 12;

template <class T>
struct TileCall {
  const T* const* rows;  // (taps, rowStride) pointers; the tile reads rows[tap * rowStride + i]
  int64_t rowStride;
  int64_t taps;
  const int32_t* tapIndex;  // which (depth, kPanel) slab of the panel belongs to a tap
  int64_t depth;
  const T* panel;  // (slabs, depth, kPanel)
  T* const* out;   // one pointer per row, at the panel's first column
  int validRows;   // rows to store; pointers of the others must be readable
  int validColumns;
  const T* bias;    // of the panel's columns, or null
  bool accumulate;  // add to what out holds
};

template <class T>
struct TileKernel {
  int rows;
  void (*run)(const TileCall<T>&);
};

// The tile of this machine.
template <class T>
const TileKernel<T>& tileKernel();

}  // namespace densecl::cpu
