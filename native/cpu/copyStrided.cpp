// copyStrided: y[yOffset + i . yStrides] = x[xOffset + i . xStrides] for every index i of `shape`; bytes are moved without a look at their
// type.
#include <cstring>

#include "../core/parallel.h"
#include "../core/strided.h"
#include "isa.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

constexpr int64_t kGrain = 1 << 15;

// A row-major walk over some axes from a flat index on.
class Walk {
 public:
  Walk(const std::vector<StridedCopy::Axis>& axes, int64_t at) : axes_(axes), index_(axes.size()) {
    for (size_t i = axes.size(); i-- > 0; at /= axes[i].size) {
      index_[i] = at % axes[i].size;
      y += index_[i] * axes[i].y;
      x += index_[i] * axes[i].x;
    }
  }
  void next() {
    for (size_t i = axes_.size(); i-- > 0;) {
      y += axes_[i].y;
      x += axes_[i].x;
      if (++index_[i] < axes_[i].size) return;
      y -= axes_[i].size * axes_[i].y;
      x -= axes_[i].size * axes_[i].x;
      index_[i] = 0;
    }
  }
  int64_t y = 0, x = 0;

 private:
  const std::vector<StridedCopy::Axis>& axes_;
  std::vector<int64_t> index_;
};

template <class Word>
void copyRun(Word* y, const Word* x, const StridedCopy::Axis& axis, int64_t length) {
  if (axis.y == 1 && axis.x == 1) {
    if (length * sizeof(Word) >= 128)
      std::memcpy(y, x, length * sizeof(Word));
    else
      for (int64_t i = 0; i < length; ++i) y[i] = x[i];
  } else if (axis.y == 1 && axis.x == 0) {
    std::fill_n(y, length, *x);
  } else {
    for (int64_t i = 0; i < length; ++i) y[i * axis.y] = x[i * axis.x];
  }
}

template <class Word>
void copyRuns(const StridedCopy& copy, Word* y, const Word* x) {
  const StridedCopy::Axis last = copy.axes.back();
  const std::vector<StridedCopy::Axis> outer(copy.axes.begin(), copy.axes.end() - 1);
  parallelRange(copy.count, kGrain, [&](int64_t begin, int64_t end) {
    Walk at(outer, begin / last.size);
    for (int64_t first = begin % last.size; begin < end; first = 0, at.next()) {
      const int64_t length = std::min(last.size - first, end - begin);
      copyRun(y + at.y + first * last.y, x + at.x + first * last.x, last, length);
      begin += length;
    }
  });
}

// to[r, c] = from[c, r] through a buffer, so that lines of either side are read and written whole.
template <class Word, int64_t kTile>
INLINE void copyTile(Word* to, int64_t toStride, const Word* from, int64_t fromStride, int64_t height, int64_t width) {
  Word tile[kTile][kTile];  // [c][r]
  for (int64_t c = 0; c < width; ++c)
    for (int64_t r = 0; r < height; ++r) tile[c][r] = from[c * fromStride + r];
  for (int64_t r = 0; r < height; ++r)
    for (int64_t c = 0; c < width; ++c) to[r * toStride + c] = tile[c][r];
}

// By tiles of a line of memory on both sides: read element by element, lines that are a power of two apart would drive each
// other out of the cache before they are used up.
template <class Word>
void copyTransposed(const StridedCopy& copy, int dense, Word* y, const Word* x) {
  constexpr int64_t kTile = 64 / sizeof(Word);
  const StridedCopy::Axis rows = copy.axes[dense], columns = copy.axes.back();
  std::vector<StridedCopy::Axis> outer(copy.axes.begin(), copy.axes.end() - 1);
  outer.erase(outer.begin() + dense);
  const int64_t strip = 4 * kTile, strips = (rows.size + strip - 1) / strip, units = copy.count / rows.size / columns.size * strips;
  const int64_t grain = std::max<int64_t>(1, kGrain / (std::min(strip, rows.size) * columns.size));
  parallelRange(units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const Walk at(outer, unit / strips);
      const int64_t firstRow = unit % strips * strip, lastRow = std::min(rows.size, firstRow + strip);
      for (int64_t column = 0; column < columns.size; column += kTile)
        for (int64_t row = firstRow; row < lastRow; row += kTile) {
          const int64_t width = std::min(kTile, columns.size - column), height = std::min(kTile, lastRow - row);
          const Word* from = x + at.x + column * columns.x + row;
          Word* to = y + at.y + row * rows.y + column;
          if (width == kTile && height == kTile)
            copyTile<Word, kTile>(to, rows.y, from, columns.x, kTile, kTile);
          else
            copyTile<Word, kTile>(to, rows.y, from, columns.x, height, width);
        }
    }
  });
}

}  // namespace

void copyStrided(const Call& call) {
  const StridedCopy copy(call);
  if (copy.count == 0) return;
  const Tensor &y = call.tensor(args::copyStrided::y), &x = call.tensor(args::copyStrided::x);
  const auto run = [&](auto zero) {
    using Word = decltype(zero);
    Word* to = y.data<Word>() + copy.yOffset;
    const Word* from = x.data<Word>() + copy.xOffset;
    if (const int dense = copy.transposed(); dense >= 0)
      copyTransposed(copy, dense, to, from);
    else
      copyRuns(copy, to, from);
  };
  switch (itemSize(y.dtype)) {
    case 1: return run(uint8_t{});
    case 2: return run(uint16_t{});
    case 4: return run(uint32_t{});
    default: return run(uint64_t{});
  }
}

}  // namespace densecl::cpu
