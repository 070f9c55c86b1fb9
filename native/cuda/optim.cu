// Updates of many tensors in one kernel, and the queue.
#include "lists.cuh"
#include "ops.h"

namespace densecl::cuda {
namespace {

struct SgdEntry {
  Updated out;
  float* v;
  const float* g;
};
using SgdTable = Table<SgdEntry, 48>;

struct SgdRule {
  UpdateRule update;
  float momentum, decay;
  bool nesterov;
};

// An element at a time and thread: parameter, momentum, moving average and the bf16 copies in one pass over memory.
__global__ void __launch_bounds__(kListThreads) sgdKernel(SgdTable table, SgdRule rule) {
  if (!rule.update.holds()) return;
  int64_t first;
  const int which = table.find(first);
  const SgdEntry entry = table.entries[which];
  const float lr = *rule.update.rate;
#pragma unroll
  for (int k = 0; k < kListPerThread; ++k) {
    const int64_t i = first + k * kListThreads + threadIdx.x;
    if (i >= table.sizes[which]) return;
    const float p = entry.out.p[i], step = entry.g[i] + rule.decay * p, v = rule.momentum * entry.v[i] + step;
    entry.v[i] = v;
    entry.out.write(i, p - lr * (rule.nesterov ? step + rule.momentum * v : v), rule.update.keep, rule.update.take);
  }
}

struct EmaEntry {
  float* average;
  const float* source;
  bf16* copy;  // of the average, or null
};
using EmaTable = Table<EmaEntry, 64>;

__global__ void __launch_bounds__(kListThreads) emaKernel(EmaTable table, float keep, float take) {
  int64_t first;
  const int which = table.find(first);
  const EmaEntry entry = table.entries[which];
  for (int k = 0; k < kListPerThread; ++k) {
    const int64_t i = first + k * kListThreads + threadIdx.x;
    if (i >= table.sizes[which]) return;
    const float value = follow(keep, entry.average[i], take, entry.source[i]);
    entry.average[i] = value;
    if (entry.copy != nullptr) entry.copy[i] = bf16(value);
  }
}

struct ConstEntry {
  const float* values;
};
using ConstTable = Table<ConstEntry, 96>;

__global__ void __launch_bounds__(kListThreads) checkFiniteKernel(ConstTable table, int32_t* foundInf) {
  int64_t first;
  const int which = table.find(first);
  bool finite = true;
  for (int k = 0; k < kListPerThread; ++k) {
    const int64_t i = first + k * kListThreads + threadIdx.x;
    // x - x is 0 for finite numbers alone.
    if (i < table.sizes[which]) finite = finite && table.entries[which].values[i] - table.entries[which].values[i] == 0;
  }
  if (!finite) *foundInf = 1;
}

template <class T>
__global__ void __launch_bounds__(kListThreads) enqueueKernel(T* queue, const int32_t* pointer, const T* keys, int64_t length, int64_t dim,
                                                              int64_t first, int64_t count, Report* report) {
  const int at = *pointer;
  if (at < 0 || at >= length) {
    if (blockIdx.x == 0 && threadIdx.x == 0) fileReport(report, kQueuePointer, at, static_cast<int>(length));
    return;
  }
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kListThreads + threadIdx.x; i < count * dim;
       i += static_cast<int64_t>(gridDim.x) * kListThreads) {
    const int64_t row = first + i / dim;
    queue[(at + row) % length * dim + i % dim] = keys[row * dim + i % dim];
  }
}

// A launch of its own: the rows have been written when it runs.
__global__ void __launch_bounds__(kWarp) advanceKernel(int32_t* pointer, int64_t rows, int64_t length) {
  if (threadIdx.x == 0 && *pointer >= 0 && *pointer < length) *pointer = static_cast<int32_t>((*pointer + rows) % length);
}

}  // namespace

void sgd(const Call& call) {
  using Names = args::sgd;
  const UpdatedTensors<Names> all(call);
  const auto momenta = all.also(call, "momenta", call.list(Names::momenta));
  const SgdRule rule{updateRule<Names>(call), static_cast<float>(call.number(Names::momentum)),
                     static_cast<float>(call.number(Names::weightDecay)), call.flag(Names::nesterov)};
  auto launches =
      batches<SgdTable>([&](const SgdTable& table) { launch(call, sgdKernel, Grid{table.blocks()}, kListThreads, 0, table, rule); });
  for (size_t k = 0; k < all.parameters.size(); ++k)
    launches.add(SgdEntry{updated(call, all, k), momenta[k]->data<float>(), all.gradients[k]->data<float>()}, all.parameters[k]->size());
  launches.end();
}

void ema(const Call& call) {
  const EmaTensors tensors(call);
  const double keep = call.number(args::ema::momentum);
  auto all = batches<EmaTable>([&](const EmaTable& table) {
    launch(call, emaKernel, Grid{table.blocks()}, kListThreads, 0, table, static_cast<float>(keep), static_cast<float>(1 - keep));
  });
  for (size_t k = 0; k < tensors.averages.size(); ++k) {
    const Tensor& average = *tensors.averages[k];
    REQUIRE(average.dtype == DType::f32, "DTYPE", "ema: expected averages of f32 but received " + describe(average));
    all.add(EmaEntry{average.data<float>(), tensors.sources[k]->data<float>(), optionalData<bf16>(tensors.copies[k])}, average.size());
  }
  all.end();
}

void checkFinite(const Call& call) {
  int32_t* foundInf = call.tensor(args::checkFinite::foundInf).data<int32_t>();
  auto all = batches<ConstTable>(
      [&](const ConstTable& table) { launch(call, checkFiniteKernel, Grid{table.blocks()}, kListThreads, 0, table, foundInf); });
  for (const Tensor* tensor : call.list(args::checkFinite::tensors)) {
    REQUIRE(tensor->dtype == DType::f32, "DTYPE", "checkFinite: expected f32 but received " + describe(*tensor));
    all.add(ConstEntry{tensor->data<float>()}, tensor->size());
  }
  all.end();
}

void enqueue(const Call& call) {
  const Tensor &queue = call.tensor(args::enqueue::queue), &pointer = call.tensor(args::enqueue::pointer),
               &keys = call.tensor(args::enqueue::keys);
  const int64_t K = queue.dim(0), D = queue.dim(1), B = keys.dim(0), count = std::min(B, K);
  dispatchFloat(call, queue.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, enqueueKernel<T>, loopGrid(call, count * D, kListThreads), kListThreads, 0, queue.data<T>(), pointer.data<int32_t>(),
           keys.data<T>(), K, D, B - count, count, reportOf(call));
    launch(call, advanceKernel, Grid{}, kWarp, 0, pointer.data<int32_t>(), B, K);
  });
}

}  // namespace densecl::cuda
