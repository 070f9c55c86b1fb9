// What copyStrided is asked for, in the form that is easiest to do: axes of one element are left out, those that are one run of memory on
// both sides are joined, and the last axis is the one along which y is densest.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "call.h"

namespace densecl {

struct StridedCopy {
  struct Axis {
    int64_t size, y, x;  // elements, and strides in elements
  };
  int64_t count = 1, yOffset, xOffset;
  std::vector<Axis> axes;  // one or more where count is not 0

  explicit StridedCopy(const Call& call) {
    using Names = args::copyStrided;
    const std::vector<int64_t> shape = call.integers(Names::shape), yStrides = call.integers(Names::yStrides),
                               xStrides = call.integers(Names::xStrides);
    REQUIRE(yStrides.size() == shape.size() && xStrides.size() == shape.size(), "ARGUMENT",
            "copyStrided: expected as many strides as dimensions of shape, " + std::to_string(shape.size()) + ", but received " +
                std::to_string(yStrides.size()) + " of y and " + std::to_string(xStrides.size()) + " of x");
    yOffset = call.integer(Names::yOffset);
    xOffset = call.integer(Names::xOffset);
    // In floating point, as products of what a call may say overflow integers.
    double elements = 1;
    for (int64_t size : shape) elements *= static_cast<double>(size);
    REQUIRE(elements <= static_cast<double>(call.tensor(Names::y).size()), "SHAPE",
            "copyStrided: expected shape of at most the elements of y " + describe(call.tensor(Names::y)) + " but received " +
                std::to_string(elements));
    for (size_t i = 0; i < shape.size(); ++i) {
      count *= shape[i];
      if (shape[i] != 1) axes.push_back({shape[i], yStrides[i], xStrides[i]});
    }
    if (count == 0) return;
    checkInside(call.tensor(Names::y), "y", yOffset, &Axis::y);
    checkInside(call.tensor(Names::x), "x", xOffset, &Axis::x);
    std::stable_sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return std::abs(a.y) > std::abs(b.y); });
    for (size_t i = axes.size(); i-- > 1;) {
      Axis &outer = axes[i - 1], &inner = axes[i];
      if (outer.y != inner.y * inner.size || outer.x != inner.x * inner.size) continue;
      outer = {outer.size * inner.size, inner.y, inner.x};
      axes.erase(axes.begin() + static_cast<int64_t>(i));
    }
    if (axes.empty()) axes.push_back({1, 1, 1});
  }

  // The axis along which x is dense, where that is not the last; -1 without one.
  int transposed() const {
    if (axes.back().y != 1 || axes.back().x == 1) return -1;
    for (size_t i = 0; i + 1 < axes.size(); ++i)
      if (axes[i].x == 1) return static_cast<int>(i);
    return -1;
  }

 private:
  void checkInside(const Tensor& tensor, const char* name, int64_t offset, int64_t Axis::* stride) const {
    double low = static_cast<double>(offset), high = low;
    for (const Axis& axis : axes) {
      REQUIRE(axis.y != 0, "ARGUMENT", "copyStrided: expected strides of y other than 0");
      const double reach = static_cast<double>(axis.size - 1) * static_cast<double>(axis.*stride);
      (reach < 0 ? low : high) += reach;
    }
    REQUIRE(low >= 0 && high < static_cast<double>(tensor.size()), "RANGE",
            std::string("copyStrided: expected places inside of ") + name + " " + describe(tensor) + " but received elements " +
                std::to_string(static_cast<int64_t>(low)) + " to " + std::to_string(static_cast<int64_t>(high)));
  }
};

}  // namespace densecl
