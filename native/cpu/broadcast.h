// Broadcasting loops of the CPU device (../core/broadcast.h), taken apart into stretches along the innermost dimension.
#pragma once
#include <algorithm>

#include "../core/broadcast.h"
#include "../core/parallel.h"

namespace densecl::cpu {

// Elements that a thread takes at least.
constexpr int64_t kGrain = 1 << 14;

// Calls body(first, offsets, length) for stretches that cover elements [begin, end) of the loop: `first` counts the loop's elements,
// offsets[k] those of operand k.
template <int kOperands, class Body>
void forStretches(const StridedLoop<kOperands>& loop, int64_t begin, int64_t end, Body body) {
  const int64_t inner = loop.inner();
  int64_t index[kMaxLoopRank] = {}, offsets[kOperands] = {};
  int64_t rest = begin;
  for (int axis = loop.rank - 1; axis >= 0; --axis) {
    index[axis] = rest % loop.size[axis];
    rest /= loop.size[axis];
    for (int k = 0; k < kOperands; ++k) offsets[k] += index[axis] * loop.stride[axis][k];
  }
  for (int64_t at = begin; at < end;) {
    const int64_t length = std::min(inner - index[loop.rank - 1], end - at);
    body(at, offsets, length);
    at += length;
    if (at >= end) return;
    // To the first element of the next stretch.
    for (int k = 0; k < kOperands; ++k) offsets[k] -= index[loop.rank - 1] * loop.stride[loop.rank - 1][k];
    index[loop.rank - 1] = 0;
    for (int axis = loop.rank - 2; axis >= 0; --axis) {
      for (int k = 0; k < kOperands; ++k) offsets[k] += loop.stride[axis][k];
      if (++index[axis] < loop.size[axis]) break;
      for (int k = 0; k < kOperands; ++k) offsets[k] -= loop.size[axis] * loop.stride[axis][k];
      index[axis] = 0;
    }
  }
}

// The same for all elements, by several threads.
template <int kOperands, class Body>
void parallelStretches(const StridedLoop<kOperands>& loop, Body body) {
  parallelRange(loop.count, kGrain, [&](int64_t begin, int64_t end) { forStretches(loop, begin, end, body); });
}

}  // namespace densecl::cpu
