#include "comm.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <thread>

#include "device.h"

namespace densecl {
namespace {

void checkTensor(const std::string& name, const Tensor& tensor, const Device& device) {
  const Device& of = tensor.storage->device;
  const std::string others = &device == &cpuDevice() ? "" : " or " + device.name;
  REQUIRE(&of == &device || &of == &cpuDevice(), "DEVICE",
          name + ": expected tensors on cpu" + others + " but received " + describe(tensor) + " on " + of.name);
}

int64_t rowsOf(const Tensor& tensor) { return tensor.shape.empty() ? 1 : tensor.shape[0]; }

void checkMessages(const std::string& name, const char* what, const std::vector<Message>& messages, const Tensor& tensor, int size) {
  for (const Message& message : messages) {
    REQUIRE(message.peer >= 0 && message.peer < size, "ARGUMENT",
            name + ": expected " + what + " of ranks 0 to " + std::to_string(size - 1) + " but received " + std::to_string(message.peer));
    REQUIRE(message.row >= 0 && message.rows > 0 && message.row <= rowsOf(tensor) - message.rows, "SHAPE",
            name + ": expected " + what + " within the rows of " + describe(tensor) + " but received " + std::to_string(message.rows) +
                " from row " + std::to_string(message.row));
  }
}

void checkExchange(const std::string& name, const Collective& call, const Tensor& from, const Tensor& to, int rank, int size) {
  REQUIRE(!from.shape.empty() && from.shape.size() == to.shape.size() &&
              std::equal(from.shape.begin() + 1, from.shape.end(), to.shape.begin() + 1) && from.dtype == to.dtype,
          "SHAPE", name + ": expected tensors of equal rows but received " + describe(from) + " and " + describe(to));
  checkMessages(name, "messages", call.sends, from, size);
  checkMessages(name, "messages", call.receives, to, size);
  const auto own = [&](const std::vector<Message>& messages) {
    std::vector<int64_t> rows;
    for (const Message& message : messages)
      if (message.peer == rank) rows.push_back(message.rows);
    return rows;
  };
  REQUIRE(own(call.sends) == own(call.receives), "ARGUMENT",
          name + ": expected what stays with rank " + std::to_string(rank) + " to be received as it is sent");
}

// The thread that an engine lives on, and its calls.
class CommThread : public Comm {
 public:
  explicit CommThread(const std::function<std::unique_ptr<Engine>()>& make) {
    thread_ = std::thread([this, make] { serve(make); });
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return opened_ || failure_ != nullptr; });
    if (failure_ == nullptr) return;
    lock.unlock();
    thread_.join();
    std::rethrow_exception(failure_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Pending> start(Collective call) override {
    checkCollective(call, rank_, size_, cpuDevice());
    REQUIRE(!cpuDevice().allocator.serves(), "GRAPH",
            std::string("graph: ") + collectiveName(call.kind) + " by MPI in a step that is recorded would not be repeated");
    auto job = std::make_shared<Job>();
    job->call = std::move(call);
    const std::lock_guard<std::mutex> lock(mutex_);
    REQUIRE(!closing_, "COMM", std::string(collectiveName(job->call.kind)) + ": the communication of this process has ended");
    jobs_.push_back(job);
    changed_.notify_all();
    return std::make_unique<Started>(*this, job);
  }

  void close() override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
      changed_.notify_all();
    }
    thread_.join();
    if (failure_ != nullptr) std::rethrow_exception(failure_);
  }

 private:
  struct Job {
    Collective call;
    bool done = false;
    std::exception_ptr error;
  };

  class Started : public Pending {
   public:
    Started(CommThread& thread, std::shared_ptr<Job> job) : thread_(thread), job_(std::move(job)) {}
    void join() override {
      std::unique_lock<std::mutex> lock(thread_.mutex_);
      thread_.changed_.wait(lock, [&] { return job_->done; });
      lock.unlock();
      // Here, so that memory is freed by the thread that allocates and at the same moment in every run.
      job_->call.tensors.clear();
      if (job_->error != nullptr) std::rethrow_exception(job_->error);
    }

   private:
    CommThread& thread_;
    std::shared_ptr<Job> job_;
  };

