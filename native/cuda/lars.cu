#include "ops.h"
#include "squares.cuh"

namespace densecl::cuda {
namespace {

struct LarsEntry {
  Updated out;
  float* v;
  const float* g;
  float decay;
  int adapted;
};
using LarsTable = Table<LarsEntry, 40>;

struct LarsRule {
  UpdateRule update;
  float momentum, trust;
};

// squares [blocks, 2]: of p and of g + decay * p
__global__ void __launch_bounds__(kListThreads) larsSquaresKernel(LarsTable table, float* squares) {
  int64_t first;
  const int which = table.find(first);
  const LarsEntry entry = table.entries[which];
  float weights = 0, gradients = 0;
#pragma unroll
  for (int k = 0; k < kListPerThread; ++k) {
    const int64_t i = first + k * kListThreads + threadIdx.x;
    if (i >= table.sizes[which]) break;
    const float p = entry.out.p[i], g = entry.g[i] + entry.decay * p;
    weights += p * p;
    gradients += g * g;
  }
  float* buffer = &sharedMemory<float>();
  weights = blockSum(weights, buffer);
  gradients = blockSum(gradients, buffer);
  if (threadIdx.x != 0) return;
  squares[2 * blockIdx.x] = weights;
  squares[2 * blockIdx.x + 1] = gradients;
}

// A block for each parameter: its local rate.
__global__ void __launch_bounds__(kListThreads) larsRateKernel(LarsTable table, const float* squares, float trust, float* rates) {
  const int which = static_cast<int>(blockIdx.x), begin = table.firstBlock[which], count = table.firstBlock[which + 1] - begin;
  float* buffer = &sharedMemory<float>();
  const float weights = blockTotal(squares + 2 * begin, count, 2, buffer),
              gradients = blockTotal(squares + 2 * begin + 1, count, 2, buffer);
  const bool adapts = table.entries[which].adapted != 0 && weights > 0 && gradients > 0;
  if (threadIdx.x == 0) rates[which] = adapts ? trust * sqrtf(weights) / sqrtf(gradients) : 1;
}

__global__ void __launch_bounds__(kListThreads) larsKernel(LarsTable table, LarsRule rule, const float* rates) {
  if (!rule.update.holds()) return;
  int64_t first;
  const int which = table.find(first);
  const LarsEntry entry = table.entries[which];
  const float rate = rates[which] * *rule.update.rate;
#pragma unroll
  for (int k = 0; k < kListPerThread; ++k) {
    const int64_t i = first + k * kListThreads + threadIdx.x;
    if (i >= table.sizes[which]) return;
    const float p = entry.out.p[i], v = rule.momentum * entry.v[i] + rate * (entry.g[i] + entry.decay * p);
    entry.v[i] = v;
    entry.out.write(i, p - v, rule.update.keep, rule.update.take);
  }
}

}  // namespace

void lars(const Call& call) {
  using Names = args::lars;
  const UpdatedTensors<Names> all(call);
  const auto momenta = all.also(call, "momenta", call.list(Names::momenta));
  const auto adapted = all.flags(call, "adapted", call.integers(Names::adapted));
  const LarsRule rule{updateRule<Names>(call), static_cast<float>(call.number(Names::momentum)),
                      static_cast<float>(call.number(Names::trust))};
  const float decay = static_cast<float>(call.number(Names::weightDecay));
  DeviceScratch<float> squares(call, 2 * blocksOf(all.parameters)), rates(call, static_cast<int64_t>(all.parameters.size()));
  auto launches = batches<LarsTable>([&](const LarsTable& table) {
    launch(call, larsSquaresKernel, Grid{table.blocks()}, kListThreads, kSquaresShared, table, squares.data());
    launch(call, larsRateKernel, Grid{table.count}, kListThreads, kSquaresShared, table, squares.data(), rule.trust, rates.data());
    launch(call, larsKernel, Grid{table.blocks()}, kListThreads, 0, table, rule, rates.data());
  });
  for (size_t k = 0; k < all.parameters.size(); ++k)
    launches.add(LarsEntry{updated(call, all, k), momenta[k]->data<float>(), all.gradients[k]->data<float>(), adapted[k] != 0 ? decay : 0,
                           adapted[k] != 0},
                 all.parameters[k]->size());
  launches.end();
}

}  // namespace densecl::cuda
