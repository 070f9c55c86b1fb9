// Every op of the CPU device, which is the definition of that op.
#pragma once
#include "../core/call.h"

namespace densecl::cpu {
#define OP(name) void name(const Call& call);
#include "../core/ops.def"
#undef OP
}  // namespace densecl::cpu
