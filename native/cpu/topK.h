// The order of scores: descending, a NaN before all numbers, equal ones by their index.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace densecl::cpu {

// Of a score a number that ascends where scores descend.
inline uint32_t rankOf(float score) {
  if (score != score) return 0;
  score += 0.0f;  // -0 is 0
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return ~((bits >> 31) != 0 ? ~bits : bits | 0x80000000u);
}
inline uint64_t rankOf(double score) {
  if (score != score) return 0;
  score += 0.0;
  uint64_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return ~((bits >> 63) != 0 ? ~bits : bits | 0x8000000000000000u);
}

template <class Rank>
struct Ranked {
  Rank rank;
  int32_t index;
  bool operator<(const Ranked& other) const { return rank != other.rank ? rank < other.rank : index < other.index; }
};

// The indices of the first k of n scores in their order.
template <class T>
void order(int32_t* index, const T* scores, int64_t n, int64_t k) {
  std::vector<Ranked<decltype(rankOf(T{}))>> all(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) all[i] = {rankOf(scores[i]), static_cast<int32_t>(i)};
  if (k < n) std::nth_element(all.begin(), all.begin() + k, all.end());
  std::sort(all.begin(), all.begin() + k);
  for (int64_t i = 0; i < k; ++i) index[i] = all[i].index;
}

}  // namespace densecl::cpu
