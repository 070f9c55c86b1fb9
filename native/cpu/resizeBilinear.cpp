// Bilinear resize of x [N, H, W, C] to y [N, OH, OW, C] without antialiasing, with either corner rule:
//   align corners: source = i * (in - 1) / (out - 1); otherwise source = max(0, (i + 0.5) * in / out - 0.5)
#include <algorithm>
#include <vector>

#include "../core/parallel.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

struct Sample {
  int64_t low, high;
  double weight;  // of high
};

std::vector<Sample> samples(int64_t in, int64_t out, bool alignCorners) {
  std::vector<Sample> result(out);
  for (int64_t i = 0; i < out; ++i) {
    const double scale = alignCorners ? (out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0)
                                      : static_cast<double>(in) / static_cast<double>(out);
    const double at = alignCorners ? i * scale : std::max(0.0, (i + 0.5) * scale - 0.5);
    const int64_t low = std::min(static_cast<int64_t>(at), in - 1);
    result[i] = {low, std::min(low + 1, in - 1), at - static_cast<double>(low)};
  }
  return result;
}

// body(image, output pixel, the four corners' flat pixels and weights)
template <class F>
void forEach(const Tensor& small, const Tensor& large, bool alignCorners, int64_t image, F body) {
  const auto ys = samples(small.dim(1), large.dim(1), alignCorners), xs = samples(small.dim(2), large.dim(2), alignCorners);
  const int64_t base = image * small.dim(1), width = small.dim(2);
  for (int64_t i = 0; i < large.dim(1); ++i)
    for (int64_t j = 0; j < large.dim(2); ++j) {
      const Sample &y = ys[i], &x = xs[j];
      const int64_t at[4] = {(base + y.low) * width + x.low, (base + y.low) * width + x.high, (base + y.high) * width + x.low,
                             (base + y.high) * width + x.high};
      const double weight[4] = {(1 - y.weight) * (1 - x.weight), (1 - y.weight) * x.weight, y.weight * (1 - x.weight), y.weight * x.weight};
      body((image * large.dim(1) + i) * large.dim(2) + j, at, weight);
    }
}

}  // namespace

void resizeBilinear(const Call& call) {
  const Tensor &y = call.tensor(args::resizeBilinear::y), &x = call.tensor(args::resizeBilinear::x);
  const int64_t C = x.dim(3);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelFor(x.dim(0), [&](int64_t image) {
      forEach(x, y, call.flag(args::resizeBilinear::alignCorners), image, [&](int64_t o, const int64_t* at, const double* weight) {
        for (int64_t c = 0; c < C; ++c) {
          T sum{0};
          for (int k = 0; k < 4; ++k) sum += static_cast<T>(weight[k]) * x.data<T>()[at[k] * C + c];
          y.data<T>()[o * C + c] = sum;
        }
      });
    });
  });
}

void resizeBilinearBackward(const Call& call) {
  const Tensor &dx = call.tensor(args::resizeBilinearBackward::dx), &dy = call.tensor(args::resizeBilinearBackward::dy);
  const int64_t C = dx.dim(3);
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelFor(dx.dim(0), [&](int64_t image) {
      const int64_t size = dx.size() / dx.dim(0);
      std::fill_n(dx.data<T>() + image * size, size, T{0});
      forEach(dx, dy, call.flag(args::resizeBilinearBackward::alignCorners), image,
              [&](int64_t o, const int64_t* at, const double* weight) {
                for (int k = 0; k < 4; ++k)
                  for (int64_t c = 0; c < C; ++c) dx.data<T>()[at[k] * C + c] += static_cast<T>(weight[k]) * dy.data<T>()[o * C + c];
              });
    });
  });
}

}  // namespace densecl::cpu
