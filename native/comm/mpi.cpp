// Collectives by MPI (3.1), as Open MPI and MPICH have them. Everything here runs on the thread of native/core/comm.cpp, which is all that
// MPI_THREAD_FUNNELED asks.
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstring>
#include <thread>

#include "../core/comm.h"

namespace densecl {
namespace {

// Tensors below it are packed: one of its size passes as fast alone.
constexpr size_t kPackedBytes = size_t{1} << 18;
// What is reduced at a time: half of the time of 48 MiB in one call (Open MPI 4.1, two processes of a machine).
constexpr size_t kPieceBytes = size_t{1} << 20;

void check(int result, const std::string& what) {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(result, text, &length);
  throw Error("COMM", what + ": MPI says " + std::string(text, static_cast<size_t>(length)));
}

// MPI counts by int.
int countOf(int64_t count, const std::string& what) {
  REQUIRE(count <= INT_MAX, "COMM",
          what + ": MPI takes at most " + std::to_string(INT_MAX) + " elements at a time, not " + std::to_string(count));
  return static_cast<int>(count);
}

size_t bytesOf(const Tensor& tensor) { return static_cast<size_t>(tensor.size()) * itemSize(tensor.dtype); }

MPI_Datatype typeOf(DType dtype) {
  switch (dtype) {
    case DType::f32: return MPI_FLOAT;
    case DType::f64: return MPI_DOUBLE;
    case DType::i32: return MPI_INT32_T;
    default: return MPI_BYTE;
  }
}

template <class T>
void divide(void* values, int64_t count, int divisor) {
  T* const at = static_cast<T*>(values);
  const T factor = T{1} / static_cast<T>(divisor);
  for (int64_t i = 0; i < count; ++i) at[i] *= factor;
}

class Mpi : public Engine {
 public:
  Mpi() {
    int granted = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &granted), "MPI_Init_thread");
    REQUIRE(granted >= MPI_THREAD_FUNNELED, "COMM", "this MPI cannot be called from a thread (MPI_THREAD_FUNNELED)");
    check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void run(const Collective& call) override {
    awaitOthers();
    switch (call.kind) {
      case CollectiveKind::allReduce: return allReduce(call);
      case CollectiveKind::allGather: return allGather(call);
      case CollectiveKind::exchange: return exchange(call);
      case CollectiveKind::broadcast: return broadcast(call.tensors[0], call.root);
      case CollectiveKind::barrier: return;  // all are there
    }
  }

  void close() override { check(MPI_Finalize(), "MPI_Finalize"); }

