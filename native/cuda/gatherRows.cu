// Rows picked by an index; native/cpu/gatherRows.cpp has the definition. Backward looks for the rows that were gathered from each one and
// adds them in their order: no atomic additions, whose order would change the last bits.
// The index is read once for each row of x.
#include "kernel/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

struct Gathering {
  const int32_t* index;
  int64_t p, q, share;  // blocks that share a row of the index
  Report* report;
  Gathering(const Call& call, const Tensor& x, const Tensor& y, const Tensor& index)
      : index(index.data<int32_t>()), p(y.dim(1)), q(x.dim(1)), share(1), report(reportOf(call)) {
    const int64_t n = x.dim(0), m = index.dim(0);
    REQUIRE(
        n == 0 || (m > 0 && n % m == 0), "SHAPE",
        std::string(call.op) + ": expected index [M,P] with M dividing the blocks of " + describe(x) + " but received " + describe(index));
    if (n > 0) share = n / m;
  }
  // index[block, i]: a row, or -1 for none, which also stands for one out of range.
  DEVICE int at(int64_t block, int64_t i) const {
    const int found = index[block / share * p + i];
    if (found >= -1 && found < q) return found;
    fileReport(report, kGatherIndex, found, static_cast<int>(q));
    return -1;
  }
};

// Rows of `width` words.
template <class Word>
__global__ void __launch_bounds__(kThreads) gatherKernel(Word* y, const Word* x, Gathering g, int64_t width, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / width, block = row / g.p;
    const int from = g.at(block, row % g.p);
    y[i] = from < 0 ? Word{} : x[(block * g.q + from) * width + i % width];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) gatherBackwardKernel(T* dx, const T* dy, Gathering g, int64_t width, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / width, block = row / g.q;
    float sum = 0;
    for (int64_t k = 0; k < g.p; ++k)
      if (g.at(block, k) == row % g.q) sum += static_cast<float>(dy[(block * g.p + k) * width + i % width]);
    dx[i] = T(sum);
  }
}

}  // namespace

void gatherRows(const Call& call) {
  const Tensor &y = call.tensor(args::gatherRows::y), &x = call.tensor(args::gatherRows::x);
  const Gathering g(call, x, y, call.tensor(args::gatherRows::index));
  const int64_t bytes = y.dim(2) * static_cast<int64_t>(itemSize(y.dtype));
  const auto run = [&](auto word) {
    using Word = decltype(word);
    const int64_t width = bytes / static_cast<int64_t>(sizeof(Word)), count = y.dim(0) * y.dim(1) * width;
    launch(call, gatherKernel<Word>, loopGrid(call, count, kThreads), kThreads, 0, y.data<Word>(), x.data<Word>(), g, width, count);
  };
  if (bytes % 16 == 0) return run(Vector<uint32_t>{});
  if (bytes % 4 == 0) return run(uint32_t{});
  if (bytes % 2 == 0) return run(uint16_t{});
  run(uint8_t{});
}

void gatherRowsBackward(const Call& call) {
  const Tensor &dx = call.tensor(args::gatherRowsBackward::dx), &dy = call.tensor(args::gatherRowsBackward::dy);
  const Gathering g(call, dx, dy, call.tensor(args::gatherRowsBackward::index));
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, gatherBackwardKernel<T>, loopGrid(call, dx.size(), kThreads), kThreads, 0, dx.data<T>(), dy.data<T>(), g, dx.dim(2),
           dx.size());
  });
}

}  // namespace densecl::cuda
