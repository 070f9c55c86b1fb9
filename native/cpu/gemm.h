// Matrix products over rows that are given by pointers. `Rows` and `Out` are small callables, so that a convolution, its
// input gradient and a plain product are the same loop.
#pragma once
#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "gemm_tile.h"
#include "resultNorm.h"
#include "widen.h"
#include "words.h"

namespace densecl::cpu {

// Memory of a unit of work, which begins with a cache line. The heap of tensors has one lock, which short units would wait for.
template <class T>
class UnitScratch {
 public:
  explicit UnitScratch(int64_t count) : data_(static_cast<T*>(::operator new(count * sizeof(T), kLine))) {}
  T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kLine); }
  };
  std::unique_ptr<T, Free> data_;
};

// Calls body(F{}) with the type F of what values of T are multiplied as.
template <class T, class Body>
void multipliedAs(Body body) {
  if constexpr (std::is_same_v<T, bf16>)
    if (!multipliesPairs()) return body(float{});
  body(T{});
}

// Of a panel, what stays in the L2 cache beside rows and what is fetched of the next.
constexpr int64_t kPanelBytes = 512 * 1024;

inline int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows split into blocks that differ by one tile at most, so that threads get as much of them each.
struct Blocks {
  Blocks(int64_t rows, int64_t tileRows, int64_t parts)
      : all(rows), tileRows(tileRows), tiles(ceilDiv(rows, tileRows)), count(std::min(parts, tiles)) {}
  int64_t first(int64_t index) const { return tiles * index / count * tileRows; }
  int64_t rows(int64_t index) const { return std::min(first(index + 1), all) - first(index); }
  int64_t most() const { return ceilDiv(tiles, count) * tileRows; }
  int64_t all, tileRows, tiles, count;
};

// Units that a product is split into for each thread, where it can be: the last to end keeps the others waiting.
constexpr int64_t kUnitsPerThread = 8;

// Packed weights: (ceil(columns / width), slabs, depth, width) words with the width of the tile's panels, filled with zeros beyond the
// last column and value.
template <class T>
struct Panels {
  Panels(int64_t slabs, int64_t values, int64_t columns, Life life = Life::op)
      : kernel(tileKernel<T>(columns)),
        slabs(slabs),
        values(values),
        depth(ceilDiv(ceilDiv(values, kWordValues<T>), kernel.depth) * kernel.depth),
        reach(values),
        columns(columns),
        width(kernel.columns),
        count(ceilDiv(columns, width)),
        storage(count * slabs * depth * width + kAheadWords<T>, life) {}
  Word<T>* panel(int64_t index) { return storage.data() + index * slabs * depth * width; }
  const Word<T>* end() { return panel(count); }
  const TileKernel<T>& kernel;
  int64_t slabs, values, depth;  // values of a row, depth in words
  int64_t reach;                 // values that rows have, those behind `values` being zeros
  int64_t columns, width, count;
  Scratch<Word<T>> storage;
};

// out[i * apart + j] = the word of sources[i][j], or of bf16 that of sources[2 * i][j] and sources[2 * i + 1][j], for j < length.
template <class T>
INLINE void copyRows(T* out, int64_t apart, const T* const* sources, int64_t rows, int64_t length) {
  constexpr int64_t line = 64 / sizeof(T);
  if (length == line) {
    // A narrow panel, of which the next one's lines lie behind these. A call for each takes as long as its copy.
    for (int64_t i = 0; i < rows; ++i) {
      __builtin_prefetch(sources[i] + line, 0, 2);
      std::memcpy(out + i * apart, sources[i], 64);
    }
    return;
  }
  for (int64_t i = 0; i < rows; ++i) std::copy_n(sources[i], length, out + i * apart);
}
INLINE void copyRows(uint32_t* out, int64_t apart, const bf16* const* sources, int64_t rows, int64_t length) {
  interleaveRows(out, apart, sources, rows, length);
}
INLINE void copyRows(float* out, int64_t apart, const bf16* const* sources, int64_t rows, int64_t length) {
  widenRows(out, apart, sources, rows, length);
}

