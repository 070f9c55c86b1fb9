// CUDA GPUs as devices: one compute stream each, a stream for uploads beside it, and errors that say what to do. Nothing of
// CUDA is touched before a device is asked for, and the runtime is linked statically: the addon loads anywhere.
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "kernelDevice.h"
#include "ops.h"
#include "runtime.h"

#if !defined(DENSECL_ARCHITECTURES)
#define DENSECL_ARCHITECTURES "unknown"
#endif

namespace densecl {
namespace cuda {
namespace {

const OpFunction kOps[] = {
#define OP(name, ...) cuda::name,
#include "../core/ops.def"
#undef OP
};

// Errors after which the context is lost: every later call returns them again.
bool isSticky(cudaError_t code) {
  switch (code) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable: return true;
    default: return false;
  }
}

void check(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // clears what can be cleared
  std::string message = what + ": " + cudaGetErrorName(code) + " (" + cudaGetErrorString(code) + ")";
  if (isSticky(code))
    message +=
        "; it may come from an earlier launch: run with DENSECL_SYNC=1 to find the op. The device is lost to this process, which must be "
        "started again";
  throw Error("CUDA", message);
}

bool synchronous() {
  static const bool value = [] {
    const char* text = std::getenv("DENSECL_SYNC");
    return text != nullptr && std::strcmp(text, "0") != 0;
  }();
  return value;
}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

// Small copies from the host pass through pinned memory: one from pageable memory would wait for the stream. Two halves, each
// with an event that tells when its copies are done.
class Staging {
 public:
  static constexpr size_t kHalf = size_t{4} << 20;
  Staging() {
    check(cudaHostAlloc(&memory_, 2 * kHalf, cudaHostAllocDefault), "pinned memory of 8 MiB");
    for (cudaEvent_t& event : done_) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  }
  void copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
    for (size_t at = 0; at < bytes;) {
      if (used_ == kHalf) {
        check(cudaEventRecord(done_[half_], stream), "upload");
        half_ ^= 1;
        used_ = 0;
        check(cudaEventSynchronize(done_[half_]), "upload");
      }
      const size_t part = std::min(bytes - at, kHalf - used_);
      char* place = static_cast<char*>(memory_) + half_ * kHalf + used_;
      std::memcpy(place, static_cast<const char*>(from) + at, part);
      check(cudaMemcpyAsync(static_cast<char*>(to) + at, place, part, cudaMemcpyHostToDevice, stream), "upload");
      at += part;
      used_ = std::min(kHalf, used_ + (part + 255) / 256 * 256);
    }
  }

 private:
  void* memory_ = nullptr;
  cudaEvent_t done_[2];
  size_t half_ = 0, used_ = 0;
};

// A captured CUDA graph.
class Graph : public Recording {
 public:
  Graph(cudaGraph_t graph, cudaStream_t stream) : stream_(stream) {
    cudaGraphGetNodes(graph, nullptr, &nodes_);
    const cudaError_t code = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check(code, "graph of " + std::to_string(nodes_) + " launches");
    check(cudaGraphUpload(executable_, stream), "graph");
  }
  ~Graph() override {
    cudaStreamSynchronize(stream_);
    cudaGraphExecDestroy(executable_);
  }
  void replay() override { check(cudaGraphLaunch(executable_, stream_), "graph"); }
  size_t launches() const override { return nodes_; }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
  size_t nodes_ = 0;
};

// A copy into pinned memory, which goes back to the pool when it has been read.
class PinnedPool {
 public:
  void* take(size_t bytes) {
    const auto found = free_.find(bytes);
    if (found == free_.end()) {
      void* memory = nullptr;
      check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "pinned memory of " + std::to_string(bytes) + " bytes");
      return memory;
    }
    void* memory = found->second;
    free_.erase(found);
    return memory;
  }
  void give(void* memory, size_t bytes) { free_.emplace(bytes, memory); }

 private:
  std::multimap<size_t, void*> free_;
};

