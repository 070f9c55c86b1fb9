// LARS (You, Gitman and Ginsburg, arXiv:1708.03888), in the form of SimCLR.
#include <cmath>

#include "updates.h"

namespace densecl::cpu {

//   g += weightDecay * p;  local = trust * |p| / |g|, 1 where one of the norms is 0;  v = momentum * v + rate * local * g;  p -= v
// Parameters whose word in `adapted` is 0 (biases and norms) have neither weight decay nor a local rate. Nothing changes when foundInf
// is not 0.
void lars(const Call& call) {
  using Names = args::lars;
  const UpdatedTensors<Names> all(call);
  const auto momenta = all.also(call, "momenta", call.list(Names::momenta));
  const auto adapted = all.flags(call, "adapted", call.integers(Names::adapted));
  if (found(call.optional(Names::foundInf))) return;
  updateEach(call, all, call.number(Names::averageMomentum), [&](size_t k, auto* p) {
    using T = std::remove_pointer_t<decltype(p)>;
    T* v = momenta[k]->data<T>();
    const T* gradient = all.gradients[k]->data<T>();
    const T decay = static_cast<T>(adapted[k] != 0 ? call.number(Names::weightDecay) : 0),
            momentum = static_cast<T>(call.number(Names::momentum));
    double local = 1;
    if (adapted[k] != 0) {
      const int64_t size = all.parameters[k]->size();
      const double weights = chunkedSum(size, [=](int64_t i) { return static_cast<double>(p[i]) * p[i]; });
      const double gradients = chunkedSum(size, [=](int64_t i) {
        const double g = gradient[i] + decay * p[i];
        return g * g;
      });
      if (weights > 0 && gradients > 0) local = call.number(Names::trust) * std::sqrt(weights) / std::sqrt(gradients);
    }
    const T rate = static_cast<T>(local) * call.tensor(Names::rate).data<T>()[0];
    return [=](int64_t i) {
      v[i] = momentum * v[i] + rate * (gradient[i] + decay * p[i]);
      return p[i] - v[i];
    };
  });
}

}  // namespace densecl::cpu
