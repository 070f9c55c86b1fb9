// Rows in descending order, by a radix sort from the lowest digit up (D. Merrill, A. Grimshaw, 2011): for each digit of eight bits blocks
// count, a scan says where each block's elements go, and blocks move them. Elements with equal digits keep their order, so those with equal
// scores do, and nothing depends on the order of threads.
#include "topK.h"

#include "kernel/vector.cuh"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kWarps = kThreads / kWarp;
constexpr int kDigits = 256, kDigitBits = 8;
constexpr int kWarpElements = 256, kBlockElements = kWarps * kWarpElements;

// Of a score a number that ascends where scores descend: 0 of NaN, the same of -0 and 0.
DEVICE uint32_t rankOf(float score) {
  if (score != score) return 0;
  const uint32_t bits = score == 0 ? 0u : bitsOf(score);
  return ~((bits >> 31) != 0 ? ~bits : bits | 0x80000000u);
}

template <class T>
__global__ void __launch_bounds__(kThreads) ranksKernel(uint32_t* ranks, int32_t* index, const T* scores, int64_t n, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    ranks[i] = rankOf(static_cast<float>(scores[i]));
    index[i] = static_cast<int32_t>(i % n);
  }
}

// What a block works on: a stretch of a row, whose elements its warps share in order.
struct Stretches {
  int64_t n;
  int blocks;  // of a row
  DEVICE int64_t row() const { return blockIdx.x / blocks; }
  DEVICE int block() const { return static_cast<int>(blockIdx.x % blocks); }
  // The calling lane's element of the warp's `group`-th 32, in the row.
  DEVICE int64_t element(int group) const {
    return static_cast<int64_t>(block()) * kBlockElements + warpIndex() * kWarpElements + group * kWarp + laneIndex();
  }
};

// The lanes whose digit is the caller's, among those that have one.
DEVICE unsigned peersOf(unsigned digit, bool valid) {
  unsigned peers = ballot(valid);
  for (int bit = 0; bit < kDigitBits; ++bit) {
    const bool set = (digit >> bit & 1) != 0;
    const unsigned with = ballot(set);
    peers &= set ? with : ~with;
  }
  return peers;
}
DEVICE unsigned lanesBelow() { return (1u << laneIndex()) - 1; }

// counts[digit] of the elements of the calling warp
DEVICE void countDigits(int* counts, const uint32_t* ranks, const Stretches& all, int shift) {
  for (int digit = laneIndex(); digit < kDigits; digit += kWarp) counts[digit] = 0;
  syncWarp();
  for (int group = 0; group < kWarpElements / kWarp; ++group) {
    const int64_t i = all.element(group);
    const bool valid = i < all.n;
    const unsigned digit = valid ? ranks[all.row() * all.n + i] >> shift & (kDigits - 1) : 0, peers = peersOf(digit, valid);
    if (valid && (peers & lanesBelow()) == 0) counts[digit] += popCount(peers);
    syncWarp();
  }
}

// starts[row, digit, block]: how many elements of a block have a digit
__global__ void __launch_bounds__(kThreads) countKernel(int32_t* starts, const uint32_t* ranks, Stretches all, int shift) {
  int* counts = &sharedMemory<int>();
  countDigits(counts + warpIndex() * kDigits, ranks, all, shift);
  __syncthreads();
  int sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += counts[w * kDigits + static_cast<int>(threadIdx.x)];
  starts[(all.row() * kDigits + threadIdx.x) * all.blocks + all.block()] = sum;
}

// starts becomes the place in the row of the first of them. A block takes a row, a thread a digit.
__global__ void __launch_bounds__(kThreads) scanKernel(int32_t* starts, int blocks) {
  int* totals = &sharedMemory<int>();
  int32_t* own = starts + (static_cast<int64_t>(blockIdx.x) * kDigits + threadIdx.x) * blocks;
  int sum = 0;
  for (int b = 0; b < blocks; ++b) sum += own[b];
  totals[threadIdx.x] = sum;
  __syncthreads();
  int start = 0;
  for (int digit = 0; digit < static_cast<int>(threadIdx.x); ++digit) start += totals[digit];
  for (int b = 0; b < blocks; ++b) {
    const int count = own[b];
    own[b] = start;
    start += count;
  }
}

