// Every op as CUDA kernels; native/cpu has the definitions and the order of tensors and numbers.
#pragma once
#include "../core/call.h"

namespace densecl::cuda {
#define OP(name, ...) void name(const Call& call);
#include "../core/ops.def"
#undef OP
}  // namespace densecl::cuda
