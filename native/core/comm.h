// Collectives among the processes of a run. A library of others moves the data (native/comm): MPI that of the CPU, called by a thread that
// is here, NCCL that of GPUs. Calls happen in the order in which they were started, the same in every process.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "allocator.h"

namespace densecl {

enum class CollectiveKind : int { allReduce, allGather, exchange, broadcast, barrier };
constexpr int kCollectiveKinds = 5;
enum class Reduction : int { sum, mean, max };
constexpr int kReductions = 3;

// Rows of a tensor, along its first axis, that go to a process or come from it.
struct Message {
  int peer;
  int64_t row, rows;
};

// A call that every process makes, with tensors of equal dtypes and, unless said otherwise, shapes.
struct Collective {
  CollectiveKind kind;
  // allReduce: tensors that become their sums, means or largest values; allGather: any number of `from`, then as many `to`, each of which
  // gets the tensors of all in the order of ranks; exchange: any number of `from`, then as many `to`; broadcast: the tensor that becomes
  // that of `root`.
  std::vector<Tensor> tensors;
  Reduction reduction = Reduction::sum;
  int root = 0;
  // exchange: each process tells what it sends and receives of each tensor; between two of them in the same order and with the same rows.
  std::vector<Message> sends, receives;

  size_t pairs() const { return tensors.size() / 2; }
  const Tensor& from(size_t pair) const { return tensors[pair]; }
  const Tensor& to(size_t pair) const { return tensors[pairs() + pair]; }
};

const char* collectiveName(CollectiveKind kind);

// Throws DTYPE, SHAPE, DEVICE or ARGUMENT, beginning with the collective's name, for what cannot be asked of `size` processes whose tensors
// are on `device` or on the CPU.
void checkCollective(const Collective& call, int rank, int size, const Device& device);

// A library that moves what is in the host's memory: made, called and destroyed on one thread.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Throws COMM where the library fails.
  virtual void run(const Collective& call) = 0;
  // Waits for all processes and ends what they share.
  virtual void close() = 0;
};

// A collective that has been started. It holds its tensors until it is joined.
class Pending {
 public:
  virtual ~Pending() = default;
  virtual void join() = 0;  // waits for its end; throws what went wrong
};

// The processes that this one runs with, for the whole process: a library can be opened once.
class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::unique_ptr<Pending> start(Collective call) = 0;
  // What went wrong beside the calls, in a sentence, or nothing; asked from any thread.
  virtual std::string error() { return ""; }
  // Waits for all processes and ends what they share.
  virtual void close() = 0;
};

// MPI, which knows who takes part. Opened on first use. Throws COMM in a build without it.
Comm& openMpi();
// The communication that has been opened. Throws COMM where none has, or it was closed.
Comm& openedComm();
// What went wrong in it beside the calls, or nothing; from any thread, and never waits.
std::string commError();
// Ends it, in all processes together; nothing where none was opened.
void closeComm();
// Name and version of the library that would be, or is, used; empty where there is none.
std::string commLibrary();

// native/comm/mpi.cpp
std::unique_ptr<Engine> makeEngine();
std::string engineLibrary();

#if defined(DENSECL_NCCL)
// Which GPU of its machine a device is, whatever its name: the PCI bus id that the driver gives it, or nothing. native/core/devices.cpp
std::string busId(const Device& device);
// native/comm/nccl.cpp
// Loads the library from `path`, a file or a name that the system's loader knows, once for the process: its version. Throws COMM, saying
// what is wrong with it.
std::string loadNccl(const std::string& path);
// Of the library that has been loaded; empty before.
std::string ncclVersion();
// What the processes of one run are opened with: made by rank 0.
std::string ncclId();
// Opens the communication of `size` processes, of which this one has `rank` and computes on `device`: waits for all. Throws COMM.
Comm& openNccl(const std::string& id, int rank, int size, Device& device);
std::unique_ptr<Comm> makeNccl(const std::string& id, int rank, int size, Device& device);
#endif

}  // namespace densecl
