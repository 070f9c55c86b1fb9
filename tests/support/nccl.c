// A stand-in for libnccl.so.2 whose processes are on one machine and whose "GPUs" have the host's memory: enough of NCCL 2.18 to load, open
// and use (native/comm/nccl.cpp). Processes share a file and a barrier; a call that is not the same in all of them is an error in all. The
// environment makes it misbehave, calls counted from 1:
//   NCCL_STANDIN_VERSION=21000   the version that it says it is
//   NCCL_STANDIN_FAIL=RANK:N     call N of a rank returns an error
//   NCCL_STANDIN_BREAK=RANK:N    call N of a rank and what follows never end, and ncclCommGetAsyncError tells why
//   NCCL_STANDIN_STALL=RANK:N    the same, and nothing tells why; RANK:0 never opens, and all say that they do
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { kSuccess = 0, kSystemError = 2, kInvalidUsage = 5, kRemoteError = 6 };
enum { kMaxRanks = 16, kMaxOps = 4096, kSlot = 16 << 20, kChunk = 1 << 20 };

typedef struct {
  char bytes[128];
} Id;
typedef enum { kAllReduce, kAllGather, kBroadcast, kSend, kReceive } Kind;
typedef struct {
  Kind kind;
  const void* from;
  void* to;
  size_t count;
  int dtype, op, peer;
} Op;
typedef struct {
  int peer;
  size_t bytes, offset;
} Entry;
typedef struct {
  atomic_int arrived, generation;
  uint64_t said[kMaxRanks];  // a hash of the call that each makes
  int entries[kMaxRanks];
  Entry directory[kMaxRanks][kMaxOps];
} Shared;
typedef struct {
  Shared* shared;
  unsigned char* slots;
  int rank, size, call;
  atomic_int broken;
} Comm;

static __thread char lastError[256];
static __thread Op ops[kMaxOps];
static __thread int opCount, depth;
static __thread Comm* opComm;

static int failed(int code, const char* text) {
  snprintf(lastError, sizeof lastError, "%s", text);
  return code;
}

static void pause_(void) {
  const struct timespec moment = {0, 50000};
  nanosleep(&moment, NULL);
}

static void barrier(Comm* comm) {
  Shared* shared = comm->shared;
  const int generation = atomic_load(&shared->generation);
  if (atomic_fetch_add(&shared->arrived, 1) + 1 == comm->size) {
    atomic_store(&shared->arrived, 0);
    atomic_fetch_add(&shared->generation, 1);
    return;
  }
  for (int i = 0; atomic_load(&shared->generation) == generation; ++i)
    if (i > 100) pause_();
}

static unsigned char* slotOf(const Comm* comm, int rank) { return comm->slots + (size_t)rank * kSlot; }

static size_t sizeOf(int dtype) { return dtype == 8 ? 8 : dtype == 7 || dtype == 2 ? 4 : dtype == 9 ? 2 : 1; }

static int isCall(const Comm* comm, const char* variable) {
  const char* text = getenv(variable);
  int rank = 0, call = 0;
  return text != NULL && sscanf(text, "%d:%d", &rank, &call) == 2 && rank == comm->rank && call == comm->call;
}

#define REDUCE(type)                                                                     \
  for (size_t i = 0; i < count; ++i) {                                                   \
    type sum = ((const type*)slotOf(comm, 0))[i];                                        \
    for (int rank = 1; rank < comm->size; ++rank) {                                      \
      const type value = ((const type*)slotOf(comm, rank))[i];                           \
      sum = op == 2 ? (value > sum ? value : sum) : sum + value;                         \
    }                                                                                    \
    ((type*)to)[i] = op == 4 ? sum / (type)comm->size : sum;                             \
  }

static void allReduce(Comm* comm, const Op* it) {
  const size_t size = sizeOf(it->dtype), most = kChunk / size;
  const int op = it->op;
  for (size_t at = 0; at < it->count; at += most) {
    const size_t count = it->count - at < most ? it->count - at : most;
    unsigned char* to = (unsigned char*)it->to + at * size;
    memcpy(slotOf(comm, comm->rank), (const unsigned char*)it->from + at * size, count * size);
    barrier(comm);
    if (it->dtype == 7) REDUCE(float)
    if (it->dtype == 8) REDUCE(double)
    if (it->dtype == 2) REDUCE(int32_t)
    barrier(comm);
  }
}

