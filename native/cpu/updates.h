// What the optimisers of the CPU share: the loop over parameters, with their moving averages.
#pragma once
#include "../core/lists.h"
#include "../core/parallel.h"
#include "ops.h"

namespace densecl::cpu {

inline bool found(const Tensor* foundInf) { return foundInf != nullptr && foundInf->data<int32_t>()[0] != 0; }

// Calls update(k, p) for each parameter k, which gives step(i): the new value of element i. Then average = averageMomentum * average +
// (1 - averageMomentum) * p of those that have one.
template <class Names, class Update>
void updateEach(const Call& call, const UpdatedTensors<Names>& all, double averageMomentum, Update update) {
  for (size_t k = 0; k < all.parameters.size(); ++k) {
    const Tensor &p = *all.parameters[k], *average = all.averages[k];
    REQUIRE(all.copies[k] == nullptr && all.averageCopies[k] == nullptr, "DTYPE",
            std::string(call.op) + ": bf16 copies are of no use on the CPU");
    dispatchFloat(call, p.dtype, [&](auto zero) {
      using T = decltype(zero);
      const T keep = static_cast<T>(averageMomentum), take = static_cast<T>(1 - averageMomentum);
      T *parameter = p.data<T>(), *mean = average == nullptr ? nullptr : average->data<T>();
      const auto step = update(k, parameter);
      parallelRange(p.size(), 1 << 14, [&](int64_t begin, int64_t end) {
      // The tensors of an optimiser are different ones.
#pragma GCC ivdep
        for (int64_t i = begin; i < end; ++i) parameter[i] = step(i);
        if (mean != nullptr)
          for (int64_t i = begin; i < end; ++i) mean[i] = keep * mean[i] + take * parameter[i];
      });
    });
  }
}

// Sums of values(i) over [0, count): of lanes of chunks, of chunks, then of these in their order, so the same with any number of threads.
template <class Values>
double chunkedSum(int64_t count, Values values) {
  constexpr int64_t kChunk = 1 << 14;
  std::vector<double> sums(static_cast<size_t>((count + kChunk - 1) / kChunk));
  parallelFor(static_cast<int64_t>(sums.size()), [&](int64_t chunk) {
    constexpr int kLanes = 16;
    double lanes[kLanes] = {}, sum = 0;
    int64_t i = chunk * kChunk;
    const int64_t end = std::min(count, i + kChunk);
    for (; i + kLanes <= end; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += values(i + lane);
    for (; i < end; ++i) sum += values(i);
    for (double lane : lanes) sum += lane;
    sums[static_cast<size_t>(chunk)] = sum;
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

}  // namespace densecl::cpu
