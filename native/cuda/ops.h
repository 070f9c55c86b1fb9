// Every op as CUDA kernels; native/cpu has the definitions.
#pragma once
#include "../core/call.h"

namespace densecl::cuda {
#define OP(name, ...) void name(const Call& call);
#include "../core/ops.def"
#undef OP

// y = x in y's dtype, for ops that compute in another one.
void convertTensor(const Call& call, const Tensor& out, const Tensor& in);
}  // namespace densecl::cuda
