// What the three products of a convolution have in common: its sizes, and how its windows are walked through and copied.
#pragma once
#include <algorithm>
#include <cstring>
#include <string>

#include "../core/convolution.h"
#include "ops.h"
#include "winograd.h"

namespace densecl::cpu {

struct ConvGeometry : Convolution<int64_t> {
  using Convolution::Convolution;
  // As a filter that Winograd's transforms can take.
  bool isFilter3x3() const { return kh == 3 && kw == 3 && sh == 1 && sw == 1 && ph <= 2 * dh && pw <= 2 * dw; }
  Filter3x3 filter() const { return {n, h, w, c, oh, ow, o, ph, pw, dh, dw}; }
  // With few channels, the taps of a kernel row are one run of memory.
  bool mergeRow() const { return dw == 1 && c < 16 && kw > 1; }
};

// A row-major walk over [N, height, width] from a flat index, without a division per step.
struct Walk {
  int64_t n, y, x, height, width;
  Walk(int64_t index, int64_t height, int64_t width)
      : n(index / (height * width)), y(index / width % height), x(index % width), height(height), width(width) {}
  void next() {
    if (++x < width) return;
    x = 0;
    if (++y < height) return;
    y = 0;
    ++n;
  }
};

// Values that copyWindows may write behind its last row.
template <class T>
constexpr int64_t kSlack = 64 / sizeof(T);

// The windows of `count` pixels from the first on as rows (count, length), with zeros behind their ends; of a convolution that merges rows.
template <class T>
void copyWindows(const ConvGeometry& g, const T* x, int64_t first, int64_t count, T* out, int64_t length) {
  const T* end = x + g.n * g.h * g.w * g.c;
  Walk at(first, g.oh, g.ow);
  for (int64_t i = 0; i < count; ++i, at.next(), out += length) {
    const int64_t left = at.x * g.sw - g.pw, from = std::max<int64_t>(0, left), to = std::min(g.w, left + g.kw);
    T* row = out;
    for (int64_t kh = 0; kh < g.kh; ++kh, row += g.kw * g.c) {
      const int64_t ih = at.y * g.sh - g.ph + kh * g.dh;
      const bool inside = ih >= 0 && ih < g.h && from < to;
      const T* in = x + ((at.n * g.h + ih) * g.w + from) * g.c;
      if (inside && to - from == g.kw && end - in >= g.kw * g.c + kSlack<T>) {
        // By 64 bytes: what is copied too much is overwritten by what follows.
        for (int64_t j = 0; j < g.kw * g.c; j += kSlack<T>) std::memcpy(row + j, in + j, 64);
        continue;
      }
      if (!inside || to - from < g.kw) std::fill_n(row, g.kw * g.c, T{0});
      if (inside) std::copy_n(in, (to - from) * g.c, row + (from - left) * g.c);
    }
    std::fill(row, out + length, T{0});
  }
}

// What only kernels of a GPU read or write.
template <class Name>
void refuse(const Call& call, const char* name, Name at) {
  REQUIRE(call.optional(at) == nullptr, "ARGUMENT", std::string(call.op) + ": expected no " + name + " on the CPU");
}

}  // namespace densecl::cpu
