// The caching allocator of a device: freed blocks are kept and given out again, and the bytes in use (live), their maximum (peak) and
// the bytes kept for reuse (cached) can be read at any time.
#pragma once
#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "heap.h"
#include "plan.h"
#include "tensor.h"

namespace densecl {

class Device;

struct MemoryStats {
  size_t live, peak, cached, limit, storages;
};

// The memory of a recorded step: blocks at planned places, which may overlap where their lifetimes do not. It is freed when it
// has been given up and none of its blocks is in use.
struct Arena {
  Plan plan;
  void* memory = nullptr;
  size_t blocks = 0;  // in use
  bool abandoned = false;
  bool holds(const void* block) const {
    return memory != nullptr && block >= memory && block < static_cast<const char*>(memory) + plan.bytes();
  }
};

// Memory of an arena that no block has for a while.
struct Gap {
  char* begin;
  size_t bytes;
};

class Allocator {
 public:
  explicit Allocator(Device& device) : device_(device), small_(device), large_(device) {}

  // Aligned for every vector access. Throws OUT_OF_MEMORY with the sizes; the process can go on.
  void* allocate(size_t bytes);
  void release(void* block, size_t bytes);
  void trim();
  MemoryStats stats();
  void resetPeak();
  void setLimit(size_t bytes);  // 0 removes the limit

  // Planned memory, in this order: a run between startTrace and endTrace, a run between startServing and endServing that gets its
  // blocks from the arena, and abandon, also after an error at any point. A run is that of its thread: blocks of others have nothing to do
  // with it, and where tensors lie in the host's memory others may have theirs meanwhile.
  Arena* startTrace();
  void endTrace();
  void startServing(Arena* arena);
  void endServing();
  void abandon(Arena* arena);
  bool isPlanned(const void* block);
  // The place of a block among those of this thread's run, the same in both runs of a step; kUnplanned for one that is none of them.
  static constexpr size_t kUnplanned = static_cast<size_t>(-1);
  size_t blockOfRun(const void* block);
  // Whether this thread's run is recorded now.
  bool serves();
  // What is taken and given back meanwhile has no place in the plan: scratch memory of an op that will be run again, and will ask again.
  void pauseTrace(bool paused);
  // What no block of the recorded run has of the arena at this moment.
  std::vector<Gap> gaps();

  // The capacity that a request occupies: what stats() counts.
  static size_t capacity(size_t bytes);

 private:
  void trimLocked();
  // What may be taken from the device in all, with what is kept for reuse.
  size_t boundLocked();
  // A block from a new segment of the device; null where there is no room for it.
  void* takeFromNewLocked(size_t size);
  void* allocateLocked(size_t bytes, size_t size);
  void releaseLocked(void* block, size_t size);
  Arena* arenaOf(const void* block);
  void freeIfUnused(Arena* arena);
  // Only one of the two arenas is there.
  struct Run {
    Arena *tracing = nullptr, *serving = nullptr;
    bool paused = false;
  };
  // That of this thread; null where it has none.
  Run* runLocked();
  void expectNoRunLocked();
  // Parameters of a few hundred bytes live long: they lie apart, so that large blocks find neighbours to be merged with.
  Heap& heapOf(size_t size) { return size < kLarge ? small_ : large_; }
  size_t reserved() const { return small_.reserved() + large_.reserved(); }

  static constexpr size_t kLarge = size_t{1} << 20;
  Device& device_;
  std::mutex mutex_;
  Heap small_, large_;
  size_t live_ = 0, peak_ = 0, limit_ = 0, storages_ = 0;
  size_t highest_ = 0;  // that live_ has ever been
  std::vector<std::unique_ptr<Arena>> arenas_;
  std::map<std::thread::id, Run> runs_;
};

// A block of a device's memory.
struct Storage {
  Storage(Device& device, size_t bytes);
  // Of memory that somebody else keeps.
  Storage(Device& device, size_t bytes, void* block);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  // Whoever writes says so, before: what was made of the values that were there is not that of those to come.
  void written() { derived = {}; }
  Device& device;
  const size_t bytes;
  void* const block;
  const bool owned;
  // What an op has made of the values and reads again as long as they stay: weights as its loops want them, in a form of these numbers.
  struct Derived {
    std::array<int64_t, 4> form{};
    std::shared_ptr<void> value;
  };
  Derived derived;
  size_t steps = 0;  // that were recorded with it and keep its memory (StepCalls), which makes nobody its owner
};

inline void* Tensor::raw() const { return storage->block; }
template <class T>
T* Tensor::data() const {
  return static_cast<T*>(storage->block);
}

}  // namespace densecl