class PinnedDownload : public Download {
 public:
  PinnedDownload(PinnedPool& pool, const void* from, size_t bytes, cudaStream_t stream)
      : pool_(pool), bytes_(bytes), memory_(pool.take(bytes)) {
    check(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "event");
    check(cudaMemcpyAsync(memory_, from, bytes, cudaMemcpyDeviceToHost, stream), "download");
    check(cudaEventRecord(done_, stream), "download");
  }
  ~PinnedDownload() override {
    cudaEventSynchronize(done_);
    cudaEventDestroy(done_);
    pool_.give(memory_, bytes_);
  }
  void finish(void* to) override {
    check(cudaEventSynchronize(done_), "download");
    std::memcpy(to, memory_, bytes_);
  }

 private:
  PinnedPool& pool_;
  const size_t bytes_;
  void* const memory_;
  cudaEvent_t done_ = nullptr;
};

// An upload target's events: when the upload is done, and when compute has finished with the target.
struct Target {
  cudaEvent_t uploaded, released;
  bool pending = false;
};

class CudaDevice : public KernelDevice {
 public:
  explicit CudaDevice(int index) : KernelDevice("cuda:" + std::to_string(index), kOps), index_(index) {
    check(cudaSetDevice(index), name);  // makes the context
    check(cudaGetDeviceProperties(&properties_, index), name);
    if (properties_.major < 8) {
      throw Error("DEVICE", name + " is a " + properties_.name + " of compute capability " + std::to_string(properties_.major) + "." +
                                std::to_string(properties_.minor) + "; expected 8.0 (Ampere) or later");
    }
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), name);
    check(cudaStreamCreateWithFlags(&uploads_, cudaStreamNonBlocking), name);
    check(cudaHostAlloc(reinterpret_cast<void**>(&report), sizeof(Report), cudaHostAllocMapped | cudaHostAllocPortable), name);
    *report = {};
    check(cudaMalloc(reinterpret_cast<void**>(&arrivals), kArrivals * sizeof(int)), name);
    check(cudaMemset(arrivals, 0, kArrivals * sizeof(int)), name);
    check(cudaDeviceSynchronize(), name);  // the stream of the work does not wait for that of the setting
    staging_ = std::make_unique<Staging>();
  }

  int index() const { return index_; }

  // Before anything of CUDA: which device is current belongs to the thread, and others may have changed it.
  void use() const {
    int current = -1;
    if (cudaGetDevice(&current) != cudaSuccess || current != index_) check(cudaSetDevice(index_), name);
  }

  void* allocateRaw(size_t bytes) override {
    use();
    void* block = nullptr;
    const cudaError_t code = cudaMalloc(&block, bytes);
    if (code == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return nullptr;
    }
    check(code, "memory on " + name);
    return block;
  }
  void releaseRaw(void* block, size_t) override {
    use();
    cudaFree(block);  // waits for the work that uses it; an error shows at the next call
  }
  std::string memoryNote() override {
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) return "";
    return ", " + std::to_string(free >> 20) + " of " + std::to_string(total >> 20) + " MiB free on the device";
  }

  // Whoever gets the block next starts without the events of those who had it.
  void onRelease(void* block, size_t, size_t capacity) override {
    const auto begin = targets_.lower_bound(block), end = targets_.lower_bound(static_cast<char*>(block) + capacity);
    for (auto target = begin; target != end; ++target)
      for (cudaEvent_t event : {target->second.uploaded, target->second.released}) cudaEventDestroy(event);
    targets_.erase(begin, end);
  }

  void upload(void* to, const void* from, size_t bytes) override {
    expectNoRecording("an upload");
    use();
    staging_->copy(to, from, bytes, stream);
  }
  void download(void* to, const void* from, size_t bytes) override {
    expectNoRecording("a download");
    use();
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "download");
    synchronize();
  }
  void synchronize() override {
    use();
    check(cudaStreamSynchronize(stream), name);
    const Report found = *report;
    *report = {};
    throwReport(found);
  }

  std::unique_ptr<Download> startDownload(const void* from, size_t bytes) override {
    expectNoRecording("a download");
    use();
    return std::make_unique<PinnedDownload>(downloads_, from, bytes, stream);
  }

  void beginRecording() override {
    use();
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "graph");
    recording = true;
  }
  std::unique_ptr<Recording> endRecording() override {
    recording = false;
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream, &graph), "graph");
    return std::make_unique<Graph>(graph, stream);
  }

  std::unique_ptr<Fork> fork(std::function<void(void*)> body) override {
    use();
    if (communication_ == nullptr) {
      int least = 0, greatest = 0;
      check(cudaDeviceGetStreamPriorityRange(&least, &greatest), name);
      // Its kernels are few and somebody waits for them: they go first where both streams have work.
      check(cudaStreamCreateWithPriority(&communication_, cudaStreamNonBlocking, greatest), name);
    }
    auto fork = std::make_unique<EventFork>(*this);
    check(cudaEventRecord(fork->event, stream), "fork");
    check(cudaStreamWaitEvent(communication_, fork->event, 0), "fork");
    body(communication_);
    check(cudaEventRecord(fork->event, communication_), "fork");
    return fork;
  }

  void pin(void* memory, size_t bytes) override {
    use();
    check(cudaHostRegister(memory, bytes, cudaHostRegisterPortable), "pinning " + std::to_string(bytes >> 20) + " MiB for uploads");
  }
  void unpin(void* memory) override {
    use();
    check(cudaHostUnregister(memory), "unpinning");
  }
  void startUpload(void* to, const std::vector<Copy>& copies, const std::function<void(void*)>& body) override {
    use();
    Target& target = targetOf(to);
    if (body) check(cudaEventSynchronize(target.released), "upload");
    check(cudaStreamWaitEvent(uploads_, target.released, 0), "upload");
    for (const Copy& copy : copies) check(cudaMemcpyAsync(copy.to, copy.from, copy.bytes, cudaMemcpyHostToDevice, uploads_), "upload");
    const auto mark = [&] {
      check(cudaEventRecord(target.uploaded, uploads_), "upload");
      target.pending = true;
    };
    // Copies are waited for where the body throws, too.
    mark();
    if (!body) return;
    body(uploads_);
    mark();
  }
  void useUpload(void* to) override {
    use();
    check(cudaStreamWaitEvent(stream, targetOf(to).uploaded, 0), "upload");
  }
  void finishUpload(void* to) override {
    use();
    Target& target = targetOf(to);
    if (target.pending) check(cudaEventSynchronize(target.uploaded), "upload");
    target.pending = false;
  }
  void release(void* to) override {
    use();
    check(cudaEventRecord(targetOf(to).released, stream), "upload");
  }

  size_t recordEvent() override {
    use();
    cudaEvent_t event;
    check(cudaEventCreate(&event), "event");
    check(cudaEventRecord(event, stream), "event");
    events_.push_back(event);
    return events_.size() - 1;
  }
  double elapsed(size_t from, size_t to) override {
    use();
    REQUIRE(from < events_.size() && to < events_.size(), "INTERNAL", "elapsed: there is no such event");
    check(cudaEventSynchronize(events_[to]), "event");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, events_[from], events_[to]), "event");
    return milliseconds;
  }

  void run(size_t op, const Call& call) override {
    use();
    ops[op](call);
  }

  Traits traits() override {
    Traits traits = KernelDevice::traits();
    traits.kind = "cuda";
    traits.model = properties_.name;
    traits.memory = properties_.totalGlobalMem;
    traits.asynchronous = true;
    return traits;
  }
  std::string describe() override {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    return std::string(properties_.name) + ", compute capability " + std::to_string(properties_.major) + "." +
           std::to_string(properties_.minor) + ", " + std::to_string(properties_.multiProcessorCount) + " multiprocessors, " +
           std::to_string(properties_.totalGlobalMem >> 20) + " MiB; driver for CUDA " + version(driver);
  }

  // More than 48 KiB of shared memory must be asked for, once for each kernel.
  void allowShared(const void* kernel, size_t bytes, const char* op) {
    if (bytes <= (48u << 10)) return;
    size_t& allowed = allowed_[kernel];
    if (bytes <= allowed) return;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          std::string(op) + ": " + std::to_string(bytes) + " bytes of shared memory on " + name);
    allowed = bytes;
  }

  cudaStream_t stream = nullptr;
  Report* report = nullptr;
  int* arrivals = nullptr;
  bool recording = false;

 private:
  // A wait holds for what was recorded last when it was given, so that one event serves both ends, and the next fork.
  struct EventFork : Fork {
    explicit EventFork(CudaDevice& device) : device(device) {
      if (device.forkEvents_.empty()) {
        check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
        return;
      }
      event = device.forkEvents_.back();
      device.forkEvents_.pop_back();
    }
    ~EventFork() override { device.forkEvents_.push_back(event); }
    void join() override {
      device.use();
      check(cudaStreamWaitEvent(device.stream, event, 0), "join");
    }
    CudaDevice& device;
    cudaEvent_t event = nullptr;
  };

  void expectNoRecording(const char* what) const {
    REQUIRE(!recording, "GRAPH", std::string("graph: ") + what + " in a step that is recorded would not be repeated");
  }
  Target& targetOf(void* block) {
    const auto found = targets_.find(block);
    if (found != targets_.end()) return found->second;
    Target& target = targets_[block];
    for (cudaEvent_t* event : {&target.uploaded, &target.released}) check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "event");
    // An event that was never recorded does not hold anybody up: work so far may still use a recycled block.
    check(cudaEventRecord(target.released, stream), "event");
    return target;
  }

  int ownMultiprocessors() override { return properties_.multiProcessorCount; }
  int ownCapability() override { return properties_.major * 10 + properties_.minor; }
  std::string architectures() override { return DENSECL_ARCHITECTURES; }

  const int index_;
  cudaDeviceProp properties_{};
  cudaStream_t uploads_ = nullptr, communication_ = nullptr;
  std::unique_ptr<Staging> staging_;
  PinnedPool downloads_;
  std::unordered_map<const void*, size_t> allowed_;
  std::map<void*, Target> targets_;
  std::vector<cudaEvent_t> events_, forkEvents_;
};

