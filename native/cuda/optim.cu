// Updates of many tensors in one kernel, and the queue. A launch takes as many tensors as fit into its arguments: a table in
// device memory would have to be uploaded first.
#include "../core/lists.h"
#include "kernel/platform.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kThreads = 256, kPerThread = 8, kPerBlock = kThreads * kPerThread;

// Entries and the first block of each; blocks beyond kCapacity entries go to another launch.
template <class Entry, int kCapacity>
struct Table {
  Entry entries[kCapacity];
  int64_t sizes[kCapacity];
  int firstBlock[kCapacity + 1];
  int count = 0;
  void add(const Entry& entry, int64_t size) {
    if (count == 0) firstBlock[0] = 0;
    entries[count] = entry;
    sizes[count] = size;
    firstBlock[count + 1] = firstBlock[count] + static_cast<int>(ceilDiv(size, kPerBlock));
    ++count;
  }
  bool full() const { return count == kCapacity; }
  int blocks() const { return count == 0 ? 0 : firstBlock[count]; }
  // The entry of the calling block, and its first element there.
  DEVICE int find(int64_t& first) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (firstBlock[middle] <= static_cast<int>(blockIdx.x))
        low = middle;
      else
        high = middle - 1;
    }
    first = (static_cast<int64_t>(blockIdx.x) - firstBlock[low]) * kPerBlock;
    return low;
  }
};

// Splits entries into launches.
template <class TableType, class Flush>
class Batches {
 public:
  explicit Batches(Flush flush) : flush_(flush) {}
  template <class Entry>
  void add(const Entry& entry, int64_t size) {
    table_.add(entry, size);
    if (table_.full()) end();
  }
  void end() {
    if (table_.count > 0) flush_(table_);
    table_ = TableType{};
  }

 private:
  TableType table_;
  Flush flush_;
};
template <class TableType, class Flush>
Batches<TableType, Flush> batches(Flush flush) {
  return Batches<TableType, Flush>(flush);
}

struct SgdEntry {
  float *p, *v, *key;
  const float* g;
  bf16 *copy, *keyCopy;  // of p and key, or null
};
using SgdTable = Table<SgdEntry, 48>;

struct SgdRule {
  const float* lr;
  const int32_t* foundInf;            // not 0: the gradients are not finite, and nothing changes
  float momentum, decay, keep, take;  // keep and take: of the moving average
  bool nesterov;
};

// A step of a moving average, rounded alike wherever it is taken.
DEVICE float follow(float keep, float average, float take, float source) { return fmaf(take, source, keep * average); }

// An element at a time and thread: parameter, momentum, moving average and the bf16 copies in one pass over memory.
__global__ void __launch_bounds__(kThreads) sgdKernel(SgdTable table, SgdRule rule) {
  if (rule.foundInf != nullptr && *rule.foundInf != 0) return;
  int64_t first;
  const int which = table.find(first);
  const SgdEntry entry = table.entries[which];
  const float lr = *rule.lr;
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = first + k * kThreads + threadIdx.x;
    if (i >= table.sizes[which]) return;
    float p = entry.p[i];
    const float step = entry.g[i] + rule.decay * p;
    const float v = rule.momentum * entry.v[i] + step;
    p -= lr * (rule.nesterov ? step + rule.momentum * v : v);
    entry.v[i] = v;
    entry.p[i] = p;
    if (entry.copy != nullptr) entry.copy[i] = bf16(p);
    if (entry.key == nullptr) continue;
    const float key = follow(rule.keep, entry.key[i], rule.take, p);
    entry.key[i] = key;
    if (entry.keyCopy != nullptr) entry.keyCopy[i] = bf16(key);
  }
}

struct EmaEntry {
  float* average;
  const float* source;
  bf16* copy;  // of the average, or null
};
using EmaTable = Table<EmaEntry, 64>;

