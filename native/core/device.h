// A device of the engine: memory, transfers and one function per op. `cpu` always exists; a build adds `cuda:N` (CUDA) or
// `simt` (the CUDA kernels run on the host, for tests).
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "allocator.h"
#include "call.h"

namespace densecl {

// Work that a device was given once and can do again: every launch with the addresses it had.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void replay() = 0;
  virtual size_t launches() const = 0;
};

// A copy from the host to a device.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

// A copy to the host that is on its way.
class Download {
 public:
  virtual ~Download() = default;
  virtual void finish(void* to) = 0;  // waits for this copy and for nothing after it
};

// Work of a library that passes beside the work of a device.
class Fork {
 public:
  virtual ~Fork() = default;
  virtual void join() = 0;  // work that is given to the device from now on waits for it; the host does not
};

// What a device is and what it can do, for all who choose by it; src/tensor/traits.ts has the same fields and says more of each.
struct Traits {
  std::string kind;           // cpu, simt or cuda
  std::string model;          // of a GPU, as its maker calls it
  int capability = 0;         // the compute capability times 10 that kernels are chosen for; 0 where none are
  int multiprocessors = 0;    // by which work is split; 0 where there are none
  bool computes = true;       // ops are done; else tensors have shapes and no values (dry.cpp)
  size_t memory = 0;          // bytes of a GPU's memory; 0 where tensors lie in the host's
  bool hostMemory = false;    // tensors lie in the host's memory and hold their values when a call returns
  bool asynchronous = false;  // work goes on after the call that gave it
  bool simulated = false;     // no clock says what its kernels take
  bool recordable = false;    // steps are recorded and replayed
  bool rendersViews = false;  // augmented views are made on it, from pixels
  bool tf32 = false;          // convolutions of f32 can be computed in tf32
  bool tunable = false;       // convolutions have tiles to choose from
  bool epilogues = false;     // convolutions add, mask and sum what they write for the norms around them
  bool prologues = false;     // convolutions and poolings normalise what they read
  bool normsResults = false;  // convolutions apply a batch norm by running statistics to what they write
  bool e4m3 = false;          // convolutions take maps in E4M3
  int vectorBytes = 0;        // of the accesses of prologues and epilogues; 0 without them
  int statisticsRows = 0;     // rows of a tensor that one row of a convolution's statistics covers; 0 without them
  std::vector<DType> dtypes;  // floating ones that ops compute with
  DType usualDType{};         // of convolutions and activations where nobody says
  // Kinds of kernels that others can stand in for (native/cuda/families.def): those that it would choose.
  std::vector<std::string> families;
};

class Device {
 public:
  Device(std::string name, const OpFunction* ops) : name(std::move(name)), allocator(*this), ops(ops) {}
  virtual ~Device() = default;

  // Memory below the caching allocator: null when there is none left.
  virtual void* allocateRaw(size_t bytes) = 0;
  virtual void releaseRaw(void* block, size_t bytes) = 0;
  // Whether the block of allocateRaw has so many bytes from now on, where it lies.
  virtual bool growRaw(void* /*block*/, size_t /*bytes*/) { return false; }
  // Whether a part of one, whose values are lost, takes no memory until it is written.
  virtual bool discardRaw(void* /*begin*/, size_t /*bytes*/) { return false; }
  // Whether the allocator may cut several blocks from one of these: not where each has guards around it.
  virtual bool divisible() { return true; }
  // Called for every block that is handed out and taken back by the cache.
  virtual void onAcquire(void*, size_t, size_t) {}
  virtual void onRelease(void*, size_t, size_t) {}

  // From and to the host; download waits for the work that was given to the device.
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  virtual void download(void* to, const void* from, size_t bytes) = 0;
  virtual void synchronize() {}

  // Uploads that overlap with compute, from memory that was pinned and is left alone until finishUpload: copies into a target, then what
  // `body` has a library write there on the stream of uploads, a cudaStream_t that is null where there is none. The target must not be in
  // use by work given to the device after the last release(target), which the host waits for where there is a body: the JPEG engines of an
  // H100 write without waiting for what is on their stream.
  virtual void pin(void*, size_t) {}
  virtual void unpin(void*) {}
  virtual void startUpload(void*, const std::vector<Copy>& copies, const std::function<void(void* stream)>& body = nullptr) {
    for (const Copy& copy : copies) upload(copy.to, copy.from, copy.bytes);
    if (body) body(nullptr);
  }
  virtual void useUpload(void*) {}     // work that follows waits for the upload to this target
  virtual void finishUpload(void*) {}  // the host waits for it
  virtual void release(void*) {}       // work so far is the last to use this target

  // A copy to the host that overlaps with the work that follows.
  virtual std::unique_ptr<Download> startDownload(const void* from, size_t bytes);

  // Between the two, ops are not run but recorded; transfers are an error.
  virtual void beginRecording() { throw Error("GRAPH", name + " records no work"); }
  virtual std::unique_ptr<Recording> endRecording() { throw Error("GRAPH", name + " records no work"); }

  // Has `body` give work to a second stream, a cudaStream_t that is null where there is none: it follows the work that was given to the
  // device so far, and passes beside what is given until the fork is joined. Forks follow each other. In a recording both ends are
  // recorded, and each fork must be joined. The device is the current one while `body` runs, which may be as late as the join.
  virtual std::unique_ptr<Fork> fork(std::function<void(void* stream)>) { throw Error("DEVICE", name + " has no second stream"); }

  // Events in the work of the device, and the milliseconds between two of them; reading waits for the second.
  virtual size_t recordEvent();
  virtual double elapsed(size_t from, size_t to);

  virtual Traits traits() = 0;
  // The only families of kernels (Traits), from now on, that it must not use.
  virtual void avoidFamilies(const std::vector<std::string>& names) {
    REQUIRE(names.empty(), "ARGUMENT", name + " has no families of kernels");
  }

  // What an out-of-memory message adds: memory taken by others.
  virtual std::string memoryNote() { return ""; }
  // Bytes that an op leaves with the tensor, of those of its call, that `holder` is set to (Storage::derived).
  virtual size_t keptBytes(const Call&, const Tensor*& holder) {
    holder = nullptr;
    return 0;
  }
  // Runs an op; overridden to add checks and explanations.
  virtual void run(size_t op, const Call& call) { ops[op](call); }
  // One line for people: processor, instruction set or compute capability.
  virtual std::string describe() = 0;

  const std::string name;
  Allocator allocator;
  const OpFunction* const ops;

 private:
  std::vector<double> events_;
};

// Every device of this build. Listing `cuda:N` starts the CUDA driver, so it happens on first use only.
Device& cpuDevice();
// By name; throws DEVICE with what exists and why others do not.
Device& findDevice(const std::string& name);
std::vector<std::string> deviceNames();
// The CUDA backend of this build: toolkit and architectures; empty without one.
std::string cudaBuild();

}  // namespace densecl
