// Batched products of matrices on the tile of gemm_tile.h.
#include "../core/matmul.h"

#include "broadcast.h"
#include "gemm.h"
#include "ops.h"
#include "widen.h"

namespace densecl::cpu {
namespace {

// A unit is a block of rows of one product and a group of its panels; each element is one sum along the depth, whatever the units are.

// T is what is multiplied, S what y is stored as.
template <class T, class S>
void multiply(const Matmul& job, S* y, const T* a, const T* b) {
  if (job.k == 0) std::fill_n(y, job.batches.count * job.m * job.n, S{0});
  if (job.k == 0 || job.batches.count * job.m * job.n == 0) return;
  const TileKernel<T, S>& kernel = tileKernel<T, S>(job.n);
  const int64_t width = kernel.columns, panels = ceilDiv(job.n, width);
  const int64_t depth = ceilDiv(ceilDiv(job.k, kWordValues<T>), kernel.depth) * kernel.depth, panelSize = depth * width;
  Scratch<Word<T>> packed(job.batchesB * panels * panelSize);
  parallelFor(job.batchesB * panels, [&](int64_t unit) {
    const int64_t first = unit % panels * width, valid = std::min(width, job.n - first);
    const T* in = b + unit / panels * job.k * job.n + first * job.rowB;
    Word<T>* out = packed.data() + unit * panelSize;
    for (int64_t k = 0; k < job.k; k += kWordValues<T>, in += kWordValues<T> * job.depthB, out += width) {
      for (int64_t j = 0; j < valid; ++j) out[j] = wordOf(in[j * job.rowB], k + 1 < job.k ? in[j * job.rowB + job.depthB] : T{0});
      for (int64_t j = valid; j < width; ++j) out[j] = 0;
    }
    std::fill(out, packed.data() + (unit + 1) * panelSize, Word<T>{0});
  });

  std::vector<int64_t> matrixA(job.batches.count), matrixB(job.batches.count);
  forStretches(job.batches, 0, job.batches.count, [&](int64_t first, const int64_t* offsets, int64_t length) {
    const int64_t* step = job.batches.stride[job.batches.rank - 1];
    for (int64_t i = 0; i < length; ++i) {
      matrixA[first + i] = offsets[0] + i * step[0];
      matrixB[first + i] = offsets[1] + i * step[1];
    }
  });
  const int64_t blockRows = std::max(48, 3 * kernel.rows), blocks = ceilDiv(job.m, blockRows);
  const int64_t groups = std::clamp<int64_t>(ceilDiv(4 * threads(), job.batches.count * blocks), 1, panels);
  parallelFor(job.batches.count * blocks * groups, [&](int64_t unit) {
    const int64_t group = unit % groups, first = unit / groups % blocks * blockRows, batch = unit / groups / blocks;
    const int64_t rows = std::min(blockRows, job.m - first);
    const TileRegisters registers(kernel);
    const T* matrix = a + matrixA[batch] * job.m * job.k + first * job.rowA;
    const T* in[kTableRows];
    S* out[kTableRows];
    // Rows that lie across memory, end before a panel's depth, or are fewer than those that a kernel wants evenly spaced are copied.
    const int64_t length = depth * kWordValues<T>;
    const bool whole = job.depthA == 1 && job.k == length && rows % kernel.spaced == 0;
    std::vector<T> gathered(whole ? 0 : ceilDiv(rows, kernel.spaced) * kernel.spaced * length);
    if (!whole)
      for (int64_t k = 0; k < job.k; ++k)
        for (int64_t i = 0; i < rows; ++i) gathered[i * length + k] = matrix[k * job.depthA + i * job.rowA];
    const int64_t last = ceilDiv(rows, kernel.spaced) * kernel.spaced - 1;
    for (int64_t i = 0; i < ceilDiv(rows, kernel.rows) * kernel.rows; ++i) {
      const int64_t row = std::min(i, last);
      in[i] = whole ? matrix + row * job.rowA : gathered.data() + row * length;
    }
    for (int64_t i = 0; i < rows; ++i) out[i] = y + (batch * job.m + first + i) * job.n;
    const int32_t tap = 0;
    const int64_t lastPanel = panels * (group + 1) / groups;
    for (int64_t p = panels * group / groups; p < lastPanel; ++p) {
      const Word<T>* panel = packed.data() + (matrixB[batch] * panels + p) * panelSize;
      TileCall<T, S> call{in, 0, 1, 1, &tap, depth, panel, out, rows, static_cast<int>(std::min(width, job.n - p * width)), nullptr, false};
      call.outShift = p * width;
      kernel.run(call);
    }
  });
}

}  // namespace

void matmul(const Call& call) {
  using args::matmul;
  const Matmul job(call);
  const Tensor& y = call.tensor(matmul::y);
  dispatchStored(call, y.dtype, [&](auto zero) {
    using S = decltype(zero);
    multipliedAs<S>([&](auto factor) {
      using T = decltype(factor);
      const Tensor &a = call.tensor(matmul::a), &b = call.tensor(matmul::b);
      multiply<T, S>(job, y.data<S>(), As<T, S>(a.data<S>(), a.size()).data(), As<T, S>(b.data<S>(), b.size()).data());
    });
  });
}

}  // namespace densecl::cpu
