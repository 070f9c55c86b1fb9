// L2 normalisation and dense matching.
#include <cmath>

#include "gemm.h"
#include "ops.h"

namespace densecl::cpu {

// y = x / max(|x|, eps) per row
void l2Normalize(const Call& call) {
  using Names = args::l2Normalize;
  const Tensor &y = call.tensor(Names::y), &norm = call.tensor(Names::norm), &x = call.tensor(Names::x);
  const int64_t C = x.columns();
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelRange(x.rows(), 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* in = x.data<T>() + r * C;
        double square = 0;
        for (int64_t c = 0; c < C; ++c) square += static_cast<double>(in[c]) * in[c];
        const T length = static_cast<T>(std::max(std::sqrt(square), call.number(Names::eps)));
        norm.data<T>()[r] = length;
        for (int64_t c = 0; c < C; ++c) y.data<T>()[r * C + c] = in[c] / length;
      }
    });
  });
}

// dx = (dy - y (y . dy)) / norm, and dy / eps where the norm was clamped
void l2NormalizeBackward(const Call& call) {
  using Names = args::l2NormalizeBackward;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy), &y = call.tensor(Names::y), &norm = call.tensor(Names::norm);
  const int64_t C = dx.columns();
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelRange(dx.rows(), 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T *g = dy.data<T>() + r * C, *unit = y.data<T>() + r * C, length = norm.data<T>()[r];
        double dot = 0;
        if (length > static_cast<T>(call.number(Names::eps)))
          for (int64_t c = 0; c < C; ++c) dot += static_cast<double>(g[c]) * unit[c];
        for (int64_t c = 0; c < C; ++c) dx.data<T>()[r * C + c] = (g[c] - unit[c] * static_cast<T>(dot)) / length;
      }
    });
  });
}

// index[n, i] = argmax over j of query[n, i] . key[n, j] (divided by |key| when cosine; |query| does not change the
// argmax but is applied to `similarity`); the lowest index wins a tie. The (P, Q) matrix exists for one image at a time.
void denseMatch(const Call& call) {
  using Names = args::denseMatch;
  const Tensor &index = call.tensor(Names::index), *similarity = call.optional(Names::similarity), &query = call.tensor(Names::query),
               &key = call.tensor(Names::key);
  const bool cosine = call.flag(Names::cosine);
  const int64_t N = query.dim(0), P = query.dim(1), Q = key.dim(1), C = query.dim(2);
  dispatchFloat(call, query.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto length = [&](const T* row) {
      double square = 0;
      for (int64_t c = 0; c < C; ++c) square += static_cast<double>(row[c]) * row[c];
      return std::max(std::sqrt(square), 1e-12);
    };
    parallelFor(N, [&](int64_t n) {
      const T *q = query.data<T>() + n * P * C, *k = key.data<T>() + n * Q * C;
      std::vector<T> inverse(Q, T{1});
      if (cosine)
        for (int64_t j = 0; j < Q; ++j) inverse[j] = static_cast<T>(1 / length(k + j * C));
      Panels<T> panels(1, C, Q);
      for (int64_t p = 0; p < panels.count; ++p)
        for (int64_t c = 0; c < C; ++c)
          for (int64_t j = 0; j < panels.width; ++j) {
            const int64_t at = p * panels.width + j;
            panels.panel(p)[c * panels.width + j] = at < Q ? k[at * C + c] * inverse[at] : T{0};
          }
      const TileKernel<T>& kernel = panels.kernel;
      Scratch<T> products(kMaxTileRows * Q);
      const int32_t tap = 0;
      for (int64_t i = 0; i < P; i += kernel.rows) {
        const int valid = static_cast<int>(std::min<int64_t>(kernel.rows, P - i));
        const T* rows[kMaxTileRows];
        T* out[kMaxTileRows];
        for (int r = 0; r < kernel.rows; ++r) rows[r] = q + std::min(P - 1, i + r) * C;
        for (int64_t p = 0; p < panels.count; ++p) {
          for (int r = 0; r < valid; ++r) out[r] = products.data() + r * Q + p * panels.width;
          kernel.run({rows, 0, 1, 1, &tap, C, panels.panel(p), out, valid, static_cast<int>(std::min(panels.width, Q - p * panels.width)),
                      nullptr, false});
        }
        for (int r = 0; r < valid; ++r) {
          const T* row = products.data() + r * Q;
          int64_t best = 0;
          for (int64_t j = 1; j < Q; ++j)
            if (row[j] > row[best]) best = j;
          index.data<int32_t>()[n * P + i + r] = static_cast<int32_t>(best);
          if (similarity != nullptr)
            similarity->data<T>()[n * P + i + r] = cosine ? static_cast<T>(row[best] / length(q + (i + r) * C)) : row[best];
        }
      }
    });
  });
}

}  // namespace densecl::cpu
