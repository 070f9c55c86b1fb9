// The scheduler: one block at a time on an OS thread.
#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "../core/error.h"
#include "../core/parallel.h"
#include "alarms.h"
#include "block.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace densecl::simt {
namespace {

std::atomic<uint64_t> shuffleSeed{0};
// DENSECL_CAPABILITY at the start; tests change it.
std::atomic<int> currentCapability{[] {
  const char* text = std::getenv("DENSECL_CAPABILITY");
  return text == nullptr ? 80 : std::atoi(text);
}()};
// The block that runs on this OS thread, by a plain pointer: whatever has a constructor is asked at each use whether it is made.
__thread Block* block __attribute__((tls_model("initial-exec"))) = nullptr;

// The oldest copies of a thread.
void perform(Thread& thread, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const Copy& copy = thread.copies[i];
    if (copy.fromBytes == 16) {
      std::memcpy(copy.to, copy.from, 16);
      continue;
    }
    std::memcpy(copy.to, copy.from, copy.fromBytes);
    std::memset(static_cast<char*>(copy.to) + copy.fromBytes, 0, copy.bytes - copy.fromBytes);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(count));
}

}  // namespace

__thread const Coordinates* here = nullptr;

Block& currentBlock() { return *block; }

void Block::run(const Launch& launch, Dim index, uint64_t seed) {
  const unsigned threads = launch.threads;
  const size_t sharedBytes = launch.sharedBytes;
  op_ = launch.op;
  kernel_ = &launch.kernel;
  random_ =
      seed == 0 ? 0 : (seed * 0x9E3779B97F4A7C15ull) ^ (index.x * 0xD1342543DE82EF95ull + index.y * 0x94D049BB133111EBull + index.z + 1);
  // Of the exact size and fresh for each block, so that AddressSanitizer sees its ends; poisoned, so that a read of what
  // nobody wrote shows.
  shared = static_cast<unsigned char*>(std::aligned_alloc(1024, (sharedBytes + 1023) / 1024 * 1024 + (sharedBytes == 0 ? 1024 : 0)));
  std::memset(shared, 0xff, sharedBytes);
  guardShared(sharedBytes, true);
  while (threads_.size() < threads) threads_.push_back(std::make_unique<Thread>());
  warps_.assign((threads + kWarp - 1) / kWarp, Warp{});
  groups_.clear();
  phaseBarriers.clear();
  namedBarriers.clear();
  fences.clear();
  ready_.clear();
  error_ = nullptr;
  atBarrier_ = done_ = 0;
  for (unsigned t = threads; t-- > 0;) {
    Thread& thread = *threads_[t];
    thread.at = {{t, 0, 0}, index, {threads, 1, 1}, launch.grid};
    thread.state = State::ready;
    thread.copies.clear();
    thread.groups.clear();
    thread.products.clear();
    thread.openProducts.clear();
    thread.stores.clear();
    thread.committedStores = 0;
    thread.fiber = nullptr;
    ++warps_[t / kWarp].threads;
    ready_.push_back(t);
  }
  count_ = threads;
  schedule();
  guardShared(sharedBytes, false);
  std::free(shared);
  if (error_) std::rethrow_exception(error_);
}

void Block::wait(State state) {
  Thread* self = current;
  self->state = state;
  atBarrier_ += state == State::atBarrier;
  if (ready_.empty())
    self->fiber->leave();
  else
    self->fiber->leaveFor(fiberOf(next()));
  if (error_) throw Unwind{};
  self->state = State::ready;
}

void Block::waitUntil(const std::function<bool()>& ready) {
  if (ready()) return;
  current->until = &ready;
  wait(State::polling);
}