__global__ void __launch_bounds__(kThreads) emaKernel(EmaTable table, float keep, float take) {
  int64_t first;
  const int which = table.find(first);
  const EmaEntry entry = table.entries[which];
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = first + k * kThreads + threadIdx.x;
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

__global__ void __launch_bounds__(kThreads) checkFiniteKernel(ConstTable table, int32_t* foundInf) {
  int64_t first;
  const int which = table.find(first);
  bool finite = true;
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = first + k * kThreads + threadIdx.x;
    // x - x is 0 for finite numbers alone.
    if (i < table.sizes[which]) finite = finite && table.entries[which].values[i] - table.entries[which].values[i] == 0;
  }
  if (!finite) *foundInf = 1;
}

template <class T>
__global__ void __launch_bounds__(kThreads) enqueueKernel(T* queue, const int32_t* pointer, const T* keys, int64_t length, int64_t dim,
                                                          int64_t first, int64_t count, Report* report) {
  const int at = *pointer;
  if (at < 0 || at >= length) {
    if (blockIdx.x == 0 && threadIdx.x == 0) fileReport(report, kQueuePointer, at, static_cast<int>(length));
    return;
  }
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count * dim;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
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
  const SgdTensors tensors(call);
  const double averageMomentum = call.number(Names::averageMomentum);
  const SgdRule rule{call.tensor(Names::rate).data<float>(),
                     optionalData<int32_t>(call.optional(Names::foundInf)),
                     static_cast<float>(call.number(Names::momentum)),
                     static_cast<float>(call.number(Names::weightDecay)),
                     static_cast<float>(averageMomentum),
                     static_cast<float>(1 - averageMomentum),
                     call.flag(Names::nesterov)};
  auto all = batches<SgdTable>([&](const SgdTable& table) { launch(call, sgdKernel, Grid{table.blocks()}, kThreads, 0, table, rule); });
  for (size_t k = 0; k < tensors.parameters.size(); ++k) {
    const Tensor& p = *tensors.parameters[k];
    require(p.dtype == DType::f32, "DTYPE", "sgd: expected parameters of f32 but received " + describe(p));
    all.add(
        SgdEntry{p.data<float>(), tensors.momenta[k]->data<float>(), optionalData<float>(tensors.averages[k]),
                 tensors.gradients[k]->data<float>(), optionalData<bf16>(tensors.copies[k]), optionalData<bf16>(tensors.averageCopies[k])},
        p.size());
  }
  all.end();
}

void ema(const Call& call) {
  const EmaTensors tensors(call);
  const double keep = call.number(args::ema::momentum);
  auto all = batches<EmaTable>([&](const EmaTable& table) {
    launch(call, emaKernel, Grid{table.blocks()}, kThreads, 0, table, static_cast<float>(keep), static_cast<float>(1 - keep));
  });
  for (size_t k = 0; k < tensors.averages.size(); ++k) {
    const Tensor& average = *tensors.averages[k];
    require(average.dtype == DType::f32, "DTYPE", "ema: expected averages of f32 but received " + describe(average));
    all.add(EmaEntry{average.data<float>(), tensors.sources[k]->data<float>(), optionalData<bf16>(tensors.copies[k])}, average.size());
  }
  all.end();
}

void checkFinite(const Call& call) {
  int32_t* foundInf = call.tensor(args::checkFinite::foundInf).data<int32_t>();
  auto all = batches<ConstTable>(
      [&](const ConstTable& table) { launch(call, checkFiniteKernel, Grid{table.blocks()}, kThreads, 0, table, foundInf); });
  for (const Tensor* tensor : call.list(args::checkFinite::tensors)) {
    require(tensor->dtype == DType::f32, "DTYPE", "checkFinite: expected f32 but received " + describe(*tensor));
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
    launch(call, enqueueKernel<T>, loopGrid(call, count * D, kThreads), kThreads, 0, queue.data<T>(), pointer.data<int32_t>(),
           keys.data<T>(), K, D, B - count, count, reportOf(call));
    launch(call, advanceKernel, Grid{}, kWarp, 0, pointer.data<int32_t>(), B, K);
  });
}

}  // namespace densecl::cuda
