// Kernels with one mistake each, which the means of this folder must catch (tests/simt/alarms.test.ts), and the same kernels
// without it, which must pass.
#include "alarms.h"

#include "../cuda/kernel/async.cuh"
#include "../cuda/kernel/vector.cuh"
#include "../cuda/runtime.h"
#include "../cuda/tensorMap.h"

namespace densecl::cuda {
namespace {

constexpr int kThreads = 128;

// out[t] = the value that the opposite thread put into shared memory
template <bool kBarrier>
__global__ void reverseKernel(float* out) {
  float* shared = &sharedMemory<float>();
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = static_cast<float>(t);
  if (kBarrier) __syncthreads();
  out[t] = shared[kThreads - 1 - t];
}

__global__ void storeKernel(float* out, int at) {
  if (threadIdx.x == 0) out[at] = 1;
}

__global__ void sharedStoreKernel(float* out, int at) {
  float* shared = &sharedMemory<float>();
  shared[threadIdx.x] = 0;
  if (threadIdx.x == 0) shared[at] = 1;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void misalignedKernel(float* out, int at) {
  if (threadIdx.x == 0) store(out + at, Elements<float, 4>{});
}

__global__ void divergentBarrierKernel(float* out) {
  if (threadIdx.x < 7) __syncthreads();
  out[threadIdx.x] = 0;
}

__global__ void divergentShuffleKernel(float* out) {
  out[threadIdx.x] = 0;
  if (threadIdx.x != 3) out[threadIdx.x] = shuffleXor(1.0f, 1);
}

// Four floats a thread, copied asynchronously and read with or without waiting.
template <bool kWait>
__global__ void copyKernel(float* out, const float* in) {
  struct alignas(16) Four {
    float v[4];
  };
  Four* shared = &sharedMemory<Four>();
  const int t = static_cast<int>(threadIdx.x);
  cpAsync16(&shared[t], in + 4 * t, true);
  cpAsyncCommitGroup();
  if (kWait) cpAsyncWaitGroup<0>();
  for (int i = 0; i < 4; ++i) out[4 * t + i] = shared[t].v[i];
}

// The first line of a bulk copy, read with or without waiting for its barrier, which expects `bytes`.
template <bool kWait>
__global__ void bulkCopyKernel(float* out, const __grid_constant__ TensorMap map, int bytes) {
  struct alignas(1024) Memory {
    unsigned char box[1024];
    Mbarrier barrier;
  };
  Memory& memory = sharedMemory<Memory>();
  if (threadIdx.x == 0) {
    mbarrierInit(memory.barrier, 1);
    fenceMbarrierInit();
    mbarrierArriveExpectTx(memory.barrier, bytes);
    tmaLoad(memory.box, map, memory.barrier, 0, 0);
  }
  __syncthreads();
  if (kWait) mbarrierWaitParity(memory.barrier, 0);
  if (threadIdx.x < 32) out[threadIdx.x] = reinterpret_cast<const float*>(memory.box)[threadIdx.x];
}

enum class Store { right, unfenced, overwritten, unfinished };

// A box of 8 lines, whose elements are their column, stored by a bulk copy; then the block needs the place for others.
template <Store kStore>
__global__ void bulkStoreKernel(const __grid_constant__ TensorMap map) {
  struct alignas(1024) Memory {
    bf16 box[8 * 64];
  };
  Memory& memory = sharedMemory<Memory>();
  const int t = static_cast<int>(threadIdx.x), line = t / 16;
  const auto put = [&](float factor) {
    for (int column = t % 16 * 4; column < t % 16 * 4 + 4; ++column)
      memory.box[line * 64 + (column / 8 ^ line) * 8 + column % 8] = bf16(factor * static_cast<float>(column));
  };
  put(1);
  if (kStore != Store::unfenced || t != 5) fenceProxyAsync();
  __syncthreads();
  if (t == 0) {
    tmaStore(map, memory.box, 0, 0);
    bulkCommitGroup();
    if (kStore == Store::right) bulkWaitRead();
  }
  __syncthreads();
  put(-1);
  __syncthreads();
  if (t == 0 && kStore != Store::unfinished) bulkWait();
}

void runAlarm(const std::string& name, const Tensor& out, const Tensor& in, int at) {
  Call call{"alarm", -1, {&out, &in}, {}, {}, {}};
  float* to = out.data<float>();
  const auto go = [&](auto kernel, size_t shared, auto... args) { launch(call, kernel, Grid{}, kThreads, shared, args...); };
  if (name == "barrier") return go(reverseKernel<true>, kThreads * 4, to);
  if (name == "missingBarrier") return go(reverseKernel<false>, kThreads * 4, to);
  if (name == "store") return go(storeKernel, 0, to, at);
  if (name == "sharedStore") return go(sharedStoreKernel, kThreads * 4, to, at);
  if (name == "misaligned") return go(misalignedKernel, 0, to, at);
  if (name == "divergentBarrier") return go(divergentBarrierKernel, 0, to);
  if (name == "divergentShuffle") return go(divergentShuffleKernel, 0, to);
  if (name == "copy") return go(copyKernel<true>, kThreads * 16, to, static_cast<const float*>(in.data<float>()));
  if (name == "missingWait") return go(copyKernel<false>, kThreads * 16, to, static_cast<const float*>(in.data<float>()));
  const auto bulk = [&](auto kernel, int bytes) {
    go(kernel, 2048, to, tiledMap(call, reinterpret_cast<const bf16*>(in.data<float>()), {64, 16}, {64, 8}), bytes);
  };
  if (name == "bulkCopy") return bulk(bulkCopyKernel<true>, 1024);
  if (name == "missingBulkWait") return bulk(bulkCopyKernel<false>, 1024);
  if (name == "bulkCopyTooShort") return bulk(bulkCopyKernel<true>, 2048);
  if (name == "bulkCopyTooLong") return bulk(bulkCopyKernel<true>, 512);
  // A tensor of 7 lines of 56 elements, of which the box has more.
  const auto stored = [&](auto kernel) { go(kernel, 1024, tiledMap(call, reinterpret_cast<bf16*>(to), {56, 7}, {64, 8})); };
  if (name == "bulkStore") return stored(bulkStoreKernel<Store::right>);
  if (name == "unfencedBulkStore") return stored(bulkStoreKernel<Store::unfenced>);
  if (name == "overwrittenBulkStore") return stored(bulkStoreKernel<Store::overwritten>);
  if (name == "unfinishedBulkStore") return stored(bulkStoreKernel<Store::unfinished>);
  throw Error("ARGUMENT", "there is no alarm " + name);
}

}  // namespace
}  // namespace densecl::cuda

namespace densecl::simt {
void alarm(const std::string& name, const Tensor& out, const Tensor& in, int at) { cuda::runAlarm(name, out, in, at); }
}  // namespace densecl::simt