void Block::meet(Perform perform, void* mine) {
  const unsigned t = current->at.thread.x;
  Warp& warp = warps_[t / kWarp];
  if (warp.arrived == 0) warp.perform = perform;
  if (warp.perform != perform) fail("the lanes of a warp meet at different warp operations");
  warp.lanes[t % kWarp] = mine;
  if (++warp.arrived < warp.threads) return wait(State::inWarp);
  if (warp.threads != kWarp) fail("a warp operation in a block whose threads are no multiple of 32");
  perform(warp.lanes);
  warp.arrived = 0;
  for (unsigned lane = kWarp; lane-- > 0;)
    if (lane != t % kWarp) ready_.push_back(t / kWarp * kWarp + lane);
}

void Block::meetWarpgroup(unsigned size, const std::function<void(const std::vector<Thread*>&)>& perform) {
  const unsigned first = current->at.thread.x / size * size;
  NamedBarrier& meeting = groups_[first];
  const unsigned generation = meeting.generation;
  if (static_cast<unsigned>(++meeting.arrived) < size) return waitUntil([&, generation] { return meeting.generation != generation; });
  std::vector<Thread*> threads;
  for (unsigned t = first; t < first + size; ++t) threads.push_back(threads_[t].get());
  perform(threads);
  meeting.arrived = 0;
  ++meeting.generation;
}

std::string Block::place(const Coordinates& at) const {
  return std::string(op_) + ": block (" + std::to_string(at.block.x) + "," + std::to_string(at.block.y) + "," + std::to_string(at.block.z) +
         ")";
}

void Block::fail(const std::string& what) {
  throw Error("SIMT", place(current->at) + " thread " + std::to_string(current->at.thread.x) + ": " + what);
}

// A thread that ends leaves its stack to the next that begins: where no thread waits for another, one stack, which the processor has at
// hand, is enough for the block.
void Block::body(void* argument) {
  Block* block = static_cast<Block*>(argument);
  Fiber* own = block->current->fiber;
  for (;;) {
    block->runCurrent();
    if (block->error_ || block->ready_.empty()) break;
    Thread& following = block->next();
    if (following.fiber == nullptr) {
      following.fiber = own;
      continue;
    }
    block->idle_.push_back(own);
    own->leaveForGood(following.fiber);
  }
  block->idle_.push_back(own);
  own->leaveForGood(nullptr);
}

void Block::runCurrent() {
  Thread* self = current;
  try {
    (*kernel_)();
    perform(*self, self->copies.size());
    if (!self->products.empty()) fail("a thread ends before its products are done");
    if (!self->stores.empty()) fail("a thread ends before its bulk stores are done");
  } catch (const Unwind&) {
  } catch (...) {
    if (!error_) error_ = std::current_exception();
  }
  self->state = State::done;
  ++done_;
}

size_t Block::draw(size_t count) {
  if (random_ == 0) return count - 1;
  random_ ^= random_ << 13;
  random_ ^= random_ >> 7;
  random_ ^= random_ << 17;
  return random_ % count;
}

// Takes one of those that can go on.
Thread& Block::next() {
  const size_t pick = draw(ready_.size());
  current = threads_[ready_[pick]].get();
  here = &current->at;
  ready_[pick] = ready_.back();
  ready_.pop_back();
  return *current;
}

// Its own, or one for its start.
Fiber& Block::fiberOf(Thread& thread) {
  if (thread.fiber != nullptr) return *thread.fiber;
  if (idle_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>());
    idle_.push_back(fibers_.back().get());
  }
  thread.fiber = idle_.back();
  idle_.pop_back();
  thread.fiber->start(outside_, &Block::body, this);
  return *thread.fiber;
}

void Block::schedule() {
  for (;;) {
    while (!ready_.empty()) {
      fiberOf(next()).enter();
      if (error_) return drain();
    }
    if (done_ == count_) return;
    if (atBarrier_ == count_) {
      for (unsigned t = count_; t-- > 0;) ready_.push_back(t);
      atBarrier_ = 0;
      continue;
    }
    try {
      if (wakePolling()) continue;
      const bool inWarp = std::any_of(threads_.begin(), threads_.begin() + count_, [](auto& each) { return each->state == State::inWarp; });
      const std::string where = atBarrier_ > 0 ? std::to_string(atBarrier_) + " of " + std::to_string(count_) +
                                                     " threads wait at a barrier that the others never reach"
                                : inWarp       ? "some lanes of a warp wait at a warp operation that the others never reach"
                                               : "threads wait for a barrier or a copy that never comes";
      throw Error("SIMT", place(current->at) + ": " + where);
    } catch (...) {
      error_ = std::current_exception();
    }
    return drain();
  }
}

