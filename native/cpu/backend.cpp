// The CPU as a device.
#include "../core/device.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <new>
#include <unordered_map>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "../core/system.h"
#include "isa.h"
#include "ops.h"
#include "widen.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace densecl {
namespace {

constexpr std::align_val_t alignmentOf(size_t bytes) { return std::align_val_t{bytes >= kHugePage ? kHugePage : 64}; }

const OpFunction kOps[] = {
#define OP(name, ...) cpu::name,
#include "../core/ops.def"
#undef OP
};

void runOp(OpFunction op, const Call& call) {
  if (cpu::needsWidening(call))
    cpu::runWidened(op, call);
  else
    op(call);
}

// What a recorded step does: its ops, on tensors of its own that lie where those of the recorded run lay. Their scratch memory comes from
// what is free of the arena meanwhile, or from the allocator.
class OpList : public Recording {
 public:
  void add(OpFunction op, const Call& call) {
    Step& step = steps_.emplace_back();
    step.op = op;
    step.free = cpuDevice().allocator.gaps();
    step.call = call;
    const Signature& signature = signatures()[static_cast<size_t>(call.index)];
    for (size_t p = 0; p < signature.tensors.size(); ++p)
      for (uint32_t k = call.firstTensor[p]; k < call.firstTensor[p + 1]; ++k) {
        if (call.tensors[k] == nullptr) continue;
        const Tensor& own = step.tensors.emplace_back(ownTensor(*call.tensors[k]));
        step.call.tensors[k] = &own;
        if (signature.tensors[p].mayBeWritten()) step.written.push_back(own.storage.get());
      }
  }
  // The arena's blocks end where no op is left that names them, and with them what was made of their values.
  void finish() {
    for (const auto& [storage, place] : places_)
      if (!place.of.expired()) results_.push_back(place.of);
    places_.clear();
    std::unordered_map<Storage*, Step*> last;
    for (Step& step : steps_)
      for (const Tensor& tensor : step.tensors)
        if (!tensor.storage->owned) last[tensor.storage.get()] = &step;
    for (const auto& [storage, step] : last) step->ended.push_back(storage);
  }
  void replay() override {
    for (const std::weak_ptr<Storage>& result : results_)
      if (const std::shared_ptr<Storage> storage = result.lock()) storage->written();
    for (const Step& step : steps_) {
      for (Storage* storage : step.written) storage->written();
      const Loan loan(step.free);
      runOp(step.op, step.call);
      for (Storage* storage : step.ended) storage->derived = {};
    }
  }
  size_t launches() const override { return steps_.size(); }

 private:
  struct Step {
    OpFunction op;
    Call call;
    std::deque<Tensor> tensors;  // those of the call
    std::vector<Storage*> written, ended;
    std::vector<Gap> free;  // of the arena, for scratch memory
  };
  struct Place {
    std::weak_ptr<Storage> of;
    std::shared_ptr<Storage> own;
  };

  // Storages of the arena are given back as the recorded run goes on, so that the next ones get their places; others belong to whoever
  // made them, and StepCalls sees that they live.
  Tensor ownTensor(const Tensor& tensor) {
    if (cpuDevice().allocator.blockOfRun(tensor.raw()) == Allocator::kUnplanned)
      return {std::shared_ptr<Storage>(std::shared_ptr<Storage>(), tensor.storage.get()), tensor.dtype, tensor.shape};
    Place& place = places_[tensor.storage.get()];
    if (place.of.lock() != tensor.storage)
      place = {tensor.storage, std::make_shared<Storage>(tensor.storage->device, tensor.storage->bytes, tensor.storage->block)};
    return {place.own, tensor.dtype, tensor.shape};
  }