// The same across memory, out[j * apart + i]; of bf16 a multiple of 16 rows of words.
template <class T, class S>
void copyAcross(T* out, int64_t apart, const S* const* sources, int64_t rows, int64_t length) {
  for (int64_t j = 0; j < length; ++j)
    for (int64_t i = 0; i < rows; ++i) out[j * apart + i] = static_cast<T>(sources[i][j]);
}
inline void copyAcross(uint32_t* out, int64_t apart, const bf16* const* sources, int64_t rows, int64_t length) {
  interleaveAcross(out, apart, sources, rows, length);
}

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
      // No processor foresees steps beyond a page.
      __builtin_prefetch(in + 32 * depthStride);
      for (int64_t j = 0; j < Lanes; ++j) out[j] = wordOf(in[j], partner[j]);
    }
    return;
  }
  // Words that lie in memory as they are packed, squares of them at a time.
  const int64_t whole = depthStride == 1 ? depth / step : 0;
  int64_t squares = 0;
  if constexpr (sizeof(Word<T>) == 4 && Lanes == 16) {
    squares = columns == Lanes ? whole / Lanes * Lanes : 0;
    for (int64_t k = 0; k < squares; k += Lanes)
      transposeWords(out + k * outStride, outStride * sizeof(Word<T>), in + k * step, columnStride * sizeof(T));
  }
  for (int64_t j = 0; j < columns; ++j, in += columnStride) {
    for (int64_t k = squares; k < whole; ++k) std::memcpy(out + k * outStride + j, in + k * step, sizeof(Word<T>));
    for (int64_t k = whole * step; k < depth; k += step)
      out[k / step * outStride + j] = wordOf(in[k * depthStride], k + 1 < depth ? in[(k + 1) * depthStride] : T{0});
  }
  for (int64_t k = 0; k < ceilDiv(depth, step); ++k) std::fill(out + k * outStride + columns, out + k * outStride + Lanes, Word<T>{0});
}

// The same of bf16 to floats, for a depth of at most kWidenedDepth. One of the strides is 1.
constexpr int64_t kWidenedDepth = 32;
template <class T, int64_t Lanes>
void copyColumns(float* out, int64_t outStride, const bf16* in, int64_t columns, int64_t columnStride, int64_t depth, int64_t depthStride) {
  static_assert(std::is_same_v<T, float>);
  const bool along = depthStride == 1;
  const int64_t rows = along ? columns : depth, length = along ? depth : Lanes, apart = along ? columnStride : depthStride;
  float wide[kWidenedDepth * Lanes];
  const bf16* sources[std::max(kWidenedDepth, Lanes)];
  for (int64_t i = 0; i < rows; ++i) sources[i] = in + i * apart;
  widenRows(wide, length, sources, rows, along ? depth : columns);
  copyColumns<float, Lanes>(out, outStride, wide, columns, along ? length : 1, depth, along ? 1 : length);
}

// panels[s][k][column] = source[column * columnStride + s * slabStride + k * depthStride] for one of the panels. T is what is multiplied,
// S what is stored; of bf16 that is multiplied as floats one of the strides of columns and depth is 1.
template <class T, class S>
void packPanel(Panels<T>& panels, int64_t index, const S* source, int64_t columnStride, int64_t slabStride, int64_t depthStride) {
  constexpr int64_t lanes = 64 / sizeof(Word<T>),
                    slice = kWidenedDepth;  // every panel is lanes wide or a multiple; a slice of it stays in the L1 cache
  const int64_t words = ceilDiv(panels.values, kWordValues<T>);
  for (int64_t s = 0; s < panels.slabs; ++s) {
    for (int64_t j = 0; j < panels.width; j += lanes)
      for (int64_t k = 0; k < words; k += slice) {
        const int64_t column = index * panels.width + j;
        copyColumns<T, lanes>(panels.panel(index) + (s * panels.depth + k) * panels.width + j, panels.width,
                              source + column * columnStride + s * slabStride + k * kWordValues<T> * depthStride,
                              std::clamp<int64_t>(panels.columns - column, 0, lanes), columnStride,
                              std::min(slice * kWordValues<T>, panels.values - k * kWordValues<T>), depthStride);
      }
    Word<T>* slab = panels.panel(index) + s * panels.depth * panels.width;
    std::fill(slab + words * panels.width, slab + panels.depth * panels.width, Word<T>{0});
  }
}
template <class T, class S>
void pack(Panels<T>& panels, const S* source, int64_t columnStride, int64_t slabStride, int64_t depthStride) {
  parallelFor(panels.count, [&](int64_t index) { packPanel(panels, index, source, columnStride, slabStride, depthStride); });
}