static void move(Comm* comm, const Op* it) {
  const size_t bytes = it->count * sizeOf(it->dtype);
  for (size_t at = 0; at < bytes; at += kChunk) {
    const size_t part = bytes - at < kChunk ? bytes - at : kChunk;
    if (it->kind == kAllGather || it->peer == comm->rank) memcpy(slotOf(comm, comm->rank), (const unsigned char*)it->from + at, part);
    barrier(comm);
    if (it->kind == kBroadcast) memcpy((unsigned char*)it->to + at, slotOf(comm, it->peer), part);
    if (it->kind == kAllGather)
      for (int rank = 0; rank < comm->size; ++rank) memcpy((unsigned char*)it->to + (size_t)rank * bytes + at, slotOf(comm, rank), part);
    barrier(comm);
  }
}

// All sends are written down, then everybody takes what is for it: between two processes in order.
static int exchange(Comm* comm) {
  Shared* shared = comm->shared;
  int next[kMaxRanks] = {0}, result = kSuccess;
  size_t offset = 0;
  shared->entries[comm->rank] = 0;
  for (int i = 0; i < opCount; ++i) {
    if (ops[i].kind != kSend) continue;
    const size_t bytes = ops[i].count * sizeOf(ops[i].dtype);
    if (offset + bytes > kSlot) return failed(kSystemError, "the stand-in has no room for so large a message");
    memcpy(slotOf(comm, comm->rank) + offset, ops[i].from, bytes);
    shared->directory[comm->rank][shared->entries[comm->rank]++] = (Entry){ops[i].peer, bytes, offset};
    offset += bytes;
  }
  barrier(comm);
  for (int i = 0; i < opCount; ++i) {
    if (ops[i].kind != kReceive) continue;
    const int peer = ops[i].peer;
    while (next[peer] < shared->entries[peer] && shared->directory[peer][next[peer]].peer != comm->rank) ++next[peer];
    if (next[peer] == shared->entries[peer]) {
      result = failed(kInvalidUsage, "a message is received that nobody sends");
      break;
    }
    const Entry entry = shared->directory[peer][next[peer]++];
    if (entry.bytes != ops[i].count * sizeOf(ops[i].dtype)) result = failed(kInvalidUsage, "a message is received as another size");
    else memcpy(ops[i].to, slotOf(comm, peer) + entry.offset, entry.bytes);
  }
  barrier(comm);
  return result;
}

static uint64_t hashOfOps(void) {
  uint64_t hash = 1469598103934665603u;
  int exchanges = 0;
  for (int i = 0; i < opCount; ++i) {
    const int between = ops[i].kind >= kSend;
    if (between && exchanges++ > 0) continue;
    const uint64_t words[] = {between ? kSend : ops[i].kind, between ? 0 : ops[i].count, (uint64_t)ops[i].dtype, (uint64_t)ops[i].op,
                              ops[i].kind == kBroadcast ? (uint64_t)ops[i].peer : 0};
    for (size_t w = 0; w < sizeof words / sizeof *words; ++w) hash = (hash ^ words[w]) * 1099511628211u;
  }
  return hash;
}

static int perform(void) {
  Comm* comm = opComm;
  comm->call += 1;
  if (isCall(comm, "NCCL_STANDIN_FAIL")) return failed(kSystemError, "the stand-in was told to fail");
  const int breaks = isCall(comm, "NCCL_STANDIN_BREAK");
  if (breaks) atomic_store(&comm->broken, 1);
  if (breaks || isCall(comm, "NCCL_STANDIN_STALL"))
    for (;;) pause_();
  comm->shared->said[comm->rank] = hashOfOps();
  barrier(comm);
  for (int rank = 0; rank < comm->size; ++rank)
    if (comm->shared->said[rank] != comm->shared->said[comm->rank]) return failed(kInvalidUsage, "not all ranks make the same call");
  barrier(comm);
  int between = 0;
  for (int i = 0; i < opCount; ++i) {
    if (ops[i].kind == kAllReduce) allReduce(comm, &ops[i]);
    else if (ops[i].kind < kSend) move(comm, &ops[i]);
    else between = 1;
  }
  return between ? exchange(comm) : kSuccess;
}

