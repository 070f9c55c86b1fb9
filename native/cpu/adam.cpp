// Adam (Kingma and Ba, arXiv:1412.6980) and AdamW (Loshchilov and Hutter, arXiv:1711.05101).
#include <cmath>

#include "updates.h"

namespace densecl::cpu {

//   g += weightDecay * p (Adam), or p -= rate * weightDecay * p (decoupled: AdamW)
//   m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g^2
//   p -= rate * (m / (1 - beta1^steps)) / (sqrt(v / (1 - beta2^steps)) + eps)
// Weight decay is for parameters whose word in `decayed` is not 0. Nothing changes when foundInf is not 0, steps among it.
void adam(const Call& call) {
  using Names = args::adam;
  const UpdatedTensors<Names> all(call);
  const auto firstMoments = all.also(call, "firstMoments", call.list(Names::firstMoments)),
             secondMoments = all.also(call, "secondMoments", call.list(Names::secondMoments));
  const auto decayed = all.flags(call, "decayed", call.integers(Names::decayed));
  if (found(call.optional(Names::foundInf))) return;
  const double steps = ++call.tensor(Names::steps).data<int32_t>()[0], beta1 = call.number(Names::beta1), beta2 = call.number(Names::beta2);
  const double correction1 = -std::expm1(steps * std::log(beta1)), correction2 = -std::expm1(steps * std::log(beta2));
  const bool decoupled = call.flag(Names::decoupled);
  updateEach(call, all, call.number(Names::averageMomentum), [&](size_t k, auto* p) {
    using T = std::remove_pointer_t<decltype(p)>;
    T *m = firstMoments[k]->data<T>(), *v = secondMoments[k]->data<T>();
    const T *gradient = all.gradients[k]->data<T>(), rate = call.tensor(Names::rate).data<T>()[0];
    const T decay = static_cast<T>(decayed[k] != 0 ? call.number(Names::weightDecay) : 0), eps = static_cast<T>(call.number(Names::eps));
    const T keep1 = static_cast<T>(beta1), take1 = static_cast<T>(1 - beta1), keep2 = static_cast<T>(beta2),
            take2 = static_cast<T>(1 - beta2);
    const T l2 = decoupled ? T{0} : decay, shrink = decoupled ? rate * decay : T{0};
    const T scale = rate / static_cast<T>(correction1), root = static_cast<T>(1 / std::sqrt(correction2));
    return [=](int64_t i) {
      const T g = gradient[i] + l2 * p[i];
      m[i] = keep1 * m[i] + take1 * g;
      v[i] = keep2 * v[i] + take2 * g * g;
      return p[i] - shrink * p[i] - scale * m[i] / (root * std::sqrt(v[i]) + eps);
    };
  });
}

}  // namespace densecl::cpu
