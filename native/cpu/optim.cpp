// Multi-tensor updates in place, and the queue.
#include <cmath>

#include "../core/parallel.h"
#include "ops.h"

namespace densecl::cpu {

// tensors: P parameters, P gradients, P momentum buffers; numbers: lr, momentum, weight decay, nesterov
//   g += wd * p;  v = momentum * v + g;  p -= lr * (nesterov ? g + momentum * v : v)       (PyTorch's SGD)
void sgd(const Call& call) {
  const size_t count = call.tensors.size() / 3;
  for (size_t k = 0; k < count; ++k) {
    const Tensor &p = call.t(k), &g = call.t(count + k), &v = call.t(2 * count + k);
    dispatchFloat(call, p.dtype, [&](auto zero) {
      using T = decltype(zero);
      const T lr = static_cast<T>(call.number(0)), momentum = static_cast<T>(call.number(1)), decay = static_cast<T>(call.number(2));
      const bool nesterov = call.number(3) != 0;
      T *parameter = p.data<T>(), *velocity = v.data<T>();
      const T* gradient = g.data<T>();
      parallelRange(p.size(), 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const T step = gradient[i] + decay * parameter[i];
          velocity[i] = momentum * velocity[i] + step;
          parameter[i] -= lr * (nesterov ? step + momentum * velocity[i] : velocity[i]);
        }
      });
    });
  }
}

// tensors: P averages, P sources; numbers: m. average = m * average + (1 - m) * source
void ema(const Call& call) {
  const size_t count = call.tensors.size() / 2;
  for (size_t k = 0; k < count; ++k) {
    const Tensor &average = call.t(k), &source = call.t(count + k);
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
