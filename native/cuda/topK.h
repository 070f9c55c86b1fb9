#pragma once
#include "ops.h"

namespace densecl::cuda {

// order[row, i] = the index of the i-th score of each row of n, which is the last axis: descending, a NaN before all numbers, equal ones by
// their index.
void orderRows(const Call& call, int32_t* order, const Tensor& scores);

}  // namespace densecl::cuda
