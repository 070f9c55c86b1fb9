#include "allocator.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "device.h"

namespace densecl {

size_t Allocator::capacity(size_t bytes) {
  const size_t granule = bytes < kLarge ? 256 : size_t{64} << 10;
  if (bytes > std::numeric_limits<size_t>::max() - granule) return std::numeric_limits<size_t>::max();
  return bytes == 0 ? granule : (bytes + granule - 1) / granule * granule;
}

void* Allocator::allocate(size_t bytes) {
  const size_t size = capacity(bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  Run* run = runLocked();
  if (run != nullptr && run->serving != nullptr) {
    void* block = run->serving->plan.serve(run->serving->memory, size);
    ++run->serving->blocks;
    return block;
  }
  void* block = allocateLocked(bytes, size);
  ++storages_;
  device_.onAcquire(block, bytes, size);
  if (run != nullptr && !run->paused) run->tracing->plan.acquired(block, size);
  return block;
}

// What the host keeps beyond this it would swap for before it told that there is none; a GPU's memory has an end, where what is unused
// is given back.
size_t Allocator::boundLocked() {
  constexpr size_t spare = size_t{64} << 20;
  const size_t all = limit_ == 0 ? std::numeric_limits<size_t>::max() : limit_;
  return device_.traits().hostMemory ? std::min(all, 2 * highest_ + spare) : all;
}

// Segments that cannot grow are made larger with their heap, so that they are few and most free blocks have neighbours; an eighth of it is
// lost at most.
void* Allocator::takeFromNewLocked(size_t size) {
  Heap& heap = heapOf(size);
  if (void* grown = device_.divisible() ? heap.takeFromGrown(size) : nullptr) return grown;
  const size_t usual = size < kLarge ? size_t{2} << 20 : size_t{32} << 20;
  const size_t bound = boundLocked(), room = bound - std::min(bound, reserved());
  const size_t segment = device_.divisible() ? std::max(size, std::min(std::max(usual, heap.reserved() / 8), room)) : size;
  void* block = heap.takeFromNew(size, segment);
  if (block == nullptr && segment > size) block = heap.takeFromNew(size, size);
  return block;
}

void* Allocator::allocateLocked(size_t bytes, size_t size) {
  const bool allowed = limit_ == 0 || live_ + size <= limit_;
  void* block = allowed ? heapOf(size).take(size) : nullptr;
  if (allowed && block == nullptr) {
    if (reserved() + size > boundLocked()) trimLocked();
    block = takeFromNewLocked(size);
    if (block == nullptr && reserved() > live_) {
      trimLocked();
      block = takeFromNewLocked(size);
    }
  }
  if (block == nullptr) {
    throw Error("OUT_OF_MEMORY", "out of memory on " + device_.name + ": " + std::to_string(bytes) + " bytes asked for, " +
                                     std::to_string(live_) + " bytes live, limit " +
                                     (limit_ == 0 ? std::string("none") : std::to_string(limit_) + " bytes") + device_.memoryNote() +
                                     "; use a smaller batch or image size");
  }
  live_ += size;
  if (live_ > peak_) peak_ = live_;
  if (live_ > highest_) highest_ = live_;
  return block;
}

void Allocator::release(void* block, size_t bytes) {
  const size_t size = capacity(bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  Run* run = runLocked();
  if (Arena* arena = arenaOf(block)) {
    if (run != nullptr && arena == run->serving) arena->plan.returned(block);
    --arena->blocks;
    return freeIfUnused(arena);
  }
  if (run != nullptr && run->tracing != nullptr) run->tracing->plan.released(block);
  device_.onRelease(block, bytes, size);
  --storages_;
  releaseLocked(block, size);
}

void Allocator::releaseLocked(void* block, size_t size) {
  live_ -= size;
  heapOf(size).giveBack(block);
}

Arena* Allocator::arenaOf(const void* block) {
  for (const auto& arena : arenas_)
    if (arena->holds(block)) return arena.get();
  return nullptr;
}

bool Allocator::isPlanned(const void* block) {
  std::lock_guard<std::mutex> lock(mutex_);
  return arenaOf(block) != nullptr;
}

bool Allocator::serves() {
  std::lock_guard<std::mutex> lock(mutex_);
  const Run* run = runLocked();
  return run != nullptr && run->serving != nullptr;
}

size_t Allocator::blockOfRun(const void* block) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Run* run = runLocked();
  if (run == nullptr) return kUnplanned;
  return (run->tracing != nullptr ? run->tracing : run->serving)->plan.find(block).value_or(kUnplanned);
}

void Allocator::pauseTrace(bool paused) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (Run* run = runLocked()) run->paused = paused;
}

Allocator::Run* Allocator::runLocked() {
  const auto found = runs_.find(std::this_thread::get_id());
  return found == runs_.end() ? nullptr : &found->second;
}

void Allocator::expectNoRunLocked() {
  const bool other = device_.traits().hostMemory ? runLocked() != nullptr : !runs_.empty();
  REQUIRE(!other, "GRAPH", "graph: another step is being recorded on " + device_.name);
}

std::vector<Gap> Allocator::gaps() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Gap> gaps;
  const Arena& arena = *runLocked()->serving;
  for (const auto& [offset, bytes] : arena.plan.gaps()) gaps.push_back({static_cast<char*>(arena.memory) + offset, bytes});
  return gaps;
}

