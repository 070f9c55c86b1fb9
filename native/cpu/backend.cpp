// The CPU as a device.
#include "../core/device.h"

#include <cstring>
#include <new>

#include "../core/parallel.h"
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

class CpuDevice : public Device {
 public:
  CpuDevice() : Device("cpu", kOps) {}
  void* allocateRaw(size_t bytes) override {
    void* block = ::operator new(bytes, alignmentOf(bytes), std::nothrow);
    if (block != nullptr && bytes >= kHugePage) wishForHugePages(block, bytes);
    return block;
  }
  void releaseRaw(void* block, size_t bytes) override {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(block, bytes);
#endif
    ::operator delete(block, alignmentOf(bytes));
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
  void upload(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  Traits traits() override {
    Traits traits;
    traits.kind = "cpu";
    traits.hostMemory = traits.normsResults = traits.e4m3 = true;
    traits.dtypes = {DType::f32, DType::f64, DType::bf16};
    return traits;
  }
  size_t keptBytes(const Call& call, const Tensor*& holder) override { return cpu::keptBytes(call, holder); }
  void run(size_t op, const Call& call) override {
    if (cpu::needsWidening(call))
      cpu::runWidened(ops[op], call);
    else
      ops[op](call);
  }
  std::string describe() override { return std::to_string(threads()) + " threads, " + cpu::instructionSet(); }
};

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
