// Loops over tensors of one shape up to broadcasting: each operand's shape, aligned to the right, has in every dimension the size of the
// loop or 1 (NumPy's rules). Neighbouring dimensions that every operand passes in one step are made one, so that most calls have one
// or two dimensions, and the last one has stride 0 or 1 for every operand.
#pragma once
#include <array>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "error.h"

namespace densecl {

constexpr int kMaxLoopRank = 8;

// Of kOperands contiguous tensors, in elements. Dimension `rank - 1` is the innermost.
template <int kOperands>
struct StridedLoop {
  int rank = 0;
  int64_t count = 1;  // elements of the loop
  int64_t size[kMaxLoopRank];
  int64_t stride[kMaxLoopRank][kOperands];

  int64_t inner() const { return size[rank - 1]; }
};

inline std::string written(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ",") + std::to_string(shape[i]);
  return text + "]";
}

// The loop over `shape` of operands of these shapes.
template <size_t kOperands>
StridedLoop<static_cast<int>(kOperands)> stridedLoop(const char* op, const std::vector<int64_t>& shape,
                                                     const std::array<const std::vector<int64_t>*, kOperands>& operands) {
  StridedLoop<static_cast<int>(kOperands)> loop;
  // From the innermost dimension outwards, so the lists are reversed at the end.
  std::array<int64_t, kOperands> passed;
  passed.fill(1);
  const auto refuse = [&](const std::vector<int64_t>& own) {
    throw Error("SHAPE", std::string(op) + ": " + written(own) + " does not broadcast to " + written(shape));
  };
  for (const std::vector<int64_t>* own : operands)
    if (own->size() > shape.size()) refuse(*own);
  for (size_t i = 0; i < shape.size(); ++i) {
    const int64_t size = shape[shape.size() - 1 - i];
    loop.count *= size;
    std::array<int64_t, kOperands> stride;
    for (size_t k = 0; k < kOperands; ++k) {
      const std::vector<int64_t>& own = *operands[k];
      const int64_t length = i < own.size() ? own[own.size() - 1 - i] : 1;
      if (length != size && length != 1) refuse(own);
      stride[k] = length == 1 ? 0 : passed[k];
      passed[k] *= length;
    }
    if (size == 1) continue;
    bool joins = loop.rank > 0;
    for (size_t k = 0; joins && k < kOperands; ++k) joins = stride[k] == loop.stride[loop.rank - 1][k] * loop.size[loop.rank - 1];
    if (joins) {
      loop.size[loop.rank - 1] *= size;
      continue;
    }
    REQUIRE(loop.rank < kMaxLoopRank, "SHAPE", std::string(op) + ": more than 8 dimensions are broadcast each in its own way");
    loop.size[loop.rank] = size;
    for (size_t k = 0; k < kOperands; ++k) loop.stride[loop.rank][k] = stride[k];
    ++loop.rank;
  }
  if (loop.rank == 0) {
    loop.size[0] = 1;
    for (size_t k = 0; k < kOperands; ++k) loop.stride[0][k] = 0;
    loop.rank = 1;
  }
  for (int i = 0, j = loop.rank - 1; i < j; ++i, --j) {
    std::swap(loop.size[i], loop.size[j]);
    for (size_t k = 0; k < kOperands; ++k) std::swap(loop.stride[i][k], loop.stride[j][k]);
  }
  return loop;
}

}  // namespace densecl
