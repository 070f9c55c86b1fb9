// A device that goes through the motions of another: it takes the same tensors and keeps account of their memory, but has none and
// computes nothing. It tells what work would take before there is room for it.
#include "device.h"

#include <cstring>
#include <map>
#include <mutex>

namespace densecl {
namespace {

class DryDevice : public Device {
 public:
  explicit DryDevice(Device& like) : Device("dry:" + like.name, nullptr), like_(like) {}

  // Addresses that nothing is ever read from or written to.
  void* allocateRaw(size_t bytes) override {
    void* block = reinterpret_cast<void*>(next_);
    next_ += bytes;
    return block;
  }
  void releaseRaw(void*, size_t) override {}
  void upload(void*, const void*, size_t) override {}
  void download(void* to, const void*, size_t bytes) override { std::memset(to, 0, bytes); }
  void run(size_t, const Call& call) override {
    const Tensor* holder = nullptr;
    const size_t bytes = like_.keptBytes(call, holder);
    if (bytes == 0) return;
    holder->storage->written();
    holder->storage->derived.value = std::make_shared<Storage>(*this, bytes);
  }
  Traits traits() override {
    Traits traits = like_.traits();
    traits.computes = traits.asynchronous = traits.recordable = traits.tunable = false;
    traits.families.clear();
    return traits;
  }
  std::string describe() override { return "nothing; as " + like_.describe(); }

 private:
  Device& like_;
  uintptr_t next_ = 1 << 20;  // the allocator's lock guards it
};

}  // namespace

Device& dryDevice(Device& like) {
  static std::mutex mutex;
  static std::map<std::string, Device*>* devices = new std::map<std::string, Device*>();
  std::lock_guard<std::mutex> lock(mutex);
  Device*& device = (*devices)[like.name];
  if (device == nullptr) device = new DryDevice(like);
  return *device;
}

}  // namespace densecl
