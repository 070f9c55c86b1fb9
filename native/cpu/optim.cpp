// Multi-tensor updates in place, and the queue.
#include <atomic>
#include <cmath>

#include "isa.h"
#include "updates.h"

namespace densecl::cpu {
namespace {

template <class T>
struct Values {
  const T* values;
  int64_t count;
};
// x - x is 0 for finite numbers alone.
template <class T>
INLINE bool finiteLoop(const Values<T>& job) {
  int bad = 0;
  for (int64_t i = 0; i < job.count; ++i) {
    const Accumulator<T> value = job.values[i];
    bad |= value - value == 0 ? 0 : 1;
  }
  return bad == 0;
}
SIMD(bool, finite, (const Values<float>& job), (job)) { return finiteLoop(job); }
SIMD(bool, finite, (const Values<double>& job), (job)) { return finiteLoop(job); }
SIMD(bool, finite, (const Values<bf16>& job), (job)) { return finiteLoop(job); }

}  // namespace

//   g += wd * p;  v = momentum * v + g;  p -= lr * (nesterov ? g + momentum * v : v)       (PyTorch's SGD)
//   average = averageMomentum * average + (1 - averageMomentum) * p        (of the parameters that have one)
// Nothing changes when foundInf is not 0.
void sgd(const Call& call) {
  using Names = args::sgd;
  const UpdatedTensors<Names> all(call);
  const auto momenta = all.also(call, "momenta", call.list(Names::momenta));
  if (found(call.optional(Names::foundInf))) return;
  const bool nesterov = call.flag(Names::nesterov);
  updateEach(call, all, call.number(Names::averageMomentum), [&](size_t k, auto* p) {
    using T = std::remove_pointer_t<decltype(p)>;
    T* velocity = momenta[k]->data<T>();
    const T *gradient = all.gradients[k]->data<T>(), lr = call.tensor(Names::rate).data<T>()[0];
    const T momentum = static_cast<T>(call.number(Names::momentum)), decay = static_cast<T>(call.number(Names::weightDecay));
    return [=](int64_t i) {
      const T step = gradient[i] + decay * p[i];
      velocity[i] = momentum * velocity[i] + step;
      return p[i] - lr * (nesterov ? step + momentum * velocity[i] : velocity[i]);
    };
  });
}

// average = momentum * average + (1 - momentum) * source
void ema(const Call& call) {
  const EmaTensors all(call);
  const double momentum = call.number(args::ema::momentum);
  for (size_t k = 0; k < all.averages.size(); ++k) {
    const Tensor &average = *all.averages[k], &source = *all.sources[k];
    dispatchFloat(call, average.dtype, [&](auto zero) {
      using T = decltype(zero);
      const T keep = static_cast<T>(momentum), take = static_cast<T>(1 - momentum);
      T* out = average.data<T>();
      const T* in = source.data<T>();
      parallelRange(average.size(), 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) out[i] = keep * out[i] + take * in[i];
        copyRounded(all.copies[k], out, begin, end);
      });
    });
  }
}

// Sets foundInf to 1 when one of the tensors holds an infinity or NaN; never to 0.
void checkFinite(const Call& call) {
  std::atomic<bool> foundInf{false};
  for (const Tensor* tensor : call.list(args::checkFinite::tensors))
    dispatchStored(call, tensor->dtype, [&](auto zero) {
      using T = decltype(zero);
      const T* values = tensor->data<T>();
      parallelRange(tensor->size(), 1 << 14, [&](int64_t begin, int64_t end) {
        if (!finite(Values<T>{values + begin, end - begin})) foundInf = true;
      });
    });
  if (foundInf) call.tensor(args::checkFinite::foundInf).data<int32_t>()[0] = 1;
}

// Row i of keys goes to (pointer + i) mod K; pointer += B mod K. When
// B > K the last K rows remain.
void enqueue(const Call& call) {
  const Tensor &queue = call.tensor(args::enqueue::queue), &pointer = call.tensor(args::enqueue::pointer),
               &keys = call.tensor(args::enqueue::keys);
  const int64_t K = queue.dim(0), D = queue.dim(1), B = keys.dim(0);
  int32_t& at = pointer.data<int32_t>()[0];
  REQUIRE(at >= 0 && at < K, "RANGE", "enqueue: the pointer " + std::to_string(at) + " is outside of a queue of " + std::to_string(K));
  dispatchStored(call, queue.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < B; ++i) std::copy_n(keys.data<T>() + i * D, D, queue.data<T>() + (at + i) % K * D);
  });
  at = static_cast<int32_t>((at + B) % K);
}

}  // namespace densecl::cpu
