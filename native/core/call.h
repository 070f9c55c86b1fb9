// What an op receives: its tensors (outputs first, then inputs; an absent optional tensor is null) and its numbers.
#pragma once
#include <vector>

#include "allocator.h"
#include "tensor.h"

namespace densecl {

struct Call {
  const char* op;
  std::vector<const Tensor*> tensors;
  std::vector<double> numbers;

  const Tensor& t(size_t i) const {
    require(i < tensors.size() && tensors[i] != nullptr, "INTERNAL", std::string(op) + ": tensor " + std::to_string(i) + " is missing");
    return *tensors[i];
  }
  const Tensor* optional(size_t i) const { return i < tensors.size() ? tensors[i] : nullptr; }
  double number(size_t i) const {
    require(i < numbers.size(), "INTERNAL", std::string(op) + ": number " + std::to_string(i) + " is missing");
    return numbers[i];
  }
  int64_t integer(size_t i) const { return static_cast<int64_t>(number(i)); }
};

// Calls body(T{}) with the C++ type of a floating dtype.
template <class F>
void dispatchFloat(const Call& call, DType dtype, F body) {
  if (dtype == DType::f32) return body(float{});
  if (dtype == DType::f64) return body(double{});
  throw Error("DTYPE", std::string(call.op) + ": expected f32 or f64 but received " + dtypeName(dtype));
}

using OpFunction = void (*)(const Call&);

}  // namespace densecl