  void serve(const std::function<std::unique_ptr<Engine>()>& make) {
    std::unique_ptr<Engine> engine;
    try {
      engine = make();
    } catch (...) {
      failure_ = std::current_exception();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    if (engine != nullptr) {
      rank_ = engine->rank();
      size_ = engine->size();
      opened_ = true;
    }
    changed_.notify_all();
    while (engine != nullptr) {
      changed_.wait(lock, [&] { return closing_ || !jobs_.empty(); });
      if (jobs_.empty()) break;
      const std::shared_ptr<Job> job = jobs_.front();
      jobs_.pop_front();
      lock.unlock();
      try {
        engine->run(job->call);
      } catch (...) {
        job->error = std::current_exception();
      }
      lock.lock();
      job->done = true;
      changed_.notify_all();
    }
    lock.unlock();
    try {
      if (engine != nullptr) engine->close();
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> jobs_;
  int rank_ = 0, size_ = 1;
  bool opened_ = false, closing_ = false;
  std::exception_ptr failure_;
};

std::mutex openMutex;
// Never destroyed: a process that ends with an error leaves it in the middle of a call.
std::atomic<Comm*> opened{nullptr};
std::atomic<bool> closed{false};

// The form for the CPU alone has nothing to open.
[[maybe_unused]] Comm& open(const std::function<std::unique_ptr<Comm>()>& make) {
  const std::lock_guard<std::mutex> lock(openMutex);
  REQUIRE(!closed, "COMM", "the communication of this process has ended: it cannot be opened again");
  if (opened == nullptr) opened = make().release();
  return *opened;
}

}  // namespace

const char* collectiveName(CollectiveKind kind) {
  static const char* const names[] = {"allReduce", "allGather", "exchange", "broadcast", "barrier"};
  return names[static_cast<int>(kind)];
}

void checkCollective(const Collective& call, int rank, int size, const Device& device) {
  const std::string name = collectiveName(call.kind);
  for (const Tensor& tensor : call.tensors) {
    checkTensor(name, tensor, device);
    REQUIRE(&tensor.storage->device == &call.tensors[0].storage->device, "DEVICE", name + ": expected tensors of one device");
  }
  const auto expectTensors = [&](size_t count) {
    REQUIRE(call.tensors.size() == count, "ARGUMENT",
            name + ": expected " + std::to_string(count) + " tensors but received " + std::to_string(call.tensors.size()));
  };
  const auto forEachPair = [&](const auto& body) {
    REQUIRE(call.pairs() > 0 && call.tensors.size() % 2 == 0, "ARGUMENT",
            name + ": expected as many tensors to receive as to send but received " + std::to_string(call.tensors.size()));
    for (size_t pair = 0; pair < call.pairs(); ++pair) {
      for (size_t other = 0; other < call.pairs(); ++other)
        REQUIRE(call.from(other).storage != call.to(pair).storage && (other == pair || call.to(other).storage != call.to(pair).storage),
                "ARGUMENT", name + ": expected tensors to receive that share no memory");
      body(call.from(pair), call.to(pair));
    }
  };
  switch (call.kind) {
    case CollectiveKind::allReduce:
      REQUIRE(!call.tensors.empty(), "ARGUMENT", name + ": expected at least one tensor");
      for (const Tensor& tensor : call.tensors) {
        REQUIRE(tensor.dtype == call.tensors[0].dtype, "DTYPE",
                name + ": expected tensors of one dtype but received " + describe(call.tensors[0]) + " and " + describe(tensor));
        const bool real = tensor.dtype == DType::f32 || tensor.dtype == DType::f64;
        REQUIRE(real || (tensor.dtype == DType::i32 && call.reduction != Reduction::mean), "DTYPE",
                name + ": expected f32 or f64, or i32 for a sum or largest value, but received " + describe(tensor));
      }
      break;
    case CollectiveKind::allGather:
      forEachPair([&](const Tensor& from, const Tensor& to) {
        REQUIRE(from.dtype == to.dtype && from.size() * size == to.size(), "SHAPE",
                name + ": expected a tensor of " + std::to_string(size) + " times the size of " + describe(from) + " but received " +
                    describe(to));
      });
      break;
    case CollectiveKind::exchange:
      forEachPair([&](const Tensor& from, const Tensor& to) { checkExchange(name, call, from, to, rank, size); });
      break;
    case CollectiveKind::broadcast:
      expectTensors(1);
      REQUIRE(call.root >= 0 && call.root < size, "ARGUMENT",
              name + ": expected a root of 0 to " + std::to_string(size - 1) + " but received " + std::to_string(call.root));
      break;
    case CollectiveKind::barrier: expectTensors(0); break;
  }
}

Comm& openMpi() {
#if defined(DENSECL_MPI)
  return open([] { return std::make_unique<CommThread>(makeEngine); });
#else
  throw Error("COMM", "this addon has no MPI, by which processes of the CPU exchange tensors: npm run build:mpi makes one that has");
#endif
}

Comm& openedComm() {
  Comm* const comm = opened;
  REQUIRE(comm != nullptr && !closed, "COMM",
          comm == nullptr ? "the communication of this process has not been opened" : "the communication of this process has ended");
  return *comm;
}

std::string commError() {
  Comm* const comm = opened;
  return comm == nullptr || closed ? "" : comm->error();
}

void closeComm() {
  const std::lock_guard<std::mutex> lock(openMutex);
  if (opened == nullptr || closed.exchange(true)) return;
  opened.load()->close();
}

std::string commLibrary() {
#if defined(DENSECL_MPI)
  return engineLibrary();
#elif defined(DENSECL_NCCL)
  return ncclVersion().empty() ? "" : "NCCL " + ncclVersion();
#else
  return "";
#endif
}

#if defined(DENSECL_NCCL)
Comm& openNccl(const std::string& id, int rank, int size, Device& device) {
  return open([&] { return makeNccl(id, rank, size, device); });
}
#endif

}  // namespace densecl
