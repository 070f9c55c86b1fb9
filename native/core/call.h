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
  // Where the tensors are: the addon has checked that they share one.
  Device& device() const {
    for (const Tensor* tensor : tensors)
      if (tensor != nullptr) return tensor->storage->device;
    throw Error("INTERNAL", std::string(op) + ": no tensors");
  }
  const Tensor* optional(size_t i) const { return i < tensors.size() ? tensors[i] : nullptr; }
  double number(size_t i) const {
    require(i < numbers.size(), "INTERNAL", std::string(op) + ": number " + std::to_string(i) + " is missing");
    return numbers[i];
  }
  int64_t integer(size_t i) const { return static_cast<int64_t>(number(i)); }
};

using OpFunction = void (*)(const Call&);

}  // namespace densecl
