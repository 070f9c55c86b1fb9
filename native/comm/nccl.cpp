// Collectives of GPUs by NCCL, which is loaded when a run asks for it: builds do not need it, and what is installed may be newer. A call
// gives work to a second stream of the device (Device::fork), which is recorded with the step around it.
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "../core/comm.h"
#include "../core/device.h"

namespace densecl {
namespace {

// The interface of NCCL since 2.18 (nccl.h), of which this is what is used. Handles and streams are pointers; results are 0 where all is
// well.
struct UniqueId {
  char bytes[128];
};
constexpr int kUint8 = 1, kInt32 = 2, kFloat32 = 7, kFloat64 = 8;
constexpr int kSum = 0, kMax = 2, kMean = 4;
constexpr int kInProgress = 7, kLeastVersion = 21800;

struct Library {
  int (*getVersion)(int*);
  const char* (*getErrorString)(int);
  const char* (*getLastError)(void*);
  int (*getUniqueId)(UniqueId*);
  int (*commInitRank)(void**, int, UniqueId, int);
  int (*commGetAsyncError)(void*, int*);
  int (*commDestroy)(void*);
  int (*allReduce)(const void*, void*, size_t, int, int, void*, void*);
  int (*allGather)(const void*, void*, size_t, int, void*, void*);
  int (*broadcast)(const void*, void*, size_t, int, int, void*, void*);
  int (*send)(const void*, size_t, int, int, void*, void*);
  int (*receive)(void*, size_t, int, int, void*, void*);
  int (*groupStart)();
  int (*groupEnd)();
};

std::string versionText(int version) {
  // Before 2.9 the second number had a digit less.
  const int unit = version < 10000 ? 1000 : 10000;
  return std::to_string(version / unit) + "." + std::to_string(version % unit / 100) + "." + std::to_string(version % 100);
}

std::mutex loadMutex;
const Library* loaded = nullptr;
int loadedVersion = 0;

const Library& library() {
  REQUIRE(loaded != nullptr, "INTERNAL", "NCCL has not been loaded");
  return *loaded;
}

// Throws COMM with what NCCL says of a result, and of what led to it.
void check(int result, const std::string& what, void* comm = nullptr, const std::string& remedy = "") {
  if (result == 0) return;
  const Library& nccl = library();
  const char* last = nccl.getLastError(comm);
  const std::string more = last == nullptr || *last == '\0' ? "" : ": " + std::string(last, std::strcspn(last, "\n"));
  throw Error("COMM", what + ": NCCL says " + nccl.getErrorString(result) + more + remedy);
}

size_t bytesOf(const Tensor& tensor) { return static_cast<size_t>(tensor.size()) * itemSize(tensor.dtype); }

// A call as addresses and counts: what is repeated when a recorded step is replayed.
struct Job {
  struct Part {
    void* at;
    size_t count;
  };
  struct Transfer {
    void* at;
    size_t bytes;
    int peer;
  };
  CollectiveKind kind;
  std::vector<Part> parts;  // in elements of `dtype`
  int dtype = kUint8, reduction = kSum, root = 0;
  std::vector<Transfer> sends, receives;
};

class Nccl : public Comm {
 public:
  Nccl(const std::string& id, int rank, int size, Device& device) : rank_(rank), size_(size), device_(device) {
    REQUIRE(id.size() == sizeof(UniqueId), "ARGUMENT",
            "openNccl: expected an id of " + std::to_string(sizeof(UniqueId)) + " bytes but received " + std::to_string(id.size()));
    REQUIRE(rank >= 0 && rank < size, "ARGUMENT", "openNccl: expected a rank below " + std::to_string(size));
    UniqueId unique;
    std::memcpy(unique.bytes, id.data(), sizeof unique.bytes);
    // NCCL asks which device is current.
    device_
        .fork([&](void*) {
          check(library().commInitRank(&comm_, size, unique, rank), "opening NCCL on " + device_.name, nullptr,
                "; NCCL_DEBUG=WARN says more, and NCCL_SOCKET_IFNAME chooses among the interfaces of a machine");
        })
        ->join();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Pending> start(Collective call) override {
    checkCollective(call, rank_, size_, device_);
    if (call.kind == CollectiveKind::barrier) call = barrier();
    if (&call.tensors[0].storage->device != &device_) return std::make_unique<Staged>(*this, std::move(call));
    return std::make_unique<Forked>(std::move(call.tensors), device_.fork([this, job = jobOf(call)](void* stream) { run(job, stream); }));
  }

  // Who closes waits for the others, which nobody may wait for here.
  std::string error() override {
    const std::unique_lock<std::mutex> lock(closing_, std::try_to_lock);
    if (!lock.owns_lock() || comm_ == nullptr) return "";
    int result = 0;
    const int asked = library().commGetAsyncError(comm_, &result);
    if (asked != 0 || result == 0 || result == kInProgress) return "";
    try {
      check(result, "NCCL on " + device_.name, comm_);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  void close() override {
    const std::lock_guard<std::mutex> lock(closing_);
    device_.synchronize();
    device_.fork([&](void*) { check(library().commDestroy(comm_), "ending NCCL"); })->join();
    comm_ = nullptr;
  }

 private:
  class Forked : public Pending {
   public:
    Forked(std::vector<Tensor> tensors, std::unique_ptr<Fork> fork) : tensors_(std::move(tensors)), fork_(std::move(fork)) {}
    // Memory that is free from here on is written behind the join.
    void join() override {
      fork_->join();
      tensors_.clear();
    }

   private:
    std::vector<Tensor> tensors_;
    std::unique_ptr<Fork> fork_;
  };

  // What is in the host's memory passes through that of the device, and is there when it is joined.
  class Staged : public Pending {
   public:
    Staged(Nccl& comm, Collective call) : tensors_(call.tensors) {
      for (Tensor& tensor : call.tensors) {
        const void* const from = tensor.raw();
        tensor.storage = std::make_shared<Storage>(comm.device_, bytesOf(tensor));
        comm.device_.upload(tensor.raw(), from, bytesOf(tensor));
      }
      staged_ = call.tensors;
      pending_ = comm.start(std::move(call));
    }
    void join() override {
      pending_->join();
      for (size_t i = 0; i < staged_.size(); ++i)
        staged_[i].storage->device.download(tensors_[i].raw(), staged_[i].raw(), bytesOf(tensors_[i]));
      tensors_.clear();
      staged_.clear();
    }

   private:
    std::vector<Tensor> tensors_, staged_;
    std::unique_ptr<Pending> pending_;
  };

  // NCCL has none: a word that all add up, which the host waits for.
  static Collective barrier() {
    Tensor word;
    word.dtype = DType::i32;
    word.shape = {1};
    word.storage = std::make_shared<Storage>(cpuDevice(), sizeof(int32_t));
    *word.data<int32_t>() = 0;
    Collective call;
    call.kind = CollectiveKind::allReduce;
    call.tensors = {word};
    return call;
  }

  static Job jobOf(const Collective& call) {
    Job job;
    job.kind = call.kind;
    job.root = call.root;
    job.reduction = call.reduction == Reduction::max ? kMax : call.reduction == Reduction::mean ? kMean : kSum;
    const bool reduces = call.kind == CollectiveKind::allReduce;
    if (reduces) job.dtype = call.tensors[0].dtype == DType::i32 ? kInt32 : call.tensors[0].dtype == DType::f64 ? kFloat64 : kFloat32;
    for (const Tensor& tensor : call.tensors)
      job.parts.push_back({tensor.raw(), reduces ? static_cast<size_t>(tensor.size()) : bytesOf(tensor)});
    if (call.kind != CollectiveKind::exchange) return job;
    const auto transfers = [](std::vector<Job::Transfer>& all, const Tensor& tensor, const std::vector<Message>& messages) {
      const size_t row = bytesOf(tensor) / static_cast<size_t>(std::max<int64_t>(1, tensor.shape[0]));
      for (const Message& message : messages)
        all.push_back({static_cast<char*>(tensor.raw()) + static_cast<size_t>(message.row) * row, static_cast<size_t>(message.rows) * row,
                       message.peer});
    };
    for (size_t pair = 0; pair < call.pairs(); ++pair) {
      transfers(job.sends, call.from(pair), call.sends);
      transfers(job.receives, call.to(pair), call.receives);
    }
    return job;
  }

  void run(const Job& job, void* stream) {
    const Library& nccl = library();
    const std::string name = collectiveName(job.kind);
    const auto expect = [&](int result) { check(result, name, comm_); };
    expect(nccl.groupStart());
    switch (job.kind) {
      // Several tensors are reduced where they lie: NCCL makes few launches of a group.
      case CollectiveKind::allReduce:
        for (const Job::Part& part : job.parts)
          if (part.count > 0) expect(nccl.allReduce(part.at, part.at, part.count, job.dtype, job.reduction, comm_, stream));
        break;
      case CollectiveKind::allGather:
        for (size_t pair = 0; pair < job.parts.size() / 2; ++pair) {
          const Job::Part &from = job.parts[pair], &to = job.parts[job.parts.size() / 2 + pair];
          if (from.count > 0) expect(nccl.allGather(from.at, to.at, from.count, kUint8, comm_, stream));
        }
        break;
      case CollectiveKind::broadcast:
        expect(nccl.broadcast(job.parts[0].at, job.parts[0].at, job.parts[0].count, kUint8, job.root, comm_, stream));
        break;
      // Between two processes in the order in which they were sent, and so what stays with one.
      case CollectiveKind::exchange:
        for (const Job::Transfer& each : job.sends) expect(nccl.send(each.at, each.bytes, kUint8, each.peer, comm_, stream));
        for (const Job::Transfer& each : job.receives) expect(nccl.receive(each.at, each.bytes, kUint8, each.peer, comm_, stream));
        break;
      case CollectiveKind::barrier: break;
    }
    expect(nccl.groupEnd());
  }

  const int rank_, size_;
  Device& device_;
  void* comm_ = nullptr;
  std::mutex closing_;
};

}  // namespace

std::string loadNccl(const std::string& path) {
  const std::lock_guard<std::mutex> lock(loadMutex);
  if (loaded != nullptr) return versionText(loadedVersion);
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw Error("COMM", dlerror());
  static Library nccl;
  std::string absent;
  const auto find = [&](const char* name, auto& function) {
    void* const symbol = dlsym(handle, name);
    if (symbol == nullptr) absent += (absent.empty() ? "" : ", ") + std::string(name);
    std::memcpy(&function, &symbol, sizeof symbol);
  };
  find("ncclGetVersion", nccl.getVersion);
  find("ncclGetErrorString", nccl.getErrorString);
  find("ncclGetLastError", nccl.getLastError);
  find("ncclGetUniqueId", nccl.getUniqueId);
  find("ncclCommInitRank", nccl.commInitRank);
  find("ncclCommGetAsyncError", nccl.commGetAsyncError);
  find("ncclCommDestroy", nccl.commDestroy);
  find("ncclAllReduce", nccl.allReduce);
  find("ncclAllGather", nccl.allGather);
  find("ncclBroadcast", nccl.broadcast);
  find("ncclSend", nccl.send);
  find("ncclRecv", nccl.receive);
  find("ncclGroupStart", nccl.groupStart);
  find("ncclGroupEnd", nccl.groupEnd);
  const std::string expected = "expected " + versionText(kLeastVersion) + " or later";
  int version = 0;
  if (nccl.getVersion != nullptr) nccl.getVersion(&version);
  REQUIRE(version == 0 || version >= kLeastVersion, "COMM", path + " is NCCL " + versionText(version) + ": " + expected);
  REQUIRE(absent.empty(), "COMM", path + " lacks " + absent + ": " + expected);
  loaded = &nccl;
  loadedVersion = version;
  return versionText(version);
}

std::string ncclVersion() { return loaded == nullptr ? "" : versionText(loadedVersion); }

std::string ncclId() {
  UniqueId id;
  check(library().getUniqueId(&id), "the id of a run");
  return std::string(id.bytes, sizeof id.bytes);
}

std::unique_ptr<Comm> makeNccl(const std::string& id, int rank, int size, Device& device) {
  return std::make_unique<Nccl>(id, rank, size, device);
}

}  // namespace densecl