// Rows as a kernel reads them: of those that end before a panel's depth does, and of groups that it wants evenly spaced and that are not,
// the table then points to copies, which are returned.
template <class T>
UnitScratch<T> copyUneven(const Panels<T>& panels, std::vector<const T*>& table, int64_t stride, int64_t rows) {
  const int64_t length = panels.depth * kWordValues<T>, group = panels.kernel.spaced, size = static_cast<int64_t>(table.size());
  const bool whole = length == panels.reach;
  if (whole && group == 1) return UnitScratch<T>(0);
  const auto even = [&](int64_t first) {
    const auto at = [&](int64_t i) { return reinterpret_cast<intptr_t>(table[first + i]); };
    for (int64_t i = 2; i < group; ++i)
      if (at(i) - at(i - 1) != at(1) - at(0)) return false;
    return true;
  };
  std::vector<int64_t> uneven;
  for (int64_t first = 0; first < size; first += group) {
    const int64_t valid = rows - first % stride;
    if (valid > 0 && (!whole || valid < group || !even(first))) uneven.push_back(first);
  }
  UnitScratch<T> copies(static_cast<int64_t>(uneven.size()) * group * length);
  T* to = copies.data();
  for (const int64_t first : uneven)
    for (int64_t i = first; i < first + group; ++i, to += length) {
      if (i % stride < rows) std::fill(std::copy_n(table[i], panels.values, to), to + length, T{0});
      table[i] = to;
    }
  return copies;
}

// Values that lie side by side.
template <class S>
struct Values {
  const S* first;
  int64_t count;
};

// Rows of so many values as what is multiplied: where that is not how they are stored, copies. Most rows lie in `values` and overlap as
// windows do, so that what lies between the first and the last of them is copied, unless this is more than the rows themselves.
template <class T, class S>
class Factors {
 public:
  Factors(const std::vector<const S*>& rows, int64_t length, Values<S> values) : table(rows.size()), copies_(0) {
    const std::less<const S*> before;
    const auto inside = [&](const S* row) { return !before(row, values.first) && before(row, values.first + values.count); };
    const S *low = nullptr, *high = nullptr;
    int64_t outside = 0;
    for (const S* row : rows) {
      if (!inside(row)) {
        ++outside;
        continue;
      }
      if (low == nullptr || row < low) low = row;
      if (high == nullptr || row > high) high = row;
    }
    const int64_t all = static_cast<int64_t>(rows.size()) - outside, stretch = low == nullptr ? 0 : high - low + length;
    const bool whole = stretch < all * length;
    copies_ = UnitScratch<T>((whole ? stretch : all * length) + outside * length);
    T* to = copies_.data();
    if (whole) {
      widen(to, low, stretch);
      to += stretch;
    }
    // The row of zeros comes often, one after the other.
    const S* last = nullptr;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (whole && inside(rows[i])) {
        table[i] = copies_.data() + (rows[i] - low);
        continue;
      }
      if (rows[i] != last) {
        widen(to, rows[i], length);
        to += length;
        last = rows[i];
      }
      table[i] = to - length;
    }
  }
  std::vector<const T*> table;

 private:
  UnitScratch<T> copies_;
};
template <class T>
class Factors<T, T> {
 public:
  Factors(std::vector<const T*>& rows, int64_t, Values<T>) : table(rows) {}
  std::vector<const T*>& table;
};

// Rows of words in memory that are evenly spaced, as are their words.
template <class T>
struct Lines {
  const Word<T>* first;
  int64_t apart, step, count, depth;
};

// Rows of which pointers are made at a time: a multiple of what any kernel takes.
constexpr int64_t kTableRows = 96;

// out[i * outApart + j] = the sum along the depth of row i times column j of a panel, of which there are `columns`, or is increased by it.
// Rows behind the last, up to a multiple of the kernel's, must be readable.
template <class T, class Out>
void multiplyLines(const TileKernel<T, Out>& kernel, const Lines<T>& lines, const Word<T>* panel, int64_t columns, Out* out,
                   int64_t outApart, bool accumulate) {
  static_assert(kTableRows % kMaxTileRows == 0);
  const T* rows[kTableRows];
  Out* outputs[kTableRows];
  const int32_t tap = 0;
  for (int64_t first = 0; first < lines.count; first += kTableRows) {
    const int64_t count = std::min(kTableRows, lines.count - first);
    for (int64_t i = 0; i < ceilDiv(count, kernel.rows) * kernel.rows; ++i)
      rows[i] = reinterpret_cast<const T*>(lines.first + (first + i) * lines.apart);
    for (int64_t i = 0; i < count; ++i) outputs[i] = out + (first + i) * outApart;
    kernel.run({rows, 0, lines.step, 1, &tap, lines.depth, panel, outputs, count, static_cast<int>(columns), nullptr, accumulate});
  }
}

