// Matrix products over rows that are given by pointers. `Rows` and `Out` are small callables, so that a convolution, its
// input gradient and a plain product are the same loop.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "../core/allocator.h"
#include "../core/parallel.h"
#include "gemm_tile.h"
#include "widen.h"

namespace densecl::cpu {

inline int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Packed weights: (ceil(columns / width), slabs, depth, width) words with the width of the tile's panels, filled with zeros beyond the
// last column and value.
template <class T>
struct Panels {
  Panels(int64_t slabs, int64_t values, int64_t columns)
      : kernel(tileKernel<T>(columns)),
        slabs(slabs),
        values(values),
        depth(ceilDiv(values, kWordValues<T>)),
        columns(columns),
        width(kernel.columns),
        count(ceilDiv(columns, width)),
        storage(count * slabs * depth * width) {}
  Word<T>* panel(int64_t index) { return storage.data() + index * slabs * depth * width; }
  const TileKernel<T>& kernel;
  int64_t slabs, values, depth, columns, width, count;  // values of a row, depth in words
  Scratch<Word<T>> storage;
};

// out[i] = the word of a[i] and b[i], which values without a partner do not look at.
INLINE void copyWords(float* out, const float* a, const float*, int64_t count) { std::copy_n(a, count, out); }
INLINE void copyWords(double* out, const double* a, const double*, int64_t count) { std::copy_n(a, count, out); }
INLINE void copyWords(uint32_t* out, const bf16* a, const bf16* b, int64_t count) { interleave(out, a, b, count); }

// The partners of values behind the end.
template <class T>
inline const T kZeros[kMaxPanel<T>] = {};

// The word of a value and its partner.
INLINE float wordOf(float value, float) { return value; }
INLINE double wordOf(double value, double) { return value; }
INLINE uint32_t wordOf(bf16 value, bf16 partner) { return value.bits | static_cast<uint32_t>(partner.bits) << 16; }

// out[k * outStride + j] = in[j * columnStride + k * depthStride] for j < columns, and zero for the others of Lanes, with k a value and out
// of words. Reads along what lies side by side: lines that are far from each other come late.
template <class T, int64_t Lanes>
void copyColumns(Word<T>* out, int64_t outStride, const T* in, int64_t columns, int64_t columnStride, int64_t depth, int64_t depthStride) {
  constexpr int64_t step = kWordValues<T>;
  if (columnStride == 1 && columns == Lanes) {
    for (int64_t k = 0; k < depth; k += step, in += step * depthStride, out += outStride) {
      const T* partner = k + 1 < depth ? in + depthStride : kZeros<T>;
      for (int64_t j = 0; j < Lanes; ++j) out[j] = wordOf(in[j], partner[j]);
    }
    return;
  }
  // Words that lie in memory as they are packed.
  const int64_t whole = depthStride == 1 ? depth / step : 0;
  for (int64_t j = 0; j < columns; ++j, in += columnStride) {
    for (int64_t k = 0; k < whole; ++k) std::memcpy(out + k * outStride + j, in + k * step, sizeof(Word<T>));
    for (int64_t k = whole * step; k < depth; k += step)
      out[k / step * outStride + j] = wordOf(in[k * depthStride], k + 1 < depth ? in[(k + 1) * depthStride] : T{0});
  }
  for (int64_t k = 0; k < ceilDiv(depth, step); ++k) std::fill(out + k * outStride + columns, out + k * outStride + Lanes, Word<T>{0});
}

// panels[s][k][column] = source[column * columnStride + s * slabStride + k * depthStride]
template <class T>
void pack(Panels<T>& panels, const T* source, int64_t columnStride, int64_t slabStride, int64_t depthStride) {
  parallelFor(panels.count, [&](int64_t index) {
    constexpr int64_t lanes = 64 / sizeof(Word<T>),
                      slice = 32;  // every panel is lanes wide or a multiple; a slice of it stays in the L1 cache
    for (int64_t s = 0; s < panels.slabs; ++s)
      for (int64_t j = 0; j < panels.width; j += lanes)
        for (int64_t k = 0; k < panels.depth; k += slice) {
          const int64_t column = index * panels.width + j;
          copyColumns<T, lanes>(panels.panel(index) + (s * panels.depth + k) * panels.width + j, panels.width,
                                source + column * columnStride + s * slabStride + k * kWordValues<T> * depthStride,
                                std::clamp<int64_t>(panels.columns - column, 0, lanes), columnStride,
                                std::min(slice * kWordValues<T>, panels.values - k * kWordValues<T>), depthStride);
        }
  });
}

// Where a row ends amid a word, copies of the rows whose last word is whole, which the table then points to.
template <class T>
std::vector<T> withEvenDepth(const Panels<T>& panels, std::vector<const T*>& table, int64_t stride, int64_t rows, int64_t taps) {
  const int64_t length = panels.depth * kWordValues<T>;
  if (length == panels.values) return {};
  std::vector<T> copies(taps * rows * length);
  T* to = copies.data();
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t i = 0; i < rows; ++i, to += length) {
      std::copy_n(table[t * stride + i], panels.values, to);
      to[panels.values] = T{0};
      table[t * stride + i] = to;
    }
  return copies;
}