Arena* Allocator::startTrace() {
  std::lock_guard<std::mutex> lock(mutex_);
  expectNoRunLocked();
  arenas_.push_back(std::make_unique<Arena>());
  Arena* arena = arenas_.back().get();
  runs_[std::this_thread::get_id()] = {arena, nullptr, false};
  return arena;
}

void Allocator::endTrace() {
  std::lock_guard<std::mutex> lock(mutex_);
  runLocked()->tracing->plan.place();
  runs_.erase(std::this_thread::get_id());
}

void Allocator::startServing(Arena* arena) {
  std::lock_guard<std::mutex> lock(mutex_);
  expectNoRunLocked();
  trimLocked();  // what the runs before kept for reuse
  arena->memory = allocateLocked(arena->plan.bytes(), capacity(arena->plan.bytes()));
  runs_[std::this_thread::get_id()] = {nullptr, arena, false};
}

void Allocator::endServing() {
  std::lock_guard<std::mutex> lock(mutex_);
  Arena* arena = runLocked()->serving;
  runs_.erase(std::this_thread::get_id());
  arena->plan.finish();
}

void Allocator::abandon(Arena* arena) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto run = runs_.begin(); run != runs_.end();)
    run = run->second.tracing == arena || run->second.serving == arena ? runs_.erase(run) : std::next(run);
  arena->abandoned = true;
  freeIfUnused(arena);
}

void Allocator::freeIfUnused(Arena* arena) {
  if (!arena->abandoned || arena->blocks != 0) return;
  if (arena->memory != nullptr) releaseLocked(arena->memory, capacity(arena->plan.bytes()));
  arenas_.erase(std::find_if(arenas_.begin(), arenas_.end(), [&](const auto& held) { return held.get() == arena; }));
}

void Allocator::trimLocked() {
  small_.trim();
  large_.trim();
}

void Allocator::trim() {
  std::lock_guard<std::mutex> lock(mutex_);
  trimLocked();
}

MemoryStats Allocator::stats() {
  std::lock_guard<std::mutex> lock(mutex_);
  return {live_, peak_, reserved() - live_, limit_, storages_};
}

void Allocator::resetPeak() {
  std::lock_guard<std::mutex> lock(mutex_);
  peak_ = live_;
}

void Allocator::setLimit(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  limit_ = bytes;
}

Storage::Storage(Device& device, size_t bytes) : device(device), bytes(bytes), block(device.allocator.allocate(bytes)), owned(true) {}
Storage::Storage(Device& device, size_t bytes, void* block) : device(device), bytes(bytes), block(block), owned(false) {}
Storage::~Storage() {
  if (owned) device.allocator.release(block, bytes);
}

std::string describe(const Tensor& tensor) {
  std::string text = dtypeName(tensor.dtype);
  text += "[";
  for (size_t i = 0; i < tensor.shape.size(); ++i) text += (i ? "," : "") + std::to_string(tensor.shape[i]);
  return text + "]";
}

}  // namespace densecl
