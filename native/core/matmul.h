// What a batched product of matrices is on every device: y[i] = a[i] b[i], of which each may be transposed in memory, with the batches of
// a and b broadcast to those of y.
#pragma once
#include "broadcast.h"
#include "call.h"

namespace densecl {

struct Matmul {
  int64_t m, n, k;
  // Elements from a row to the next and, along the depth k, from an element to the next: rows of b are columns of the product.
  int64_t rowA, depthA, rowB, depthB;
  int64_t batchesB;        // distinct matrices of b
  StridedLoop<2> batches;  // offsets in matrices

  explicit Matmul(const Call& call) {
    using args::matmul;
    const Tensor &y = call.tensor(matmul::y), &a = call.tensor(matmul::a), &b = call.tensor(matmul::b);
    const bool transposeA = call.flag(matmul::transposeA), transposeB = call.flag(matmul::transposeB);
    const auto size = [](const Tensor& x, size_t fromEnd) { return x.shape[x.shape.size() - fromEnd]; };
    m = size(y, 2);
    n = size(y, 1);
    k = size(a, transposeA ? 2 : 1);
    REQUIRE(size(a, transposeA ? 1 : 2) == m && size(b, transposeB ? 1 : 2) == k && size(b, transposeB ? 2 : 1) == n, "SHAPE",
            "matmul: expected matrices whose product is y " + describe(y) + " but received a " + describe(a) + " and b " + describe(b));
    rowA = transposeA ? 1 : k;
    depthA = transposeA ? m : 1;
    rowB = transposeB ? k : 1;
    depthB = transposeB ? 1 : n;
    const auto leading = [](const Tensor& x) { return std::vector<int64_t>(x.shape.begin(), x.shape.end() - 2); };
    const std::vector<int64_t> all = leading(y), ofA = leading(a), ofB = leading(b);
    batches = stridedLoop<2>(call.op, all, {&ofA, &ofB});
    batchesB = 1;
    for (int64_t d : ofB) batchesB *= d;
    // Rows of all matrices of a are rows of one where they meet the same b.
    if (batchesB == 1 && !transposeA && batches.rank == 1 && batches.stride[0][0] == 1) {
      m *= batches.count;
      const std::vector<int64_t> none;
      batches = stridedLoop<2>(call.op, none, {&none, &none});
    }
  }
};

}  // namespace densecl