 private:
  // A library waits by asking without a pause, which takes a core from those that compute: whoever is early sleeps here.
  static void awaitOthers() {
    MPI_Request request;
    check(MPI_Ibarrier(MPI_COMM_WORLD, &request), "barrier");
    for (int there = 0;;) {
      check(MPI_Test(&request, &there, MPI_STATUS_IGNORE), "barrier");
      if (there != 0) return;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  // Small tensors are one message, since a call costs the same for any size up to some KiB; large ones are reduced where they lie.
  void allReduce(const Collective& call) {
    std::vector<Tensor> small;
    for (const Tensor& tensor : call.tensors) {
      if (bytesOf(tensor) < kPackedBytes)
        small.push_back(tensor);
      else
        reduce(call, tensor.raw(), tensor.size());
    }
    if (small.empty()) return;
    if (small.size() == 1) return reduce(call, small[0].raw(), small[0].size());
    int64_t count = 0;
    for (const Tensor& tensor : small) count += tensor.size();
    packed_.resize(static_cast<size_t>(count) * itemSize(small[0].dtype));
    forEachPart(small, [](void* at, const Tensor& part) { std::memcpy(at, part.raw(), bytesOf(part)); });
    reduce(call, packed_.data(), count);
    forEachPart(small, [](void* at, const Tensor& part) { std::memcpy(part.raw(), at, bytesOf(part)); });
  }

  // In pieces that the caches hold, where what was added up is divided.
  void reduce(const Collective& call, void* values, int64_t count) {
    const DType dtype = call.tensors[0].dtype;
    const int64_t most = static_cast<int64_t>(kPieceBytes / itemSize(dtype));
    const MPI_Op op = call.reduction == Reduction::max ? MPI_MAX : MPI_SUM;
    for (int64_t from = 0; from < count; from += most) {
      void* const piece = static_cast<char*>(values) + static_cast<size_t>(from) * itemSize(dtype);
      const int64_t size = std::min(most, count - from);
      check(MPI_Allreduce(MPI_IN_PLACE, piece, static_cast<int>(size), typeOf(dtype), op, MPI_COMM_WORLD), "allReduce");
      if (call.reduction == Reduction::mean) (dtype == DType::f64 ? divide<double> : divide<float>)(piece, size, size_);
    }
  }

  template <class Body>
  void forEachPart(const std::vector<Tensor>& parts, Body body) {
    char* at = packed_.data();
    for (const Tensor& part : parts) {
      body(at, part);
      at += bytesOf(part);
    }
  }

  void allGather(const Collective& call) {
    for (size_t pair = 0; pair < call.pairs(); ++pair) {
      const int bytes = countOf(static_cast<int64_t>(bytesOf(call.from(pair))), "allGather");
      check(MPI_Allgather(call.from(pair).raw(), bytes, MPI_BYTE, call.to(pair).raw(), bytes, MPI_BYTE, MPI_COMM_WORLD), "allGather");
    }
  }

  // Rows of a tensor, as a message has them.
  struct Part {
    char* at;
    int bytes, peer;
  };

  static std::vector<Part> partsOf(const Tensor& tensor, const std::vector<Message>& messages) {
    const int64_t rowBytes = tensor.shape[0] == 0 ? 0 : static_cast<int64_t>(bytesOf(tensor)) / tensor.shape[0];
    std::vector<Part> parts;
    for (const Message& message : messages)
      parts.push_back(
          {static_cast<char*>(tensor.raw()) + message.row * rowBytes, countOf(message.rows * rowBytes, "exchange"), message.peer});
    return parts;
  }

  // Messages between two processes arrive in the order in which they were sent (MPI 3.1, 3.5).
  void exchange(const Collective& call) {
    std::vector<Part> sends, receives;
    for (size_t pair = 0; pair < call.pairs(); ++pair) {
      for (const Part& part : partsOf(call.from(pair), call.sends)) sends.push_back(part);
      for (const Part& part : partsOf(call.to(pair), call.receives)) receives.push_back(part);
    }
    std::vector<MPI_Request> requests;
    std::vector<const Part*> awaited;
    for (const Part& part : receives) {
      if (part.peer == rank_) continue;
      requests.emplace_back();
      awaited.push_back(&part);
      check(MPI_Irecv(part.at, part.bytes, MPI_BYTE, part.peer, 0, MPI_COMM_WORLD, &requests.back()), "exchange");
    }
    for (const Part& part : sends) {
      if (part.peer == rank_) continue;
      requests.emplace_back();
      check(MPI_Isend(part.at, part.bytes, MPI_BYTE, part.peer, 0, MPI_COMM_WORLD, &requests.back()), "exchange");
    }
    auto receive = receives.begin();
    for (const Part& part : sends) {
      if (part.peer != rank_) continue;
      while (receive->peer != rank_) ++receive;
      std::memcpy(receive++->at, part.at, static_cast<size_t>(part.bytes));
    }
    std::vector<MPI_Status> statuses(requests.size());
    check(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), statuses.data()), "exchange");
    for (size_t i = 0; i < awaited.size(); ++i) {
      int received = 0;
      check(MPI_Get_count(&statuses[i], MPI_BYTE, &received), "exchange");
      REQUIRE(received == awaited[i]->bytes, "COMM",
              "exchange: expected " + std::to_string(awaited[i]->bytes) + " bytes of rank " + std::to_string(awaited[i]->peer) +
                  " but received " + std::to_string(received));
    }
  }

  void broadcast(const Tensor& tensor, int root) {
    check(MPI_Bcast(tensor.raw(), countOf(static_cast<int64_t>(bytesOf(tensor)), "broadcast"), MPI_BYTE, root, MPI_COMM_WORLD),
          "broadcast");
  }

  int rank_ = 0, size_ = 1;
  std::vector<char> packed_;
};

}  // namespace

std::unique_ptr<Engine> makeEngine() { return std::make_unique<Mpi>(); }

std::string engineLibrary() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string all(text, static_cast<size_t>(length));
  // "Open MPI v4.1.4, package: ..." and "MPICH Version:\t4.0.2\nMPICH Release date: ...".
  std::string first = all.substr(0, all.find_first_of(",\n"));
  const std::string label = " Version:\t";
  const size_t at = first.find(label);
  return at == std::string::npos ? first : first.replace(at, label.size(), " ");
}

}  // namespace densecl