struct Nothing {
  template <class T>
  void operator()(T* const*, int, int64_t, int64_t) const {}
};

// For 0 <= m < count: out(m)[j] = bias[j] + sum over taps t and depth k of row(m, t)[k] * panels[tapIndex[t]][k][j].
// after(rows, count, column, columns) is given each tile of the result, `columns` of it from `column` on, while it is in the cache.
// fill(first, rows, table, stride, scratch) writes the row pointers table[t * stride + i] of rows first + i; scratch holds
// scratchPerRow elements a row.
template <class T, class Fill, class Out, class After = Nothing>
void multiplyRows(int64_t count, const std::vector<int32_t>& tapIndex, Panels<T>& panels, const Accumulator<T>* bias, int64_t scratchPerRow,
                  Fill fill, Out out, After after = {}) {
  if (count == 0) return;
  const TileKernel<T>& kernel = panels.kernel;
  const int64_t taps = static_cast<int64_t>(tapIndex.size());
  // Rows of a block stay in the L2 cache while panels pass; 12 is a multiple of every tile height.
  const int64_t fitting = int64_t{192} * 1024 / (panels.depth * static_cast<int64_t>(sizeof(Word<T>))) / 12 * 12;
  const int64_t block = std::min<int64_t>(std::clamp<int64_t>(fitting, 24, 96), ceilDiv(count, kernel.rows) * kernel.rows);
  const int64_t blocks = ceilDiv(count, block);
  const int64_t groups = std::clamp<int64_t>(ceilDiv(8 * threads(), blocks), 1, panels.count);
  parallelFor(blocks * groups, [&](int64_t unit) {
    // Consecutive units share a panel group, so that large weights are read once per group, not once per block.
    const int64_t first = (unit % blocks) * block, group = unit / blocks;
    const int64_t rows = std::min(block, count - first);
    const int64_t stride = ceilDiv(rows, kernel.rows) * kernel.rows;
    std::vector<const T*> table(stride * taps);
    std::vector<T> scratch(rows * scratchPerRow);
    std::vector<T*> outputs(stride);
    fill(first, rows, table.data(), stride, scratch.data());
    const std::vector<T> even = withEvenDepth(panels, table, stride, rows, taps);
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t i = rows; i < stride; ++i) table[t * stride + i] = table[t * stride + rows - 1];
    for (int64_t i = 0; i < rows; ++i) outputs[i] = out(first + i);
    std::vector<T*> shifted(kMaxTileRows);
    const int64_t lastPanel = panels.count * (group + 1) / groups;
    for (int64_t p = panels.count * group / groups; p < lastPanel; ++p) {
      const int64_t column = p * panels.width;
      TileCall<T> call{nullptr,
                       stride,
                       1,
                       taps,
                       tapIndex.data(),
                       panels.depth,
                       panels.panel(p),
                       shifted.data(),
                       0,
                       static_cast<int>(std::min(panels.width, panels.columns - column)),
                       bias == nullptr ? nullptr : bias + column,
                       false};
      for (int64_t i = 0; i < rows; i += kernel.rows) {
        call.rows = table.data() + i;
        call.validRows = static_cast<int>(std::min<int64_t>(kernel.rows, rows - i));
        for (int r = 0; r < call.validRows; ++r) shifted[r] = outputs[i + r] + column;
        kernel.run(call);
        after(shifted.data(), call.validRows, column, call.validColumns);
      }
    }
  });
}

}  // namespace densecl::cpu
