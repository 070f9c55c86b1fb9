// The CPU as a device.
#include "../core/device.h"

#include <cstdlib>
#include <cstring>

#include "../core/parallel.h"
#include "isa.h"
#include "ops.h"

namespace densecl {
namespace {

const OpFunction kOps[] = {
#define OP(name, ...) cpu::name,
#include "../core/ops.def"
#undef OP
};

class CpuDevice : public Device {
 public:
  CpuDevice() : Device("cpu", kOps) {}
  void* allocateRaw(size_t bytes) override { return std::aligned_alloc(64, bytes); }
  void releaseRaw(void* block, size_t) override { std::free(block); }
  void upload(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  Traits traits() override {
    Traits traits;
    traits.kind = "cpu";
    traits.hostMemory = true;
    traits.dtypes = {DType::f32, DType::f64};
    return traits;
  }
  std::string describe() override { return std::to_string(threads()) + " threads, " + cpu::instructionSet(); }
};

}  // namespace

// Never freed: storages held by JavaScript may outlive every static object.
Device& cpuDevice() {
  static Device* device = new CpuDevice();
  return *device;
}

}  // namespace densecl