// Lets those go on whose condition has become true; whether there are any.
bool Block::wakePolling() {
  bool some = false;
  for (unsigned t = count_; t-- > 0;) {
    Thread& thread = *threads_[t];
    if (thread.state != State::polling) continue;
    current = &thread;
    here = &thread.at;
    if (!(*thread.until)()) continue;
    thread.state = State::ready;
    ready_.push_back(t);
    some = true;
  }
  return some;
}

// Lets every thread that has not ended unwind its stack.
void Block::drain() {
  for (unsigned t = 0; t < count_; ++t) {
    Thread& thread = *threads_[t];
    if (thread.state == State::done || thread.state == State::ready) continue;
    current = &thread;
    here = &thread.at;
    thread.fiber->enter();
  }
}

// The rounded-up end of the allocation is out of bounds too.
void Block::guardShared([[maybe_unused]] size_t bytes, [[maybe_unused]] bool on) {
#if defined(__SANITIZE_ADDRESS__)
  const size_t whole = (bytes + 1023) / 1024 * 1024 + (bytes == 0 ? 1024 : 0);
  if (on)
    ASAN_POISON_MEMORY_REGION(shared + bytes, whole - bytes);
  else
    ASAN_UNPOISON_MEMORY_REGION(shared, whole);
#endif
}

unsigned char* sharedBytes() { return block->shared; }
void barrier() { block->wait(State::atBarrier); }
void meet(Perform perform, void* mine) { block->meet(perform, mine); }
void misaligned(const void* address, size_t width) {
  block->fail("an access of " + std::to_string(width) + " bytes at an address that is " +
              std::to_string(reinterpret_cast<uintptr_t>(address) % width) + " bytes off");
}
void copyLater(void* to, const void* from, int bytes, int fromBytes) {
  checkAligned(to, bytes);
  checkAligned(from, bytes);
  if (faulty(Instruction::cpAsync)) fromBytes = std::min(fromBytes, bytes - 2);
  block->current->copies.push_back({to, from, bytes, fromBytes});
}
void cpAsyncCommitGroup() { block->current->groups.push_back(block->current->copies.size()); }
void cpAsyncWaitGroup(int groupsInFlight) {
  auto& groups = block->current->groups;
  if (groups.size() <= static_cast<size_t>(groupsInFlight)) return;
  const auto finished = groups.end() - groupsInFlight;
  const size_t count = finished[-1];
  perform(*block->current, count);
  groups.erase(groups.begin(), finished);
  for (size_t& end : groups) end -= count;
}
void setShuffle(uint64_t seed) { shuffleSeed = seed; }
void setCapability(int value) { currentCapability = value; }
int capability() { return currentCapability; }

void run(const Launch& launch) {
  const Dim grid = launch.grid;
  const int64_t blocks = static_cast<int64_t>(grid.x) * grid.y * grid.z;
  if (launch.threads == 0 || launch.threads > 1024)
    throw Error("SIMT", std::string(launch.op) + ": a block of " + std::to_string(launch.threads) + " threads");
  const size_t most = (capability() >= 90 ? 227u : 99u) << 10;
  if (launch.sharedBytes > most)
    throw Error("SIMT", std::string(launch.op) + ": " + std::to_string(launch.sharedBytes) + " bytes of shared memory, more than the " +
                            std::to_string(most) + " of compute capability " + std::to_string(capability() / 10.0));
  const uint64_t seed = shuffleSeed;
  parallelFor(blocks, [&](int64_t b) {
    const Dim index{static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y)};
    thread_local Block own;
    block = &own;
    block->run(launch, index, seed);
  });
}

}  // namespace densecl::simt
