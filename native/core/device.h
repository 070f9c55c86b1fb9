// A device of the engine: memory, transfers and one function per op. `cpu` always exists; a build adds `cuda:N` (CUDA) or
// `simt` (the CUDA kernels run on the host, for tests).
#pragma once
#include <string>
#include <vector>

#include "allocator.h"
#include "call.h"

namespace densecl {

class Device {
 public:
  Device(std::string name, const OpFunction* ops) : name(std::move(name)), allocator(*this), ops(ops) {}
  virtual ~Device() = default;

  // Memory below the caching allocator: null when there is none left.
  virtual void* allocateRaw(size_t bytes) = 0;
  virtual void releaseRaw(void* block, size_t bytes) = 0;
  // Called for every block that is handed out and taken back by the cache.
  virtual void onAcquire(void*, size_t, size_t) {}
  virtual void onRelease(void*, size_t, size_t) {}

  // From and to the host; download waits for the work that was given to the device.
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  virtual void download(void* to, const void* from, size_t bytes) = 0;
  virtual void synchronize() {}
  // Runs an op; overridden to add checks and explanations.
  virtual void run(size_t op, const Call& call) { ops[op](call); }
  // One line for people: processor, instruction set or compute capability.
  virtual std::string describe() = 0;

  const std::string name;
  Allocator allocator;
  const OpFunction* const ops;
};

// Every device of this build. Listing `cuda:N` starts the CUDA driver, so it happens on first use only.
Device& cpuDevice();
// By name; throws DEVICE with what exists and why others do not.
Device& findDevice(const std::string& name);
std::vector<std::string> deviceNames();

}  // namespace densecl
