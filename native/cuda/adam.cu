#include <cmath>

#include "lists.cuh"
#include "ops.h"

namespace densecl::cuda {
namespace {

struct AdamEntry {
  Updated out;
  float *m, *v;
  const float* g;
  float decay;
};
using AdamTable = Table<AdamEntry, 40>;

struct AdamRule {
  UpdateRule update;
  const int32_t* steps;
  float beta1, take1, log1, beta2, take2, log2, eps;  // take: 1 - beta; log: its logarithm
  bool decoupled;
};

// A launch of its own: every block of the next ones reads the same number.
__global__ void __launch_bounds__(kWarp) countStepKernel(int32_t* steps, UpdateRule rule) {
  if (threadIdx.x == 0 && rule.holds()) *steps += 1;
}

__global__ void __launch_bounds__(kListThreads) adamKernel(AdamTable table, AdamRule rule) {
  if (!rule.update.holds()) return;
  int64_t first;
  const int which = table.find(first);
  const AdamEntry entry = table.entries[which];
  const float steps = static_cast<float>(*rule.steps), rate = *rule.update.rate;
  const float scale = rate / -expm1f(steps * rule.log1), root = 1 / sqrtf(-expm1f(steps * rule.log2));
  const float l2 = rule.decoupled ? 0 : entry.decay, shrink = rule.decoupled ? rate * entry.decay : 0;
#pragma unroll
  for (int k = 0; k < kListPerThread; ++k) {
    const int64_t i = first + k * kListThreads + threadIdx.x;
    if (i >= table.sizes[which]) return;
    const float p = entry.out.p[i], g = entry.g[i] + l2 * p;
    const float m = rule.beta1 * entry.m[i] + rule.take1 * g, v = rule.beta2 * entry.v[i] + rule.take2 * g * g;
    entry.m[i] = m;
    entry.v[i] = v;
    entry.out.write(i, p - shrink * p - scale * m / (root * sqrtf(v) + rule.eps), rule.update.keep, rule.update.take);
  }
}

}  // namespace

void adam(const Call& call) {
  using Names = args::adam;
  const UpdatedTensors<Names> all(call);
  const auto firstMoments = all.also(call, "firstMoments", call.list(Names::firstMoments)),
             secondMoments = all.also(call, "secondMoments", call.list(Names::secondMoments));
  const auto decayed = all.flags(call, "decayed", call.integers(Names::decayed));
  const double beta1 = call.number(Names::beta1), beta2 = call.number(Names::beta2);
  int32_t* steps = call.tensor(Names::steps).data<int32_t>();
  const AdamRule rule{updateRule<Names>(call),
                      steps,
                      static_cast<float>(beta1),
                      static_cast<float>(1 - beta1),
                      static_cast<float>(std::log(beta1)),
                      static_cast<float>(beta2),
                      static_cast<float>(1 - beta2),
                      static_cast<float>(std::log(beta2)),
                      static_cast<float>(call.number(Names::eps)),
                      call.flag(Names::decoupled)};
  const float decay = static_cast<float>(call.number(Names::weightDecay));
  launch(call, countStepKernel, Grid{}, kWarp, 0, steps, rule.update);
  auto launches =
      batches<AdamTable>([&](const AdamTable& table) { launch(call, adamKernel, Grid{table.blocks()}, kListThreads, 0, table, rule); });
  for (size_t k = 0; k < all.parameters.size(); ++k)
    launches.add(AdamEntry{updated(call, all, k), firstMoments[k]->data<float>(), secondMoments[k]->data<float>(),
                           all.gradients[k]->data<float>(), decayed[k] != 0 ? decay : 0},
                 all.parameters[k]->size());
  launches.end();
}

}  // namespace densecl::cuda
