// Greedy non-maximum suppression; native/cpu/nms.cpp has the definition. Boxes are sorted by score, a matrix of bits says whom each would
// suppress, and a block goes through an image's boxes 32 at a time: what they do to each other is in a register of each lane, what they do
// to those after them in rows of words.
#include "kernel/boxes.cuh"
#include "ops.h"
#include "runtime.h"
#include "topK.h"

namespace densecl::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads) sortedBoxesKernel(Box* sorted, int32_t* sortedGroup, const T* boxes, const int32_t* group,
                                                              const int32_t* order, int64_t n, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t from = i / n * n + order[i];
    sorted[i] = boxAt(boxes, from);
    sortedGroup[i] = group == nullptr ? 0 : group[from];
  }
}

// bits[image, i, word]: the boxes after i in the word's 32 that it suppresses. A thread has a box, a block a word. Words before that of the
// box itself are not written.
__global__ void __launch_bounds__(kThreads)
    suppressionKernel(uint32_t* bits, const Box* boxes, const int32_t* group, int n, int words, float threshold) {
  const int word = static_cast<int>(blockIdx.y);
  if (word * kWarp + kWarp <= static_cast<int>(blockIdx.x) * kThreads) return;
  struct Others {
    Box box[kWarp];
    int group[kWarp];
  };
  Others& others = sharedMemory<Others>();
  const int64_t image = static_cast<int64_t>(blockIdx.z) * n;
  const int other = word * kWarp + static_cast<int>(threadIdx.x);
  if (threadIdx.x < kWarp && other < n) {
    others.box[threadIdx.x] = boxes[image + other];
    others.group[threadIdx.x] = group[image + other];
  }
  __syncthreads();
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= n) return;
  const Box box = boxes[image + i];
  const int own = group[image + i];
  uint32_t suppressed = 0;
  for (int k = 0; k < kWarp; ++k) {
    const int j = word * kWarp + k;
    if (j > i && j < n && others.group[k] == own && overlap(box, others.box[k]) > threshold) suppressed |= 1u << k;
  }
  bits[(image + i) * words + word] = suppressed;
}

// A block takes an image.
__global__ void __launch_bounds__(kThreads) keepKernel(int32_t* index, int32_t* count, const uint32_t* bits, const int32_t* group,
                                                       const int32_t* order, int n, int words, int most) {
  // The boxes that are not there or suppressed, a bit each; the kept ones of the current word; and how many are kept before it.
  uint32_t* removed = &sharedMemory<uint32_t>();
  uint32_t &kept = removed[words], &before = removed[words + 1];
  const int64_t image = static_cast<int64_t>(blockIdx.x) * n;
  for (int word = warpIndex(); word < words; word += kThreads / kWarp) {
    const int i = word * kWarp + laneIndex();
    const unsigned absent = ballot(i >= n || group[image + (i < n ? i : 0)] < 0);
    if (laneIndex() == 0) removed[word] = absent;
  }
  if (threadIdx.x == 0) before = 0;
  __syncthreads();
  for (int word = 0; word < words; ++word) {
    if (warpIndex() == 0) {
      const int i = word * kWarp + laneIndex();
      const uint32_t own = i < n ? bits[(image + i) * words + word] : 0;
      uint32_t gone = removed[word];
      for (int k = 0; k < kWarp; ++k) {
        const uint32_t theirs = shuffle(own, k);
        if ((gone >> k & 1) == 0) gone |= theirs;
      }
      const uint32_t stay = ~gone, place = before + static_cast<uint32_t>(popCount(stay & ((1u << laneIndex()) - 1)));
      if ((stay >> laneIndex() & 1) != 0 && place < static_cast<uint32_t>(most))
        index[static_cast<int64_t>(blockIdx.x) * most + place] = order[image + i];
      syncWarp();
      if (laneIndex() == 0) {
        kept = stay;
        before += static_cast<uint32_t>(popCount(stay));
      }
    }
    __syncthreads();
    const uint32_t stay = kept;
    const bool enough = before >= static_cast<uint32_t>(most);
    for (int later = word + 1 + static_cast<int>(threadIdx.x); later < words && !enough; later += kThreads) {
      uint32_t gone = removed[later];
      for (int k = 0; k < kWarp; ++k)
        if ((stay >> k & 1) != 0) gone |= bits[(image + word * kWarp + k) * words + later];
      removed[later] = gone;
    }
    __syncthreads();
    if (enough) break;
  }
  const int found = before < static_cast<uint32_t>(most) ? static_cast<int>(before) : most;
  for (int i = found + static_cast<int>(threadIdx.x); i < most; i += kThreads) index[static_cast<int64_t>(blockIdx.x) * most + i] = -1;
  if (threadIdx.x == 0) count[blockIdx.x] = found;
}

}  // namespace

void nms(const Call& call) {
  using Names = args::nms;
  const Tensor &index = call.tensor(Names::index), &count = call.tensor(Names::count), &boxes = call.tensor(Names::boxes),
               &scores = call.tensor(Names::scores), *group = call.optional(Names::group);
  const int64_t batch = boxes.dim(0), n = boxes.dim(1), all = batch * n, words = ceilDiv(n, kWarp);
  const size_t shared = static_cast<size_t>(words + 2) * sizeof(uint32_t);
  REQUIRE(shared <= 48 * 1024, "SHAPE",
          "nms: expected at most 393152 boxes of an image on " + call.device().name + " but received " + describe(boxes));
  DeviceScratch<int32_t> order(call, all), sortedGroup(call, all);
  DeviceScratch<Box> sorted(call, all);
  DeviceScratch<uint32_t> bits(call, all * words);
  orderRows(call, order.data(), scores);
  dispatchFloat(call, boxes.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, sortedBoxesKernel<T>, loopGrid(call, all, kThreads), kThreads, 0, sorted.data(), sortedGroup.data(), boxes.data<T>(),
           optionalData<int32_t>(group), order.data(), n, all);
  });
  launch(call, suppressionKernel, Grid{ceilDiv(n, kThreads), words, batch}, kThreads, kWarp * (sizeof(Box) + sizeof(int)), bits.data(),
         sorted.data(), sortedGroup.data(), static_cast<int>(n), static_cast<int>(words),
         static_cast<float>(call.number(Names::threshold)));
  launch(call, keepKernel, Grid{batch}, kThreads, shared, index.data<int32_t>(), count.data<int32_t>(), bits.data(), sortedGroup.data(),
         order.data(), static_cast<int>(n), static_cast<int>(words), static_cast<int>(index.dim(1)));
}

}  // namespace densecl::cuda
