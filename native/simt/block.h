// A block of threads while it runs on an OS thread: fibers that run until they meet others.
#pragma once
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "fiber.h"
#include "hopper.h"
#include "simt.h"

namespace densecl::simt {

constexpr unsigned kWarp = 32;

enum class State { ready, atBarrier, inWarp, polling, done };

struct Copy {
  void* to;
  const void* from;
  int bytes, fromBytes;
};

// A bulk tensor copy that has been asked for, to or from shared memory. The map is the kernel's parameter, which here ends with the thread
// that asked.
struct BulkCopy {
  void* shared;
  HostTensorMap map;
  int at[4], offset[2];
  bool performed = false;
};

struct PhaseBarrier {
  int arrivals = 0, missing = 0, expected = 0;
  unsigned phase = 0;
  std::vector<BulkCopy> copies;
};

struct NamedBarrier {
  int arrived = 0;
  unsigned generation = 0;
};

struct Thread {
  Coordinates at;
  Fiber* fiber = nullptr;  // from its first instruction to its last
  State state = State::ready;
  const std::function<bool()>* until = nullptr;  // while polling
  std::vector<Copy> copies;                      // asked for, oldest first
  std::vector<size_t> groups;                    // where each that is committed ends among them
  std::vector<std::vector<Product>> products;
  std::vector<Product> openProducts;
  std::vector<BulkCopy> stores;  // asked for, oldest first
  size_t committedStores = 0;
};

struct Warp {
  Perform perform = nullptr;
  unsigned arrived = 0, threads = 0;
  void* lanes[kWarp];
};

// Of an OS thread; kept between blocks, so that stacks are mapped once.
class Block {
 public:
  Thread* current = nullptr;  // whose coordinates are `here`
  unsigned char* shared = nullptr;
  std::unordered_map<void*, PhaseBarrier> phaseBarriers;
  std::map<int, NamedBarrier> namedBarriers;
  std::map<unsigned, unsigned> fences;  // of the threads of a warpgroup since it last committed stores

  void run(const Launch& launch, Dim index, uint64_t seed);
  void wait(State state);
  // Waits without meeting anybody: until ready() is true, which is asked whenever no thread can run.
  void waitUntil(const std::function<bool()>& ready);
  void meet(Perform perform, void* mine);
  // The last thread of an aligned group of `size` to come runs `perform` over all of them.
  void meetWarpgroup(unsigned size, const std::function<void(const std::vector<Thread*>&)>& perform);
  [[noreturn]] void fail(const std::string& what);
  // With shuffled threads, by chance.
  bool early() { return random_ != 0 && draw(2) == 0; }

 private:
  struct Unwind {};
  static void body(void* argument);
  void runCurrent();
  size_t draw(size_t count);
  Thread& next();
  Fiber& fiberOf(Thread& thread);
  void schedule();
  bool wakePolling();
  std::string place(const Coordinates& at) const;
  void drain();
  void guardShared(size_t bytes, bool on);

  const char* op_ = "";
  const std::function<void()>* kernel_ = nullptr;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::vector<Warp> warps_;
  std::map<unsigned, NamedBarrier> groups_;
  std::vector<unsigned> ready_;
  std::exception_ptr error_;
  unsigned count_ = 0, atBarrier_ = 0, done_ = 0;
  Fiber::Outside outside_;
  uint64_t random_ = 0;
};

// The block of the calling fiber.
Block& currentBlock();

}  // namespace densecl::simt
