#pragma once
#include <string>

#include "../core/tensor.h"

namespace densecl::simt {

// Runs the alarm kernel `name` on one block; `at` is where the storing ones store.
void alarm(const std::string& name, const Tensor& out, const Tensor& in, int at);

// The order in which threads run between barriers: as numbered (0), or shuffled from a seed.
void setShuffle(uint64_t seed);

// The compute capability that kernels are chosen for, times 10.
void setCapability(int value);

}  // namespace densecl::simt
