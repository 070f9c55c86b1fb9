// Rows picked by an index: x [N, Q, C], index [M, P] with M dividing N, so that consecutive N / M blocks of x share a row of the index.
// -1 picks no row.
#include <cstring>

#include "../core/parallel.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

struct Gathering {
  int64_t n, p, q, c, share;
  const int32_t* index;
  Gathering(const Call& call, const Tensor& x, const Tensor& y, const Tensor& index)
      : n(x.dim(0)), p(y.dim(1)), q(x.dim(1)), c(x.dim(2)), share(1), index(index.data<int32_t>()) {
    const int64_t m = index.dim(0);
    REQUIRE(
        n == 0 || (m > 0 && n % m == 0), "SHAPE",
        std::string(call.op) + ": expected index [M,P] with M dividing the blocks of " + describe(x) + " but received " + describe(index));
    if (n > 0) share = n / m;
    for (int64_t i = 0; i < index.size(); ++i) {
      const int32_t at = this->index[i];
      REQUIRE(at >= -1 && at < q, "RANGE",
              std::string(call.op) + ": index " + std::to_string(at) + " is outside of " + std::to_string(q) + " rows");
    }
  }
  // The row that the i-th of a block is picked from, or -1.
  int64_t source(int64_t block, int64_t i) const {
    const int32_t at = index[block / share * p + i];
    return at < 0 ? -1 : block * q + at;
  }
};

}  // namespace

// y[n, p] = x[n, index[n / (N / M), p]], or zeros
void gatherRows(const Call& call) {
  const Tensor &y = call.tensor(args::gatherRows::y), &x = call.tensor(args::gatherRows::x);
  const Gathering g(call, x, y, call.tensor(args::gatherRows::index));
  const size_t bytes = g.c * itemSize(x.dtype);
  auto* to = static_cast<char*>(y.raw());
  const auto* from = static_cast<const char*>(x.raw());
  parallelRange(g.n * g.p, std::max<int64_t>(1, (1 << 15) / static_cast<int64_t>(bytes + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t row = g.source(r / g.p, r % g.p);
      if (row < 0)
        std::memset(to + r * bytes, 0, bytes);
      else
        std::memcpy(to + r * bytes, from + row * bytes, bytes);
    }
  });
}

// dx[n, q] = the sum, in their order, of the dy[n, p] that were gathered from it
void gatherRowsBackward(const Call& call) {
  const Tensor &dx = call.tensor(args::gatherRowsBackward::dx), &dy = call.tensor(args::gatherRowsBackward::dy);
  const Gathering g(call, dx, dy, call.tensor(args::gatherRowsBackward::index));
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int64_t kColumns = 256;
    const int64_t strips = (g.c + kColumns - 1) / kColumns;
    parallelFor(g.n * strips, [&](int64_t unit) {
      const int64_t block = unit / strips, first = unit % strips * kColumns, width = std::min(kColumns, g.c - first);
      for (int64_t q = 0; q < g.q; ++q) std::fill_n(dx.data<T>() + (block * g.q + q) * g.c + first, width, T{0});
      for (int64_t p = 0; p < g.p; ++p) {
        const int64_t row = g.source(block, p);
        if (row < 0) continue;
        T* __restrict to = dx.data<T>() + row * g.c + first;
        const T* from = dy.data<T>() + (block * g.p + p) * g.c + first;
        for (int64_t c = 0; c < width; ++c) to[c] += from[c];
      }
    });
  });
}

}  // namespace densecl::cpu
