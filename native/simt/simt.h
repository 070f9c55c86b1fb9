// Runs CUDA kernels on the host, thread by thread: what a .cu file of native/cuda sees instead of the CUDA headers.
// Each thread of a block is a fiber; __syncthreads and warp operations are the points where fibers meet. See docs/cuda.md.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "faults.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __grid_constant__

namespace densecl::simt {

struct Dim {
  unsigned x, y, z;
};

struct Coordinates {
  Dim thread, block, blockSize, gridSize;
};

// Of the fiber that runs on this OS thread. Kernels ask all the time: a place that is known when the addon is loaded needs no call.
extern __thread const Coordinates* here __attribute__((tls_model("initial-exec"), visibility("hidden")));
inline const Coordinates& coordinates() { return *here; }
unsigned char* sharedBytes();
unsigned sharedOffset(const void* pointer);

// __syncthreads: every thread of the block must come.
void barrier();

// A warp operation. All 32 lanes must call it with the same `perform`; the last to come runs it over the arguments of all
// lanes, which point into the lanes' own stacks.
using Perform = void (*)(void* const* lanes);
void meet(Perform perform, void* mine);

// A vector access or an asynchronous copy at an address that is no multiple of its width: a GPU stops there.
[[noreturn]] void misaligned(const void* address, size_t width);
inline void checkAligned(const void* address, size_t width) {
  if (reinterpret_cast<uintptr_t>(address) % width != 0) misaligned(address, width);
}

// cp.async: the bytes move as late as the program allows, when they are waited for: a missing wait then reads stale memory.
void copyLater(void* to, const void* from, int bytes, int fromBytes);
void cpAsyncCommitGroup();
void cpAsyncWaitGroup(int groupsInFlight);

// kernel() for every thread of every block.
struct Launch {
  const char* op;
  Dim grid;
  unsigned threads;
  size_t sharedBytes;
  std::function<void()> kernel;
};

// The compute capability that kernels are chosen for, times 10: 80 unless a test sets 90.
int capability();

// Blocks are spread over the thread pool.
void run(const Launch& launch);

}  // namespace densecl::simt

#define threadIdx (::densecl::simt::coordinates().thread)
#define blockIdx (::densecl::simt::coordinates().block)
#define blockDim (::densecl::simt::coordinates().blockSize)
#define gridDim (::densecl::simt::coordinates().gridSize)
inline void __syncthreads() { ::densecl::simt::barrier(); }
