// bf16 and E4M3 on the CPU: values between them and f32, and ops that are computed on f32 copies.
#pragma once
#include "../core/call.h"
#include "../core/e4m3.h"

namespace densecl::cpu {

// By the calling thread.
void widen(float* out, const bf16* in, int64_t count);
void narrow(bf16* out, const float* in, int64_t count);
void widen(float* out, const e4m3* in, int64_t count);
void widen(bf16* out, const e4m3* in, int64_t count);
void narrow(e4m3* out, const float* in, int64_t count);

// Runs an op that has no loops of its own for bf16: on copies of its tensors in f32, of which results are rounded once. Tensors that it
// writes must be written whole.
void runWidened(OpFunction op, const Call& call);

// Whether an op is to be run so: it has tensors of bf16, and loops for f32 and f64 alone.
bool needsWidening(const Call& call);

}  // namespace densecl::cpu