  std::deque<Step> steps_;
  std::unordered_map<const Storage*, Place> places_;
  std::vector<std::weak_ptr<Storage>> results_;  // what the recorded run has left, in places that every replay writes
};

class CpuDevice : public Device {
 public:
  CpuDevice() : Device("cpu", kOps) {}
  // The block begins a range of addresses, in which it can grow, where the system gives one; the allocator's lock guards these.
  void* allocateRaw(size_t bytes) override {
#if !defined(__SANITIZE_ADDRESS__)
    const size_t size = (std::max(bytes, 2 * machineMemory()) + kAhead - 1) / kAhead * kAhead;
    if (void* range = reserveAddresses(size)) {
      ranges_[static_cast<char*>(range)] = {size, 0};
      if (growRaw(range, bytes)) return range;
      releaseRaw(range, bytes);
      return nullptr;
    }
#endif
    void* block = ::operator new(bytes, alignmentOf(bytes), std::nothrow);
    if (block != nullptr && bytes >= kHugePage) wishForHugePages(block, bytes);
    return block;
  }
  void releaseRaw(void* block, size_t bytes) override {
    if (const auto range = ranges_.find(static_cast<char*>(block)); range != ranges_.end()) {
      returnAddresses(block, range->second.size);
      ranges_.erase(range);
      return;
    }
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(block, bytes);
#endif
    ::operator delete(block, alignmentOf(bytes));
  }
  bool growRaw(void* block, size_t bytes) override {
    const auto range = ranges_.find(static_cast<char*>(block));
    if (range == ranges_.end() || bytes > range->second.size) return false;
    size_t& usable = range->second.usable;
    if (bytes <= usable) return true;
    // Ranges are whole multiples of it, and so are huge pages.
    const size_t more = (bytes - usable + kAhead - 1) / kAhead * kAhead;
    if (!putMemory(range->first + usable, more)) return false;
    usable += more;
    return true;
  }
  bool discardRaw(void* begin, size_t bytes) override {
    const auto next = ranges_.upper_bound(static_cast<char*>(begin));
    if (next == ranges_.begin() || begin >= std::prev(next)->first + std::prev(next)->second.usable) return false;
    discardMemory(begin, bytes);
    return true;
  }
#if defined(__SANITIZE_ADDRESS__)
  // What a tensor has not asked for is none of its memory, and none of it is anyone's in the cache.
  void onAcquire(void* block, size_t bytes, size_t capacity) override {
    ASAN_UNPOISON_MEMORY_REGION(block, capacity);
    ASAN_POISON_MEMORY_REGION(static_cast<char*>(block) + bytes, capacity - bytes);
  }
  void onRelease(void* block, size_t, size_t capacity) override { ASAN_POISON_MEMORY_REGION(block, capacity); }
  bool divisible() override { return false; }
#endif
  void upload(void* to, const void* from, size_t bytes) override {
    expectNoRecording("an upload");
    std::memcpy(to, from, bytes);
  }
  void download(void* to, const void* from, size_t bytes) override {
    expectNoRecording("a download");
    std::memcpy(to, from, bytes);
  }
  Traits traits() override {
    Traits traits;
    traits.kind = "cpu";
    traits.hostMemory = traits.recordable = traits.normsResults = traits.e4m3 = true;
    traits.dtypes = {DType::f32, DType::f64, DType::bf16};
    return traits;
  }
  size_t keptBytes(const Call& call, const Tensor*& holder) override { return cpu::keptBytes(call, holder); }
  void run(size_t op, const Call& call) override {
    if (recording != nullptr) return recording->add(ops[op], call);
    const Unplanned scratch(allocator);
    runOp(ops[op], call);
  }
  void beginRecording() override { recording = std::make_unique<OpList>(); }
  std::unique_ptr<Recording> endRecording() override {
    recording->finish();
    return std::move(recording);
  }
  std::string describe() override { return std::to_string(threads()) + " threads, " + cpu::instructionSet(); }

 private:
  struct Unplanned {
    explicit Unplanned(Allocator& allocator) : allocator(allocator) { allocator.pauseTrace(true); }
    ~Unplanned() { allocator.pauseTrace(false); }
    Allocator& allocator;
  };
  void expectNoRecording(const char* what) const {
    REQUIRE(recording == nullptr, "GRAPH", std::string("graph: ") + what + " in a step that is recorded would not be repeated");
  }
  struct Range {
    size_t size, usable;
  };
  std::map<char*, Range> ranges_;
  // Memory is put behind addresses in such steps; what is not written of it takes none.
  static constexpr size_t kAhead = size_t{32} << 20;
  // Of the thread whose step is recorded: data workers go on computing meanwhile.
  static thread_local std::unique_ptr<OpList> recording;
};
thread_local std::unique_ptr<OpList> CpuDevice::recording;

}  // namespace

// Never freed: storages held by JavaScript may outlive every static object.
Device& cpuDevice() {
  static Device* device = [] {
    cpu::isa();  // says what is wrong with DENSECL_ISA before anything is computed
    return new CpuDevice();
  }();
  return *device;
}

}  // namespace densecl
