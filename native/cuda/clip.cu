#include "ops.h"
#include "squares.cuh"

namespace densecl::cuda {
namespace {

struct ClipEntry {
  float* to;
  const float* from;
};
using ClipTable = Table<ClipEntry, 96>;

// Squares of more than 2^64 overflow: they are summed once more of values times 2^-80, where nothing that a float holds does.
constexpr float kDown = 8.271806125530277e-25f;

// squares [blocks, 2]: of the values and of the values times kDown
__global__ void __launch_bounds__(kListThreads) squaresKernel(ClipTable table, float* squares) {
  int64_t first;
  const int which = table.find(first);
  const float* values = table.entries[which].from;
  float sum = 0, small = 0;
#pragma unroll
  for (int k = 0; k < kListPerThread; ++k) {
    const int64_t i = first + k * kListThreads + threadIdx.x;
    if (i >= table.sizes[which]) break;
    const float value = values[i], down = value * kDown;
    sum += value * value;
    small += down * down;
  }
  float* buffer = &sharedMemory<float>();
  sum = blockSum(sum, buffer);
  small = blockSum(small, buffer);
  if (threadIdx.x != 0) return;
  squares[2 * blockIdx.x] = sum;
  squares[2 * blockIdx.x + 1] = small;
}

// One block.
__global__ void __launch_bounds__(kListThreads)
    normKernel(const float* squares, int64_t blocks, float maxNorm, float* norm, float* factor) {
  float* buffer = &sharedMemory<float>();
  const float length = sqrtf(blockTotal(squares, blocks, 2, buffer)), small = sqrtf(blockTotal(squares + 1, blocks, 2, buffer));
  if (threadIdx.x != 0) return;
  const bool overflows = length > 3.40282347e38f;
  *norm = overflows ? small / kDown : length;
  *factor = overflows ? (small > maxNorm * kDown ? maxNorm / small * kDown : 1) : length > maxNorm ? maxNorm / length : 1;
}

__global__ void __launch_bounds__(kListThreads) clipKernel(ClipTable table, const float* factor) {
  int64_t first;
  const int which = table.find(first);
  const ClipEntry entry = table.entries[which];
  const float by = *factor;
#pragma unroll
  for (int k = 0; k < kListPerThread; ++k) {
    const int64_t i = first + k * kListThreads + threadIdx.x;
    if (i >= table.sizes[which]) return;
    entry.to[i] = by * entry.from[i];
  }
}

}  // namespace

void clipByGlobalNorm(const Call& call) {
  using Names = args::clipByGlobalNorm;
  const auto gradients = call.list(Names::gradients), clipped = call.list(Names::clipped);
  requireAlike(call, "gradients", gradients, "clipped", clipped);
  const auto all = [&](auto flush) {
    auto launches = batches<ClipTable>(flush);
    for (size_t k = 0; k < gradients.size(); ++k) {
      REQUIRE(gradients[k]->dtype == DType::f32, "DTYPE",
              "clipByGlobalNorm: expected gradients of f32 but received " + describe(*gradients[k]));
      launches.add(ClipEntry{clipped[k]->data<float>(), gradients[k]->data<float>()}, gradients[k]->size());
    }
    launches.end();
  };
  const int64_t blocks = blocksOf(gradients);
  DeviceScratch<float> squares(call, 2 * blocks), factor(call, 1);
  int64_t done = 0;
  all([&](const ClipTable& table) {
    launch(call, squaresKernel, Grid{table.blocks()}, kListThreads, kSquaresShared, table, squares.data() + 2 * done);
    done += table.blocks();
  });
  launch(call, normKernel, Grid{}, kListThreads, kSquaresShared, squares.data(), blocks, static_cast<float>(call.number(Names::maxNorm)),
         call.tensor(Names::norm).data<float>(), factor.data());
  all([&](const ClipTable& table) { launch(call, clipKernel, Grid{table.blocks()}, kListThreads, 0, table, factor.data()); });
}

}  // namespace densecl::cuda
