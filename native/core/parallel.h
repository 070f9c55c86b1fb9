// The thread pool of the CPU device. Work is split into units whose results do not depend on which thread runs them, so
// every op gives the same bits with any number of threads.
#pragma once
#include <cstdint>
#include <functional>

namespace densecl {

// Threads that parallelFor may use when called from this thread; 1 runs inline (data workers do that).
void setThreads(int count);
int threads();

// Calls body(unit) for 0 <= unit < units. The first exception is rethrown on the caller.
void parallelFor(int64_t units, const std::function<void(int64_t)>& body);

// Calls body(begin, end) for chunks of [0, count), each at least `grain` long.
void parallelRange(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace densecl
