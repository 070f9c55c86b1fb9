// Reductions along any set of axes: sums, of which means are multiples, and maxima. Where one launch would leave the GPU empty, parts of
// each output are made first and joined by a second. The order is fixed.
#include <type_traits>

#include "../core/broadcast.h"
#include "kernel/platform.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

struct Sum {
  static DEVICE float start() { return 0; }
  static DEVICE float join(float a, float b) { return a + b; }
};
// NaN wins.
struct Maximum {
  static DEVICE float start() { return -INFINITY; }
  static DEVICE float join(float a, float b) { return a > b || a != a ? a : b; }
};

// Dimensions that are counted through together, without the innermost.
struct Axes {
  int rank = 0;
  int64_t count = 1, size[kMaxLoopRank], stride[kMaxLoopRank];
  void add(int64_t length, int64_t step) {
    size[rank] = length;
    stride[rank++] = step;
    count *= length;
  }
  DEVICE int64_t offset(int64_t index) const {
    int64_t offset = 0;
    for (int axis = rank - 1; axis > 0; --axis) {
      offset += index % size[axis] * stride[axis];
      index /= size[axis];
    }
    return rank == 0 ? 0 : offset + index * stride[0];
  }
};

template <class From, class Out>
struct ReduceJob {
  Out* y;
  const From* x;
  Axes kept, reduced;
  int64_t inner;  // length of the innermost dimension
  float scale;
};

// The range of part `part` of `parts` of `count`.
DEVICE int64_t partStart(int64_t count, int64_t part, int64_t parts) { return count * part / parts; }

// The innermost dimension is reduced: a warp, or a block of kThreads, takes a part of an output. y [outputs, parts]
template <class F, class From, class Out>
__global__ void __launch_bounds__(kThreads) linesKernel(ReduceJob<From, Out> job, int64_t units, int64_t parts, bool byWarp) {
  const int64_t unit = byWarp ? static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warpIndex() : blockIdx.x;
  const int lanes = byWarp ? kWarp : kThreads, lane = byWarp ? laneIndex() : static_cast<int>(threadIdx.x);
  float value = F::start();
  if (unit < units) {
    const int64_t length = job.reduced.count * job.inner, part = unit % parts;
    const From* x = job.x + job.kept.offset(unit / parts);
    const int64_t end = partStart(length, part + 1, parts);
    for (int64_t i = partStart(length, part, parts) + lane; i < end; i += lanes)
      value = F::join(value, static_cast<float>(job.reduced.rank == 0 ? x[i] : x[job.reduced.offset(i / job.inner) + i % job.inner]));
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = F::join(value, shuffleXor(value, mask));
  if (!byWarp) {
    float* buffer = &sharedMemory<float>();
    if (laneIndex() == 0) buffer[warpIndex()] = value;
    __syncthreads();
    value = buffer[0];
    for (int w = 1; w < kThreads / kWarp; ++w) value = F::join(value, buffer[w]);
  }
  if (lane == 0 && unit < units) job.y[unit] = Out(value * job.scale);
}

// The innermost dimension is kept: a thread takes a part of an output, its neighbours those beside it. y [parts, outputs]
template <class F, class From, class Out>
__global__ void __launch_bounds__(kThreads) rowsKernel(ReduceJob<From, Out> job, int64_t outputs) {
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, part = blockIdx.y, parts = gridDim.y;
  if (output >= outputs) return;
  const From* x = job.x + job.kept.offset(output / job.inner) + output % job.inner;
  float value = F::start();
  const int64_t end = partStart(job.reduced.count, part + 1, parts);
#pragma unroll 4
  for (int64_t r = partStart(job.reduced.count, part, parts); r < end; ++r)
    value = F::join(value, static_cast<float>(x[job.reduced.offset(r)]));
  job.y[part * outputs + output] = Out(value * job.scale);
}

template <class F, class From, class Out>
void launchLines(const Call& call, const ReduceJob<From, Out>& job, int64_t parts) {
  const int64_t units = job.kept.count * parts;
  const bool byWarp = job.reduced.count * job.inner / parts <= 1024;
  launch(call, linesKernel<F, From, Out>, Grid{byWarp ? ceilDiv(units, kThreads / kWarp) : units}, kThreads,
         kThreads / kWarp * sizeof(float), job, units, parts, byWarp);
}

template <class F, class From, class Out>
void launchRows(const Call& call, const ReduceJob<From, Out>& job, int64_t parts) {
  const int64_t outputs = job.kept.count * job.inner;
  launch(call, rowsKernel<F, From, Out>, Grid{ceilDiv(outputs, kThreads), parts}, kThreads, 0, job, outputs);
}

template <class F, class From, class Out>
void launchReduce(const Call& call, const Tensor& y, const Tensor& x, float scale) {
  const auto loop = stridedLoop<2>(call.op, x.shape, {&x.shape, &y.shape});
  ReduceJob<From, Out> job{y.data<Out>(), x.data<From>(), {}, {}, loop.inner(), scale};
  for (int axis = 0; axis + 1 < loop.rank; ++axis)
    (loop.stride[axis][1] == 0 ? job.reduced : job.kept).add(loop.size[axis], loop.stride[axis][0]);
  const int64_t outputs = y.size(), fill = int64_t{8} * multiprocessors(call);
  if (outputs == 0) return;
  ReduceJob<From, float> first{nullptr, job.x, job.kept, job.reduced, job.inner, 1};
  if (loop.stride[loop.rank - 1][1] == 0) {
    const int64_t length = job.reduced.count * job.inner;
    const int64_t parts = std::max<int64_t>(1, std::min(ceilDiv(fill, outputs), length / 4096));
    if (parts == 1) return launchLines<F>(call, job, 1);
    DeviceScratch<float> values(call, outputs * parts);
    first.y = values.data();
    launchLines<F>(call, first, parts);
    ReduceJob<float, Out> second{job.y, values.data(), {}, {}, parts, scale};
    second.kept.add(outputs, parts);
    return launchLines<F>(call, second, 1);
  }
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>({ceilDiv(fill * kThreads, outputs), job.reduced.count / 64, 1024}));
  if (parts == 1) return launchRows<F>(call, job, 1);
  DeviceScratch<float> values(call, outputs * parts);
  first.y = values.data();
  launchRows<F>(call, first, parts);
  ReduceJob<float, Out> second{job.y, values.data(), {}, {}, outputs, scale};
  second.reduced.add(parts, outputs);
  launchRows<F>(call, second, 1);
}

}  // namespace

void reduce(const Call& call) {
  using args::reduce;
  const Tensor &y = call.tensor(reduce::y), &x = call.tensor(reduce::x);
  const float scale = static_cast<float>(call.number(reduce::scale));
  REQUIRE(y.dtype == x.dtype || y.dtype == DType::f32, "DTYPE",
          std::string("reduce: expected y of dtype ") + dtypeName(x.dtype) + " or f32 but received " + describe(y));
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto out) {
      if (call.flag(reduce::maximum))
        launchReduce<Maximum, T, decltype(out)>(call, y, x, scale);
      else
        launchReduce<Sum, T, decltype(out)>(call, y, x, scale);
    };
    if (y.dtype == DType::f32)
      run(float{});
    else
      run(T{});
  });
}

}  // namespace densecl::cuda