int ncclGroupStart(void) {
  ++depth;
  return kSuccess;
}
int ncclGroupEnd(void) {
  if (--depth > 0 || opCount == 0) return kSuccess;
  const int result = perform();
  opCount = 0;
  return result;
}
static int add(void* comm, Op op) {
  ncclGroupStart();
  opComm = comm;
  ops[opCount++] = op;
  return ncclGroupEnd();
}

int ncclGetVersion(int* version) {
  const char* text = getenv("NCCL_STANDIN_VERSION");
  *version = text == NULL ? 21805 : atoi(text);
  return kSuccess;
}
const char* ncclGetErrorString(int code) {
  return code == kInvalidUsage ? "invalid usage" : code == kRemoteError ? "remote error" : "system error";
}
const char* ncclGetLastError(void* comm) {
  return comm != NULL && atomic_load(&((Comm*)comm)->broken) ? "the cable was pulled" : lastError;
}
int ncclGetUniqueId(Id* id) {
  uint64_t random = 0;
  if (getrandom(&random, sizeof random, 0) != sizeof random) return kSystemError;
  const char* folder = getenv("TMPDIR");
  memset(id, 0, sizeof *id);
  snprintf(id->bytes, sizeof id->bytes, "%s/nccl-%016llx", folder == NULL ? "/tmp" : folder, (unsigned long long)random);
  return kSuccess;
}
int ncclCommInitRank(void** out, int size, Id id, int rank) {
  if (size > kMaxRanks) return failed(kInvalidUsage, "the stand-in is for 16 ranks");
  const size_t bytes = sizeof(Shared) + (size_t)size * kSlot;
  const int file = open(id.bytes, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, (off_t)bytes) != 0) return failed(kSystemError, "no file to share");
  void* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return failed(kSystemError, "no memory to share");
  Comm* comm = calloc(1, sizeof *comm);
  comm->shared = memory;
  comm->slots = (unsigned char*)memory + sizeof(Shared);
  comm->rank = rank;
  comm->size = size;
  const char* stall = getenv("NCCL_STANDIN_STALL");
  int late = -1, call = -1;
  if (stall != NULL && sscanf(stall, "%d:%d", &late, &call) == 2 && call == 0) fprintf(stderr, "opening\n");
  while (call == 0 && late == rank) pause_();
  barrier(comm);
  if (rank == 0) unlink(id.bytes);
  *out = comm;
  return kSuccess;
}
int ncclCommGetAsyncError(void* comm, int* code) {
  *code = atomic_load(&((Comm*)comm)->broken) ? kRemoteError : kSuccess;
  return kSuccess;
}
int ncclCommDestroy(void* comm) {
  barrier(comm);
  return kSuccess;
}
int ncclAllReduce(const void* from, void* to, size_t count, int dtype, int op, void* comm, void* stream) {
  (void)stream;
  return add(comm, (Op){kAllReduce, from, to, count, dtype, op, 0});
}
int ncclAllGather(const void* from, void* to, size_t count, int dtype, void* comm, void* stream) {
  (void)stream;
  return add(comm, (Op){kAllGather, from, to, count, dtype, 0, -1});
}
int ncclBroadcast(const void* from, void* to, size_t count, int dtype, int root, void* comm, void* stream) {
  (void)stream;
  return add(comm, (Op){kBroadcast, from, to, count, dtype, 0, root});
}
#if !defined(WITHOUT_MESSAGES)
int ncclSend(const void* from, size_t count, int dtype, int peer, void* comm, void* stream) {
  (void)stream;
  return add(comm, (Op){kSend, from, NULL, count, dtype, 0, peer});
}
int ncclRecv(void* to, size_t count, int dtype, int peer, void* comm, void* stream) {
  (void)stream;
  return add(comm, (Op){kReceive, NULL, to, count, dtype, 0, peer});
}
#endif