// T is what is multiplied, S what rows and results are stored as. For 0 <= m < count: out(m)[j] = bias[j] + sum over taps t and depth k of
// row(m, t)[k] * panels[tapIndex[t]][k][j], or the norm of it. fill(first, rows, table, stride, scratch) writes the row pointers table[t *
// stride + i] of rows first + i, most of which lie in `values`; scratch holds scratchPerRow elements a row, and 64 bytes more.
template <class T, class S, class Fill, class Out>
void multiplyRows(int64_t count, const std::vector<int32_t>& tapIndex, Panels<T>& panels, const Accumulator<S>* bias,
                  const ResultNorm<S>* norm, Values<S> values, int64_t scratchPerRow, Fill fill, Out out) {
  if (count == 0) return;
  const TileKernel<T, S>& kernel = tileKernel<T, S>(panels.columns);
  const int64_t taps = static_cast<int64_t>(tapIndex.size());
  const int64_t tapBytes = panels.depth * panels.width * static_cast<int64_t>(sizeof(Word<T>));
  // So many taps at a time that their part of a panel stays in the L2 cache while a block's rows pass; all where sums cannot wait in out.
  const int64_t fittingTaps = std::is_same_v<S, Accumulator<S>> ? kPanelBytes / std::max<int64_t>(1, tapBytes) : taps;
  const int64_t tapsAtOnce = std::max<int64_t>(1, fittingTaps);
  // Rows of a block stay in the L2 cache while panels pass; 12 is a multiple of the heights of tiles in vectors. What is too large to stay
  // comes again for every block: there blocks take more of the cache, so that it comes less often.
  const bool returns = std::min(tapsAtOnce, taps) * tapBytes > kPanelBytes;
  const int64_t multiple = std::max(12, kernel.rows), blockBytes = (returns ? 768 : 384) * 1024;
  const int64_t fitting = blockBytes / (panels.depth * static_cast<int64_t>(sizeof(Word<T>))) / multiple * multiple;
  const int64_t parts = ceilDiv(count, std::clamp<int64_t>(fitting, 2 * multiple, returns ? 192 : 96));
  const Blocks blocks(count, kernel.rows, parts);
  const int64_t groups = std::clamp<int64_t>(ceilDiv(kUnitsPerThread * threads(), blocks.count), 1, panels.count);
  parallelFor(blocks.count * groups, [&](int64_t unit) {
    const TileRegisters registers(kernel);
    // Consecutive units share a panel group, so that large weights are read once per group, not once per block.
    const int64_t index = unit % blocks.count, first = blocks.first(index), rows = blocks.rows(index), group = unit / blocks.count;
    const int64_t stride = ceilDiv(rows, kernel.rows) * kernel.rows;
    std::vector<const S*> stored(stride * taps);
    const UnitScratch<S> scratch(scratchPerRow == 0 ? 0 : rows * scratchPerRow + 64 / sizeof(S));
    std::vector<S*> outputs(stride);
    fill(first, rows, stored.data(), stride, scratch.data());
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t i = rows; i < stride; ++i) stored[t * stride + i] = stored[t * stride + rows - 1];
    Factors<T, S> factors(stored, panels.values, values);
    std::vector<const T*>& table = factors.table;
    const auto copies = copyUneven(panels, table, stride, rows);
    for (int64_t i = 0; i < rows; ++i) outputs[i] = out(first + i);
    for (int64_t p = panels.count * group / groups; p < panels.count * (group + 1) / groups; ++p) {
      const int64_t column = p * panels.width;
      // Without a tap, as some pixels of an input gradient are, sums are zeros that are written too.
      for (int64_t tap = 0; tap == 0 || tap < taps; tap += tapsAtOnce) {
        TileCall<T, S> call{table.data() + tap * stride,
                            stride,
                            1,
                            std::min(tapsAtOnce, taps - tap),
                            tapIndex.data() + tap,
                            panels.depth,
                            panels.panel(p),
                            outputs.data(),
                            rows,
                            static_cast<int>(std::min(panels.width, panels.columns - column)),
                            nullptr,
                            tap > 0};
        call.outShift = column;
        if (tap + call.taps == taps) {
          if (bias != nullptr) call.bias = bias + column;
          if (norm != nullptr) {
            call.bias = norm->shift + column;
            call.scale = norm->scale + column;
            call.relu = norm->relu;
            call.residual = norm->residual;
            call.y = norm->y;
          }
        }
        // A panel that is a group passes through the blocks of consecutive units before the next is needed.
        if (taps == panels.slabs) {
          const bool alone = groups == panels.count;
          call.fetchBehind(panels.width, alone ? first / kernel.rows : 0, alone ? blocks.tiles : stride / kernel.rows, panels.end());
        }
        kernel.run(call);
      }
    }
  });
}

}  // namespace densecl::cpu
