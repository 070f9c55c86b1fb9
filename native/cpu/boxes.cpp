// Overlaps of boxes [x1, y1, x2, y2], and boxes as differences from others (R. Girshick et al., arXiv:1311.2524). In double throughout.
#include "boxes.h"

#include <algorithm>
#include <cmath>

#include "../core/parallel.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

template <class T>
struct Overlaps {
  T* out;
  const BoxColumns* all;
  BoxRow box;
  int64_t begin, end;
};
template <class T>
INLINE void overlapsLoop(const Overlaps<T>& job) {
  const double *x1 = job.all->x1.data(), *y1 = job.all->y1.data(), *x2 = job.all->x2.data(), *y2 = job.all->y2.data(),
               *area = job.all->area.data();
  const BoxRow box = job.box;
  T* __restrict out = job.out;
  for (int64_t j = job.begin; j < job.end; ++j) out[j] = static_cast<T>(overlap(box, x1[j], y1[j], x2[j], y2[j], area[j]));
}
SIMD_LOOP(overlaps, Overlaps)

constexpr int64_t kGrain = 4096;

struct Coding {
  double weights[4];
  template <class Names>
  Coding(const Call& call, Names)
      : weights{call.number(Names::weightX), call.number(Names::weightY), call.number(Names::weightW), call.number(Names::weightH)} {}
};

}  // namespace

// y[i, j] = intersection / union of a[i] and b[j], 0 where they do not meet
void boxIou(const Call& call) {
  using Names = args::boxIou;
  const Tensor &y = call.tensor(Names::y), &a = call.tensor(Names::a), &b = call.tensor(Names::b);
  const int64_t n = b.dim(0), chunks = (n + kGrain - 1) / kGrain;
  dispatchFloat(call, y.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto inOrder = [](int64_t i) { return i; };
    const BoxColumns rows(a.data<T>(), a.dim(0), inOrder), columns(b.data<T>(), n, inOrder);
    parallelFor(a.dim(0) * chunks, [&](int64_t unit) {
      const int64_t i = unit / chunks, first = unit % chunks * kGrain;
      overlaps(Overlaps<T>{y.data<T>() + i * n, &columns, BoxRow(rows, i), first, std::min(n, first + kGrain)});
    });
  });
}

// With centres and sizes (px, py, pw, ph) of a box and (gx, gy, gw, gh) of its target:
//   y = wx (gx - px) / pw, wy (gy - py) / ph, ww log(gw / pw), wh log(gh / ph)
void encodeBoxes(const Call& call) {
  using Names = args::encodeBoxes;
  const Tensor &y = call.tensor(Names::y), &boxes = call.tensor(Names::boxes), &targets = call.tensor(Names::targets);
  const Coding coding(call, Names{});
  dispatchFloat(call, y.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelRange(boxes.dim(0), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T *box = boxes.data<T>() + r * 4, *target = targets.data<T>() + r * 4;
        for (int k = 0; k < 2; ++k) {
          const double low = box[k], size = box[k + 2] - low, targetLow = target[k], targetSize = target[k + 2] - targetLow;
          y.data<T>()[r * 4 + k] = static_cast<T>(coding.weights[k] * (targetLow + targetSize / 2 - (low + size / 2)) / size);
          y.data<T>()[r * 4 + k + 2] = static_cast<T>(coding.weights[k + 2] * std::log(targetSize / size));
        }
      }
    });
  });
}

// The inverse, for K differences from each box; logarithms of sizes are at most `bound`, and at least -bound with `bothSides`.
void decodeBoxes(const Call& call) {
  using Names = args::decodeBoxes;
  const Tensor &y = call.tensor(Names::y), &deltas = call.tensor(Names::deltas), &boxes = call.tensor(Names::boxes);
  const Coding coding(call, Names{});
  const double bound = call.number(Names::bound);
  const bool bothSides = call.flag(Names::bothSides);
  const int64_t K = deltas.dim(1);
  dispatchFloat(call, y.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelRange(deltas.dim(0) * K, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T *box = boxes.data<T>() + r / K * 4, *delta = deltas.data<T>() + r * 4;
        for (int k = 0; k < 2; ++k) {
          const double low = box[k], size = box[k + 2] - low;
          double growth = delta[k + 2] / coding.weights[k + 2];
          growth = growth > bound ? bound : bothSides && growth < -bound ? -bound : growth;
          const double centre = delta[k] / coding.weights[k] * size + low + size / 2, half = std::exp(growth) * size / 2;
          y.data<T>()[r * 4 + k] = static_cast<T>(centre - half);
          y.data<T>()[r * 4 + k + 2] = static_cast<T>(centre + half);
        }
      }
    });
  });
}

}  // namespace densecl::cpu
