#include <algorithm>
#include <cmath>

#include "updates.h"

namespace densecl::cpu {

// norm = sqrt of the sum of the squares of all gradients;  clipped = gradient * min(1, maxNorm / norm)      (Pascanu et al.,
// arXiv:1211.5063)
void clipByGlobalNorm(const Call& call) {
  using Names = args::clipByGlobalNorm;
  const auto gradients = call.list(Names::gradients), clipped = call.list(Names::clipped);
  requireAlike(call, "gradients", gradients, "clipped", clipped);
  double squares = 0;
  for (const Tensor* gradient : gradients)
    dispatchFloat(call, gradient->dtype, [&](auto zero) {
      const auto* values = gradient->data<decltype(zero)>();
      squares += chunkedSum(gradient->size(), [=](int64_t i) { return static_cast<double>(values[i]) * values[i]; });
    });
  const double norm = std::sqrt(squares), factor = std::min(1.0, call.number(Names::maxNorm) / norm);  // 1 of a NaN
  const Tensor& out = call.tensor(Names::norm);
  dispatchFloat(call, out.dtype, [&](auto zero) { out.data<decltype(zero)>()[0] = static_cast<decltype(zero)>(norm); });
  for (size_t k = 0; k < gradients.size(); ++k)
    dispatchFloat(call, gradients[k]->dtype, [&](auto zero) {
      using T = decltype(zero);
      const T *in = gradients[k]->data<T>(), by = static_cast<T>(factor);
      T* to = clipped[k]->data<T>();
      parallelRange(gradients[k]->size(), 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] = by * in[i];
      });
    });
}

}  // namespace densecl::cpu
