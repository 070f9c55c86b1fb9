// What an op receives: its tensors and numbers, read by the names of ops.def.
#pragma once
#include <type_traits>
#include <vector>

#include "allocator.h"
#include "args.h"
#include "signature.h"
#include "tensor.h"

namespace densecl {

struct Call {
  const char* op;
  int index = -1;  // of ops.def; -1 for work that is no op
  // The tensors of all parameters, one after another; an absent optional one is null. Numbers in the same way.
  std::vector<const Tensor*> tensors;
  std::vector<double> numbers;
  // Where each parameter's begin, and the end.
  std::vector<uint32_t> firstTensor, firstNumber;

  // const Tensor& weight = call.tensor(args::conv2d::weight)
  template <class Name>
  const Tensor& tensor(Name name) const {
    const Tensor* found = optional(name);
    REQUIRE(found != nullptr, "INTERNAL", std::string(op) + ": reads an optional tensor that is absent as if it were not");
    return *found;
  }
  template <class Name>
  const Tensor* optional(Name name) const {
    return tensors[firstTensor[position(name)]];
  }
  template <class Name>
  std::vector<const Tensor*> list(Name name) const {
    const size_t at = position(name);
    return {tensors.begin() + firstTensor[at], tensors.begin() + firstTensor[at + 1]};
  }
  template <class Name>
  double number(Name name) const {
    return numbers[firstNumber[position(name)]];
  }
  template <class Name>
  int64_t integer(Name name) const {
    return static_cast<int64_t>(number(name));
  }
  template <class Name>
  bool flag(Name name) const {
    return number(name) != 0;
  }
  template <class Name>
  std::vector<int64_t> integers(Name name) const {
    const size_t at = position(name);
    return {numbers.begin() + firstNumber[at], numbers.begin() + firstNumber[at + 1]};
  }

  // Where the tensors are: the addon has checked that they share one.
  Device& device() const {
    for (const Tensor* tensor : tensors)
      if (tensor != nullptr) return tensor->storage->device;
    throw Error("INTERNAL", std::string(op) + ": no tensors");
  }

 private:
  template <class Name>
  size_t position(Name name) const {
    static_assert(std::is_enum_v<Name>, "a name of ops.def, such as args::conv2d::weight");
    REQUIRE(static_cast<int>(name) >> args::kPositionBits == index, "INTERNAL", std::string(op) + ": reads a name of another op");
    return static_cast<size_t>(static_cast<int>(name) & ((1 << args::kPositionBits) - 1));
  }
};

using OpFunction = void (*)(const Call&);

}  // namespace densecl
