#include "topK.h"

#include "../core/parallel.h"
#include "ops.h"

namespace densecl::cpu {

// values[s, i] = x[s, index[s, i]], the K first of each row in descending order.
void topK(const Call& call) {
  using args::topK;
  const Tensor &values = call.tensor(topK::values), &index = call.tensor(topK::index), &x = call.tensor(topK::x);
  const int64_t n = x.columns(), k = values.columns();
  REQUIRE(k <= n && n < (int64_t{1} << 31), "SHAPE",
          "topK: expected at most the " + std::to_string(n) + " elements of a row but received values " + describe(values));
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelRange(values.rows(), std::max<int64_t>(1, 1024 / std::max<int64_t>(n, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int32_t* order = index.data<int32_t>() + row * k;
        cpu::order(order, x.data<T>() + row * n, n, k);
        for (int64_t i = 0; i < k; ++i) values.data<T>()[row * k + i] = x.data<T>()[row * n + order[i]];
      }
    });
  });
}

}  // namespace densecl::cpu
