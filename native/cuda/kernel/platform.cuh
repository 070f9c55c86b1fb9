// The language of the kernels, on nvcc and on the host (native/simt): the one place that knows which of them compiles.
#pragma once
#include "../../core/e4m3.h"
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "../../simt/simt.h"
#endif

#define DEVICE __device__ __forceinline__

// The instructions of Hopper exist when compiling for sm_90a itself.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DENSECL_HOPPER 1
#endif

namespace densecl::cuda {

constexpr int kWarp = 32;

// The block's shared memory, all of which is given at launch: sizeof(T) bytes or more.
template <class T>
DEVICE T& sharedMemory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(1024) unsigned char bytes[];
  return *reinterpret_cast<T*>(bytes);
#else
  return *reinterpret_cast<T*>(simt::sharedBytes());
#endif
}

DEVICE int laneIndex() { return static_cast<int>(threadIdx.x) % kWarp; }
DEVICE int warpIndex() { return static_cast<int>(threadIdx.x) / kWarp; }

#if !defined(__CUDACC__)
template <class T>
struct ShuffleLane {
  T value;
  int source;
  T result;
};
template <class T>
T shuffleFrom(T value, int source) {
  ShuffleLane<T> mine{value, source, T{}};
  simt::meet(
      [](void* const* lanes) {
        for (int i = 0; i < kWarp; ++i) {
          auto* lane = static_cast<ShuffleLane<T>*>(lanes[i]);
          lane->result = static_cast<ShuffleLane<T>*>(lanes[i == 3 && simt::faulty(simt::Instruction::shuffle) ? i : lane->source])->value;
        }
      },
      &mine);
  return mine.result;
}
#endif

// The value of lane (own lane xor mask).
template <class T>
DEVICE T shuffleXor(T value, int mask) {
#if defined(__CUDACC__)
  return __shfl_xor_sync(0xffffffffu, value, mask);
#else
  return shuffleFrom(value, laneIndex() ^ mask);
#endif
}

template <class T>
DEVICE T shuffle(T value, int lane) {
#if defined(__CUDACC__)
  return __shfl_sync(0xffffffffu, value, lane);
#else
  return shuffleFrom(value, lane);
#endif
}

// One bit per lane whose predicate holds.
DEVICE unsigned ballot(bool predicate) {
#if defined(__CUDACC__)
  return __ballot_sync(0xffffffffu, predicate);
#else
  struct Vote {
    bool predicate;
    unsigned result;
  } mine{predicate, 0};
  simt::meet(
      [](void* const* lanes) {
        unsigned bits = 0;
        for (int i = 0; i < kWarp; ++i) bits |= static_cast<unsigned>(static_cast<Vote*>(lanes[i])->predicate) << i;
        for (int i = 0; i < kWarp; ++i) static_cast<Vote*>(lanes[i])->result = bits;
      },
      &mine);
  return mine.result;
#endif
}

// The bits that are set.
DEVICE int popCount(unsigned bits) {
#if defined(__CUDACC__)
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}

// The place of the lowest bit that is set; some must be.
DEVICE int lowestBit(unsigned bits) {
#if defined(__CUDACC__)
  return __ffs(static_cast<int>(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

DEVICE void syncWarp() {
#if defined(__CUDACC__)
  __syncwarp();
#else
  simt::meet([](void* const*) {}, nullptr);
#endif
}

// A float that another block of the same launch has written, before the caller learned so by lastToArrive().
DEVICE float loadCoherent(const float* at) {
#if defined(__CUDACC__)
  return __ldcg(at);
#else
  return *at;
#endif
}

// True in the last of `expected` blocks to come here with this counter, which starts at 0 and is 0 again afterwards: what the others have
// written is there to be read. All threads of a block call it; `shared` is a word of its shared memory that nobody else is using.
DEVICE bool lastToArrive(int* counter, int expected, int* shared) {
#if defined(__CUDACC__)
  __threadfence();
#endif
  __syncthreads();
  if (threadIdx.x == 0) {
#if defined(__CUDACC__)
    const int before = atomicAdd(counter, 1);
#else
    const int before = __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL);
#endif
    if (before == expected - 1) *counter = 0;
    *shared = before;
  }
  __syncthreads();
  const bool last = *shared == expected - 1;
#if defined(__CUDACC__)
  __threadfence();
#endif
  __syncthreads();
  return last;
}

// Stores `value` where 0 stands; true for the first. For integers only: sums of floats need a fixed order.
DEVICE bool claim(int* word, int value) {
#if defined(__CUDACC__)
  return atomicCAS(word, 0, value) == 0;
#else
  int expected = 0;
  return __atomic_compare_exchange_n(word, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
#endif
}

}  // namespace densecl::cuda
