// What a launcher needs, on both platforms that run the .cu files: launch(), scratch memory, the size of the machine.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "kernel/vector.cuh"
#include "kernelDevice.h"

namespace densecl::cuda {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

// Of a block, where nothing else asks for another number.
constexpr int kThreads = 256;

inline int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Streaming multiprocessors of the device, by which work is split. Results may depend on it, and on nothing else of the chip.
int multiprocessors(const Call& call);

// Compute capability times 10.
int capability(const Call& call);

// Whether a launcher may take the kernels of a family.
bool usable(const Call& call, Family family);

// A kernel reports a bad value (an index out of range) here; the next transfer to the host throws it.
struct Report {
  int code;  // 0: nothing yet
  int value, bound;
};
enum ReportCode { kGatherIndex = 1, kTarget = 2, kQueuePointer = 3, kBlurRadius = 4, kBoxImage = 5 };
Report* reportOf(const Call& call);
void throwReport(const Report& report);

DEVICE void fileReport(Report* report, int code, int value, int bound) {
  if (!claim(&report->code, code)) return;
  report->value = value;
  report->bound = bound;
}

// Counters of blocks that have arrived (lastToArrive): all are 0 between two launches.
constexpr int64_t kArrivals = 1 << 16;
int* arrivalsOf(const Call& call);

// Scratch memory of an op. It is free again for the next op on return: work on a device runs in the order it was given.
template <class T>
class DeviceScratch {
 public:
  DeviceScratch(const Call& call, int64_t count) : storage_(call.device(), static_cast<size_t>(count) * sizeof(T)) {}
  T* data() const { return static_cast<T*>(storage_.block); }

 private:
  Storage storage_;
};

#if defined(__CUDACC__)
void prepareLaunch(const Call& call, const void* kernel, size_t shared);
cudaStream_t streamOf(const Call& call);
void checkLaunch(const Call& call);
#else
// Runs a launch, or records it.
void submit(simt::Launch launch);
#endif

// kernel<<<grid, threads, shared>>>(args...) on the stream of the op's device.
template <class... P, class... A>
void launch([[maybe_unused]] const Call& call, void (*kernel)(P...), Grid grid, int threads, size_t shared, A... args) {
  if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return;
  REQUIRE(grid.x < (int64_t{1} << 31) && grid.y < 65536 && grid.z < 65536, "SHAPE",
          std::string(call.op) + ": the tensors are too large for one launch");
#if defined(__CUDACC__)
  prepareLaunch(call, reinterpret_cast<const void*>(kernel), shared);
  kernel<<<dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)), threads, shared,
           streamOf(call)>>>(static_cast<P>(args)...);
  checkLaunch(call);
#else
  submit({call.op,
          {static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)},
          static_cast<unsigned>(threads),
          shared,
          [=] { kernel(static_cast<P>(args)...); }});
#endif
}

// Calls body(T{}) with the C++ type of a dtype that kernels compute with.
template <class F>
void dispatchFloat(const Call& call, DType dtype, F body) {
  if (dtype == DType::f32) return body(float{});
  if (dtype == DType::bf16) return body(bf16{});
  throw Error("DTYPE", std::string(call.op) + ": expected f32 or bf16 on " + call.device().name + " but received " + dtypeName(dtype));
}

// dispatchFloat, with the width of accesses along the last axis: vectors where it is a multiple of them, else single elements.
template <class F>
void dispatchWidth(const Call& call, const Tensor& x, F body) {
  dispatchFloat(call, x.dtype, [&](auto zero) {
    constexpr int kVector = Vector<decltype(zero)>::kLength;
    if (x.columns() % kVector == 0)
      body(zero, std::integral_constant<int, kVector>{});
    else
      body(zero, std::integral_constant<int, 1>{});
  });
}

// The grid of a kernel that loops over `units`: enough blocks to hide latency, not one for every unit.
inline Grid loopGrid(const Call& call, int64_t units, int threads) {
  return {std::min(ceilDiv(units, threads), int64_t{16} * multiprocessors(call))};
}

// The elements of a tensor that may be absent.
template <class T>
T* optionalData(const Tensor* tensor) {
  return tensor == nullptr ? nullptr : tensor->data<T>();
}

}  // namespace densecl::cuda
