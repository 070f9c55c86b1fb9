// bf16 and E4M3 on the CPU: values between them and f32, and ops that are computed on f32 copies.
#pragma once
#include "../core/call.h"
#include "../core/e4m3.h"
#include "../core/parallel.h"
#include "../core/scratch.h"

namespace densecl::cpu {

// By the calling thread.
void widen(float* out, const bf16* in, int64_t count);
void narrow(bf16* out, const float* in, int64_t count);
void widen(float* out, const e4m3* in, int64_t count);
void widen(bf16* out, const e4m3* in, int64_t count);
void narrow(e4m3* out, const float* in, int64_t count);

// Values of S as T: where they are stored, or floats of bf16, in memory of their own.
template <class T, class S>
class As {
 public:
  As(const S* values, int64_t count) : copies_(count), data_(copies_.data()) {
    parallelRange(count, 1 << 15, [&](int64_t begin, int64_t end) { widen(copies_.data() + begin, values + begin, end - begin); });
  }
  const T* data() const { return data_; }

 private:
  Scratch<T> copies_;
  const T* data_;
};
template <class T>
class As<T, T> {
 public:
  As(const T* values, int64_t) : data_(values) {}
  const T* data() const { return data_; }

 private:
  const T* data_;
};

// Runs an op that has no loops of its own for bf16: on copies of its tensors in f32, of which results are rounded once. Tensors that it
// writes must be written whole.
void runWidened(OpFunction op, const Call& call);

// Whether an op is to be run so: it has tensors of bf16, and loops for f32 and f64 alone.
bool needsWidening(const Call& call);

}  // namespace densecl::cpu