__global__ void __launch_bounds__(kThreads) moveKernel(uint32_t* toRanks, int32_t* toIndex, const uint32_t* ranks, const int32_t* index,
                                                       const int32_t* starts, Stretches all, int shift) {
  int* counts = &sharedMemory<int>();
  countDigits(counts + warpIndex() * kDigits, ranks, all, shift);
  __syncthreads();
  // From counts of warps to the place of each warp's first.
  int start = starts[(all.row() * kDigits + threadIdx.x) * all.blocks + all.block()];
  for (int w = 0; w < kWarps; ++w) {
    int& place = counts[w * kDigits + static_cast<int>(threadIdx.x)];
    const int count = place;
    place = start;
    start += count;
  }
  __syncthreads();
  int* next = counts + warpIndex() * kDigits;
  const int64_t row = all.row() * all.n;
  for (int group = 0; group < kWarpElements / kWarp; ++group) {
    const int64_t i = all.element(group);
    const bool valid = i < all.n;
    const uint32_t rank = valid ? ranks[row + i] : 0;
    const unsigned digit = rank >> shift & (kDigits - 1), peers = peersOf(digit, valid), before = peers & lanesBelow();
    const int place = valid ? next[digit] + popCount(before) : 0;
    syncWarp();
    if (valid) {
      toRanks[row + place] = rank;
      toIndex[row + place] = index[row + i];
      if (before == 0) next[digit] += popCount(peers);
    }
    syncWarp();
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    takeKernel(T* values, int32_t* index, const T* x, const int32_t* order, int64_t n, int64_t k, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / k;
    const int32_t from = order[row * n + i % k];
    index[i] = from;
    values[i] = x[row * n + from];
  }
}

}  // namespace

void orderRows(const Call& call, int32_t* order, const Tensor& scores) {
  const int64_t n = scores.columns(), rows = scores.rows(), count = rows * n;
  if (count == 0) return;
  REQUIRE(n < (int64_t{1} << 31), "SHAPE",
          std::string(call.op) + ": expected rows of fewer than 2^31 elements but received " + describe(scores));
  const Stretches all{n, static_cast<int>(ceilDiv(n, kBlockElements))};
  DeviceScratch<uint32_t> ranks(call, count), otherRanks(call, count);
  DeviceScratch<int32_t> otherIndex(call, count), starts(call, rows * kDigits * all.blocks);
  uint32_t *from = ranks.data(), *to = otherRanks.data();
  int32_t *fromIndex = order, *toIndex = otherIndex.data();
  dispatchFloat(call, scores.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, ranksKernel<T>, loopGrid(call, count, kThreads), kThreads, 0, from, fromIndex, scores.data<T>(), n, count);
  });
  // An even number of passes ends where it began. The lower half of the ranks of bf16 scores follows from the upper.
  constexpr int kDigitsBytes = kDigits * sizeof(int);
  for (int shift = scores.dtype == DType::bf16 ? 16 : 0; shift < 32; shift += kDigitBits) {
    launch(call, countKernel, Grid{rows * all.blocks}, kThreads, kWarps * kDigitsBytes, starts.data(), from, all, shift);
    launch(call, scanKernel, Grid{rows}, kThreads, kDigitsBytes, starts.data(), all.blocks);
    launch(call, moveKernel, Grid{rows * all.blocks}, kThreads, kWarps * kDigitsBytes, to, toIndex, from, fromIndex, starts.data(), all,
           shift);
    std::swap(from, to);
    std::swap(fromIndex, toIndex);
  }
}

void topK(const Call& call) {
  using args::topK;
  const Tensor &values = call.tensor(topK::values), &index = call.tensor(topK::index), &x = call.tensor(topK::x);
  const int64_t n = x.columns(), k = values.columns();
  REQUIRE(k <= n, "SHAPE",
          "topK: expected at most the " + std::to_string(n) + " elements of a row but received values " + describe(values));
  DeviceScratch<int32_t> order(call, x.size());
  orderRows(call, order.data(), x);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, takeKernel<T>, loopGrid(call, values.size(), kThreads), kThreads, 0, values.data<T>(), index.data<int32_t>(), x.data<T>(),
           order.data(), n, k, values.size());
  });
}

}  // namespace densecl::cuda
