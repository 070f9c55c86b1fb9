// What the optimisers of the CPU share: the loop over parameters, with their moving averages.
#pragma once
#include "../core/lists.h"
#include "../core/parallel.h"
#include "ops.h"
#include "widen.h"

namespace densecl::cpu {

inline bool found(const Tensor* foundInf) { return foundInf != nullptr && foundInf->data<int32_t>()[0] != 0; }

// The elements of a bf16 copy, or of none.
template <class T>
void copyRounded(const Tensor* copy, const T* from, int64_t begin, int64_t end) {
  if (copy == nullptr) return;
  if constexpr (std::is_same_v<T, float>)
    narrow(copy->data<bf16>() + begin, from + begin, end - begin);
  else
    for (int64_t i = begin; i < end; ++i) copy->data<bf16>()[i] = bf16(static_cast<float>(from[i]));
}

// Calls update(k, p) for each parameter k, which gives step(i): the new value of element i. Then average = averageMomentum * average +
// (1 - averageMomentum) * p of those that have one.
template <class Names, class Update>
void updateEach(const Call& call, const UpdatedTensors<Names>& all, double averageMomentum, Update update) {
  for (size_t k = 0; k < all.parameters.size(); ++k) {
    const Tensor &p = *all.parameters[k], *average = all.averages[k], *copy = all.copies[k], *averageCopy = all.averageCopies[k];
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
        copyRounded(copy, parameter, begin, end);
        if (mean != nullptr) copyRounded(averageCopy, mean, begin, end);
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
