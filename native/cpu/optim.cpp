// Multi-tensor updates in place, and the queue.
#include <atomic>
#include <cmath>

#include "../core/parallel.h"
#include "ops.h"

namespace densecl::cpu {

// tensors: lr [1], foundInf i32 [1] or null, then for each parameter: p, gradient, momentum buffer, bf16 copy of p or null, moving
// average or null, bf16 copy of it or null; numbers: momentum, weight decay, nesterov, momentum of the averages
//   g += wd * p;  v = momentum * v + g;  p -= lr * (nesterov ? g + momentum * v : v)       (PyTorch's SGD)
//   average = m * average + (1 - m) * p
// Nothing changes when `foundInf` is not 0.
void sgd(const Call& call) {
  if (call.optional(1) != nullptr && call.t(1).data<int32_t>()[0] != 0) return;
  for (size_t k = 2; k < call.tensors.size(); k += 6) {
    const Tensor &p = call.t(k), &g = call.t(k + 1), &v = call.t(k + 2), *average = call.optional(k + 4);
    require(call.optional(k + 3) == nullptr && call.optional(k + 5) == nullptr, "DTYPE", "sgd: bf16 copies are of no use on the CPU");
    dispatchFloat(call, p.dtype, [&](auto zero) {
      using T = decltype(zero);
      const T lr = call.t(0).data<T>()[0], momentum = static_cast<T>(call.number(0)), decay = static_cast<T>(call.number(1));
      const T keep = static_cast<T>(call.number(3)), take = static_cast<T>(1 - call.number(3));
      const bool nesterov = call.number(2) != 0;
      T *parameter = p.data<T>(), *velocity = v.data<T>(), *mean = average == nullptr ? nullptr : average->data<T>();
      const T* gradient = g.data<T>();
      parallelRange(p.size(), 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const T step = gradient[i] + decay * parameter[i];
          velocity[i] = momentum * velocity[i] + step;
          parameter[i] -= lr * (nesterov ? step + momentum * velocity[i] : velocity[i]);
        }
        if (mean != nullptr)
          for (int64_t i = begin; i < end; ++i) mean[i] = keep * mean[i] + take * parameter[i];
      });
    });
  }
}

// tensors: for each average: average, source, bf16 copy of the average or null; numbers: m
//   average = m * average + (1 - m) * source
void ema(const Call& call) {
  for (size_t k = 0; k < call.tensors.size(); k += 3) {
    const Tensor &average = call.t(k), &source = call.t(k + 1);
    require(call.optional(k + 2) == nullptr, "DTYPE", "ema: bf16 copies are of no use on the CPU");
    dispatchFloat(call, average.dtype, [&](auto zero) {
      using T = decltype(zero);
      const T keep = static_cast<T>(call.number(0)), take = static_cast<T>(1 - call.number(0));
      T* out = average.data<T>();
      const T* in = source.data<T>();
      parallelRange(average.size(), 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) out[i] = keep * out[i] + take * in[i];
      });
    });
  }
}

// tensors: foundInf i32 [1], any number of tensors. Sets `foundInf` to 1 when one of them holds an infinity or NaN; never to 0.
void checkFinite(const Call& call) {
  std::atomic<bool> foundInf{false};
  for (size_t k = 1; k < call.tensors.size(); ++k)
    dispatchFloat(call, call.t(k).dtype, [&](auto zero) {
      using T = decltype(zero);
      const T* values = call.t(k).data<T>();
      parallelRange(call.t(k).size(), 1 << 14, [&](int64_t begin, int64_t end) {
        T sum{0};  // of zeros, unless a value is not finite
        for (int64_t i = begin; i < end; ++i) sum += values[i] - values[i];
        if (!(sum == T{0})) foundInf = true;
      });
    });
  if (foundInf) call.t(0).data<int32_t>()[0] = 1;
}

// tensors: queue [K, D], pointer i32 [1], keys [B, D]. Row i of keys goes to (pointer + i) mod K; pointer += B mod K. When
// B > K the last K rows remain.
void enqueue(const Call& call) {
  const Tensor &queue = call.t(0), &pointer = call.t(1), &keys = call.t(2);
  const int64_t K = queue.dim(0), D = queue.dim(1), B = keys.dim(0);
  int32_t& at = pointer.data<int32_t>()[0];
  require(at >= 0 && at < K, "RANGE", "enqueue: the pointer " + std::to_string(at) + " is outside of a queue of " + std::to_string(K));
  dispatchFloat(call, queue.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < B; ++i) std::copy_n(keys.data<T>() + i * D, D, queue.data<T>() + (at + i) % K * D);
  });
  at = static_cast<int32_t>((at + B) % K);
}

}  // namespace densecl::cpu
