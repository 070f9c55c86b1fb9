// The caching allocator of a device: freed blocks are kept by size class and given out again, and the bytes in use (live),
// their maximum (peak) and the bytes kept for reuse (cached) can be read at any time.
#pragma once
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tensor.h"

namespace densecl {

class Device;

struct MemoryStats {
  size_t live, peak, cached, limit, storages;
};

class Allocator {
 public:
  explicit Allocator(Device& device) : device_(device) {}

  // Aligned for every vector access. Throws OUT_OF_MEMORY with the sizes; the process can go on.
  void* allocate(size_t bytes);
  void release(void* block, size_t bytes);
  void trim();
  MemoryStats stats();
  void resetPeak();
  void setLimit(size_t bytes);  // 0 removes the limit

  // The capacity that a request occupies: what stats() counts.
  static size_t capacity(size_t bytes);

 private:
  void trimLocked();
  void* tryAllocateLocked(size_t size);
  Device& device_;
  std::mutex mutex_;
  std::multimap<size_t, void*> cache_;
  size_t live_ = 0, peak_ = 0, cached_ = 0, limit_ = 0, storages_ = 0;
};

// A block of a device's memory.
struct Storage {
  Storage(Device& device, size_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  Device& device;
  const size_t bytes;
  void* const block;
};

inline void* Tensor::raw() const { return storage->block; }
template <class T>
T* Tensor::data() const {
  return static_cast<T*>(storage->block);
}

// Scratch memory of an op of the CPU, from the same cache.
Device& cpuDevice();
template <class T>
class Scratch {
 public:
  explicit Scratch(size_t count) : storage_(cpuDevice(), count * sizeof(T) + 64) {}
  T* data() { return static_cast<T*>(storage_.block); }
  T& operator[](size_t i) { return data()[i]; }

 private:
  Storage storage_;
};

}  // namespace densecl
