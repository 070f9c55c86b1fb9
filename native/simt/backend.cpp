// The CUDA kernels on the host as a device of the engine: memory with guard bytes around every block, poisoned when handed
// out, so that a store out of bounds and a read of what nobody wrote show in every test.
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "../cuda/ops.h"
#include "../cuda/runtime.h"
#include "alarms.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace densecl {
namespace {

const OpFunction kOps[] = {
#define OP(name, ...) cuda::name,
#include "../core/ops.def"
#undef OP
};

// What a recorded step does: its launches, and its forks where they are joined, in order. The arena holds nothing over to the next replay.
class LaunchList : public Recording {
 public:
  std::vector<std::function<void()>> list;
  void replay() override {
    for (const auto& work : list) work();
  }
  size_t launches() const override { return list.size(); }
};

constexpr size_t kGuard = 1024;
constexpr unsigned char kGuardByte = 0xa5;

class SimtDevice : public cuda::KernelDevice {
 public:
  // DENSECL_SIMT_SHUFFLE: the seed of a shuffled order of threads.
  SimtDevice() : KernelDevice("simt", kOps) {
    if (const char* seed = std::getenv("DENSECL_SIMT_SHUFFLE")) simt::setShuffle(std::strtoull(seed, nullptr, 10));
  }

  void* allocateRaw(size_t bytes) override {
    auto* base = static_cast<unsigned char*>(std::aligned_alloc(1024, (bytes + 2 * kGuard + 1023) / 1024 * 1024));
    return base == nullptr ? nullptr : base + kGuard;
  }
  void releaseRaw(void* block, size_t) override { std::free(static_cast<unsigned char*>(block) - kGuard); }
  bool divisible() override { return false; }

  void onAcquire(void* block, size_t bytes, size_t capacity) override {
    auto* at = static_cast<unsigned char*>(block);
    poison(at - kGuard, kGuard + capacity + kGuard, false);
    std::memset(at - kGuard, kGuardByte, kGuard);
    std::memset(at, 0xff, bytes);  // NaN, or -1
    std::memset(at + bytes, kGuardByte, capacity - bytes + kGuard);
    poison(at - kGuard, kGuard, true);
    poison(at + bytes, capacity - bytes + kGuard, true);
  }
  void onRelease(void* block, size_t bytes, size_t capacity) override {
    auto* at = static_cast<unsigned char*>(block);
    poison(at - kGuard, kGuard + capacity + kGuard, false);
    const bool whole = intact(at - kGuard, kGuard) && intact(at + bytes, capacity - bytes + kGuard);
    if (!whole) damaged_ = true;
  }

  void upload(void* to, const void* from, size_t bytes) override {
    expectNoRecording("an upload");
    std::memcpy(to, from, bytes);
  }
  void download(void* to, const void* from, size_t bytes) override {
    expectNoRecording("a download");
    check();
    std::memcpy(to, from, bytes);
  }
  void synchronize() override { check(); }

  // Guards of the op's own tensors are looked at when it has run, those of its scratch memory when that is freed.
  void run(size_t op, const Call& call) override {
    ops[op](call);
    if (recording_) return;
    for (const Tensor* tensor : call.tensors) {
      if (tensor == nullptr || allocator.isPlanned(tensor->raw())) continue;
      auto* at = static_cast<unsigned char*>(tensor->raw());
      const size_t bytes = tensor->storage->bytes, behind = Allocator::capacity(bytes) - bytes + kGuard;
      poison(at - kGuard, kGuard, false);
      poison(at + bytes, behind, false);
      const bool whole = intact(at - kGuard, kGuard) && intact(at + bytes, behind);
      poison(at - kGuard, kGuard, true);
      poison(at + bytes, behind, true);
      REQUIRE(whole, "SIMT", std::string(call.op) + ": a kernel wrote outside of " + densecl::describe(*tensor));
    }
    const bool damaged = damaged_;
    damaged_ = false;
    REQUIRE(!damaged, "SIMT", std::string(call.op) + ": a kernel wrote outside of its scratch memory");
  }