CudaDevice& deviceOf(const Call& call) { return static_cast<CudaDevice&>(call.device()); }

}  // namespace

Report* reportOf(const Call& call) { return deviceOf(call).report; }
int* arrivalsOf(const Call& call) { return deviceOf(call).arrivals; }
cudaStream_t streamOf(const Call& call) { return deviceOf(call).stream; }
void prepareLaunch(const Call& call, const void* kernel, size_t shared) { deviceOf(call).allowShared(kernel, shared, call.op); }

void checkLaunch(const Call& call) {
  check(cudaGetLastError(), call.op);
  if (synchronous() && !deviceOf(call).recording) check(cudaStreamSynchronize(streamOf(call)), call.op);
}

}  // namespace cuda

int cudaDeviceCount(std::string* why) {
  int count = 0, driver = 0, runtime = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  if (why != nullptr) {
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    const std::string needed = cuda::version(runtime);
    if (driver == 0)
      *why = "no NVIDIA driver was found (this build needs one for CUDA " + needed + " or later)";
    else if (code == cudaErrorInsufficientDriver)
      *why = "the NVIDIA driver is for CUDA " + cuda::version(driver) + " but this build needs one for " + needed + " or later";
    else if (code == cudaSuccess || code == cudaErrorNoDevice)
      *why = "the NVIDIA driver finds no GPU (CUDA_VISIBLE_DEVICES may hide it)";
    else
      *why = std::string(cudaGetErrorName(code)) + " (" + cudaGetErrorString(code) + ")";
  }
  return 0;
}

std::string cudaBusId(const Device& device) {
  char id[32] = "";
  const auto& gpu = static_cast<const cuda::CudaDevice&>(device);
  return cudaDeviceGetPCIBusId(id, sizeof id, gpu.index()) == cudaSuccess ? id : "";
}

std::string cudaBuildText() {
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  return "CUDA " + cuda::version(runtime) + ", for " + DENSECL_ARCHITECTURES;
}

Device& cudaDevice(int index) {
  // Never freed: storages held by JavaScript may outlive every static object.
  static std::mutex mutex;
  static auto* devices = new std::map<int, cuda::CudaDevice*>();
  std::lock_guard<std::mutex> lock(mutex);
  cuda::CudaDevice*& device = (*devices)[index];
  if (device == nullptr) device = new cuda::CudaDevice(index);
  return *device;
}

}  // namespace densecl
