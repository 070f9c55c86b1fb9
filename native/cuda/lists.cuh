// Kernels over lists of tensors. A launch takes as many tensors as fit into its arguments: a table in device memory would have to be
// uploaded first.
#pragma once
#include "../core/lists.h"
#include "kernel/platform.cuh"
#include "runtime.h"

namespace densecl::cuda {

constexpr int kListThreads = 256, kListPerThread = 8, kListPerBlock = kListThreads * kListPerThread;

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
    firstBlock[count + 1] = firstBlock[count] + static_cast<int>(ceilDiv(size, kListPerBlock));
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
    first = (static_cast<int64_t>(blockIdx.x) - firstBlock[low]) * kListPerBlock;
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

// A step of a moving average, rounded alike wherever it is taken.
DEVICE float follow(float keep, float average, float take, float source) { return fmaf(take, source, keep * average); }

// A parameter, and what follows it: its bf16 copy, its moving average and the copy of that, or null.
struct Updated {
  float* p;
  bf16* copy;
  float* average;
  bf16* averageCopy;
  DEVICE void write(int64_t i, float value, float keep, float take) const {
    p[i] = value;
    if (copy != nullptr) copy[i] = bf16(value);
    if (average == nullptr) return;
    const float next = follow(keep, average[i], take, value);
    average[i] = next;
    if (averageCopy != nullptr) averageCopy[i] = bf16(next);
  }
};

// What every optimiser's kernel is told.
struct UpdateRule {
  const float* rate;
  const int32_t* foundInf;  // not 0: the gradients are not finite, and nothing changes
  float keep, take;         // of the moving averages
  DEVICE bool holds() const { return foundInf == nullptr || *foundInf == 0; }
};

template <class Names>
UpdateRule updateRule(const Call& call) {
  const double averageMomentum = call.number(Names::averageMomentum);
  const Tensor& rate = call.tensor(Names::rate);
  return {rate.data<float>(), optionalData<int32_t>(call.optional(Names::foundInf)), static_cast<float>(averageMomentum),
          static_cast<float>(1 - averageMomentum)};
}

template <class Names>
Updated updated(const Call& call, const UpdatedTensors<Names>& all, size_t k) {
  const Tensor& p = *all.parameters[k];
  REQUIRE(p.dtype == DType::f32, "DTYPE", std::string(call.op) + ": expected parameters of f32 but received " + describe(p));
  return {p.data<float>(), optionalData<bf16>(all.copies[k]), optionalData<float>(all.averages[k]),
          optionalData<bf16>(all.averageCopies[k])};
}

}  // namespace densecl::cuda