  void beginRecording() override {
    REQUIRE(forks_.empty(), "GRAPH", "graph: work that was forked before a recording must be joined before it");
    recording_ = std::make_unique<LaunchList>();
  }
  std::unique_ptr<Recording> endRecording() override {
    std::unique_ptr<Recording> recording = std::move(recording_);
    const size_t unjoined = forks_.size();
    forks_.clear();
    REQUIRE(unjoined == 0, "GRAPH", "graph: " + std::to_string(unjoined) + " forks of a step that is recorded were not joined in it");
    return recording;
  }
  void submit(simt::Launch launch) {
    if (recording_)
      recording_->list.push_back([launch = std::move(launch)] { simt::run(launch); });
    else
      simt::run(launch);
  }

  // A fork runs when it is joined, the latest that a GPU may run it: whoever touches its tensors meanwhile computes something else.
  std::unique_ptr<Fork> fork(std::function<void(void*)> body) override {
    forks_.push_back({++lastFork_, std::move(body)});
    return std::make_unique<LateFork>(*this, lastFork_);
  }

  Traits traits() override {
    Traits traits = KernelDevice::traits();
    traits.kind = "simt";
    traits.simulated = true;
    return traits;
  }
  std::string describe() override {
    return "the CUDA kernels, run on the host thread by thread, as compute capability " + std::to_string(capability() / 10) + "." +
           std::to_string(capability() % 10) + ", " + std::to_string(multiprocessors()) + " multiprocessors";
  }

  // Of one second stream: with all forks before it.
  void join(uint64_t number) {
    while (!forks_.empty() && forks_.front().number <= number) {
      const std::function<void(void*)> body = std::move(forks_.front().body);
      forks_.pop_front();
      if (recording_)
        recording_->list.push_back([body] { body(nullptr); });
      else
        body(nullptr);
    }
  }

  cuda::Report report{};
  std::vector<int> arrivals = std::vector<int>(cuda::kArrivals);

 private:
  struct LateFork : Fork {
    LateFork(SimtDevice& device, uint64_t number) : device(device), number(number) {}
    void join() override { device.join(number); }
    SimtDevice& device;
    const uint64_t number;
  };
  struct Forked {
    uint64_t number;
    std::function<void(void*)> body;
  };

  // A few, so that work is split among blocks as on a real machine.
  int ownMultiprocessors() override { return 4; }
  int ownCapability() override { return simt::capability(); }
  // Of the build; in the environment of a process, of a build that was made so.
  std::string architectures() override {
    const char* text = std::getenv("DENSECL_ARCHITECTURES");
    return text == nullptr ? DENSECL_ARCHITECTURES : text;
  }

  void expectNoRecording(const char* what) const {
    REQUIRE(!recording_, "GRAPH", std::string("graph: ") + what + " in a step that is recorded would not be repeated");
  }
  void check() {
    const cuda::Report found = report;
    report = {};
    cuda::throwReport(found);
  }
  static bool intact(const unsigned char* at, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i)
      if (at[i] != kGuardByte) return false;
    return true;
  }
  static void poison([[maybe_unused]] unsigned char* at, [[maybe_unused]] size_t bytes, [[maybe_unused]] bool on) {
#if defined(__SANITIZE_ADDRESS__)
    if (on)
      ASAN_POISON_MEMORY_REGION(at, bytes);
    else
      ASAN_UNPOISON_MEMORY_REGION(at, bytes);
#endif
  }
  bool damaged_ = false;
  std::unique_ptr<LaunchList> recording_;
  std::deque<Forked> forks_;
  uint64_t lastFork_ = 0;
};

SimtDevice& instance() {
  static SimtDevice* device = new SimtDevice();
  return *device;
}

}  // namespace

Device& simtDevice() { return instance(); }

// DENSECL_SIMT_BUS_ID: a GPU of the machine that the device stands for.
std::string simtBusId() {
  const char* id = std::getenv("DENSECL_SIMT_BUS_ID");
  return id == nullptr ? "" : id;
}

namespace cuda {
Report* reportOf(const Call&) { return &instance().report; }
int* arrivalsOf(const Call&) { return instance().arrivals.data(); }
void submit(simt::Launch launch) { instance().submit(std::move(launch)); }
}  // namespace cuda
}  // namespace densecl
