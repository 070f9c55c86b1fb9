// What the weight gradients of a convolution have in common: channels of dy as rows of the tile kernel, which run along the pixels.
#pragma once
#include <vector>

#include "gemm.h"

namespace densecl::cpu {

// Some channels of dy at a block of pixels. T is what is multiplied, S what dy is stored as.
template <class T, class S>
class GradientRows {
 public:
  using A = Accumulator<T>;

  // `block` is the most words of pixels that are read at a time.
  GradientRows(const TileKernel<T, A>& kernel, int64_t channels, int64_t block)
      : kernel_(kernel),
        along_(kernel.spaced > 1),
        channels_(channels),
        apart_((along_ ? block : channels) + kApart),
        words_((along_ ? ceilDiv(channels, kernel.rows) * kernel.rows : block) * apart_),
        zeros_(channels, S{0}) {}

  // Of the pixels whose channels begin at `pixels`, to which pixels of zeros are added up to a whole depth of the kernel.
  void read(std::vector<const S*>& pixels) {
    depth_ = ceilDiv(ceilDiv(static_cast<int64_t>(pixels.size()), kWordValues<T>), kernel_.depth) * kernel_.depth;
    pixels.resize(depth_ * kWordValues<T>, zeros_.data());
    if (along_)
      copyAcross(words_.data(), apart_, pixels.data(), depth_, channels_);
    else
      copyRows(words_.data(), apart_, pixels.data(), depth_, channels_);
  }
  // Words of pixels that were read, and those of zeros behind them.
  int64_t depth() const { return depth_; }

  // out[o * outApart + j] = the sum over the pixels of dy[pixel, o] * panel[pixel][j] for `columns` columns, or is increased by it.
  void multiply(const Word<T>* panel, int64_t columns, A* out, int64_t outApart, bool accumulate) const {
    multiplyLines(kernel_, {words_.data(), along_ ? apart_ : 1, along_ ? 1 : apart_, channels_, depth_}, panel, columns, out, outApart,
                  accumulate);
  }

 private:
  // Rows are copied so far apart that those of a block do not drive each other out of the cache, and that a tile may read beyond.
  static constexpr int64_t kApart = 16;

  const TileKernel<T, A>& kernel_;
  const bool along_;  // memory, else across it
  const int64_t channels_, apart_;
  int64_t depth_ = 0;
  UnitScratch<Word<T>> words_;
  std::vector<S> zeros_;
};

}  // namespace densecl::cpu
