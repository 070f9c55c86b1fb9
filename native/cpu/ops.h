// Every op of the CPU device, which is the definition of that op.
#pragma once
#include "../core/bf16.h"
#include "../core/call.h"

namespace densecl::cpu {
#define OP(name, ...) void name(const Call& call);
#include "../core/ops.def"
#undef OP

// Device::keptBytes: of the weights of conv2dNorm.
size_t keptBytes(const Call& call, const Tensor*& holder);

// Calls body(T{}) with the C++ type of a floating dtype that is computed in as it is.
template <class F>
void dispatchFloat(const Call& call, DType dtype, F body) {
  if (dtype == DType::f32) return body(float{});
  if (dtype == DType::f64) return body(double{});
  throw Error("DTYPE", std::string(call.op) + ": expected f32 or f64 on the CPU but received " + dtypeName(dtype));
}

// The same where loops read and write bf16 too, and compute in Accumulator<T>.
template <class F>
void dispatchStored(const Call& call, DType dtype, F body) {
  if (dtype == DType::bf16) return body(bf16{});
  dispatchFloat(call, dtype, body);
}

}  // namespace densecl::cpu
