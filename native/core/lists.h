// Lists of tensors that belong together, and the checks that a type of ops.def cannot say, for every device.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "call.h"

namespace densecl {

// As many tensors as `first` has, each of its size or absent.
inline void requireAlike(const Call& call, const char* firstName, const std::vector<const Tensor*>& first, const char* name,
                         const std::vector<const Tensor*>& list) {
  REQUIRE(list.size() == first.size(), "ARGUMENT",
          std::string(call.op) + ": expected " + std::to_string(first.size()) + " " + name + ", one for each of " + firstName +
              ", but received " + std::to_string(list.size()));
  for (size_t i = 0; i < list.size(); ++i)
    REQUIRE(list[i] == nullptr || list[i]->shape == first[i]->shape, "SHAPE",
            std::string(call.op) + ": expected " + name + "[" + std::to_string(i) + "] of the shape of " + firstName + " " +
                describe(*first[i]) + " but received " + (list[i] == nullptr ? "" : describe(*list[i])));
}

// What every optimiser of ops.def updates, by the same names: parameters by gradients, and what follows them.
template <class Names>
struct UpdatedTensors {
  std::vector<const Tensor*> parameters, gradients, copies, averages, averageCopies;

  explicit UpdatedTensors(const Call& call)
      : parameters(call.list(Names::parameters)),
        gradients(call.list(Names::gradients)),
        copies(call.list(Names::copies)),
        averages(call.list(Names::averages)),
        averageCopies(call.list(Names::averageCopies)) {
    requireAlike(call, "parameters", parameters, "gradients", gradients);
    requireAlike(call, "parameters", parameters, "copies", copies);
    requireAlike(call, "parameters", parameters, "averages", averages);
    requireAlike(call, "parameters", parameters, "averageCopies", averageCopies);
  }
  // A list of the optimiser's own, one for each parameter.
  std::vector<const Tensor*> also(const Call& call, const char* name, std::vector<const Tensor*> list) const {
    requireAlike(call, "parameters", parameters, name, list);
    return list;
  }
  // A word for each parameter.
  std::vector<int64_t> flags(const Call& call, const char* name, std::vector<int64_t> list) const {
    REQUIRE(list.size() == parameters.size(), "ARGUMENT",
            std::string(call.op) + ": expected " + std::to_string(parameters.size()) + " " + name +
                ", one for each of parameters, but received " + std::to_string(list.size()));
    return list;
  }
};

struct EmaTensors {
  std::vector<const Tensor*> averages, sources, copies;

  explicit EmaTensors(const Call& call)
      : averages(call.list(args::ema::averages)), sources(call.list(args::ema::sources)), copies(call.list(args::ema::copies)) {
    requireAlike(call, "averages", averages, "sources", sources);
    requireAlike(call, "averages", averages, "copies", copies);
  }
};

}  // namespace densecl
